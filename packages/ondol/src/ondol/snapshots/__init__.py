"""Snapshots: immutable tables, named by the digest of their content, which all steps after `ingestion` read.

A snapshot shares its unchanged parts with earlier ones, and rows with a newer version replace the older ones
(`snapshots`); `diff` compares two snapshots.
"""
