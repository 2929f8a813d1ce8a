"""`ml quarantine`: list, show and replay quarantined rows."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The rows that broke the contract: count them, see them, bring them back.", no_args_is_help=True)

Name = Annotated[str | None, typer.Argument(help="A validation's id; default: the last.", show_default=False)]


@app.command("list")
def list_() -> None:
    """List the validations, the newest first, and how often each check failed over time."""
    from ondol.cli.quarantine_files import print_validations

    print_validations()


@app.command()
def show(
    validation: Name = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the rows and their reasons to this .csv, .parquet or .jsonl file.")
    ] = None,
) -> None:
    """Show the reasons by column and check, and a few rows; with --out, write all rows to a file for correction."""
    from ondol.cli.quarantine_files import print_quarantine

    print_quarantine(validation, out.absolute() if out else None)


@app.command()
def replay(
    validation: Name = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="The corrected file of `show --out`. Default: the contract changed."),
    ] = None,
) -> None:
    """Validate corrected rows, or all with a corrected contract; valid ones join the next snapshot."""
    from ondol.cli.quarantine_files import replay_quarantine

    replay_quarantine(validation, source.absolute() if source else None)
