"""The loop closes by itself, through the real service, server, worker and automation, and rests where nothing moves."""

import json
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from e2e.conftest import Make
from e2e.support import succeed

pytestmark = pytest.mark.slow


def test_loop_closes_by_itself(make: Make) -> None:
    project = make(rows=None)
    done = succeed(project.ml("simulate", "--weeks", "6", timeout=1200))
    assert "the automation retrained" in done.stdout.replace("\n", " ")
    assert (project.root / ".ml" / "simulation" / "timeline.png").exists()
    assert not project.champion


def test_nothing_is_retrained_where_nothing_moves(make: Make) -> None:
    done = succeed(make(rows=None).ml("simulate", "--weeks", "4", "--no-shift", timeout=1200))
    assert "Nothing moved, and nothing was retrained." in done.stdout.replace("\n", " ")


def test_loop_goes_on_whatever_is_killed(make: Make) -> None:
    """`kill -9` of server, worker, service and the monitor's process in turn, while a simulation plays."""
    project = make(rows=None)
    sandbox = project.root / ".ml" / "simulation"
    stop = threading.Event()
    killed: list[str] = []
    killer = threading.Thread(target=kill_in_turn, args=(sandbox, stop, killed))
    killer.start()
    try:
        done = succeed(project.ml("simulate", "--weeks", "6", "--rows", "600", timeout=1800))
    finally:
        stop.set()
        killer.join()
    assert {"prefect", "worker", "service", "monitor"} <= set(killed)
    assert "the automation retrained" in done.stdout.replace("\n", " ")
    require_each_answer_once(sandbox / ".ml" / "store")


def kill_in_turn(sandbox: Path, stop: threading.Event, killed: list[str], pause: float = 12.0) -> None:
    """Kill the processes that the keepers run, and the process of a monitor's run, one after the other."""
    wanted = ["monitor", "service", "prefect", "worker", "mlflow"]
    while wanted and not stop.wait(0.2):
        if not (sandbox / ".ml" / "run" / "worker.json").exists():
            continue
        victims = monitors(sandbox) if wanted[0] == "monitor" else children(sandbox, wanted[0])
        if not victims:
            continue
        for victim in victims:
            victim.kill()
        killed.append(wanted.pop(0))
        stop.wait(pause)


def children(sandbox: Path, name: str) -> list[psutil.Process]:
    record = json.loads((sandbox / ".ml" / "run" / f"{name}.json").read_text(encoding="utf-8"))
    return psutil.Process(record["pid"]).children()


def monitors(sandbox: Path) -> list[psutil.Process]:
    """The processes in which a flow run of the sandbox's worker goes on while its monitor holds its lock."""
    if not (sandbox / ".ml" / "store" / "monitor.lock").exists():
        return []
    with suppress(psutil.Error):
        worker = children(sandbox, "worker")
        return [p for p in worker[0].children(recursive=True) if "prefect.flow_engine" in " ".join(p.cmdline())]
    return []


def require_each_answer_once(store: Path) -> None:
    """Check that every logged answer is in the log once, and in one judged window at most."""
    lines = [line for path in (store / "log").glob("*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    ids = [json.loads(line)["id"] for line in lines]
    assert len(ids) == len(set(ids))
    windows = [json.loads(path.read_text(encoding="utf-8")) for path in (store / "windows").glob("*.json")]
    assert sum(w["requests"] + w["others"] for w in windows if w["verdict"] != "too small") == len(ids)
