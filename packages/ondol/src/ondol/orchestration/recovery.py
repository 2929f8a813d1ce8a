"""Recovery of flow runs whose process died: the project's worker starts them again."""

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
from ondol.orchestration.server import call_prefect, get_prefect, in_pool, post_prefect
from ondol.storage.files import HOST, locked, utc_now

MOST_STARTS = 3  # a run that always kills its process must not be restarted forever
CHECK_SECONDS = 5.0
SUBMIT_SECONDS = 60.0  # longest time from a worker's taking a run to the start of its process
CRASHED_SECONDS = 3600.0  # runs that crashed longer ago are ignored
MESSAGE = "Its process ended while it ran."
COMMAND = "ml:"  # prefix of `infrastructure_pid` in runs of a command
NOTE_SECONDS = 5.0
RUN_ID = "PREFECT__FLOW_RUN_ID"  # in the environment of a run's process and of its children
Run = dict[str, Any]


class Recovery:
    """Looks for lost runs while the worker is alive.

    A run is lost if this worker took it and no process on this machine belongs to it, or if it crashed. Runs of other
    workers are ignored while another worker is alive. Restarting is safe, since a flow reuses the results of its
    earlier run.
    """

    def __init__(self, settings: Settings, prefect: str, worker: str) -> None:
        """Watch the runs of the project's pool for the worker `name`; `prefect` is the address of Prefect's API."""
        self.settings, self.prefect, self.worker = settings, prefect, worker
        self.missing: dict[str, str] = {}  # the runs without a process at the last check, with their states
        self.given_up: set[str] = set()

    def start(self) -> None:
        """Check periodically in a separate thread."""
        threading.Thread(target=self._go_on, daemon=True, name="recovery").start()

    def check(self) -> int:
        """Restart the runs that were lost at the last check and still are; return their number."""
        runs = [run for run in self._candidates() if run["id"] not in self.given_up and _is_ripe(run)]
        alive = living_runs() if runs else set()
        now = {run["id"]: run["state"]["id"] for run in runs if run["id"] not in alive}
        lost = [run for run in runs if run["id"] in now and self.missing.get(run["id"]) == now[run["id"]]]
        self.missing = now
        return sum(self._restart(run) for run in lost)

    def _go_on(self) -> None:
        while True:
            with suppress(Exception):  # an error of the server must not end the worker
                self.check()
            time.sleep(CHECK_SECONDS)

    def _candidates(self) -> list[Run]:
        """Return the runs of this worker that have not ended, or that crashed."""
        pool = self.settings.project.name
        since = datetime.now(UTC) - timedelta(seconds=CRASHED_SECONDS)
        unfinished = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
        crashed = {"state": {"type": {"any_": ["CRASHED"]}}, "end_time": {"after_": since.isoformat()}}
        runs: list[Run] = []
        for wanted in (unfinished, crashed):
            runs += post_prefect(f"{self.prefect}/flow_runs/filter", in_pool(pool) | {"flow_runs": wanted}) or []
        ours = [run for run in runs if _worker_of(run) == self.worker]
        return runs if len(ours) < len(runs) and self._is_alone() else ours

    def _is_alone(self) -> bool:
        """Return True if the pool has no other worker; then this one also restarts their runs."""
        known = post_prefect(f"{self.prefect}/work_pools/{self.settings.project.name}/workers/filter", {})
        return known is not None and all(w["name"] == self.worker or w["status"] != "ONLINE" for w in known)

    def _restart(self, run: Run) -> bool:
        """Restart a run, unless it was restarted too often; return whether it was restarted."""
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
    """A running flow.

    Attributes:
        flow: Its name.
        since: The start time: ISO 8601 in UTC.
        step: The running subflow, if any.
    """

    flow: str
    since: str
    step: str = ""


@contextmanager
def register_command(settings: Settings, flow: str = "") -> Iterator[str]:
    """Register this process as a command that runs `flow`; yield the id to record in its runs.

    A command is alive as long as its file is locked: the system releases the lock when the process ends in any way.
    Process ids would be reused, and start times change when the clock is set.
    """
    command = uuid.uuid4().hex
    path = _commands(settings) / f"{command}.lock"
    unlocked = path.with_suffix(".new")
    with locked(unlocked, wait=False):
        _write(unlocked, RunningFlow(flow=flow, since=utc_now()))
        unlocked.rename(path)  # only now other commands see it, already locked
        try:
            yield command
        finally:
            path.unlink(missing_ok=True)


