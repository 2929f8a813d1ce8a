"""The choice among candidates in a real run: what the user reads, what MLflow has, and that it is reproduced."""

import json

from e2e.conftest import Make
from e2e.support import succeed
from e2e.test_reproduce import HERE, require_equal

BUDGET = "30"


def test_a_run_chooses_says_why_and_is_reproduced(make: Make) -> None:
    project = make()
    said = succeed(project.ml("run", ML_TRAIN__BUDGET=BUDGET)).stdout
    assert "Chosen: " in said and "standard error" in said
    parents = project._mlflow("select value, run_uuid from tags where key = 'mlflow.parentRunId'")
    (parent,) = {parent for parent, _ in parents}
    scores = dict(project._mlflow("select run_uuid, value from metrics where key = 'roc_auc'"))
    ((artifacts,),) = project._mlflow(f"select artifact_uri from runs where run_uuid = '{parent}'")
    params = dict(project._mlflow(f"select key, value from params where run_uuid = '{parent}'"))
    assert len(parents) == 8 and all(0.5 < scores[run] < 1 for _, run in parents)
    folder = project.root / artifacts.removeprefix("file://")
    choice = json.loads((folder / "choice.json").read_text("utf-8"))
    assert len(choice["trials"]) == 8 and choice["params"]["kind"] in ("boosting", "linear", "forest")
    assert json.loads((folder / "settings.json").read_text("utf-8"))["train"]["params"] == choice["params"]
    assert params["train.seed"] == "0"
    require_equal(project.ml("reproduce", "1", HERE))
    before = project.versions()
    succeed(project.ml("run", ML_TRAIN__BUDGET=BUDGET))
    assert project.versions() == before  # the same data, code and settings give the same version
