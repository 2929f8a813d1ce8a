"""`ml pool`: Prefect deploys flows only to a work pool that is there, and else the first worker makes it."""

import re
import subprocess
import sys
from typing import TextIO

from rich.markup import escape

from flows.background import prefect_address
from flows.commands.console import console, open_project
from flows.deployments import remove_renamed
from flows.errors import UserError
from flows.provenance import is_behind
from flows.server import prefect_server
from flows.settings import Settings


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
        made = "is there" if _is_there(name) else _make(name)
        remove_renamed(settings, server.url)
        later = _later_commit(settings, commit) if commit else None
    console.print(f"[green]✓[/] the work pool {escape(name)} {made}")
    if later:
        console.print(f"The flows stay as they are: commit {commit} is behind {later}, whose flows were deployed.")
    elif commit and output is not None:
        output.write(f"commit={commit}\n")


def _later_commit(settings: Settings, commit: str) -> str | None:
    """Return the later commit whose flows were deployed; where there is none, note this one and return None."""
    from prefect.variables import Variable

    name = "ml_deployed_" + re.sub("[^a-z0-9]+", "_", settings.project.name)
    noted = Variable.get(name)
    if noted is not None and is_behind(settings.root, commit, str(noted)):
        return str(noted)
    Variable.set(name, commit, overwrite=True)
    return None


def _is_there(name: str) -> bool:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            return False
    return True


def _make(name: str) -> str:
    """Make it by Prefect's command, which fills in what runs of the type need."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "work-pool", "create", name, "--type", "process"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode and not _is_there(name):  # another may have been faster
        said = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
        raise UserError(f"Prefect made no work pool {name}: {said[-1].strip()}")
    return "is made"
