"""Flow runs whose process died: the project's worker starts them again."""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ondol.config import Settings
from ondol.orchestration.alerts import alert
from ondol.orchestration.processes import running
from ondol.orchestration.server import call_prefect, get_prefect, post_prefect
from ondol.storage.files import HOST, locked, utc_now

MOST_STARTS = 3  # a run that takes its process along each time must not do so for ever
CHECK_SECONDS = 5.0
SUBMIT_SECONDS = 60.0  # from a run's being taken by a worker until its process is there, at most
CRASHED_SECONDS = 3600.0  # a run that crashed longer ago is past
MESSAGE = "Its process ended while it ran."
COMMAND = "ml:"  # begins the note of which command runs a flow, where no worker does
NOTE_SECONDS = 5.0
RUN_ID = "PREFECT__FLOW_RUN_ID"  # in the environment of a run's process and of all it starts
Run = dict[str, Any]


class Recovery:
    """Looks for lost runs, as long as the worker lives.

    A run is lost where its worker was this one and no process of this machine is of that run, or where it crashed. What
    another worker took is left alone while any other is alive. Starting again is safe, since a flow that is run
    again finds what it had made.
    """

    def __init__(self, settings: Settings, prefect: str, worker: str) -> None:
        """Watch runs of the project's pool at `prefect`, the address of Prefect's API, for the worker of this name."""
        self.settings, self.prefect, self.worker = settings, prefect, worker
        self.missing: dict[str, str] = {}  # runs without a process at the last check, and their states
        self.given_up: set[str] = set()

    def start(self) -> None:
        """Check periodically in a thread of its own."""
        threading.Thread(target=self._go_on, daemon=True, name="recovery").start()

    def check(self) -> int:
        """Start the runs again that were lost at the last check and still are; return how many."""
        runs = [run for run in self._candidates() if run["id"] not in self.given_up and _is_ripe(run)]
        alive = living_runs() if runs else set()
        now = {run["id"]: run["state"]["id"] for run in runs if run["id"] not in alive}
        lost = [run for run in runs if run["id"] in now and self.missing.get(run["id"]) == now[run["id"]]]
        self.missing = now
        return sum(self._restart(run) for run in lost)

    def _go_on(self) -> None:
        while True:
            with suppress(Exception):  # an answer of the server must not end the worker
                self.check()
            time.sleep(CHECK_SECONDS)

    def _candidates(self) -> list[Run]:
        """Return the runs that this worker answers for and that have not ended, or crashed."""
        pool = self.settings.project.name
        since = datetime.now(UTC) - timedelta(seconds=CRASHED_SECONDS)
        unfinished = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
        crashed = {"state": {"type": {"any_": ["CRASHED"]}}, "end_time": {"after_": since.isoformat()}}
        runs: list[Run] = []
        for wanted in (unfinished, crashed):
            body = {"work_pools": {"name": {"any_": [pool]}}, "flow_runs": wanted}
            runs += post_prefect(f"{self.prefect}/flow_runs/filter", body) or []
        ours = [run for run in runs if _worker_of(run) == self.worker]
        return runs if len(ours) < len(runs) and self._is_alone() else ours

    def _is_alone(self) -> bool:
        """Return True if the pool has no other worker: what others left is this one's then."""
        known = post_prefect(f"{self.prefect}/work_pools/{self.settings.project.name}/workers/filter", {})
        return known is not None and all(w["name"] == self.worker or w["status"] != "ONLINE" for w in known)

    def _restart(self, run: Run) -> bool:
        """Start a run again, unless that was done often enough; return whether it was."""
        states = get_prefect(f"{self.prefect}/flow_run_states/?flow_run_id={run['id']}")
        if states is None:
            return False
        if run["state"]["type"] != "CRASHED":
            self._set_state(run, {"type": "CRASHED", "message": MESSAGE}, force=False)
        if 1 + sum(s["name"] == "AwaitingRetry" and s["message"] == MESSAGE for s in states) < MOST_STARTS:
            details = {"scheduled_time": datetime.now(UTC).isoformat()}
            again = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": MESSAGE, "state_details": details}
            self._set_state(run, again, force=True)
            return True
        self.given_up.add(run["id"])
        what = f"The run {run['name']} ended {MOST_STARTS} times with its process and is not started again."
        todo = f"See `.ml/logs/worker.log`; the run is {run['id']} in Prefect."
        alert(self.settings, "run-failed", what, todo, key=f"given-up-{run['id']}")
        return False

    def _set_state(self, run: Run, state: dict[str, Any], *, force: bool) -> None:
        post_prefect(f"{self.prefect}/flow_runs/{run['id']}/set_state", {"state": state, "force": force})


