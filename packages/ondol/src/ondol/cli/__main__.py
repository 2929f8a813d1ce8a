"""`python -m ondol.cli` is `ml`."""

from ondol.cli.app import main

main()
