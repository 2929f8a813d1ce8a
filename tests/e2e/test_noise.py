"""The output of `ml run`, the files that it writes, and what Prefect and MLflow show afterwards."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Render

from e2e.support import Done, Project, make_project, prefect_server, succeed, wait_until_alone

WORDS = ("Traceback", "Warning", "WARNING", "ERROR", "Error", "deprecated", "telemetry")
STAGES = {"pipeline", "ingest", "validate", "train", "evaluate", "deploy"}
MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
[version] = client.search_model_versions("name = 'shop-churn'")
run = client.get_run(version.run_id)
listed = [f.path for f in client.list_artifacts(version.run_id)]
plots = [f.path for f in client.list_artifacts(version.run_id, "plots")]
model = client.get_logged_model(version.model_id) if getattr(version, "model_id", None) else None
aliases = {k: str(v) for k, v in client.get_registered_model("shop-churn").aliases.items()}
print(json.dumps({"metrics": run.data.metrics, "params": run.data.params, "tags": run.data.tags,
                  "status": run.info.status,
                  "artifacts": listed, "plots": plots, "aliases": aliases, "model": version.source}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def embedded(render: Render, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A new project for a user with an empty home, with nothing running."""
    folder = tmp_path_factory.mktemp("noise") / "shop-churn"
    environment = {"HOME": str(home)} | {
        f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "CACHE", "DATA", "STATE")
    }
    return make_project(render(project_name="Shop churn"), folder, 1_000, **environment)


@pytest.fixture(scope="module")
def first(embedded: Project) -> Done:
    return succeed(embedded.ml("run"))


def require_quiet(done: Done) -> None:
    assert done.returncode == 0
    assert done.stderr == ""
    assert not [word for word in WORDS if word in done.stdout], done.stdout


def test_run_is_quiet(first: Done) -> None:
    require_quiet(first)


def test_summary_shows_what_a_person_wants_to_know(first: Done) -> None:
    said = first.stdout
    for words in (
        "1,000 kept, 0 quarantined",
        "roc_auc",
        "candidate",
        "floor",
        "margin",
        "no champion to compare with",
        "Version 1 is in production",
    ):
        assert words in said
    assert "curl -s http://127.0.0.1:3000/predict" in said
    assert "uv run ml serve" in said
    for stage in STAGES - {"pipeline"}:
        assert f"✓ {stage}" in said


def test_nothing_is_written_outside_the_project(first: Done, embedded: Project, home: Path) -> None:
    assert not list(home.rglob("*"))
    assert [p.name for p in embedded.root.parent.iterdir()] == [embedded.root.name]


def test_git_sees_nothing_of_a_run(first: Done, embedded: Project) -> None:
    from template_support import git

    assert git(embedded.root, "status", "--porcelain") == ""
    assert not list(embedded.root.rglob("mlruns"))
    new = {p.name for p in embedded.root.iterdir()} - set(git(embedded.root, "ls-files").replace("/", "\n").split())
    assert new <= {".git", ".ml"}


def test_no_process_is_left(first: Done, embedded: Project) -> None:
    assert not wait_until_alone(embedded.root)


@pytest.mark.parametrize(
    "words", ["status", "doctor", "--help", "run --help", pytest.param("run", marks=pytest.mark.slow)]
)
def test_other_commands_are_quiet(first: Done, embedded: Project, words: str) -> None:
    require_quiet(embedded.ml(*words.split()))


def test_prefect_shows_the_runs_afterwards(first: Done, embedded: Project, tmp_path: Path) -> None:
    with (
        prefect_server(embedded.root / ".ml" / "prefect", tmp_path / "log") as address,
        httpx.Client(trust_env=False) as client,
    ):
        runs = ask(client, f"{address}/flow_runs/filter")
        flows = {flow["id"]: flow["name"] for flow in ask(client, f"{address}/flows/filter")}
        artifacts = ask(client, f"{address}/artifacts/filter")
        logs = ask(client, f"{address}/logs/filter")
    assert {flows[run["flow_id"]] for run in runs} >= STAGES
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    assert {a["type"] for a in artifacts} == {"markdown", "table"}
    assert {a["key"] for a in artifacts} >= {
        "snapshot",
        "validation",
        "candidate",
        "verdict",
        "gates",
        "mlflow-run",
        "champion",
        "summary",
        "plot-importance",
        "plot-roc",
    }
    [link] = {a["data"] for a in artifacts if a["key"] == "mlflow-run"}
    assert link.startswith("[") and "](http" in link and "/runs/" in link
    assert logs


def ask(client: httpx.Client, address: str) -> list[dict[str, Any]]:
    answer = client.post(address, json={"limit": 200}, timeout=30)
    assert answer.status_code == 200, answer.text
    return list(answer.json())


def test_mlflow_shows_the_run_afterwards(first: Done, embedded: Project) -> None:
    database = f"sqlite:///{embedded.root / '.ml' / 'mlflow' / 'mlflow.db'}"
    shown = json.loads(succeed(embedded.python("-c", MLFLOW, database)).stdout)
    assert shown["status"] == "FINISHED"
    assert {"roc_auc", "roc_auc_low", "roc_auc_high", "fit_seconds"} <= shown["metrics"].keys()
    assert {"train.seed", "estimator", "target"} <= shown["params"].keys()
    assert len(shown["tags"]["data_digest"]) == 64
    assert len(shown["tags"]["git_commit"]) == 40
    assert {"contract.json", "provenance.json", "verdict.json", "settings.json"} <= set(shown["artifacts"])
    assert shown["plots"]
    assert shown["aliases"] == {"champion": "1", "challenger": "1"}


@pytest.mark.slow
def test_run_is_quiet_with_a_server_too(embedded: Project, first: Done, prefect: str) -> None:
    require_quiet(embedded.ml("run", PREFECT_API_URL=prefect, ML_TRAIN__SEED="1"))
    assert embedded.versions() == ["1", "2"]
