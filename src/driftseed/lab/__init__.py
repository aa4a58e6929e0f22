"""The laboratory: real agents and hubs behind real NATs, in network namespaces of one machine."""
