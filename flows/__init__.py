"""The pipeline every project gets: ingest, validate, train, evaluate, deploy, predict."""
