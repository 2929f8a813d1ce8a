"""`ml pool`: Prefect deploys flows only to a work pool that is there, and else the first worker makes it."""

from typing import TextIO

from rich.markup import escape

from ondol.cli.console import console, open_project
from ondol.config import Settings
from ondol.errors import UserError
from ondol.orchestration.server import prefect_server
from ondol.orchestration.stage import deployed_commit, make_work_pool, note_deployed, remove_renamed
from ondol.services import prefect_address
from ondol.training.provenance import is_behind


def make_pool(commit: str | None = None, output: TextIO | None = None) -> None:
    """Make the project's work pool on the Prefect server, unless it is there.

    Args:
        commit: The commit whose flows are deployed next. It is noted on the server, unless a later one is.
        output: What takes `commit=…`, unless a later one is noted: then its flows are there.

    Raises:
        UserError: no server is known, or it does not answer or refuses.
    """
    settings = open_project(stored=False)
    if prefect_address(settings) is None:
        raise UserError("No Prefect server is known: set PREFECT_API_URL, or let `ml up` start one.")
    name = settings.project.name
    with prefect_server(settings) as server:
        server.wait()
        made = "is made" if make_work_pool(name) else "is there"
        remove_renamed(settings, server.url)
        later = _later_commit(settings, commit) if commit else None
    console.print(f"[green]✓[/] the work pool {escape(name)} {made}")
    if later:
        console.print(f"The flows stay as they are: commit {commit} is behind {later}, whose flows were deployed.")
    elif commit and output is not None:
        output.write(f"commit={commit}\n")


def _later_commit(settings: Settings, commit: str) -> str | None:
    """Return the later commit whose flows were deployed; where there is none, note this one and return None."""
    noted = deployed_commit(settings)
    if noted is not None and is_behind(settings.root, commit, noted):
        return noted
    note_deployed(settings, commit)
    return None
