"""The flows of the project: pipeline (ingest, validate, train, evaluate, deploy), predict, monitor and alerts."""
