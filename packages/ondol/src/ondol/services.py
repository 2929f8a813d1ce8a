"""The processes of `ml up`: Prefect, MLflow, the service and a worker, and their health checks."""

import os
import platform
import runpy
import sys
import uuid
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from ondol.config import HOSTS, Settings
from ondol.errors import UserError
from ondol.orchestration.environment import prepare
from ondol.orchestration.processes import (
    LOOPBACK,
    ProcessRecord,
    listens,
    read_process_record,
    run_folder,
    running,
    stop,
)
from ondol.orchestration.recovery import Recovery
from ondol.orchestration.server import PREFECT, UVICORN, Server, answers, post_prefect
from ondol.registry.registry import embedded_uri, is_embedded, mlflow_artifacts, prepare_embedded
from ondol.storage.files import sole, write_bytes

NAMES = ("prefect", "mlflow", "service", "worker")
STOP_ORDER = ("worker", "service", "mlflow", "prefect")  # Prefect last: it receives the last messages of the others
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
POLL_SECONDS = "2"  # seconds between the worker's polls; Prefect's default is 10


@dataclass(frozen=True)
class Launch:
    """How a process is started: its command, and additional environment variables."""

    command: list[str]
    env: dict[str, str]


def is_ours(name: str, settings: Settings) -> bool:
    """Return True if `ml up` starts it; False if the environment names another server."""
    if name == "prefect":
        return not os.environ.get("PREFECT_API_URL")
    return name != "mlflow" or is_embedded(settings)


def wanted_port(name: str, settings: Settings) -> int | None:
    """Return the preferred port of a process; None for the worker."""
    ports = {"prefect": settings.ports.prefect, "mlflow": settings.ports.mlflow, "service": settings.service.port}
    return ports.get(name)


def plan(name: str, settings: Settings, port: int | None, prefect: str) -> Launch:
    """Return how a process is started on `port`; `prefect` is the address of Prefect's API."""
    if name == "prefect":
        return _prefect(settings, str(port))
    if name == "mlflow":
        return _mlflow(settings, str(port))
    if name == "service":
        return Launch(_ml("serve", "--port", str(port), "--plain-http"), {"ML_SERVICE__HOST": LOOPBACK})
    worker_name(settings)  # created before both the worker and this process need it
    return Launch(_ml("worker"), {"PREFECT_API_URL": prefect})


@contextmanager
def only_up(settings: Settings) -> Iterator[None]:
    """Hold the lock of the records.

    Raises:
        UserError: another `ml up` or `ml down` holds it.
    """
    complaint = f"Another `ml up` or `ml down` is running in {settings.root}: wait until it ends."
    with sole(run_folder(settings) / "lock", complaint):
        yield


def stop_processes(
    settings: Settings, say: Callable[[str], None] = lambda name: None, names: Collection[str] = NAMES
) -> bool:
    """Stop the processes of `ml up`, and nothing else; return whether anything was running.

    Args:
        settings: Those of the project.
        say: Gets the name of each process that was stopped.
        names: The processes to stop.

    Raises:
        UserError: one does not stop; the others were stopped.
    """
    ended, refusals = False, []
    for name in filter(names.__contains__, STOP_ORDER):
        record = read_process_record(settings, name)
        try:
            if record and stop(settings, record):
                ended = True
                say(name)
        except UserError as error:
            refusals.append(str(error))
    if refusals:
        raise UserError(" ".join(refusals))
    return ended


def is_well(record: ProcessRecord, settings: Settings, prefect: str, timeout: float = 5.0) -> bool:
    """Return True if a process works as intended."""
    if record.name == "worker":
        return _worker_is_well(record, settings, prefect, timeout)
    paths = {"prefect": "/api/health", "mlflow": "/health", "service": "/livez"}
    return answers(f"{record.address}{paths[record.name]}", timeout) and listens(record)


def prefect_address(settings: Settings) -> str | None:
    """Return the address of Prefect's API from the environment, else that of `ml up`, else None."""
    record = running(settings, "prefect")
    return os.environ.get("PREFECT_API_URL") or (f"{record.address}/api" if record else None)


def require_prefect(settings: Settings) -> str:
    """Return the address of Prefect's API; see `prefect_address`.

    Raises:
        UserError: no server is known.
    """
    prefect = prefect_address(settings)
    if prefect is None:
        raise UserError("No Prefect server is known: set PREFECT_API_URL, or let `ml up` start one.")
    return prefect


def become_worker(settings: Settings) -> None:
    """Turn this process into the Prefect worker of the project's pool; its runs start in the project's folder.

    Raises:
        UserError: no server is known, it does not answer in time, or the address `[monitor] metrics` is in use.
    """
    from ondol.monitoring.exporter import serve_metrics

    prepare(settings)
    prefect = require_prefect(settings)
    os.environ["PREFECT_API_URL"] = prefect
    os.environ.setdefault("PREFECT_WORKER_QUERY_SECONDS", POLL_SECONDS)
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"  # its output and that of its runs is a log
    os.chdir(settings.root)
    Server(None, prefect).wait()  # the last worker may have been killed together with the server
    serve_metrics(settings)
    name = worker_name(settings)
    Recovery(settings, prefect, name).start()
    sys.argv = ["prefect", "worker", "start", "--type", "process", "--pool", settings.project.name, "--name", name]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def worker_name(settings: Settings) -> str:
    """Return the name of this project's worker on this machine.

    A copy of the project has a different name, and so has a container on a machine with the same name.
    """
    path = settings.home / "worker"
    if not path.exists():
        write_bytes(path, uuid.uuid4().hex.encode())
    mark = zlib.crc32(f"{settings.root} {path.read_bytes().decode(errors='replace')}".encode())
    return f"worker-{platform.node()}-{mark:08x}"


def _prefect(settings: Settings, port: str) -> Launch:
    command = [sys.executable, *PREFECT, "--host", LOOPBACK, "--port", port, "--log-level", "warning"]
    env = {
        "PREFECT__SERVER_FINAL": "1",
        # If kept in memory, a killed server would end the runs that hold a lease.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
        "PREFECT_SERVER_UI_API_URL": "/api",  # relative to the page's origin, for any name that a browser uses
        # Otherwise inside the installed package.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": f"{os.environ['PREFECT_HOME']}/ui",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": f"{settings.retention.run_days * 86_400:.0f}",
    }
    return Launch(command, env | _hosts(settings))


def _mlflow(settings: Settings, port: str) -> Launch:
    prepare_embedded(settings)
    command = [sys.executable, *UVICORN, "ondol.registry.mlflow_server:mlflow", "--host", LOOPBACK, "--port", port]
    env = {
        "MLFLOW_BACKEND_STORE_URI": embedded_uri(settings),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": mlflow_artifacts(settings).as_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_TRACKING_URI": "",
    }
    return Launch([*command, "--log-level", "warning"], env | _hosts(settings))


def _hosts(settings: Settings) -> dict[str, str]:
    return {HOSTS: ",".join(settings.ports.hosts)}


def _ml(*words: str) -> list[str]:
    return [sys.executable, "-m", "ondol.cli", *words]


def _worker_is_well(record: ProcessRecord, settings: Settings, prefect: str, timeout: float) -> bool:
    """Return True if the worker has reported since it was started, and lately."""
    known = post_prefect(f"{prefect}/work_pools/{settings.project.name}/workers/filter", {}, timeout) or []
    since = datetime.fromisoformat(record.since)
    return any(
        worker["name"] == worker_name(settings)
        and worker["status"] == "ONLINE"
        and datetime.fromisoformat(worker["last_heartbeat_time"]) >= since
        for worker in known
    )
