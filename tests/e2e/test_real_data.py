"""Real tables, from `ml init` to a served model, without an edit by hand."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from marks import slow_but

from e2e.conftest import Make
from e2e.support import Project, git_clean, succeed

SPLIT_SEEDS = range(5)


def from_file(name: str) -> Callable[[Path], pd.DataFrame]:
    return lambda folder: pd.read_csv(folder / name, dtype=str, keep_default_na=False)


def from_sklearn(name: str) -> Callable[[Path], pd.DataFrame]:
    def load(_: Path) -> pd.DataFrame:
        import sklearn.datasets

        return pd.DataFrame(getattr(sklearn.datasets, f"load_{name}")(as_frame=True).frame)

    return load


TABLES: dict[str, tuple[Callable[[Path], pd.DataFrame], str, str]] = {
    "telco": (from_file("telco_churn.csv"), "Churn", "binary"),
    "diamonds": (from_file("diamonds.csv"), "price", "regression"),
    "mpg": (from_file("mpg.csv"), "origin", "multiclass"),
    "breast cancer": (from_sklearn("breast_cancer"), "target", "binary"),
    "wine": (from_sklearn("wine"), "target", "multiclass"),
    "diabetes": (from_sklearn("diabetes"), "target", "regression"),
}
GOALS = {"telco": ("roc_auc", 0.83), "diamonds": ("r2", 0.97), "mpg": ("f1_macro", 0.70)}


def start(make: Make, root_of_data: Path, name: str) -> Project:
    """A project after `ml init` on a table."""
    load, target, problem = TABLES[name]
    project = make(rows=None)
    load(root_of_data).to_csv(project.root / "table.csv", index=False)
    done = succeed(project.ml("init", "table.csv", "--target", target))
    assert not done.stderr
    assert problem in done.stdout
    return project


@pytest.mark.parametrize("name", slow_but(["telco"], TABLES))
def test_init_and_run_without_an_edit(make: Make, root_of_data: Path, name: str) -> None:
    project = start(make, root_of_data, name)
    done = project.run()
    assert not done.stderr
    assert "Version 1 is in production" in done.stdout
    assert "curl -s" in done.stdout
    succeed(project.ml("predict", "table.csv", "out.csv"))
    assert pd.read_csv(project.root / "out.csv")["prediction"].notna().mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", GOALS)
def test_mean_over_five_splits_reaches_the_goal(make: Make, root_of_data: Path, name: str) -> None:
    metric, goal = GOALS[name]
    project = start(make, root_of_data, name)
    figures = []
    for seed in SPLIT_SEEDS:
        store = f".ml/store-{seed}"
        project.run(ML_SPLIT__SEED=str(seed), ML_STORE=store)
        [verdict] = (project.root / store / "verdicts").glob("*.json")
        scores = json.loads(verdict.read_text(encoding="utf-8"))["verdict"]["scores"]
        figures.append(round(scores["candidate"][metric]["value"], 4))
    print(f"{name}: {metric} {statistics.mean(figures):.4f} of {figures}")
    assert statistics.mean(figures) >= goal, figures


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_project_s_own_checks_pass_after_init(make: Make, root_of_data: Path, name: str) -> None:
    project = start(make, root_of_data, name)
    for words in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("pytest", "-q")):
        succeed(project.python("-m", *words, timeout=600))
    assert git_clean(project.root, {"config.toml", "model/schema.py", "table.csv"})
