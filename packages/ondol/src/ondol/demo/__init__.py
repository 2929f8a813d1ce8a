"""`ml simulate`: simulates traffic, drift and recovery in a copy of the project (`sandbox`) with the sample data."""
