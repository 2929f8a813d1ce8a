"""What is still referenced, and what may be deleted."""
