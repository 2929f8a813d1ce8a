"""What a worker starts again: runs whose process is gone, its own ones, three starts at most."""

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from ondol.config import Settings, load_settings
from ondol.orchestration import recovery
from ondol.orchestration.alerts import waiting
from ondol.orchestration.recovery import MOST_STARTS, Recovery
from ondol.services import worker_name
from ondol.storage.files import read_json

OURS, THEIRS = "worker-here", "worker-there"


class Prefect:
    """As much of a Prefect server as recovery asks."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.states: dict[str, list[dict[str, Any]]] = {}
        self.workers = [{"name": OURS, "status": "ONLINE"}]
        self.alive: set[str] = set()

    def add(self, state: str = "RUNNING", worker: str | None = OURS, age: float = 3.0) -> str:
        run = uuid.uuid4().hex
        labels = {} if worker is None else {"prefect.worker.name": worker}
        self.runs[run] = {"id": run, "name": "pipeline", "labels": labels}
        self.states[run] = []
        self.set(run, {"type": state, "name": state.title(), "message": ""}, age)
        return run

    def set(self, run: str, state: dict[str, Any], age: float = 0.0) -> None:
        since = datetime.now(UTC) - timedelta(seconds=age)
        made = {
            "message": "",
            "name": state["type"].title(),
            **state,
            "id": uuid.uuid4().hex,
            "timestamp": since.isoformat(),
        }
        self.runs[run]["state"] = made
        self.states[run].append(made)

    def names(self, run: str) -> list[str]:
        return [state["name"] for state in self.states[run]]

    def post_prefect(self, url: str, body: dict[str, Any], timeout: float = 5.0) -> Any:
        if url.endswith("/set_state"):
            self.set(url.split("/")[-2], body["state"])
            return {}
        if url.endswith("/workers/filter"):
            return self.workers
        assert body["work_pools"] == {"name": {"any_": ["shop"]}}
        wanted = body["flow_runs"]["state"]["type"]["any_"]
        after = body["flow_runs"].get("end_time", {}).get("after_", "")
        return [r for r in self.runs.values() if r["state"]["type"] in wanted and r["state"]["timestamp"] > after]

    def get_prefect(self, url: str, timeout: float = 5.0) -> Any:
        return self.states[url.rpartition("=")[2]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    return load_settings(tmp_path)


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Prefect:
    made = Prefect()
    for name in ("post_prefect", "get_prefect"):
        monkeypatch.setattr(recovery, name, getattr(made, name))
    monkeypatch.setattr(recovery, "living_runs", lambda: made.alive)
    return made


@pytest.fixture
def look(settings: Settings, prefect: Prefect) -> Callable[[], int]:
    return Recovery(settings, "http://nowhere/api", OURS).check


def test_run_whose_process_is_gone_starts_again_at_the_second_look(prefect: Prefect, look: Callable[[], int]) -> None:
    run = prefect.add()
    assert look() == 0
    assert look() == 1
    assert prefect.names(run) == ["Running", "Crashed", "AwaitingRetry"]
    assert look() == 0


def test_run_that_ends_between_two_looks_is_left_alone(prefect: Prefect, look: Callable[[], int]) -> None:
    run = prefect.add()
    look()
    prefect.set(run, {"type": "COMPLETED", "name": "Completed"})
    assert (look(), look()) == (0, 0)


def test_run_whose_process_is_alive_is_left_alone_even_if_its_worker_is_not(
    prefect: Prefect, look: Callable[[], int]
) -> None:
    prefect.alive = {prefect.add(), prefect.add("CRASHED"), prefect.add(worker=THEIRS)}
    assert (look(), look()) == (0, 0)


def test_run_that_was_just_taken_has_time_to_get_a_process(prefect: Prefect, look: Callable[[], int]) -> None:
    prefect.add("PENDING", age=10)
    old = prefect.add("PENDING", age=100)
    assert (look(), look()) == (0, 1)
    assert prefect.names(old)[-1] == "AwaitingRetry"


def test_crashed_run_starts_again_unless_that_is_long_ago(prefect: Prefect, look: Callable[[], int]) -> None:
    run, old = prefect.add("CRASHED"), prefect.add("CRASHED", age=7200)
    assert (look(), look()) == (0, 1)
    assert prefect.names(run) == ["Crashed", "AwaitingRetry"]
    assert prefect.names(old) == ["Crashed"]


@pytest.mark.parametrize("worker", [THEIRS, None])
def test_run_of_another_worker_starts_again_only_where_no_other_is_alive(
    prefect: Prefect, look: Callable[[], int], worker: str | None
) -> None:
    prefect.add(worker=worker)
    prefect.workers.append({"name": THEIRS, "status": "ONLINE"})
    assert (look(), look()) == (0, 0)
    prefect.workers[1]["status"] = "OFFLINE"
    assert (look(), look()) == (0, 1)


def test_run_is_given_up_after_its_starts_and_an_alert_is_sent_once(
    prefect: Prefect, look: Callable[[], int], settings: Settings
) -> None:
    run, started = prefect.add(), 1
    for _ in range(20):
        if look():
            started += 1
            prefect.set(run, {"type": "RUNNING", "name": "Running"})
    assert started == MOST_STARTS
    assert prefect.runs[run]["state"]["type"] == "CRASHED"
    assert Recovery(settings, "http://nowhere/api", OURS).check() == 0  # the next worker's
    [alert] = [read_json(path) for path in waiting(settings)]
    assert alert and "ended 3 times with its process" in alert["what"]


def test_server_that_does_not_answer_starts_nothing(
    prefect: Prefect, look: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect.add()
    look()
    monkeypatch.setattr(recovery, "post_prefect", lambda *_: None)
    assert look() == 0
    monkeypatch.setattr(recovery, "post_prefect", prefect.post_prefect)
    assert (look(), look()) == (0, 1)  # seen again


def test_worker_s_name_is_its_home_s_own_and_stays(settings: Settings, tmp_path: Path) -> None:
    name = worker_name(settings)
    assert name == worker_name(settings)
    copy = settings.model_copy(update={"root": tmp_path / "copy"})
    (copy.home).mkdir(parents=True)
    (copy.home / "worker").write_bytes((settings.home / "worker").read_bytes())
    assert worker_name(copy) != name
    (settings.home / "worker").unlink()
    assert worker_name(settings) != name


class Finished:
    """As much of a Prefect server as `end_lost` asks: runs, runs inside them, and their tasks."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, str] = {}

    def add(self, name: str, parent: str | None = None, age: float = 3600.0, **more: Any) -> None:
        since = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
        state = {"type": "RUNNING", "timestamp": since}
        self.runs[name] = {"id": name, "state": state, "parent_task_run_id": parent, **more}
        self.tasks[name] = "RUNNING"

    @property
    def crashed(self) -> set[str]:
        runs = {name for name, run in self.runs.items() if run["state"]["type"] == "CRASHED"}
        assert runs == {name for name, state in self.tasks.items() if state == "CRASHED"}
        return runs

    def post_prefect(self, url: str, body: dict[str, Any], timeout: float = 5.0) -> Any:
        kind, name = url.split("/")[-3:-1]
        if url.endswith("/set_state"):
            if kind == "task_runs":
                self.tasks[name] = body["state"]["type"]
            else:
                self.runs[name]["state"] = body["state"]
            return {}
        wanted = body["flow_runs"]
        if url.endswith("/task_runs/filter"):
            return [{"id": one} for one in wanted["id"]["any_"] if self.tasks[one] == "RUNNING"]
        parents = wanted.get("parent_flow_run_id", {}).get("any_")
        unfinished = [run for run in self.runs.values() if run["state"]["type"] == "RUNNING"]
        return [run for run in unfinished if parents is None or run["parent_task_run_id"] in parents]


