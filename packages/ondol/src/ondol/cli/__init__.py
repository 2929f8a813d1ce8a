"""The `ml` command, the top of the engine: every other package may be used here, and none imports this one.

`app` holds the signature of every command; each other module does the work of some of them, and is imported only when
one of its commands runs.
"""

from ondol.cli.app import main

__all__ = ["main"]
