"""Immutable tables, named by the digest of their content."""
