"""Background processes of `ml up` and their records in `.ml/run/*.json`: id, port, command and token.

A process id is not enough: after a process has ended, the system reuses its id. So a record also has a token, which is
in the environment of the process and of all its children.
"""

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from ondol.config import Settings
from ondol.errors import UserError
from ondol.orchestration.guard import free_port, kill_all, wait_for_end
from ondol.redaction import show_uri
from ondol.storage.files import read_json, utc_now, write_json
from ondol.storage.files import read_record as read_file

if TYPE_CHECKING:
    import psutil

TOKEN = "ML_PROCESS"
STOP_SECONDS = 20.0
LOOPBACK = "127.0.0.1"
# They outlive this process: Python must not warn that they were not awaited.
_started: list["subprocess.Popen[bytes]"] = []


class ProcessRecord(BaseModel):
    """One background process.

    Attributes:
        name: prefect, worker, mlflow or service.
        pid: The id of its supervisor; None until that is started.
        token: The value of `ML_PROCESS` in its environment.
        port: Its loopback port, if any.
        command: Its command.
        since: The start time, for display (UTC).
        root: The project's folder at the start; None in older records. See `is_foreign`.
    """

    name: str
    pid: int | None
    token: str
    port: int | None
    command: tuple[str, ...]
    since: str
    root: str | None = None

    @property
    def address(self) -> str | None:
        """The address of its server."""
        return None if self.port is None else f"http://{LOOPBACK}:{self.port}"


def run_folder(settings: Settings) -> Path:
    """Return the folder of the records."""
    return settings.home / "run"


def log_path(settings: Settings, name: str) -> Path:
    """Return the log file of a process."""
    return settings.home / "logs" / f"{name}.log"


def restarts_path(settings: Settings, name: str) -> Path:
    """Return the file in which the supervisor of a process counts its restarts."""
    return run_folder(settings) / f"{name}.restarts"


def read_process_record(settings: Settings, name: str) -> ProcessRecord | None:
    """Return the record of a process, running or not."""
    return read_file(_path(settings, name), ProcessRecord)


def running(settings: Settings, name: str) -> ProcessRecord | None:
    """Return the record of a process if it runs; it may run without its supervisor, if that was killed."""
    record = read_process_record(settings, name)
    if record is None or was_elsewhere(settings, record):
        return None
    return record if supervisor_of(record) or family(record) else None


def mlflow_ui(settings: Settings) -> str:
    """Return the address of MLflow's UI; for the project's own database, that of `ml up`, running or not."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if settings.ports.mlflow_url or uri.startswith("http"):
        return (settings.ports.mlflow_url or show_uri(uri)).rstrip("/")
    record = running(settings, "mlflow")
    return str(record.address) if record else f"http://{LOOPBACK}:{settings.ports.mlflow}"


def was_elsewhere(settings: Settings, record: ProcessRecord) -> bool:
    """Return True if a process was started while the project was in another folder, whose files it uses."""
    root = record.root
    if root is None and (supervisor := supervisor_of(record)):  # an older record
        root = _directory(supervisor)
    return root is not None and Path(root) != settings.root


def is_foreign(settings: Settings, record: ProcessRecord) -> bool:
    """Return True if a record was copied with the project: then its process belongs to the original.

    If the folder was moved instead, there is no record at the original place, and the process still belongs to this
    project.
    """
    if not was_elsewhere(settings, record):
        return False
    root = record.root or _directory(supervisor_of(record)) or ""
    try:
        original = read_json(Path(root) / run_folder(settings).relative_to(settings.root) / f"{record.name}.json")
    except (OSError, ValueError):
        return True  # it exists, and cannot be read
    return original is not None and original.get("token") == record.token


def _directory(process: "psutil.Process | None") -> str | None:
    """Return a process's working directory, which follows when the folder is renamed."""
    import psutil

    with suppress(psutil.Error, OSError):
        return process.cwd() if process else None
    return None


def supervisor_of(record: ProcessRecord) -> "psutil.Process | None":
    """Return the recorded process, or None if it has ended, even if its id is in use again."""
    import psutil

    if record.pid is None:
        return None
    with suppress(psutil.Error):  # it ended, is a zombie, or belongs to another user
        process = psutil.Process(record.pid)
        return process if _is_of(process, record) else None
    return None


def family(record: ProcessRecord) -> list["psutil.Process"]:
    """Return every living process with the record's token in its environment, with any parent."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN) == record.token:
                found.append(process)
    return found


def _is_of(process: "psutil.Process", record: ProcessRecord) -> bool:
    """Return True if a process is the recorded one, by its environment or (another user's) by its command."""
    import psutil

    try:
        return process.environ().get(TOKEN) == record.token
    except psutil.AccessDenied:
        return process.cmdline()[-len(record.command) :] == list(record.command)


def start(
    settings: Settings, name: str, command: Sequence[str], env: Mapping[str, str], port: int | None = None
) -> ProcessRecord:
    """Start `command` in the background, in a new session, and record it.

    It is recorded before it starts: if this process is killed in between, the token still identifies it.
    """
    record = ProcessRecord(
        name=name,
        pid=None,
        token=uuid.uuid4().hex,
        port=port,
        command=tuple(command),
        since=utc_now(),
        root=str(settings.root),
    )
    _write(settings, record)
    restarts = restarts_path(settings, name)
    restarts.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "ondol.orchestration.supervisor",
            str(log_path(settings, name)),
            str(restarts),
            *command,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **env, TOKEN: record.token},
        cwd=settings.root,
        start_new_session=True,
    )
    _started.append(process)
    record = record.model_copy(update={"pid": process.pid})
    _write(settings, record)
    return record


def stop(settings: Settings, record: ProcessRecord) -> bool:
    """End the recorded process and its descendants, and nothing else; return whether anything was running.

    A record that was copied with the project is only removed, because its process belongs to the original.

    Raises:
        UserError: a process is still running; the record is kept.
    """
    import psutil

    if is_foreign(settings, record):
        _forget(settings, record)
        return False
    supervisor = supervisor_of(record)
    if supervisor is not None:
        with suppress(psutil.Error):
            supervisor.terminate()
            wait_for_end(supervisor, STOP_SECONDS)
    found = family(record)
    if left := kill_all(lambda: family(record), STOP_SECONDS):
        raise UserError(f"{record.name} is still running although it was killed (process {left[0].pid}): see `ps`.")
    _forget(settings, record)
    return supervisor is not None or bool(found)


def _forget(settings: Settings, record: ProcessRecord) -> None:
    restarts_path(settings, record.name).unlink(missing_ok=True)
    _path(settings, record.name).unlink(missing_ok=True)


def _path(settings: Settings, name: str) -> Path:
    return run_folder(settings) / f"{name}.json"


def _write(settings: Settings, record: ProcessRecord) -> None:
    write_json(_path(settings, record.name), record.model_dump())


def choose_port(wanted: int) -> int:
    """Return the port `wanted` if it is free, else another free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return free_port()
    return wanted


def listens(record: ProcessRecord) -> bool:
    """Return True if a process of the record listens on its port, which another program may have taken first."""
    import psutil

    for process in family(record):
        with suppress(psutil.Error, OSError):
            connections = process.net_connections("inet")
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == record.port for one in connections):
                return True
    return False


def is_taken(record: ProcessRecord) -> bool:
    """Return True if another program listens on the port of a record."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex((LOOPBACK, record.port or 0)):
            return False
    return not listens(record)
