"""`ml monitor` in a project: real log, real Evidently, MLflow and Prefect."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from e2e.support import Project, succeed
from monitor_support import typed_sample, write_log
from template_support import commit_all

from ondol.monitoring.windows import Window, Windows
from ondol.registry.bundles import Bundle, open_bundle
from ondol.registry.champion import Champion, read_champion, write_champion
from ondol.storage.files import write_json
from ondol.storage.store import Store
from ondol_serving.names import digest_folder

ROWS = 400
KEPT = 3  # reports: as many as decide, where `keep` says fewer
AT_ONCE = '\n[retrain]\ncooldown_hours = 0\n\n[monitor]\nlabels = "labels.csv"\nkeep = 1\n'


class Served:
    """A project with a champion and a Prefect server, and methods that write its log."""

    def __init__(self, folder: Path, prefect: str) -> None:
        self.folder = folder
        self.project = Project(folder, PREFECT_API_URL=prefect)
        self.store = Store(folder / ".ml" / "store")
        self.sent = 0

    @property
    def champion(self) -> Champion:
        champion = read_champion(self.store)
        assert champion is not None
        return champion

    @property
    def bundle(self) -> Bundle:
        return open_bundle(self.store, self.champion.bundle)

    @property
    def windows(self) -> list[Window]:
        return Windows(self.store).of(self.champion)

    def send(self, rows: int = ROWS, **parameters: Any) -> pd.DataFrame:
        """Log answers to rows that no model has seen, and return these with their request ids."""
        frame = typed_sample(self.bundle.contract, rows, start=50_000 + self.sent, **parameters)
        self.sent += rows
        logged = write_log(
            self.store.folder, self.bundle, frame, datetime.now(UTC) - timedelta(milliseconds=rows + 100)
        )
        return frame.assign(request_id=[record["id"] for record in logged])

    def log_begins(self) -> None:
        """Wait until new records are later than the first second of the champion."""
        time.sleep(2)


@pytest.fixture(scope="module")
def served(render: Callable[..., Path], prefect: str, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A project with its first model in production; the tests depend on their order."""
    folder = tmp_path_factory.mktemp("monitored") / "customer-churn"
    shutil.copytree(render(), folder)
    config = folder / "config.toml"
    config.write_text(config.read_text(encoding="utf-8") + AT_ONCE, encoding="utf-8")
    commit_all(folder)
    made = Served(folder, prefect)
    made.project.run()
    made.log_begins()
    return made


def monitor(served: Served) -> Window:
    """Run the monitor and return its window."""
    succeed(served.project.ml("monitor"))
    return served.windows[-1]


def loop(served: Served) -> dict[str, Any]:
    path = served.store.folder / "loop.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def test_a_window_too_small_to_evaluate_leaves_its_rows_to_the_next(served):
    served.send(150)
    small = monitor(served)
    assert (small.verdict, small.rows) == ("too small", 150)
    served.send(ROWS - 150)
    whole = monitor(served)
    assert (whole.verdict, whole.rows, whole.id) == ("ok", ROWS, small.id)
    assert whole.latency["p50"] == pytest.approx(0.45, abs=0.05)
    assert "labels.csv" in whole.notes[0]  # there are none yet
    assert len(served.windows) == 1


def test_a_monitor_that_is_killed_neither_loses_nor_doubles_rows(served):
    served.send()
    report = Windows(served.store).folder
    before = set(report.glob("*.html"))
    with subprocess.Popen(
        [sys.executable, "-m", "ondol.cli", "monitor"], cwd=served.folder, env=served.project.environment
    ) as process:
        deadline = time.monotonic() + 120
        while set(report.glob("*.html")) == before:  # compared, and the record is not written yet
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    assert len(served.windows) == 1
    window = monitor(served)
    assert (window.verdict, window.rows) == ("ok", ROWS)
    assert window.start == served.windows[0].end
    assert sum(w.rows for w in served.windows) == served.sent


def test_labels_that_arrive_late_evaluate_an_earlier_window(served):
    frame = served.send(shift=1.0)
    moved = monitor(served)
    assert moved.verdict == "ok"  # the features are as they were
    frame[["request_id", "churned"]].to_csv(served.folder / "labels.csv", index=False)
    served.send()
    later = monitor(served)
    assert later.verdict == "ok"
    evaluated = served.windows[-2]
    assert evaluated.id == moved.id and evaluated.verdict == "worse"
    assert evaluated.performance is not None and evaluated.performance.rows == ROWS
    assert not loop(served).get("wanted")  # the latest window is well


def test_drift_is_stored_logged_and_shown(served):
    served.send(drift=1.0)
    drifted = monitor(served)
    assert drifted.verdict == "drift" and drifted.drift_share is not None and drifted.drift_share > 0.5
    wanted = loop(served)["wanted"]
    assert wanted["window"] == drifted.id and wanted["windows"][-1] == drifted.id
    assert wanted["emitted_at"] is None  # the server of one command has no automation
    alerts = [json.loads(path.read_bytes()) for path in (served.store.folder / "alerts" / "outbox").glob("*.json")]
    told = sorted((a for a in alerts if a["kind"] == "drift"), key=lambda a: a["at"])
    assert "performance lost" in told[0]["what"] and drifted.reasons[0] in told[1]["what"] and len(told) == 2
    shown = served.project.ml("loop", "show").stdout
    assert "Retraining is requested" in shown and "ml run" in shown
    reports = sorted(Windows(served.store).folder.glob("*.html"))
    assert [path.stem for path in reports][-1] == drifted.id and len(reports) == KEPT


def test_mlflow_has_one_run_for_each_window_and_reports_of_the_newest(served):
    import sqlite3

    database = sqlite3.connect(served.folder / ".ml" / "mlflow" / "mlflow.db")
    names = [name for (name,) in database.execute("select name from runs where name like 'monitor-%'")]
    database.close()
    assert sorted(names) == [f"monitor-{window.id}" for window in served.windows]
    artifacts = served.folder / ".ml" / "mlflow" / "artifacts"
    assert len(names) > KEPT
    assert len(list(artifacts.glob("*/artifacts/report.html"))) == KEPT
    assert len(list(artifacts.glob("*/artifacts/*.png"))) == 2 * KEPT


def test_a_bundle_without_a_reference_is_reported_in_one_sentence(served):
    folder, champion = served.bundle.path, served.champion
    about = served.bundle.meta
    del about["reference"]
    (folder / "reference.parquet").unlink()
    write_json(folder / "meta.json", about)
    digest = digest_folder(folder)
    renamed = folder.rename(folder.with_name(f"{champion.version}-{digest[:12]}"))
    write_champion(served.store, champion.model_copy(update={"bundle": renamed.name, "digest": digest}))
    done = served.project.ml("monitor")
    assert done.returncode == 2
    assert "before bundles had a reference" in done.stderr
