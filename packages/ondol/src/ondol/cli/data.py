"""`ml data`: list snapshots, compare two, remove those that are not needed."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)
Digest = Annotated[str, typer.Argument(help="A snapshot's digest, or its first characters: see `ml data log`.")]


@app.callback()
def data() -> None:
    """List snapshots, compare two, remove those that nobody needs."""


@app.command()
def log() -> None:
    """List the snapshots, the newest first, and the model versions that were made from each."""
    from ondol.cli.history import print_log

    print_log()


@app.command()
def diff(before: Digest, after: Digest) -> None:
    """Compare two snapshots: columns, rows, and how the values of each column moved."""
    from ondol.cli.history import print_difference

    print_difference(before, after)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove data that no model version needs, no ingest goes on from, and that is at least a day old."""
    from ondol.cli.history import collect

    collect(dry_run)
