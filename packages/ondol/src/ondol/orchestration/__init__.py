"""Prefect and processes: stages, progress, alerts, servers, supervision and recovery."""
