"""The settings of a project: `config.toml` and the environment."""
