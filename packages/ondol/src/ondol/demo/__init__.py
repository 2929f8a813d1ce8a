"""A played year of the sample project: requests, drift and recovery."""
