"""What the `ml` commands do and print."""
