"""The flows of the project: ingest, validate, train, evaluate, deploy, predict, monitor."""
