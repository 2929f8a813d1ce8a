"""Data deleted or renamed in MLflow's UI is restored or created again, or an error names what is missing.

The version in production keeps answering throughout.
"""

import shutil

import pytest

from e2e.support import Done, Project, succeed

pytestmark = pytest.mark.slow


PRELUDE = """
import mlflow
client = mlflow.MlflowClient()
(model,) = client.search_registered_models() or [None]
experiment = client.get_experiment("1")
version = client.get_model_version(model.name, "1")
"""


def do(project: Project, code: str) -> None:
    """Call MLflow's API like its UI; in a separate process, which keeps no database file open."""
    uri = f"sqlite:///{project.root / '.ml' / 'mlflow' / 'mlflow.db'}"
    succeed(project.python("-c", PRELUDE + code, MLFLOW_TRACKING_URI=uri))


def train_again(project: Project, seed: int) -> Done:
    """Run the pipeline on settings that no version was trained under; a gate may refuse the version."""
    project.configure("train", seed=seed)
    done = project.ml("run")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "Unexpected" not in done.stderr
    return done


def say_no(done: Done, *words: str) -> None:
    """Check that a command ended with one sentence in which all `words` are."""
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2), said
    assert "Traceback" not in said
    assert "Unexpected" not in said
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert all(word in sentence for word in words), sentence


def evaluate_again(project: Project) -> Done:
    """Evaluate version 1 under gates that it was not evaluated by."""
    project.configure("gates", resamples=300)
    shutil.rmtree(project.store / "verdicts")
    return project.ml("evaluate", "1")


def test_deleted_experiment_is_restored(trained: Project) -> None:
    do(trained, "client.delete_experiment('1')")
    assert "was deleted in MLflow: it is restored" in train_again(trained, 11).stderr
    do(trained, "assert experiment.lifecycle_stage == 'active'")
    assert trained.versions() == ["1", "2"]


def test_deleted_run_is_restored_where_it_is_logged_to(trained: Project) -> None:
    do(trained, "client.delete_run(version.run_id)")
    assert "it is restored" in succeed(evaluate_again(trained)).stderr
    do(trained, "assert client.get_run(version.run_id).info.lifecycle_stage == 'active'")


def test_renamed_experiment_stays_and_a_new_one_takes_the_next_run(trained: Project) -> None:
    do(trained, "client.rename_experiment('1', 'renamed')")
    succeed(evaluate_again(trained))
    train_again(trained, 12)
    do(trained, "assert client.get_experiment_by_name(model.name).experiment_id != '1'")
    assert trained.versions() == ["1", "2"]


@pytest.mark.parametrize("what", ["model_version(model.name, '1')", "registered_model(model.name)"])
def test_deleted_version_is_trained_again(trained: Project, what: str) -> None:
    before = trained.champion
    do(trained, f"client.delete_{what}")
    for command in ("evaluate", "deploy", "reproduce 1"):
        say_no(trained.ml(*command.split()), "MLflow has no version 1", "ml train")
    succeed(trained.ml("status"))
    assert "Version 1 is in production" in succeed(trained.ml("report")).stdout
    assert trained.champion == before
    done = trained.ml("run")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert trained.latest["train"] == ("2" if "version" in what else "1")
    assert trained.champion


def test_deleted_alias_comes_back(trained: Project) -> None:
    do(trained, "[client.delete_registered_model_alias(model.name, a) for a in ('champion', 'challenger')]")
    trained.run()
    assert trained.aliases() == {"champion": "1", "challenger": "1"}


def test_deleted_artifacts_are_named_and_the_version_is_trained_again(trained: Project) -> None:
    before = trained.champion
    shutil.rmtree(trained.root / ".ml" / "mlflow" / "artifacts")
    say_no(evaluate_again(trained), "is no longer complete in MLflow", "ml train")
    say_no(trained.ml("reproduce", "1"), "incomplete")
    assert trained.champion == before
    done = trained.ml("run")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "it is trained again" in done.stderr
    assert trained.versions() == ["1", "2"]
    succeed(trained.ml("report"))
