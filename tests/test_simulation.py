"""A simulation plays in a copy that touches nothing of the project, and says truly whether the loop closed."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.errors import UserError
from flows.monitoring.windows import Window
from flows.settings import load_settings
from flows.simulation.play import HISTORY, Week
from flows.simulation.sandbox import clean_environment, make_sandbox
from flows.simulation.timeline import conclude, draw, tabulate
from flows.simulation.traffic import draw_week

REPOSITORY = Path(__file__).parents[1]
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


def test_sandbox_reads_its_own_table_and_alerts_nobody(project):
    sandbox = make_sandbox(load_settings(project))
    settings = sandbox.settings
    assert (settings.data.source, settings.monitor.labels) == ("data.parquet", "data.parquet")
    assert settings.retrain.cooldown_hours == 0
    assert settings.alerts.format == "json"
    assert settings.project.name == "dev"
    assert "# ours" in (sandbox.root / "config.toml").read_text(encoding="utf-8")
    assert (project / "config.toml").read_text(encoding="utf-8") == CONFIG


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


def test_closed_loop_is_told_with_its_weeks():
    weeks = [
        week(1),
        week(2, "drift", True),
        week(3, "drift", True, "Completed", after="2"),
        week(4, "ok", True, version="2"),
    ]
    closed, told = conclude(weeks, shifts=True)
    assert closed
    assert "moved in week 2; the monitor saw it in week 2; the automation retrained in week 3, and version 2" in told


@pytest.mark.parametrize(
    ("weeks", "shifts", "told"),
    [
        ([week(1), week(2, moved=True)], True, "no window saw it"),
        ([week(1), week(2, "drift", True, "Failed")], True, "no new version came into service"),
        ([week(1, training="Completed", after="2"), week(2, "drift", True)], True, "before anything moved: week 1"),
        ([week(1), week(2, training="Completed")], False, "without need: week 2"),
    ],
)
def test_loop_that_did_not_close_is_said_to_be_so(weeks, shifts, told):
    closed, said = conclude(weeks, shifts)
    assert not closed
    assert told in said


def test_nothing_moved_and_nothing_trained_is_well():
    assert conclude([week(1), week(2)], shifts=False) == (True, "Nothing moved, and nothing was retrained.")


def test_timeline_is_a_table_and_a_picture(tmp_path):
    weeks = [week(1), week(2, "drift", True, "Completed", after="2")]
    assert tabulate(weeks).row_count == 2
    draw(weeks, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
