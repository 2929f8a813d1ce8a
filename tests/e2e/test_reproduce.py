"""A version is reproduced from its record, months later: from commit, snapshot and MLflow alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import distributions

import pandas as pd
import pytest
import tomlkit
from marks import slow_but
from template_support import commit_all, git

from e2e.conftest import Make
from e2e.support import Done, Project, refuse, sample, succeed, wait_until_alone

HERE = "--no-install"  # the packages of this environment are those of the record
EQUAL = "was reproduced: every figure is equal within 1e-09"
CACHES = ("cache", "prefect", "bentoml", "matplotlib", "logs", "smoke", "store/quarantine", "store/verdicts")
CACHES += ("store/holdouts", "store/bundles", "store/champion.json", "store/latest.json")


def forget(project: Project) -> None:
    """Remove all that is not the record: caches, validations, verdicts, salts, bundles, Prefect's home, bytecode."""
    for name in CACHES:
        path = project.root / ".ml" / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in list(project.root.rglob("__pycache__")):
        shutil.rmtree(path)


def replace(project: Project, before: str, after: str) -> None:
    """Edit the estimator."""
    path = project.root / "model" / "estimator.py"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def require_equal(done: Done, metric: str = "roc_auc") -> str:
    said = succeed(done).stdout
    assert EQUAL in said
    rows = [[cell.strip() for cell in line.split("│")] for line in said.splitlines() if "│" in line]
    figures = {row[1]: row[2:5] for row in rows}
    assert figures[metric][0] == figures[metric][1] != ""
    assert figures[metric][2] == "0"
    assert {"train_rows", "holdout_rows", f"dummy {metric}", "predictions"} <= figures.keys()
    return said


def require_untouched(project: Project) -> None:
    """Nothing is left of a reproduction: no folder, no worktree, no process, no edit."""
    assert not (project.root / ".ml" / "reproduce").exists()
    assert len(git(project.root, "worktree", "list").splitlines()) == 1
    assert not wait_until_alone(project.root)


def lasting(project: Project) -> dict[str, bytes]:
    """The state that a reproduction must not change: the store, and MLflow's versions and runs."""
    found = {p: p.read_bytes() for p in sorted(project.store.rglob("*")) if p.is_file()}
    known = json.dumps([project.versions(), project.aliases(), project.training_runs()]).encode()
    return {p.as_posix(): content for p, content in found.items()} | {"mlflow": known}


def test_versions_are_equal_months_later(trained: Project) -> None:
    """Another seed by the environment, then other code, parameters and split, and a champion to compare with."""
    project = trained
    project.run(ML_TRAIN__SEED="7", ML_TRAIN__PARAMS='{"max_iter": 60}')
    replace(project, '"max_leaf_nodes": 15', '"max_leaf_nodes": 9')
    project.configure("train", seed=3, params={"learning_rate": 0.05})
    project.configure("split", by="stratified", holdout=0.3)
    project.configure("gates", margin=0.5, resamples=50)
    commit_all(project.root)
    project.run()
    replace(project, '"max_leaf_nodes": 9', '"max_leaf_nodes": 4')
    project.configure("gates", margin=0.5, resamples=80, confidence=0.5)
    project.configure("data", target="next_plan", problem="multiclass")
    commit_all(project.root)
    forget(project)
    before = lasting(project)
    for version in ("2", "3"):
        said = require_equal(project.ml("reproduce", version, HERE, ML_TRAIN__SEED="99"))
        assert "differ" not in said
    assert lasting(project) == before
    assert git(project.root, "status", "--porcelain") == ""
    require_untouched(project)


@pytest.mark.slow
def test_snapshot_that_grew_and_lost_rows_is_read_again(make: Make) -> None:
    project = make()
    frame = sample(1_500).assign(total_paid=range(1_500))
    old, new = frame.iloc[:1_200], frame.iloc[1_150:].assign(total_paid=range(1_200, 1_550), region="부산")
    project.use(old)
    project.configure("data", watermark="total_paid")
    commit_all(project.root)
    project.run()
    project.use(pd.concat([old, new]))
    succeed(project.ml("ingest"))
    succeed(project.ml("validate"))
    replace(project, '"max_leaf_nodes": 15', '"max_leaf_nodes": 14')
    commit_all(project.root)
    succeed(project.ml("train"))
    snapshot = project.last_validation()["snapshot"]
    first, second = project.json(f"snapshots/{snapshot}.json")["parts"]
    assert (first["drops"], second["rows"]) == (50, 350)
    forget(project)
    said = succeed(project.ml("reproduce", "2", HERE)).stdout
    assert EQUAL in said
    assert "was never evaluated" in said


def test_model_that_draws_without_the_seed_is_not_equal(trained: Project) -> None:
    replace(trained, "random_state=seed, **DEFAULTS", "random_state=None, early_stopping=True, **DEFAULTS")
    commit_all(trained.root)
    succeed(trained.ml("train"))
    done = trained.ml("evaluate", "2")
    assert done.returncode in (0, 1)
    done = trained.ml("reproduce", "2", HERE)
    sentence = refuse(done, status=1)
    assert "Version 2 was not reproduced" in sentence
    assert "draws random numbers without the seed" in sentence
    assert "roc_auc" in done.stdout
    require_untouched(trained)


