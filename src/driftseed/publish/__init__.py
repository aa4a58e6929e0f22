"""The operators' and the build system's side: releases, deployments, publishing."""
