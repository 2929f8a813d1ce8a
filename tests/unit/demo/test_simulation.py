"""A simulation plays in a copy that touches nothing of the project, and says truly whether the loop closed."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ondol.cli.app import LEAST_WEEKS
from ondol.cli.simulate import count_calm_weeks, simulate
from ondol.config import Gates, Retrain, load_settings
from ondol.contract import Contract
from ondol.demo.sandbox import make_sandbox
from ondol.demo.simulation import (
    HISTORY,
    MetricRecovery,
    Week,
    WeekPredictions,
    conclude,
    draw,
    measure_recovery,
    read_answers,
    tabulate,
)
from ondol.demo.traffic import draw_week
from ondol.errors import UserError
from ondol.evaluation.metrics import Interval
from ondol.monitoring.windows import Window
from ondol.orchestration.environment import clean_environment
from ondol.orchestration.processes import family, running, start
from ondol.storage.files import locked

REPOSITORY = Path(__file__).parents[3]
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
BACK = MetricRecovery("roc_auc", 0.86, 0.80, 0.85, Interval(0.05, 0.03, 0.07), 0.83, 1_000)
NOW = datetime(2026, 11, 21, tzinfo=UTC)
CONFIG = """[project]
name = "dev"  # ours

[data]
source = "sample://?rows=2000"
target = "churned"
problem = "binary"