class RunningFlow(BaseModel):
    """A flow that runs now.

    Attributes:
        flow: Its name.
        since: When it began: ISO 8601 in UTC.
        step: The flow inside it that runs now, if any.
    """

    flow: str
    since: str
    step: str = ""


@contextmanager
def register_command(settings: Settings, flow: str = "") -> Iterator[str]:
    """Register this process as a command that runs `flow`; yield the id to note in its runs.

    A command lives as long as its file is locked. The system releases the lock when the process ends, however it ends;
    process ids are used again, and start times move when the clock is set.
    """
    command = uuid.uuid4().hex
    path = _commands(settings) / f"{command}.lock"
    unlocked = path.with_suffix(".new")
    with locked(unlocked, wait=False):
        _write(unlocked, RunningFlow(flow=flow, since=utc_now()))
        unlocked.rename(path)  # another command sees it only now, and locked
        try:
            yield command
        finally:
            path.unlink(missing_ok=True)


def living_commands(settings: Settings) -> set[str]:
    """Return the ids of the commands that run flows, this process's own among them."""
    found = set()
    for path in _commands(settings).glob("*.lock"):
        with locked(path, wait=False) as free:
            if free:
                path.unlink(missing_ok=True)
            else:
                found.add(path.stem)
    return found


def note_step(settings: Settings, command: str, step: str) -> None:
    """Note which flow inside that of a command runs now."""
    path = _commands(settings) / f"{command}.lock"
    if (known := _read(path)) and step != known.flow:
        _write(path, known.model_copy(update={"step": step}))


def flows_of_commands(settings: Settings) -> list[RunningFlow]:
    """Return the flows that commands on this machine run, the oldest first."""
    notes = (_read(_commands(settings) / f"{command}.lock") for command in living_commands(settings))
    return sorted((note for note in notes if note and note.flow), key=lambda note: note.since)


def flows_of_workers(settings: Settings, prefect: str, seconds: float) -> list[RunningFlow]:
    """Return the flows that workers of the project's pool run, by the server at `prefect`; none where it is silent.

    Args:
        settings: Those of the project.
        prefect: The address of Prefect's API.
        seconds: How long each of its answers may take.
    """
    found = []
    running = {"state": {"type": {"any_": ["RUNNING"]}}}
    ours = {"work_pools": {"name": {"any_": [settings.project.name]}}, "flow_runs": running}
    for run in post_prefect(f"{prefect}/flow_runs/filter", ours, seconds) or []:
        body = {"flow_runs": running | {"parent_flow_run_id": {"any_": [run["id"]]}}}
        inside = post_prefect(f"{prefect}/flow_runs/filter", body, seconds) or []
        since = datetime.fromisoformat(run["start_time"]).isoformat("T", "seconds")
        name, *steps = (one["name"].partition(" ")[0] for one in (run, *inside))
        found.append(RunningFlow(flow=name, since=since, step=steps[-1] if steps else ""))
    return found


