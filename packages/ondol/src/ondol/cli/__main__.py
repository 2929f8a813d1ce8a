"""`python -m ondol.cli` is `ml`: Python wants a module of this name for it, so it is a few lines only."""

from ondol.cli import main

main()
