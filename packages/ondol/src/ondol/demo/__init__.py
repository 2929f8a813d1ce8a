"""`ml simulate`: traffic, drift and recovery on the sample project."""
