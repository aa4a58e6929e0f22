"""The publicly reachable member of a fleet."""
