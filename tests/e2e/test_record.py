"""The records of a run for a user: in Prefect's logs, and in MLflow's table of runs."""

import json
import sqlite3
from contextlib import closing
from typing import Any

import httpx
import pytest

from e2e.conftest import Make
from e2e.support import Project


def logs_of(prefect: str, flow: str) -> list[str]:
    """Return the log of the last run of a flow and its tasks from this project's code."""
    with httpx.Client(base_url=f"{prefect}/", timeout=30, trust_env=False) as client:
        flows = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC", "limit": 1}
        (run,) = client.post("flow_runs/filter", json=flows).json()
        wanted = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC"}
        found: list[dict[str, Any]] = client.post("logs/filter", json=wanted).json()
    return [entry["message"] for entry in found if entry["name"] == "ondol.orchestration.reporting"]


@pytest.fixture(scope="module")
def trained_once(make: Make) -> Project:
    """A project of these tests' own: of its runs are the last logs that the server has."""
    project = make()
    project.run()
    return project.save()


def query(project: Project, text: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(project.root / ".ml" / "mlflow" / "mlflow.db")) as database:
        return database.execute(text).fetchall()


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        ("ingest", ["1,500 rows × ", "sample://?rows=1500", "snapshot "]),
        ("validate", ["1,500 rows are valid, 0 are quarantined."]),
        ("train", ["Version 1 was fitted on ", "registered"]),
        ("evaluate", ["Gate floor passed: ", "Gate margin passed: ", "Version 1 passed its gates on "]),
        (
            "deploy",
            ["equal to scikit-learn on ", "The service answered 3 ", "Version 1 is in production, from bundle 1-"],
        ),
    ],
)
def test_log_of_each_stage_says_what_came_of_it(trained: Project, prefect: str, flow: str, words: list[str]) -> None:
    said = "\n".join(logs_of(prefect, flow))
    for word in words:
        assert word in said


def test_log_of_a_refused_run_says_by_which_gate_and_by_how_much(trained: Project, prefect: str) -> None:
    trained.configure("gates", minimum=0.9999)
    assert trained.ml("run", ML_TRAIN__SEED="7").returncode == 1
    said = "\n".join(logs_of(prefect, "evaluate"))
    assert "Gate floor refused: " in said
    assert "0.9999" in said
    assert "Traceback" not in said


def test_inputs_of_tasks_are_of_kinds_that_prefects_ui_can_display(trained: Project, prefect: str) -> None:
    with httpx.Client(base_url=f"{prefect}/", timeout=30, trust_env=False) as client:
        tasks = client.post("task_runs/filter", json={"flows": {"name": {"any_": ["pipeline"]}}}).json()
    inputs = [
        entry
        for task in tasks
        if task["task_key"].startswith("publish_summary")
        for entry in task["task_inputs"].values()
    ]
    assert inputs
    assert {found["input_type"] for entry in inputs for found in entry} <= {"task_run", "parameter", "constant"}


def test_run_has_its_rows_as_datasets(trained: Project) -> None:
    found = query(
        trained,
        "select d.name, d.digest, d.dataset_source, d.dataset_schema, d.dataset_profile, t.value "
        "from datasets d join inputs i on i.source_id = d.dataset_uuid "
        "join input_tags t on t.input_uuid = i.input_uuid",
    )
    snapshot = trained.latest["ingest"]
    assert {row[5] for row in found} == {"training", "evaluation"}
    for _, digest, source, schema, _, _ in found:
        assert digest.startswith(snapshot[:12])
        assert json.loads(source) == {
            "uri": "sample://?rows=1500",
            "snapshot": snapshot,
            "validation": trained.latest["validate"],
        }
        columns = {column["name"]: column["type"] for column in json.loads(schema)["mlflow_colspec"]}
        assert columns["age"] == "long"
        assert columns["churned"] == "string"
    rows = {context: json.loads(profile)["num_rows"] for *_, profile, context in found}
    assert rows["training"] + rows["evaluation"] == 1500


def test_table_of_runs_shows_the_metric_that_decides(trained: Project) -> None:
    (value,) = next(
        iter(query(trained, "select value from experiment_tags where key = 'mlflow.sharedViewState.metrics'"))
    )
    columns = json.loads(value)["selectedColumns"]
    assert "metrics.`roc_auc`" in columns
    names = {name for (name,) in query(trained, "select distinct key from latest_metrics")}
    assert {column.split("`")[1] for column in columns if column.startswith("metrics.")} <= names
