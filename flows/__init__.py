"""The flows: pipeline (ingest, validate, train, evaluate, deploy), predict, monitor, rollout and alerts."""