def living_commands(settings: Settings) -> set[str]:
    """Return the ids of the commands that run flows, including this process."""
    found = set()
    for path in _commands(settings).glob("*.lock"):
        with locked(path, wait=False) as free:
            if free:
                path.unlink(missing_ok=True)
            else:
                found.add(path.stem)
    return found


def note_step(settings: Settings, command: str, step: str) -> None:
    """Record the running subflow of a command."""
    path = _commands(settings) / f"{command}.lock"
    if (known := _read(path)) and step != known.flow:
        _write(path, known.model_copy(update={"step": step}))


def flows_of_commands(settings: Settings) -> list[RunningFlow]:
    """Return the running flows of commands on this machine, the oldest first."""
    notes = (_read(_commands(settings) / f"{command}.lock") for command in living_commands(settings))
    return sorted((note for note in notes if note and note.flow), key=lambda note: note.since)


def flows_of_workers(settings: Settings, prefect: str, seconds: float) -> list[RunningFlow]:
    """Return the running flows of the project's workers, from the server at `prefect`; none if it does not answer.

    Args:
        settings: Those of the project.
        prefect: The address of Prefect's API.
        seconds: The time limit of each request.
    """
    found = []
    running = {"state": {"type": {"any_": ["RUNNING"]}}}
    ours = in_pool(settings.project.name) | {"flow_runs": running}
    for run in post_prefect(f"{prefect}/flow_runs/filter", ours, seconds) or []:
        body = {"flow_runs": running | {"parent_flow_run_id": {"any_": [run["id"]]}}}
        inside = post_prefect(f"{prefect}/flow_runs/filter", body, seconds) or []
        since = datetime.fromisoformat(run["start_time"]).isoformat("T", "seconds")
        name, *steps = (one["name"].partition(" ")[0] for one in (run, *inside))
        found.append(RunningFlow(flow=name, since=since, step=steps[-1] if steps else ""))
    return found


def _read(path: Path) -> RunningFlow | None:
    """Read a command's file; None while it is being written, and for commands of earlier releases."""
    try:
        return RunningFlow.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _write(path: Path, note: RunningFlow) -> None:
    """Overwrite the content of a command's locked file; a full disk loses the content."""
    with suppress(OSError):
        path.write_bytes(note.model_dump_json().encode())


def noting(command: str) -> Callable[[Any, Any, Any], None]:
    """Return a hook of flows that records in each run the command that it belongs to."""

    def note_command(flow: Any, run: Any, state: Any) -> None:
        url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{run.id}"
        call_prefect("PATCH", url, NOTE_SECONDS, json={"infrastructure_pid": f"{COMMAND}{HOST}:{command}"})

    return note_command


def end_lost(settings: Settings, prefect: str, *, embedded: bool) -> int:
    """Mark runs as crashed if their process was killed, except runs that a worker restarts.

    Args:
        settings: Those of the project.
        prefect: The address of the API of a server that only this project uses.
        embedded: Whether a registered command has just started that server: then a run without the id of a command is
            lost, unless another command is alive, which may have failed to record it.

    Returns:
        The number of runs, without subflows.
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
    """Mark runs as crashed, together with their unfinished subflows and tasks."""
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
    """Return the ids of the flow runs with a process on this machine."""
    import psutil

    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            found.add(process.environ().get(RUN_ID, ""))
    return found - {""}


def _is_ripe(run: Run) -> bool:
    """Return True if a run's process must have started by now."""
    return run["state"]["type"] != "PENDING" or _age(run) > SUBMIT_SECONDS


def _age(run: Run) -> float:
    """Return the seconds since a run's last change of state."""
    return (datetime.now(UTC) - datetime.fromisoformat(run["state"]["timestamp"])).total_seconds()


def _worker_of(run: Run) -> str | None:
    """Return the name of the worker that took a run; None if the worker was killed before recording it."""
    name = (run.get("labels") or {}).get("prefect.worker.name")
    return None if name is None else str(name)
