"""The Prefect server of a command: `PREFECT_API_URL`, else the one of `ml up`, else one started for this command."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flows.errors import UserError
from flows.guard import Child, free_port
from flows.health import answers
from flows.processes import running
from flows.settings import Settings

START_SECONDS = 120.0
UVICORN = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
EMBEDDED = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
}


class Server:
    """A Prefect server that is starting or running."""

    def __init__(self, child: Child | None, url: str, patience: float = START_SECONDS) -> None:
        """Wrap the process, None where the server is not this command's; `patience` is how long it may start."""
        self.child = child
        self.url = url
        self.patience = patience

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            UserError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + self.patience
        while not answers(f"{self.url}/health"):
            late = time.monotonic() > deadline
            if self.child is None and late:
                raise UserError(
                    f"No Prefect server answers at PREFECT_API_URL = {self.url}: start it or unset the variable."
                )
            if self.child is not None and (late or not self.child.alive()):
                raise UserError(
                    f"The embedded Prefect server did not start ({self.child.tail()}): see {self.child.log}."
                )
            time.sleep(0.05)


@contextmanager
def prefect_server(settings: Settings) -> Iterator[Server]:
    """Yield a server that is starting, so that imports can go on meanwhile; stop it at the end if it is ours.

    Must be entered before Prefect is imported.
    """
    given = os.environ.get("PREFECT_API_URL")
    ours = None if given else running(settings, "prefect")
    if given:
        server = Server(None, given, patience=0)
    elif ours:
        server = Server(None, f"{ours.address}/api")
    else:
        server = _embed(settings)
    os.environ["PREFECT_API_URL"] = server.url
    try:
        yield server
    finally:
        if server.child is None or server.child.alive():
            _flush()
        if not given:
            del os.environ["PREFECT_API_URL"]
        if server.child is not None:
            server.child.stop()


def _embed(settings: Settings) -> Server:
    """Start a server on the project's own database."""
    port = free_port()
    command = [sys.executable, *UVICORN, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    child = Child(command, os.environ | EMBEDDED, settings.root, settings.home / "logs" / "prefect-server.log")
    return Server(child, f"http://127.0.0.1:{port}/api")


def _flush() -> None:
    """Send the logs and events that are still queued, before the server goes."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.instance().drain()
    EventsWorker.drain_all()
