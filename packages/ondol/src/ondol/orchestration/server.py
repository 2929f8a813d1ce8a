"""The Prefect server of a command: `PREFECT_API_URL`, else that of `ml up`, else one of its own.

Servers of commands and the server of `ml up` never open the project's database at the same time: commands share a lock,
and `ml up` holds it exclusively until its server is recorded. Commands that waited use the recorded server. Commands
start their servers one after another.
"""

import fcntl
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from ondol.config import HOSTS_SETTING, Settings
from ondol.errors import UserError
from ondol.orchestration.environment import prefect_database
from ondol.orchestration.guard import Child, free_port
from ondol.orchestration.processes import running
from ondol.redaction import leads_elsewhere, show_uri
from ondol.storage.files import check_database, sole

if TYPE_CHECKING:
    import httpx


def answers(url: str, timeout: float = 5.0) -> bool:
    """Return True if a healthy server answers at `url`; a proxy that requires a login counts too."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError, http.client.HTTPException):
        return False


def post_prefect(url: str, body: dict[str, Any], timeout: float = 5.0) -> Any | None:
    """Return Prefect's JSON response to a POST of JSON, or None if there is none."""
    return _json_of(call_prefect("POST", url, timeout, json=body))


def get_prefect(url: str, timeout: float = 5.0) -> Any | None:
    """Return Prefect's JSON response to a GET, or None if there is none."""
    return _json_of(call_prefect("GET", url, timeout))


def call_prefect(
    method: Literal["GET", "POST", "PATCH", "DELETE"], url: str, timeout: float, **request: Any
) -> "httpx.Response | None":
    """Return Prefect's response, also an error, or None if there is none; without retries.

    Prefect's client applies its settings: credentials, CSRF tokens, certificates, headers.

    Args:
        method: The HTTP method.
        url: The full address, including Prefect's `/api/`.
        timeout: The time limit of each step, in seconds.
        request: Arguments of httpx for a request.

    Raises:
        UserError: Prefect redirects to another host, to which credentials and headers are not sent.
    """
    import httpx
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings import get_current_settings, temporary_settings

    known = get_current_settings().api
    key, auth = (secret.get_secret_value() if secret else None for secret in (known.key, known.auth_string))
    root, api, _ = url.partition("/api/")

    def stay(request: httpx.Request) -> None:
        if leads_elsewhere(url, str(request.url)):
            place = request.url.netloc.decode().rpartition("@")[2]
            raise UserError(
                f"The Prefect server at {re.sub('//[^/@]*@', '//', root)} redirects to another place ({place}): set "
                "PREFECT_API_URL to that address, if it is to be trusted."
            )

    options = {"timeout": timeout, "event_hooks": {"request": [stay]}}
    try:
        with (
            temporary_settings({"client.max_retries": 0}),
            SyncPrefectClient(root + api, auth_string=auth, api_key=key, httpx_settings=options) as client,
        ):
            return client.request(method, url, **request)  # type: ignore[arg-type]
    except httpx.HTTPStatusError as error:
        return error.response
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
        return None


def in_pool(name: str) -> dict[str, Any]:
    """Return Prefect's filter of the deployments or runs of a work pool; a project's pool has its name."""
    return {"work_pools": {"name": {"any_": [name]}}}


def _json_of(answer: "httpx.Response | None") -> Any | None:
    try:
        return answer.json() if answer is not None and answer.is_success else None
    except ValueError:
        return None


