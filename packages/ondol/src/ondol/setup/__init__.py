"""`ml init` and `ml contract`: a contract from a table, and its changes with the table."""
