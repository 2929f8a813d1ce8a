"""The choice among candidates in a real run: what the user reads, what MLflow has, and that it is reproduced."""

import json
import sqlite3
from contextlib import closing

from e2e.conftest import Make
from e2e.support import succeed
from e2e.test_reproduce import HERE, require_equal

BUDGET = "30"


def test_a_run_chooses_says_why_and_is_reproduced(make: Make) -> None:
    project = make()
    said = succeed(project.ml("run", ML_TRAIN__BUDGET=BUDGET)).stdout
    assert "Chosen: " in said and "standard error" in said
    with closing(sqlite3.connect(project.root / ".ml" / "mlflow" / "mlflow.db")) as database:
        parents = database.execute("select value, run_uuid from tags where key = 'mlflow.parentRunId'").fetchall()
        (parent,) = {parent for parent, _ in parents}
        scores = dict(database.execute("select run_uuid, value from metrics where key = 'roc_auc'").fetchall())
        artifacts = database.execute("select artifact_uri from runs where run_uuid = ?", (parent,)).fetchone()[0]
        params = dict(database.execute("select key, value from params where run_uuid = ?", (parent,)).fetchall())
    assert len(parents) == 7 and all(0.5 < scores[run] < 1 for _, run in parents)
    folder = project.root / artifacts.removeprefix("file://")
    choice = json.loads((folder / "choice.json").read_text("utf-8"))
    assert len(choice["trials"]) == 7 and choice["params"]["kind"] in ("boosting", "linear", "forest")
    assert json.loads((folder / "settings.json").read_text("utf-8"))["train"]["params"] == choice["params"]
    assert params["train.seed"] == "0"
    require_equal(project.ml("reproduce", "1", HERE))
    before = project.versions()
    succeed(project.ml("run", ML_TRAIN__BUDGET=BUDGET))
    assert project.versions() == before  # the same data, code and settings give the same version
