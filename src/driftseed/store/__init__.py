"""SQLite journal and atomic files."""
