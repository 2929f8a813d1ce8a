"""Sources in databases, read in one read-only transaction through SQLAlchemy; `source` opens one."""
