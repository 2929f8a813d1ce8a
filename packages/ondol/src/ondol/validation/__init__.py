"""Valid and quarantined rows, their correction, and leakage."""
