"""`ml up`, `ml down`, `ml worker`, `ml follow`, `ml retrain`, `ml pool`: servers, background processes and flows."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn, TextIO

from rich.markup import escape

from ondol.cli.console import console, start_command
from ondol.config import Settings
from ondol.errors import UserError, nearest
from ondol.orchestration.deployments import (
    deployed_commit,
    deployment_name,
    make_work_pool,
    note_deployed,
    read_deployments,
    remove_renamed,
)
from ondol.orchestration.guard import Child
from ondol.orchestration.processes import (
    ProcessRecord,
    choose_port,
    is_taken,
    log_path,
    read_process_record,
    running,
    start,
    stop,
    supervisor_of,
    was_elsewhere,
)
from ondol.orchestration.recovery import end_lost
from ondol.orchestration.server import (
    ANSWER_SECONDS,
    Server,
    call_prefect,
    no_embedded_server,
    prefect_server,
    refusal_of,
)
from ondol.project import import_code
from ondol.redaction import show_uri
from ondol.registry.registry import find_experiment, is_embedded, models_path, runs_path
from ondol.services import (
    NAMES,
    become_worker,
    is_ours,
    is_well,
    only_up,
    plan,
    require_prefect,
    stop_processes,
    wanted_port,
)
from ondol.storage.files import withdraw
from ondol.storage.log_upload import ONE_TRY, keep_in_sync
from ondol.storage.remote_files import Objects
from ondol.storage.store import Mirror, open_store
from ondol.training.provenance import is_behind

HEALTHY_SECONDS = 120.0
DEPLOY_SECONDS = 300.0


def bring_up() -> None:
    """Start the processes that do not run yet, wait until all are healthy, deploy the flows, and print the addresses.

    Raises:
        UserError: a command is running with its own Prefect server, one of them is not healthy, Prefect wants other
            credentials, or a flow cannot be deployed.
    """
    settings = start_command(stored=False)
    with only_up(settings):
        begun = time.perf_counter()
        before = {name: read_process_record(settings, name) for name in NAMES}
        records = {name: _ensure(settings, name) for name in NAMES[:-1] if is_ours(name, settings)}
        require_importable(settings)  # while they start
        records = {name: _await(settings, record, "", begun, before[name]) for name, record in records.items()}
        prefect = os.environ.get("PREFECT_API_URL") or f"{records['prefect'].address}/api"
        Server(None, prefect, start_seconds=0).wait()
        if is_ours("prefect", settings):
            end_lost(settings, prefect, embedded=False)
        worker = _ensure(settings, "worker", prefect)
        worker = _await(settings, worker, prefect, begun, before["worker"])
        deploy_flows(settings, prefect)
        remove_renamed(settings, prefect)
        console.print(f"[green]✓[/] {'deployed':<8} [dim]the flows of prefect.yaml[/]")
        withdraw(settings.home / "prefect")  # Prefect copies its pages with their file modes
    if all(record == before[name] for name, record in {**records, "worker": worker}.items()):
        console.print("Everything was already running: only the flows were deployed again.")
    _print_addresses(settings, records, prefect)


def bring_down(names: Sequence[str]) -> None:
    """Stop what `ml up` started, and nothing else.

    Args:
        names: The processes to stop; none for all.

    Raises:
        UserError: a name is unknown, or one does not stop.
    """
    settings = start_command(stored=False)
    for name in names:
        if name not in NAMES:
            raise UserError(f'`ml up` starts no "{name}": choose from {", ".join(NAMES)}.{nearest(name, NAMES)}')
    with only_up(settings):
        ended = stop_processes(settings, lambda name: console.print(f"[green]✓[/] {name} stopped"), names or NAMES)
    if names:
        console.print(f"`ml up` starts {', '.join(names)} again." if ended else "Nothing of that is running.")
        return
    console.print("[green]✓[/] Everything is stopped." if ended else "Nothing of this project is running.")


def run_worker() -> None:
    """Turn this process into the project's worker.

    Raises:
        UserError: no Prefect server is known.
    """
    become_worker(start_command(stored=False))


def order_training() -> NoReturn:
    """Replace this process by `prefect deployment run` for the project's pipeline.

    Raises:
        UserError: no Prefect server is known, it does not answer, or it refuses the credentials.
    """
    settings = start_command(stored=False)
    prefect = require_prefect(settings)
    answer = call_prefect("GET", f"{prefect}/admin/version", ANSWER_SECONDS)
    if answer is None or not answer.is_success:
        silent = f"No Prefect server answers at {show_uri(prefect)}: start it, for example with `ml up`."
        raise UserError(refusal_of(answer, prefect) or silent)
    os.environ["PREFECT_API_URL"] = prefect
    command = [sys.executable, "-m", "prefect", "deployment", "run", deployment_name(settings, "pipeline")]
    os.execv(sys.executable, command)


def require_importable(settings: Settings) -> None:
    """Check that the flows of `prefect.yaml` can be imported: Prefect deploys a broken one without an error.

    Raises:
        UserError: one cannot, or there is no such file.
    """
    for deployment in read_deployments(settings):
        file, _, function = deployment["entrypoint"].partition(":")
        if not hasattr(import_code(file.removesuffix(".py").replace("/", ".")), function):
            raise UserError(f'{file} has no flow "{function}", which prefect.yaml names.')


def deploy_flows(settings: Settings, prefect: str) -> None:
    """Deploy `prefect.yaml` to the server at `prefect`.

    Raises:
        UserError: Prefect refuses it, or does not finish in time.
    """
    log = log_path(settings, "deploy")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    env = os.environ | {"PREFECT_API_URL": prefect}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        try:
            subprocess.run(
                command,
                cwd=settings.root,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=DEPLOY_SECONDS,
                check=True,
            )
        except subprocess.CalledProcessError:
            raise UserError(f"`prefect deploy --all` failed: see {log}.") from None
        except subprocess.TimeoutExpired:
            late = f"`prefect deploy --all` did not finish within {DEPLOY_SECONDS:.0f} s"
            raise UserError(f"{late} (see {log}): run `ml up` again.") from None


def _ensure(settings: Settings, name: str, prefect: str = "") -> ProcessRecord:
    """Return the record of a process; start it unless it runs; replace a worker of another server."""
    record = read_process_record(settings, name)
    supervisor = supervisor_of(record) if record and not was_elsewhere(settings, record) else None
    if record and supervisor and (name != "worker" or supervisor.environ().get("PREFECT_API_URL") == prefect):
        return record
    return _start(settings, name, prefect)


def _start(settings: Settings, name: str, prefect: str) -> ProcessRecord:
    with no_embedded_server(settings) if name == "prefect" else nullcontext():
        return _replace(settings, name, prefect)


def _replace(settings: Settings, name: str, prefect: str) -> ProcessRecord:
    if stale := read_process_record(settings, name):
        stop(settings, stale)  # remove what a killed process left
    wanted = wanted_port(name, settings)
    port = choose_port(wanted) if wanted else None
    if port != wanted:
        console.print(f"[yellow]Port {wanted} is in use: {name} takes {port} instead.[/]")
    launch = plan(name, settings, port, prefect)
    return start(settings, name, launch.command, launch.env, port)


def _await(
    settings: Settings, record: ProcessRecord, prefect: str, begun: float, before: ProcessRecord | None
) -> ProcessRecord:
    """Wait until a process is healthy, and return its record; if its port is taken meanwhile, use another port.

    Args:
        settings: Those of the project.
        record: The process.
        prefect: The address of Prefect's API.
        begun: The start time of the command.
        before: The record at that time; an equal record means that the process was already running.

    Raises:
        UserError: it stopped, or is not healthy in time.
    """
    end = time.monotonic() + HEALTHY_SECONDS
    with console.status(f"{record.name}: starting"):
        while not is_well(record, settings, prefect):
            if time.monotonic() > end or running(settings, record.name) is None:
                log = log_path(settings, record.name)
                raise UserError(f"{record.name} did not start ({_tail(log)}): see {log}; `ml down` stops the others.")
            time.sleep(0.1)
            if record.port and is_taken(record):
                record = _start(settings, record.name, prefect)
    took = f"{time.perf_counter() - begun:6.1f} s" if record != before else f"runs already, since {record.since}"
    console.print(f"[green]✓[/] {record.name:<8} [dim]{record.address or 'polls for runs':<28}{took}[/]")
    return record


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    output = [line for line in lines if " supervisor: " not in line]
    return output[-1] if output else "no output"


def _print_addresses(settings: Settings, records: dict[str, ProcessRecord], prefect: str) -> None:
    console.print("")
    shown = {name: record.address for name, record in records.items()}
    shown.setdefault("prefect", prefect.removesuffix("/api"))
    shown.setdefault("mlflow", os.environ.get("MLFLOW_TRACKING_URI"))
    mlflow = show_uri(str(shown["mlflow"])).rstrip("/")
    lines = {"flows and runs": show_uri(str(shown["prefect"])), "models": mlflow + models_path(settings)}
    if is_embedded(settings) and (experiment := find_experiment(settings)):
        lines["training runs"] = mlflow + runs_path(experiment)
    lines["predictions"] = show_uri(str(shown["service"]))
    for what, address in lines.items():
        console.print(f"{what:<15} {escape(address)}", soft_wrap=True)
    console.print(
        f"[dim]Logs: {escape(settings.show(settings.home / 'logs'))}/. `ml status` shows them, `ml down` stops them.[/]"
    )


def make_pool(commit: str | None = None, output: TextIO | None = None) -> None:
    """Create the project's work pool on the Prefect server, unless it exists.

    Args:
        commit: The commit whose flows are deployed next. It is recorded on the server unless a later one is recorded.
        output: Receives `commit=…`, unless a later commit is recorded.

    Raises:
        UserError: no server is known, or it does not answer or refuses.
    """
    settings = start_command(stored=False)
    require_prefect(settings)
    name = settings.project.name
    with prefect_server(settings) as server:
        server.wait()
        made = "was created" if make_work_pool(name) else "exists"
        remove_renamed(settings, server.url)
        later = _later_commit(settings, commit) if commit else None
    console.print(f"[green]✓[/] the work pool {escape(name)} {made}")
    if later:
        console.print(
            f"The flows are not deployed: commit {commit} is behind {later}, whose flows were deployed.", soft_wrap=True
        )
    elif commit and output is not None:
        output.write(f"commit={commit}\n")


def _later_commit(settings: Settings, commit: str) -> str | None:
    """Return the later commit whose flows were deployed; if there is none, record this one and return None."""
    noted = deployed_commit(settings)
    if noted is not None and is_behind(settings.root, commit, noted):
        return noted
    note_deployed(settings, commit)
    return None


def follow_store(into: Path | None) -> None:
    """Keep a folder in sync with the store until SIGTERM or SIGINT.

    Args:
        into: The folder that the service uses as `ML_STORE`; None for the project's own mirror.

    Raises:
        UserError: the store is a folder.
    """
    settings = start_command(stored=False)
    store = open_store(settings)
    if store.remote is None:
        raise UserError(f"The store is the folder {store}: the service reads it directly.")
    folder = into.absolute() if into else store.folder
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    _say(f"Keeping {folder} in sync with {settings.store}.")
    folder.mkdir(parents=True, exist_ok=True)
    keep_in_sync(Mirror(folder, Objects(settings.store, ONE_TRY)), settings.log.keep_bytes, stop, _say)


def start_follower(settings: Settings) -> None:
    """Keep the mirror in sync as long as this process lives, also after `exec`."""
    command = [sys.executable, "-m", "ondol.cli", "follow"]
    child = Child(command, os.environ, settings.root, settings.home / "logs" / "follow.log")
    assert child.process.stdin is not None
    os.set_inheritable(child.process.stdin.fileno(), True)  # the follower ends when it is closed


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
    sys.stdout.flush()
