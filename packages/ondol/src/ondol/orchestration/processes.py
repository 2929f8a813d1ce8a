"""Background processes of `ml up`, as `.ml/run/*.json` records them: id, port, command and token.

A process id alone says little: the system gives it to a stranger once its process is gone. So a record also holds a
token in the environment of the process and of all it starts.
"""

import ipaddress
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
_started: list["subprocess.Popen[bytes]"] = []  # they outlive us: Python must not warn that they were not awaited


class ProcessRecord(BaseModel):
    """One background process.

    Attributes:
        name: What it is: prefect, worker, mlflow or service.
        pid: The process that keeps it running; None until that is started.
        token: What its environment says under `ML_PROCESS`.
        port: The port of the loopback that it listens on, if any.
        command: What it was started with.
        since: When, for people (UTC).
        root: The project's folder at that time; None in older records. See `is_foreign`.
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
        """Where it answers."""
        return None if self.port is None else f"http://{LOOPBACK}:{self.port}"


def run_folder(settings: Settings) -> Path:
    """Return where the records are."""
    return settings.home / "run"


def log_path(settings: Settings, name: str) -> Path:
    """Return where a process writes."""
    return settings.home / "logs" / f"{name}.log"


def restarts_path(settings: Settings, name: str) -> Path:
    """Return where a process's supervisor counts how often it started it again."""
    return run_folder(settings) / f"{name}.restarts"


def read_process_record(settings: Settings, name: str) -> ProcessRecord | None:
    """Return the record of a process, running or not."""
    return read_file(_path(settings, name), ProcessRecord)


def running(settings: Settings, name: str) -> ProcessRecord | None:
    """Return the record of a process if it runs; what a killed supervisor left keeps running without one."""
    record = read_process_record(settings, name)
    if record is None or was_elsewhere(settings, record):
        return None
    return record if supervisor_of(record) or family(record) else None


def mlflow_ui(settings: Settings) -> str:
    """Return the address of MLflow's UI; that of the project's own database is where `ml up` shows it, or would."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if settings.ports.mlflow_url or uri.startswith("http"):
        return (settings.ports.mlflow_url or show_uri(uri)).rstrip("/")
    record = running(settings, "mlflow")
    return str(record.address) if record else f"http://{LOOPBACK}:{settings.ports.mlflow}"


def was_elsewhere(settings: Settings, record: ProcessRecord) -> bool:
    """Return True if a process was started while the project was in another folder: it uses the files there."""
    root = record.root
    if root is None and (supervisor := supervisor_of(record)):  # an older record
        root = _directory(supervisor)
    return root is not None and Path(root) != settings.root


def is_foreign(settings: Settings, record: ProcessRecord) -> bool:
    """Return True if a record came with a copy of a project: its process belongs to the original.

    Where the folder was moved instead, the original's record is gone, and the process is this project's still.
    """
    if not was_elsewhere(settings, record):
        return False
    root = record.root or _directory(supervisor_of(record)) or ""
    try:
        original = read_json(Path(root) / run_folder(settings).relative_to(settings.root) / f"{record.name}.json")
    except (OSError, ValueError):
        return True  # it is there, and cannot be read
    return original is not None and original.get("token") == record.token


def _directory(process: "psutil.Process | None") -> str | None:
    """Return a process's working directory, which follows a folder that is renamed."""
    import psutil

    with suppress(psutil.Error, OSError):
        return process.cwd() if process else None
    return None


def supervisor_of(record: ProcessRecord) -> "psutil.Process | None":
    """Return the recorded process, or None if it ended, even if a stranger has its number now."""
    import psutil

    if record.pid is None:
        return None
    with suppress(psutil.Error):  # it ended, is a zombie, or is another user's that shows nothing
        process = psutil.Process(record.pid)
        return process if _is_of(process, record) else None
    return None


def family(record: ProcessRecord) -> list["psutil.Process"]:
    """Return every living process whose environment holds the record's token, with any parent."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN) == record.token:
                found.append(process)
    return found


def _is_of(process: "psutil.Process", record: ProcessRecord) -> bool:
    """Return True if a process is the recorded one: by its environment or, of another user's, by its command."""
    import psutil

    try:
        return process.environ().get(TOKEN) == record.token
    except psutil.AccessDenied:
        return process.cmdline()[-len(record.command) :] == list(record.command)


def start(
    settings: Settings, name: str, command: Sequence[str], env: Mapping[str, str], port: int | None = None
) -> ProcessRecord:
    """Start `command` in the background, in a session of its own, and record it.

    It is recorded before it starts: if this process is killed in between, its token finds it.
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
    """End what a record names, and only that, with all it started; return whether anything ran.

    A record that came with a copy of a project is removed, and the process that it names is the original's: it stays.

    Raises:
        UserError: a part of it still runs; the record stays.
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
        raise UserError(f"{record.name} still runs although it was killed (process {left[0].pid}): see `ps`.")
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
    """Return `wanted` where nothing listens on it, or else a port that is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return free_port()
    return wanted


def is_loopback(host: str) -> bool:
    """Return True if `host` is a name or an address that no other machine can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listens(record: ProcessRecord) -> bool:
    """Return True if a process of the record holds its port: a stranger may have taken it first."""
    import psutil

    for process in family(record):
        with suppress(psutil.Error, OSError):
            connections = process.net_connections("inet")
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == record.port for one in connections):
                return True
    return False


def is_taken(record: ProcessRecord) -> bool:
    """Return True if a stranger listens on the port of a record."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex((LOOPBACK, record.port or 0)):
            return False
    return not listens(record)