def noted(command: str, host: str = recovery.HOST) -> dict[str, str]:
    return {"infrastructure_pid": f"ml:{host}:{command}"}


class Command:
    """A process that is registered as a command of the project."""

    def __init__(self, settings: Settings) -> None:
        code = (
            "import sys, time; from pathlib import Path; from ondol.orchestration.recovery import register_command; "
            "from ondol.config import load_settings\n"
            "with register_command(load_settings(Path(sys.argv[1]))) as command: "
            "print(command, flush=True); time.sleep(600)"
        )
        self.process = subprocess.Popen([sys.executable, "-c", code, settings.root], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.id = self.process.stdout.readline().strip()

    def kill(self) -> None:
        with self.process:
            self.process.kill()


@pytest.fixture
def start_command(settings: Settings) -> Iterator[Callable[[], Command]]:
    started: list[Command] = []

    def start() -> Command:
        started.append(Command(settings))
        return started[-1]

    yield start
    for command in started:
        command.kill()


def test_command_lives_until_its_process_ends_however_that_ends(
    settings: Settings, start_command: Callable[[], Command]
) -> None:
    other = start_command()
    with recovery.register_command(settings) as mine:
        assert recovery.living_commands(settings) == {mine, other.id}
        other.kill()
        assert recovery.living_commands(settings) == {mine}
    assert recovery.living_commands(settings) == set()
    assert not list((settings.home / "run" / "commands").iterdir())


def test_what_commands_run_is_known_while_they_live(settings: Settings, start_command: Callable[[], Command]) -> None:
    start_command()  # of an earlier release: it notes no flow
    with recovery.register_command(settings, "pipeline") as mine:
        [flow] = recovery.flows_of_commands(settings)
        assert (flow.flow, flow.step) == ("pipeline", "")
        for step in ("pipeline", "ingest", "train"):
            recovery.note_step(settings, mine, step)
        assert recovery.flows_of_commands(settings) == [flow.model_copy(update={"step": "train"})]
        (settings.home / "run" / "commands" / f"{mine}.lock").write_bytes(b"")  # while it is written
        assert recovery.flows_of_commands(settings) == []
        assert mine in recovery.living_commands(settings)
    assert recovery.flows_of_commands(settings) == []


def test_what_workers_run_is_what_prefect_says(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    since = "2026-01-01T03:00:00.123456Z"
    outer = {"id": "1", "name": "pipeline version 3, data 0af3b2c1d9e8", "start_time": since}

    def post(url: str, body: dict[str, Any], timeout: float) -> Any:
        assert body["flow_runs"]["state"] == {"type": {"any_": ["RUNNING"]}}
        if "work_pools" in body:
            assert body["work_pools"] == {"name": {"any_": ["shop"]}}
            return [outer, outer | {"id": "2", "name": "monitor"}]
        return {"1": [{"id": "3", "name": "train data 0af3b2c1d9e8"}]}.get(
            body["flow_runs"]["parent_flow_run_id"]["any_"][0]
        )

    monkeypatch.setattr(recovery, "post_prefect", post)
    begun = "2026-01-01T03:00:00+00:00"
    assert recovery.flows_of_workers(settings, "http://nowhere/api", 1.0) == [
        recovery.RunningFlow(flow="pipeline", since=begun, step="train"),
        recovery.RunningFlow(flow="monitor", since=begun),
    ]
    monkeypatch.setattr(recovery, "post_prefect", lambda *_: None)
    assert recovery.flows_of_workers(settings, "http://nowhere/api", 1.0) == []


def test_run_without_a_note_is_left_alone_while_another_command_lives(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, start_command: Callable[[], Command]
) -> None:
    """The note may have failed: the server was slow, or its database was locked."""
    made = Finished()
    made.add("silent")
    monkeypatch.setattr(recovery, "post_prefect", made.post_prefect)
    other = start_command()
    with recovery.register_command(settings):
        assert recovery.end_lost(settings, "http://nowhere/api", embedded=True) == 0
        other.kill()
        assert recovery.end_lost(settings, "http://nowhere/api", embedded=True) == 1


def test_clock_that_is_set_ends_no_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, start_command: Callable[[], Command]
) -> None:
    """The start time of a process, as the system gives it, moves with the clock."""
    made = Finished()
    made.add("alive", **noted(start_command().id))
    monkeypatch.setattr(recovery, "post_prefect", made.post_prefect)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1.0)
    with recovery.register_command(settings):
        assert recovery.end_lost(settings, "http://nowhere/api", embedded=True) == 0


