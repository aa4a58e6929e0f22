"""TUF repository, device-side verification, membership. The only place where Verified values are made."""