def _read(path: Path) -> RunningFlow | None:
    """Return the note in a command's file; None while it is written, and of an earlier release's command."""
    try:
        return RunningFlow.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _write(path: Path, note: RunningFlow) -> None:
    """Write into a command's file, which stays the one that is locked; a full disk loses the note."""
    with suppress(OSError):
        path.write_bytes(note.model_dump_json().encode())


def noting(command: str) -> Callable[[Any, Any, Any], None]:
    """Return the hook of a flow that notes in each run which command it is of."""

    def note_command(flow: Any, run: Any, state: Any) -> None:
        url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{run.id}"
        call_prefect("PATCH", url, NOTE_SECONDS, json={"infrastructure_pid": f"{COMMAND}{HOST}:{command}"})

    return note_command


def end_lost(settings: Settings, prefect: str, *, embedded: bool) -> int:
    """Mark as crashed the runs whose process was killed; runs that a worker starts again are left to it.

    Args:
        settings: Those of the project.
        prefect: The address of the API of a server that only this project uses.
        embedded: Whether a registered command has just started that server: then a run without a note is lost,
            unless another command lives, whose note may have failed.

    Returns:
        How many runs, without the ones inside others.
    """
    unfinished = {"type": {"any_": ["RUNNING", "PENDING"]}}
    runs: list[Run] = post_prefect(f"{prefect}/flow_runs/filter", {"flow_runs": {"state": unfinished}}) or []
    outer = [run for run in runs if run.get("parent_task_run_id") is None]
    commands = living_commands(settings)
    has_worker = running(settings, "worker") is not None
    alive = living_runs() if any(run.get("work_pool_name") for run in outer) and not has_worker else set()
    found = []
    for run in outer:
        mark = str(run.get("infrastructure_pid") or "")
        if mark.startswith(COMMAND):
            host, _, command = mark.removeprefix(COMMAND).partition(":")
            lost = host == HOST and command not in commands
        elif run.get("work_pool_name"):
            lost = run["work_pool_name"] == settings.project.name and not has_worker and run["id"] not in alive
        else:
            lost = embedded and len(commands) == 1
        if lost and _age(run) > SUBMIT_SECONDS * (not mark.startswith(COMMAND)):
            found.append(run)
    _crash(prefect, [run["id"] for run in found], unfinished)
    return len(found)


def _crash(prefect: str, ids: list[str], unfinished: dict[str, Any]) -> None:
    """Mark runs as crashed, together with the runs and tasks inside them that have not ended."""
    body = {"state": {"type": "CRASHED", "message": MESSAGE}, "force": True}
    while ids:
        inside = {"flow_runs": {"id": {"any_": ids}}, "task_runs": {"state": unfinished}}
        for task in post_prefect(f"{prefect}/task_runs/filter", inside) or []:
            post_prefect(f"{prefect}/task_runs/{task['id']}/set_state", body)
        for run in ids:
            post_prefect(f"{prefect}/flow_runs/{run}/set_state", body)
        within = {"flow_runs": {"parent_flow_run_id": {"any_": ids}, "state": unfinished}}
        ids = [run["id"] for run in post_prefect(f"{prefect}/flow_runs/filter", within) or []]


def _commands(settings: Settings) -> Path:
    return settings.home / "run" / "commands"


def living_runs() -> set[str]:
    """Return the ids of the flow runs that processes of this machine are of."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            found.add(process.environ().get(RUN_ID, ""))
    return found - {""}


def _is_ripe(run: Run) -> bool:
    """Return True if a run's process must be there by now."""
    return run["state"]["type"] != "PENDING" or _age(run) > SUBMIT_SECONDS


def _age(run: Run) -> float:
    """Return for how many seconds a run has been in its state."""
    return (datetime.now(UTC) - datetime.fromisoformat(run["state"]["timestamp"])).total_seconds()


def _worker_of(run: Run) -> str | None:
    """Return the name of the worker that took a run; None if it was killed before it recorded it."""
    name = (run.get("labels") or {}).get("prefect.worker.name")
    return None if name is None else str(name)
