"""What only people read does not grow without bound: reports in MLflow, runs in Prefect, traces of faults."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from template_support import repository_environment

from ondol.cli.console import KEPT_TRACES, report_unexpected
from ondol.config import Settings, load_settings
from ondol.monitoring.windows import WindowRuns
from ondol.orchestration.environment import prepare
from ondol.orchestration.guard import Child, free_port
from ondol.orchestration.server import Server, post_prefect
from ondol.services import plan

HOMES = ("PREFECT_HOME", "PREFECT_PROFILES_PATH", "BENTOML_HOME", "MPLCONFIGDIR")
RUN = """
import sys
from prefect import flow, get_run_logger
@flow(name=sys.argv[1])
def work():
    get_run_logger().warning("a line")
work()
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in (*HOMES, "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.setenv(name, "")  # so that it is removed again at the end
        monkeypatch.delenv(name)
    (tmp_path / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    settings = load_settings(tmp_path)
    prepare(settings)
    return settings


def test_only_the_newest_windows_keep_their_artifacts_in_mlflow_and_all_their_figures(settings: Settings) -> None:
    runs = WindowRuns(settings)
    for number in range(4):
        run = runs.open_run(f"w{number}")
        runs.client.log_metric(run, "rows", number)
        mlflow.log_text("<html></html>", "report.html", run_id=run)
        mlflow.log_text("", "pictures/a.png", run_id=run)
        mlflow.log_dict({}, "window.json", run_id=run)
    assert (runs.prune(2), runs.prune(2)) == (2, 0)
    found = runs.client.search_runs([runs.experiment_id()], order_by=["start_time ASC"])
    assert [len(runs.client.list_artifacts(run.info.run_id)) for run in found] == [0, 0, 3, 3]
    assert [run.data.metrics["rows"] for run in found] == [0, 1, 2, 3]


@pytest.mark.slow
def test_server_of_up_removes_runs_that_ended_long_ago(settings: Settings, tmp_path: Path) -> None:
    """The real server, started as `ml up` starts it, on a database with an old run and a new one."""
    database = settings.home / "prefect" / "prefect.db"
    for name in ("old", "new"):
        with_server(settings, f"{name}-", lambda address, name=name: subprocess.run(
            [sys.executable, "-c", RUN, name],
            env=repository_environment() | {"PREFECT_API_URL": address}, cwd=tmp_path, check=True, capture_output=True,
        ))  # fmt: skip
    with closing(sqlite3.connect(database)) as made, made:
        made.execute(
            "update flow_run set end_time = datetime('now', '-31 days') "
            "where flow_id in (select id from flow where name = 'old')"
        )

    def await_one(address: str) -> None:
        def names() -> set[str]:
            found = {flow["id"]: flow["name"] for flow in post_prefect(f"{address}/flows/filter", {}) or []}
            return {found[run["flow_id"]] for run in post_prefect(f"{address}/flow_runs/filter", {}) or []}

        for _ in range(600):
            if names() == {"new"}:
                return
        raise AssertionError(names())

    with_server(settings, "last-", await_one)


def with_server(settings: Settings, name: str, act: object) -> None:
    """Do something while the server runs that `ml up` would start."""
    launch = plan("prefect", settings, port := free_port(), "")
    child = Child(
        launch.command,
        repository_environment() | launch.env | homes(settings),
        settings.root,
        settings.home / f"{name}log",
    )
    try:
        Server(child, f"http://127.0.0.1:{port}/api").wait()
        act(f"http://127.0.0.1:{port}/api")  # type: ignore[operator]
    finally:
        child.stop()


def homes(settings: Settings) -> dict[str, str]:
    return {"PREFECT_HOME": str(settings.home / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def test_traces_of_faults_are_kept_in_a_bounded_number(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(settings.root)
    logs = settings.home / "logs"
    logs.mkdir(parents=True)
    for number in range(KEPT_TRACES + 5):
        (logs / f"error-20200101-{number:06}.log").touch()
    report_unexpected(RuntimeError("a fault"))
    kept = sorted(path.name for path in logs.glob("error-*.log"))
    assert len(kept) == KEPT_TRACES
    assert kept[0] == "error-20200101-000006.log"
