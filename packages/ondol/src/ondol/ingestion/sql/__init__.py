"""SQL databases as sources, read in one read-only transaction through SQLAlchemy; see `source`."""
