"""The embedded Prefect server: started for one command where `PREFECT_API_URL` names no other."""

import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from flows.errors import UserError
from flows.guard import Child, free_port
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

    def __init__(self, child: Child | None, url: str) -> None:
        """Wrap the process, None where the server is somebody else's."""
        self.child = child
        self.url = url

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            UserError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            if self.child is None:
                raise UserError(
                    f"No Prefect server answers at PREFECT_API_URL = {self.url}: start it or unset the variable."
                )
            if not self.child.alive() or time.monotonic() > deadline:
                raise UserError(
                    f"The embedded Prefect server did not start ({self.child.tail()}): see {self.child.log}."
                )
            time.sleep(0.05)


@contextmanager
def prefect_server(settings: Settings) -> Iterator[Server]:
    """Yield a server that is starting, so that imports can go on meanwhile; stop it at the end if it is ours.

    Must be entered before Prefect is imported.
    """
    if os.environ.get("PREFECT_API_URL"):
        try:
            yield Server(None, os.environ["PREFECT_API_URL"])
        finally:
            _flush()
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, *UVICORN, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    child = Child(command, os.environ | EMBEDDED, settings.root, settings.home / "logs" / "prefect-server.log")
    os.environ["PREFECT_API_URL"] = url
    try:
        yield Server(child, url)
    finally:
        if child.alive():
            _flush()
        del os.environ["PREFECT_API_URL"]
        child.stop()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500  # a proxy that wants a login answers too
    except OSError:
        return False


def _flush() -> None:
    """Send the logs and events that are still queued, before the server goes."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.instance().drain()
    EventsWorker.drain_all()
