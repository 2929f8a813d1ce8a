"""Public tables, and the quality of the first model on them."""
