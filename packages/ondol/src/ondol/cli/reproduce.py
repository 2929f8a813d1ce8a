"""`ml reproduce`: train a version again from its record."""

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def reproduce(
    version: Annotated[str, typer.Argument(help="A registered version, deployed or not.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Where its files were never committed: train from the commit below them.")
    ] = False,
    install: Annotated[
        bool, typer.Option(help="Install its packages in an environment of its own, or use those that are here.")
    ] = True,
) -> None:
    """Train a version again from its record, and compare every metric: equal, or by how much not.

    Its commit, packages, snapshot, settings and seed are the recorded ones, whatever the project says today. Nothing of
    the project is changed.
    """
    from ondol.cli.reproduce_report import reproduce_version

    reproduce_version(version, anyway, install)
