"""The loop closes by itself, through the real service, server, worker and automation, and rests where nothing moves."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from e2e.conftest import Make
from e2e.faults import killer
from e2e.support import Project, succeed, wait_until_alone

pytestmark = pytest.mark.slow
WEEKS = 5  # the customers move after the second, and the fourth brings the new version


def test_loop_closes_by_itself(make: Make) -> None:
    project = make(rows=None)
    done = succeed(project.ml("simulate", "--weeks", str(WEEKS), timeout=2400))
    require_closed(done.stdout)
    assert (project.root / ".ml" / "simulation" / "timeline.png").exists()
    assert not project.champion


def test_nothing_is_retrained_where_nothing_moves(make: Make) -> None:
    project = make(rows=None)
    done = succeed(project.ml("simulate", "--weeks", "4", "--no-shift", timeout=2400))
    assert "Nothing moved, and nothing was retrained." in done.stdout.replace("\n", " ")
    assert Project(project.root / ".ml" / "simulation").versions() == ["1"]


def test_loop_continues_after_any_kill(make: Make) -> None:
    """`kill -9` of service, server, monitor and worker in turn: nothing is lost, nothing is done twice."""
    project = make(rows=None)
    sandbox = Project(project.root / ".ml" / "simulation")
    with killer(sandbox.root) as kills:
        done = succeed(project.ml("simulate", "--weeks", str(WEEKS), "--rows", "1000", timeout=3600))
    assert kills.killed.keys() == {"service", "prefect", "monitor", "worker"}
    assert all(old and new and not old & new for old, new in kills.killed.values())
    require_closed(done.stdout)
    assert not wait_until_alone(project.root)
    require_each_answer_once(sandbox, WEEKS * 1000)
    require_each_record_evaluated_once(sandbox.store)
    require_one_retraining(sandbox)
    require_ended_runs(sandbox, monitors=WEEKS)


def require_closed(printed: str) -> None:
    said = " ".join(printed.split())
    assert "the automation retrained" in said
    assert "The metric recovered." in said


def require_each_answer_once(sandbox: Project, rows: int) -> None:
    """Every answer that the client received is in the log once; other records belong to requests during a kill."""
    answers = [json.loads(line) for line in read_lines(sandbox.root / "answers.jsonl")]
    assert sum(len(answer["predictions"]) for answer in answers) == rows
    seen = Counter(answer["request_id"] for answer in answers)
    logged = Counter(record["id"] for record in log_records(sandbox.store))
    assert {*seen.values(), *logged.values()} == {1}
    assert seen.keys() <= logged.keys()
    assert len(logged) - len(seen) <= 2


def log_records(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in (store / "log").glob("*.jsonl") for line in read_lines(path)]


def read_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


def require_each_record_evaluated_once(store: Path) -> None:
    """Each record of the log is in one evaluated window, and in no other; so is each row that was compared."""
    windows = [json.loads(path.read_text(encoding="utf-8")) for path in (store / "windows").glob("*.json")]
    evaluated = [window for window in windows if window["verdict"] != "too small"]
    assert len(evaluated) == WEEKS
    for record in log_records(store):
        at = datetime.fromisoformat(record["at"])
        holding = [w for w in evaluated if w["bundle"] == record["bundle"] and is_in(at, w)]
        assert len(holding) == 1, (record["id"], holding)
    samples = pd.concat([pd.read_parquet(store / "windows" / f"{window['id']}.parquet") for window in evaluated])
    assert not samples.duplicated(["request_id", "row"]).any()
    assert sum(window["rows"] for window in evaluated) == len(samples)


def is_in(at: datetime, window: dict[str, Any]) -> bool:
    return datetime.fromisoformat(window["start"]) <= at < datetime.fromisoformat(window["end"])


def require_one_retraining(sandbox: Project) -> None:
    """One request, one run of the pipeline, one new version, one change of the champion."""
    [request] = sandbox.json("loop.json")["history"]
    assert request["what"] == "retrain"
    assert [run["run_count"] for run in worker_runs(sandbox, "pipeline")] == [2]
    assert sandbox.versions() == ["1", "2"]
    assert sandbox.training_runs() >= 2
    champion = sandbox.champion
    assert champion
    assert [(change["action"], change["to"]) for change in champion["history"]] == [
        ("deploy", champion["history"][0]["to"]),
        ("deploy", champion["bundle"]),
    ]
    assert champion["version"] == "2"


def require_ended_runs(sandbox: Project, monitors: int) -> None:
    """The monitor's run of each week is completed, that of the killed one at its second start; none is left over.

    One that failed while its server was away, and ran again, is not counted.
    """
    runs = worker_runs(sandbox, "monitor")
    assert {run["state_type"] for run in runs} <= {"COMPLETED", "FAILED"}
    completed = [run for run in runs if run["state_type"] == "COMPLETED"]
    assert len(completed) == monitors
    assert max(run["run_count"] for run in completed) >= 2
    assert [run["state_type"] for run in worker_runs(sandbox, "pipeline")] == ["COMPLETED"]
    assert (sandbox.root / ".ml" / "prefect" / "concurrency_leases").is_dir()  # a killed server finds them again


def worker_runs(sandbox: Project, flow: str) -> list[dict[str, Any]]:
    query = (
        "select flow_run.name, state_type, run_count from flow_run join flow on flow.id = flow_run.flow_id "
        "where flow.name = ? and deployment_id is not null order by expected_start_time"
    )
    with closing(sqlite3.connect(sandbox.root / ".ml" / "prefect" / "prefect.db")) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(query, (flow,))]
