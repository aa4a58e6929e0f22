"""What every member of a fleet does: links, gossip, metadata, content."""