[alerts]
format = "slack"
"""


@pytest.fixture
def project(tmp_path):
    shutil.copytree(REPOSITORY / "flows", tmp_path / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("model", "service"):
        shutil.copytree(REPOSITORY / "template" / name, tmp_path / name)
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "prefect.yaml").write_text("schedules:\n  - cron: 0 3 * * 1 # weekly\n    active: true\n", "utf-8")
    return tmp_path


def week(number, verdict="ok", moved=False, training=None, version="1", after=None):
    window = Window(id=f"w{number}", start=NOW, end=NOW, version=version, bundle="b", verdict=verdict, drift_share=0.5)
    return Week(number, moved, version, window, None, training, after or version)


def test_sandbox_reads_its_own_table_and_sends_no_alert(project):
    sandbox = make_sandbox(load_settings(project))
    settings = sandbox.settings
    assert (settings.data.source, settings.monitor.labels) == ("data.parquet", "data.parquet")
    assert settings.retrain.cooldown_hours == 0
    assert settings.alerts.format == "json"
    assert settings.project.name == "dev"
    assert "# ours" in (sandbox.root / "config.toml").read_text(encoding="utf-8")
    assert (project / "config.toml").read_text(encoding="utf-8") == CONFIG


def test_sandbox_settings_come_from_its_file_and_not_from_the_environment(project, monkeypatch):
    monkeypatch.setenv("ML_STORE", "/elsewhere")
    monkeypatch.setenv("ML_RETRAIN__COOLDOWN_HOURS", "99")
    monkeypatch.setenv("ML_NO_SUCH__SETTING", "1")
    sandbox = make_sandbox(load_settings(project))
    assert sandbox.settings.folder_of(sandbox.settings.store) == sandbox.root / ".ml" / "store"
    assert sandbox.settings.retrain.cooldown_hours == 0
    assert sandbox.settings is sandbox.settings  # read once


def test_sandbox_s_schedules_are_off(project):
    sandbox = make_sandbox(load_settings(project))
    assert "active: false" in (sandbox.root / "prefect.yaml").read_text(encoding="utf-8")
    assert "active: true" in (project / "prefect.yaml").read_text(encoding="utf-8")


def test_project_with_its_own_data_is_refused_and_nothing_is_made(project):
    (project / "config.toml").write_text(CONFIG.replace("sample://?rows=2000", "own.csv"), encoding="utf-8")
    with pytest.raises(UserError, match=r"plays the sample, and this project reads own\.csv"):
        make_sandbox(load_settings(project))
    assert not (project / ".ml").exists()


def test_sandbox_s_commands_know_nothing_of_the_project_s_servers(project, monkeypatch):
    for name in ("ML_STORE", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "BENTOML_HOME", "ML_ALERTS__WEBHOOK"):
        monkeypatch.setenv(name, "theirs")
    environment = clean_environment(project)
    assert "theirs" not in environment.values()
    assert environment["PATH"] == os.environ["PATH"]


@pytest.fixture
def earlier(project):
    """An earlier simulation with a process that `ml up` started in it."""
    sandbox = make_sandbox(load_settings(project))
    record = start(sandbox.settings, "service", SLEEP, clean_environment(REPOSITORY))
    yield sandbox
    for process in family(record):
        process.kill()


def test_earlier_simulation_is_stopped_before_it_is_removed(project, earlier):
    record = running(earlier.settings, "service")
    (earlier.root / "config.toml").write_text("of another [version", encoding="utf-8")
    (earlier.root / "left").touch()
    make_sandbox(load_settings(project))
    assert not family(record)
    assert not (earlier.root / "left").exists()


def test_simulation_whose_servers_do_not_stop_is_not_removed_beneath_them(project, earlier, monkeypatch):
    monkeypatch.setattr("ondol.orchestration.processes.kill_all", lambda find, seconds: find() or family(record))
    monkeypatch.setattr("ondol.orchestration.processes.supervisor_of", lambda record: None)
    record = running(earlier.settings, "service")
    (earlier.root / "left").touch()
    with pytest.raises(UserError, match=r"service is still running although it was killed \(process \d+\)"):
        make_sandbox(load_settings(project))
    assert family(record)
    assert (earlier.root / "left").exists()


def test_simulation_in_which_a_command_is_still_at_work_is_not_removed(project):
    sandbox = make_sandbox(load_settings(project))
    (sandbox.root / "left").touch()
    command = subprocess.Popen(SLEEP, cwd=sandbox.root, env=clean_environment(sandbox.root))
    try:
        with pytest.raises(UserError, match=rf"is still running in \.ml/simulation \(process {command.pid}\): wait"):
            make_sandbox(load_settings(project))
        assert (sandbox.root / "left").exists()
    finally:
        command.kill()
        command.wait()
    make_sandbox(load_settings(project))
    assert not (sandbox.root / "left").exists()


def test_simulation_in_which_ml_up_is_at_work_is_not_removed(project):
    sandbox = make_sandbox(load_settings(project))
    busy = r"Another `ml up` or `ml down` is running in .*simulation"
    with (
        locked(sandbox.root / ".ml" / "run" / "lock", wait=False),
        pytest.raises(UserError, match=busy),
    ):
        make_sandbox(load_settings(project))
    assert (sandbox.root / "config.toml").exists()


def test_second_simulation_at_once_is_refused_and_touches_nothing(project, monkeypatch):
    sandbox = make_sandbox(load_settings(project))
    (sandbox.root / "left").touch()
    monkeypatch.chdir(project)
    with (
        locked(project / ".ml" / "simulation.lock", wait=False),
        pytest.raises(UserError, match=r"Another `ml simulate` is running here"),
    ):
        simulate(6, 1_000, shifts=True, keep=False)
    assert (sandbox.root / "left").exists()


def test_simulation_too_short_for_a_week_after_the_swap_is_refused(project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(UserError, match=r"--weeks 3 leaves no week after the promotion: give at least 4"):
        simulate(3, 1_000, shifts=True, keep=False)
    assert not (project / ".ml" / "simulation").exists()


def test_as_few_weeks_as_the_help_allows_are_played_with_a_shift():
    assert [count_calm_weeks(weeks, Retrain().windows) for weeks in (LEAST_WEEKS, 5, 6, 7, 8, 9)] == [1, 2, 3, 3, 4, 4]
    with pytest.raises(UserError, match="give at least 5"):
        count_calm_weeks(LEAST_WEEKS, windows=3)


def test_weeks_are_other_customers_who_move_half_way():
    history = [draw_week(number, 200, HISTORY, 0.0) for number in range(1 - HISTORY, 1)]
    first, moved, still = (
        draw_week(1, 200, HISTORY, 0.0),
        draw_week(2, 200, HISTORY, 1.0),
        draw_week(2, 200, HISTORY, 0.0),
    )
    ids = [set(frame["customer_id"]) for frame in (*history, first, moved)]
    assert len(set.union(*ids)) == 200 * (HISTORY + 2)
    assert set(moved["customer_id"]) == set(still["customer_id"])
    assert abs(moved["age"].mean() - still["age"].mean()) > 2


def test_closed_loop_is_reported_with_its_weeks():
    weeks = [
        week(1),
        week(2, "drift", True),
        week(3, "drift", True, "Completed", after="2"),
        week(4, "ok", True, version="2"),
    ]
    closed, told = conclude(weeks, True, 1, BACK)
    assert closed
    assert "moved in week 2; the monitor saw it in week 2; the automation retrained in week 3, and version 2" in told
    figures = "0.8600 before, 0.8000 with the old version and 0.8500 with the new one on the same 1,000 customers"
    assert figures in told
    assert "better by 0.0500 (0.0300 to 0.0700): 83% of what was lost." in told


@pytest.mark.parametrize(
    ("recovery", "told"),
    [
        (replace(BACK, gain=Interval(0.05, -0.01, 0.11)), "The metric did not recover"),  # it may be chance
        (replace(BACK, gain=Interval(0.05, None, None)), "The metric did not recover"),
        (replace(BACK, share=0.3), "The metric did not recover"),
        (None, "no metric shows whether it is better"),
    ],
)
def test_loop_is_closed_only_once_the_metric_is_back(recovery, told):
    weeks = [week(1), week(2, "drift", True, "Completed", after="2"), week(3, moved=True, version="2")]
    assert conclude(weeks, True, 1, BACK)[0]
    closed, said = conclude(weeks, True, 1, recovery)
    assert not closed
    assert told in said


@pytest.mark.parametrize(("problem", "metric"), [("binary", "roc_auc"), ("regression", "rmse")])
def test_recovery_compares_both_versions_on_the_same_rows(problem, metric):
    """Of two models the one that is right is the better, whether the metric rises or falls with that."""
    contract = Contract(problem=problem, target="t", columns=(), classes=("no", "yes") if problem == "binary" else None)
    draw = np.random.default_rng(0)
    truth = draw.normal(size=2_000)
    y = (truth > 0).astype(np.int64) if problem == "binary" else truth

    def model(error):
        found = truth + error * draw.normal(size=len(truth))
        return np.stack([-found, found], 1) if problem == "binary" else found

    first = WeekPredictions(y, model(0.5), model(9.0))
    found = measure_recovery(contract, first, WeekPredictions(y, model(0.6), model(2.0)), Gates(metric=metric))
    assert found.complete
    assert 0.8 < found.share < 1
    worse = measure_recovery(contract, first, WeekPredictions(y, model(2.0), model(2.0)), Gates(metric=metric))
    assert not worse.complete
    assert worse.share < 0.2


def test_answers_are_read_by_week_in_their_order(tmp_path):
    lines = [
        '{"week": 1, "request_id": "a", "predictions": [{"label": "no", "probabilities": {"no": 0.9, "yes": 0.1}}]}',
        '{"week": 2, "request_id": "b", "predictions": [{"value": 2.5}, {"value": 3}]}',
        '{"week": 1, "request_id": "c", "predictions": [{"label": "yes", "probabilities": {"no": 0.2, "yes": 0.8}}]}',
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = read_answers(tmp_path / "answers.jsonl")
    assert found[1].tolist() == [[0.9, 0.1], [0.2, 0.8]]
    assert found[2].tolist() == [2.5, 3.0]


@pytest.mark.parametrize(
    ("weeks", "shifts", "trainings", "told"),
    [
        ([week(1), week(2, moved=True)], True, 0, "no window saw it"),
        ([week(1), week(2, "drift", True, "Failed")], True, 1, "no new version came into production"),
        ([week(1, training="Completed", after="2"), week(2, "drift", True)], True, 1, "before anything moved: week 1"),
        ([week(1), week(2, training="Completed")], False, 1, "without need: week 2"),
        ([week(1), week(2, after="2")], False, 0, "without need: week 2"),
        ([week(1), week(2)], False, 1, "without need, after the last week"),
    ],
)
def test_loop_that_did_not_close_is_reported(weeks, shifts, trainings, told):
    closed, said = conclude(weeks, shifts, trainings, BACK)
    assert not closed
    assert told in said


def test_nothing_moved_and_nothing_trained_is_well():
    assert conclude([week(1), week(2)], False, 0, None) == (True, "Nothing moved, and nothing was retrained.")


def test_timeline_is_a_table_and_a_picture(tmp_path):
    weeks = [week(1), week(2, "drift", True, "Completed", after="2")]
    assert tabulate(weeks).row_count == 2
    draw(weeks, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
