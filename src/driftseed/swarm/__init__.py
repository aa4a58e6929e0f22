"""BitTorrent v2 through a libtorrent child process, and the content store."""
