"""`ml simulate`: traffic, drift and recovery, played in a copy of the project (`sandbox`) with the sample data."""
