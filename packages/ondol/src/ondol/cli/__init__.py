"""The `ml` command, the top layer of the engine: it may import every other package, and none imports it.

`app` has the signature of every command. Every other module does the work of some commands and is imported only when
one of them runs.
"""

from ondol.cli.app import main

__all__ = ["main"]
