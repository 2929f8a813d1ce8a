"""The model in production: prediction log, windows, drift, performance and the decision to retrain."""
