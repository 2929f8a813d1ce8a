"""The prediction service of the project."""