@pytest.mark.slow
def test_uncommitted_files_are_exact_only_while_they_are_here(trained: Project) -> None:
    replace(trained, '"max_leaf_nodes": 15', '"max_leaf_nodes": 14')
    succeed(trained.ml("train"))
    said = succeed(trained.ml("reproduce", "2", HERE)).stdout
    assert EQUAL in said
    assert "files that are not committed" in said
    replace(trained, '"max_leaf_nodes": 14', '"max_leaf_nodes": 13')
    assert "cannot be reproduced exactly" in refuse(trained.ml("reproduce", "2", HERE))
    done = trained.ml("reproduce", "2", HERE, "--anyway")
    assert "cannot be reproduced exactly" in done.stdout
    assert "the differences above explain it" in refuse(done, status=1)
    require_untouched(trained)


def test_what_is_missing_is_named(trained: Project) -> None:
    assert "no version 7" in refuse(trained.ml("reproduce", "7", HERE))
    [data] = (trained.store / "snapshots").glob("*.parquet")
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "changed or damaged" in refuse(trained.ml("reproduce", "1", HERE))
    data.unlink()
    assert f"{data} is missing" in refuse(trained.ml("reproduce", "1", HERE))
    data.write_bytes(content)
    commit = git(trained.root, "rev-parse", "HEAD").strip()
    shutil.rmtree(trained.root / ".git")
    commit_all(trained.root, "rewritten")
    git(trained.root, "commit", "--amend", "--quiet", "--message", "of another name")
    git(trained.root, "tag", "--delete", "rewritten")
    assert f"`git fetch origin {commit}`" in refuse(trained.ml("reproduce", "1", HERE))
    require_untouched(trained)


@pytest.mark.parametrize("number", slow_but([signal.SIGINT], [signal.SIGINT, signal.SIGKILL]))
def test_interruption_leaves_nothing_for_long(trained: Project, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "ondol.cli", "reproduce", "1", HERE]
    running = subprocess.Popen(command, cwd=trained.root, env=trained.environment, stdout=subprocess.DEVNULL)
    order = trained.root / ".ml" / "reproduce" / "order.json"
    end = time.monotonic() + 120
    while not order.exists() and time.monotonic() < end and running.poll() is None:
        time.sleep(0.05)
    assert order.exists()
    running.send_signal(number)
    assert running.wait(60) == (130 if number == signal.SIGINT else -number)
    assert not wait_until_alone(trained.root)
    if number == signal.SIGKILL:
        require_equal(trained.ml("reproduce", "1", HERE))
    require_untouched(trained)


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "metric"), [("multiclass", "f1_macro"), ("regression", "r2")])
def test_other_problems_are_equal(make: Make, problem: str, metric: str) -> None:
    project = make(problem=problem)
    project.run()
    forget(project)
    require_equal(project.ml("reproduce", "1", HERE), metric)


@pytest.mark.slow
def test_packages_are_really_installed(make: Make) -> None:
    """By the lock file of the commit, and without one by the recorded versions, both into a new environment."""
    project = make()
    offline = lock(project)
    commit_all(project.root)
    project.run()
    git(project.root, "rm", "--quiet", "--cached", "uv.lock")
    (project.root / "uv.lock").unlink()
    commit_all(project.root)
    project.configure("train", seed=1)
    commit_all(project.root)
    succeed(project.ml("train"))
    succeed(project.ml("evaluate", "2"))
    forget(project)
    for version in ("1", "2"):
        said = require_equal(project.ml("reproduce", version, timeout=1800, **offline))
        assert "installing them" in said
        assert "Packages differ" not in said
    require_untouched(project)


def lock(project: Project) -> dict[str, str]:
    """Let the project lock the versions of this environment; return additional variables for uv.

    Where no package index can be reached, uv resolves by the metadata that are here, and installs from its cache.
    """
    pyproject = project.root / "pyproject.toml"
    config = tomlkit.parse(pyproject.read_text(encoding="utf-8"))
    here = [d for d in distributions() if d.name and d.name != "customer-churn"]
    config["tool"]["uv"]["constraint-dependencies"] = sorted({f"{d.name}=={d.version}" for d in here})
    config["tool"]["uv"]["environments"] = [f"sys_platform == '{sys.platform}' and python_full_version == '{python()}'"]
    pyproject.write_text(tomlkit.dumps(config), encoding="utf-8")
    if run_uv(project, "lock").returncode == 0:
        return {}
    del config["project"]["optional-dependencies"]
    table = tomlkit.aot()
    for one in here:
        known = {"name": one.name, "version": one.version, "requires-dist": one.requires or []}
        table.append(tomlkit.item(known | {"provides-extra": one.metadata.get_all("Provides-Extra") or []}))
    config["tool"]["uv"]["dependency-metadata"] = table
    pyproject.write_text(tomlkit.dumps(config), encoding="utf-8")
    done = run_uv(project, "lock", UV_OFFLINE="1")
    if done.returncode:
        pytest.skip(f"no package index can be reached, and uv's cache has not all: {done.stderr[-300:]}")
    return {"UV_OFFLINE": "1"}


def run_uv(project: Project, *words: str, **environment: str) -> Done:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("installing packages needs uv")
    return subprocess.run(
        [uv, *words, "--python", os.path.realpath(getattr(sys, "_base_executable", sys.executable))],
        cwd=project.root,
        env=project.environment | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def test_help_says_what_it_does(trained: Project) -> None:
    said = succeed(trained.ml("reproduce", "--help")).stdout
    assert "--anyway" in said
    assert "--no-install" in said
