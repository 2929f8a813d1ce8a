"""The `ml` command."""
