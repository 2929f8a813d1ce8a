"""Makes `python -m ondol.cli` the same as `ml`."""

from ondol.cli import main

main()