START_SECONDS = 120.0
PREFECT_REMEDY = (
    "restore it from a backup, or move it away, with `prefect.db-wal` and `prefect.db-shm` beside it, and run the "
    "command again: the record of past runs is lost then, models and data are not"
)
ANSWER_SECONDS = 5.0
UVICORN = ["-m", "uvicorn", "--lifespan", "on", "--factory"]
PREFECT = [*UVICORN, "ondol.orchestration.asgi:prefect"]
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

    def __init__(
        self, child: Child | None, url: str, start_seconds: float = START_SECONDS, turn: IO[str] | None = None
    ) -> None:
        """Store the server's process, and how to reach it.

        Args:
            child: The process; None if this command did not start it.
            url: The address of its API.
            start_seconds: The time limit of its start, in seconds.
            turn: A file whose lock is released when it has started.
        """
        self.child = child
        self.url = url
        self.start_seconds = start_seconds
        self.turn = turn
        self.ours = True

    def wait(self) -> None:
        """Wait until it answers, and check that it accepts our credentials.

        Raises:
            UserError: it ended, did not answer in time, or requires other credentials.
        """
        deadline = time.monotonic() + self.start_seconds
        while not self._answers():
            late = time.monotonic() > deadline
            if late or (self.child is not None and not self.child.alive()):
                raise UserError(self._silence())
            time.sleep(0.05)
        self.end_turn()
        if refusal := refusal_of(call_prefect("GET", f"{self.url}/admin/version", ANSWER_SECONDS), self.url):
            raise UserError(refusal)

    def end_turn(self) -> None:
        """Let the next command start its server."""
        if self.turn is not None:
            self.turn.close()

    def _silence(self) -> str:
        """Return an error that it does not answer."""
        if self.child is not None:
            check_database(prefect_database(), PREFECT_REMEDY, thorough=True)
            return f"The embedded Prefect server did not start ({self.child.tail()}): see {self.child.log}."
        return f"No Prefect server answers at PREFECT_API_URL = {show_uri(self.url)}: start it or unset the variable."

    def is_starting(self) -> bool:
        """Return True if this command started it and it does not answer yet."""
        return self.child is not None and not self._answers()

    def _answers(self) -> bool:
        if self.child is not None:
            return answers(f"{self.url}/health")  # much cheaper while it starts
        answer = call_prefect("GET", f"{self.url}/health", ANSWER_SECONDS)
        return answer is not None and answer.status_code < 500


def refusal_of(answer: "httpx.Response | None", url: str) -> str:
    """Return a sentence on why Prefect refuses the credentials or the Host; empty if it does not."""
    if answer is None or answer.status_code not in (401, 403, 421):
        return ""
    if answer.status_code == 421:
        name = show_uri(url)
        return (
            f"The Prefect server at {name} does not answer under this name: where it runs, add it to {HOSTS_SETTING}."
        )
    return (
        f"The Prefect server at {show_uri(url)} refuses the credentials ({answer.status_code}): set "
        "PREFECT_API_AUTH_STRING or PREFECT_API_KEY."
    )


@contextmanager
def prefect_server(settings: Settings) -> Iterator[Server]:
    """Yield a server while it starts, so that imports can run meanwhile; stop it at the end if this command started it.

    Must be entered before Prefect is imported.
    """
    given = os.environ.get("PREFECT_API_URL")
    server = Server(None, given, start_seconds=0) if given else _find_or_embed(settings)
    server.ours = not given  # only this project uses it
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
        server.end_turn()


@contextmanager
def no_embedded_server(settings: Settings) -> Iterator[None]:
    """Prevent commands from starting servers on the project's database while `ml up` starts its server.

    Raises:
        UserError: a command is running one.
    """
    complaint = "An `ml` command is running here with its own Prefect server: wait until it ends."
    with sole(_lock_path(settings), complaint):
        yield


def _lock_path(settings: Settings) -> Path:
    return settings.home / "prefect" / "server.lock"


def _find_or_embed(settings: Settings) -> Server:
    """Return the server of `ml up`, or start one, which holds the shared lock until it has ended."""
    path = _lock_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    turn = path.with_name("start.lock").open("a")
    fcntl.flock(turn, fcntl.LOCK_EX)  # two servers that create the tables at the same time fail
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits while `ml up` starts a server
        if ours := running(settings, "prefect"):
            turn.close()
            return Server(None, f"{ours.address}/api")
        return _embed(settings, lock, turn)


def _embed(settings: Settings, lock: IO[str], turn: IO[str]) -> Server:
    """Start a server on the project's own database."""
    check_database(prefect_database(), PREFECT_REMEDY)
    port = free_port()
    command = [sys.executable, *PREFECT, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    log = settings.home / "logs" / "prefect-server.log"
    child = Child(command, os.environ | EMBEDDED, settings.root, log, kept_open=[lock.fileno()])
    return Server(child, f"http://127.0.0.1:{port}/api", turn=turn)


def _flush() -> None:
    """Send queued logs and events before the server stops."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.instance().drain()
    EventsWorker.drain_all()
