"""From a source to a snapshot: readers of files, databases, APIs and topics, and incremental reading."""