@pytest.mark.parametrize("embedded", [True, False])
def test_runs_of_killed_commands_are_marked_as_crashed_with_what_is_inside(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, start_command: Callable[[], Command], embedded: bool
) -> None:
    killed = start_command()
    killed.kill()
    made = Finished()
    made.add("dead", **noted(killed.id))
    made.add("of dead", "dead")
    made.add("inside that", "of dead")
    made.add("of alive", "alive")
    made.add("of another machine", **noted("x", "0000"))
    made.add("of a worker", work_pool_name="shop")
    made.add("of a worker that lives", work_pool_name="shop")
    made.add("of another pool", work_pool_name="other")
    made.add("silent")
    made.add("just begun", age=1.0)
    monkeypatch.setattr(recovery, "post_prefect", made.post_prefect)
    monkeypatch.setattr(recovery, "living_runs", lambda: {"of a worker that lives"})
    more = {"silent"} if embedded else set()
    with recovery.register_command(settings) as mine:
        made.add("alive", **noted(mine))
        assert recovery.end_lost(settings, "http://nowhere/api", embedded=embedded) == 2 + len(more)
        assert made.crashed == {"dead", "of dead", "inside that", "of a worker"} | more
        assert recovery.end_lost(settings, "http://nowhere/api", embedded=embedded) == 0
