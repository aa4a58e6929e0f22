"""iroh endpoints, authenticated links, the relay server, tunnels."""
