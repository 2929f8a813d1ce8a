"""A version that is tried beside the champion: by `ml run` with a strategy, and by hand with `ml rollout`."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.conftest import Make
from e2e.support import NOWHERE, Project, refuse, succeed, wait_for_version

DOWN = {"MLFLOW_TRACKING_URI": NOWHERE, "PREFECT_API_URL": f"{NOWHERE}/api"}
CANARY = {"ML_ROLLOUT__STRATEGY": "canary", "ML_TRAIN__SEED": "1"}


@pytest.fixture(scope="module")
def tried_once(make: Make) -> Project:
    """Version 1 in production, and version 2 in a canary beside it."""
    project = make(rows=1_000)
    project.run(ML_TRAIN__SEED="0")
    done = project.run(**CANARY)
    assert "Version 2 is tried beside version 1: canary, 5% of the requests" in done.stdout
    return project.save()


@pytest.fixture
def tried(tried_once: Project) -> Iterator[Project]:
    yield tried_once
    tried_once.restore()


def rollout(project: Project) -> dict[str, Any]:
    return dict(json.loads((project.store / "rollout.json").read_text(encoding="utf-8")))


def serving(project: Project) -> str:
    assert project.champion
    return str(project.champion["version"])


def test_a_run_with_a_strategy_tries_its_version_and_leaves_the_champion(tried: Project) -> None:
    assert serving(tried) == "1"
    assert tried.aliases()["champion"] == "1"
    found = rollout(tried)
    assert (found["version"], found["strategy"], found["plan"]) == ("2", "canary", [0.05, 0.25, 0.5, 1.0])
    shown = succeed(tried.ml("rollout", "status")).stdout
    assert "Version 2 beside version 1: canary, 5% of the requests, step 1 of 4." in shown
    assert "Both were not compared yet" in shown
    assert "Version 2 is tried beside version 1: canary, 5% of the requests" in succeed(tried.ml("status")).stdout


def test_another_run_on_unchanged_data_changes_nothing(tried: Project) -> None:
    before = rollout(tried)
    done = tried.run(**CANARY)
    assert "Version 2 is tried beside version 1" in done.stdout
    assert rollout(tried) == before


def test_steps_by_hand_end_in_production_and_a_rollback_restores_the_champion(tried: Project) -> None:
    row = json.loads(next((tried.store / "bundles").glob("1-*/meta.json")).read_text(encoding="utf-8"))["example"]
    with tried.serve() as client:
        wait_for_version(client, "1")
        for number, share in ((2, "25%"), (3, "50%"), (4, "100%")):
            done = succeed(tried.ml("rollout", "step"))
            assert f"version 2: canary, {share} of the requests" in done.stdout
            assert f"step {number} of 4" in succeed(tried.ml("rollout", "status")).stdout
        wait_for_answers_of(client, row, "2", "challenger")
        assert "answers the example" in succeed(tried.ml("smoke", str(client.base_url))).stdout
        assert serving(tried) == "1"
        assert "version 2 is in production" in succeed(tried.ml("rollout", "step", "--why", "good")).stdout
        wait_for_version(client, "2")
        wait_for_answers_of(client, row, "2", "champion")
        assert (serving(tried), tried.aliases()["champion"]) == ("2", "2")
        assert "promoted" in succeed(tried.ml("rollout", "status")).stdout
        succeed(tried.ml("rollback", "--why", "too many complaints", **DOWN))
        wait_for_version(client, "1")


def wait_for_answers_of(client: Any, body: Any, version: str, role: str) -> None:
    import time

    end = time.monotonic() + 30
    while True:
        answer = client.post("/predict", json=body).json()
        if (answer["model_version"], answer["role"]) == (version, role):
            return
        assert time.monotonic() < end, answer
        time.sleep(0.1)


def test_an_aborted_version_is_not_tried_by_the_next_run_but_by_hand(tried: Project) -> None:
    """It needs neither MLflow nor Prefect, like a rollback."""
    done = succeed(tried.ml("rollout", "abort", "--why", "wrong prices", **DOWN))
    assert "version 2 is withdrawn, version 1 answers all requests (wrong prices)" in done.stdout
    assert "Version 2 was withdrawn from its rollout: wrong prices" in succeed(tried.ml("status")).stdout
    sentence = refuse(tried.ml("run", **CANARY), status=1)
    assert "Version 2 was withdrawn at" in sentence and "`ml rollout start 2` tries it again" in sentence
    again = succeed(tried.ml("rollout", "start", "2", "--strategy", "blue-green"))
    assert "Version 2 beside version 1: blue-green, 100% of the requests, step 1 of 1." in again.stdout
    assert rollout(tried)["outcome"] is None
    assert "blue-green" in succeed(tried.ml("rollout", "status")).stdout


def test_a_newer_version_replaces_the_one_that_is_tried(tried: Project) -> None:
    tried.run(**CANARY | {"ML_TRAIN__SEED": "2"})
    assert rollout(tried)["version"] == "3"
    assert "version 3 replaces it" in succeed(tried.ml("status")).stdout


def test_mistakes_are_one_sentence(tried: Project) -> None:
    assert "canary, 5% of the requests, step 1 of 4" in succeed(tried.ml("rollout", "start", "2")).stdout
    assert "Version 2 is only tried beside version 1" in refuse(tried.ml("rollback", "--why", "bad", **DOWN))
    succeed(tried.ml("rollout", "abort", "--why", "over"))
    for words in (("step",), ("abort", "--why", "again")):
        assert "No rollout is running: `ml rollout start VERSION` starts one." in refuse(tried.ml("rollout", *words))
    assert "Version 1 is in production: name another one" in refuse(tried.ml("rollout", "start", "1"))
    assert "MLflow has no version 99" in refuse(tried.ml("rollout", "start", "99"))
    without_log = {"ML_LOG__ENABLED": "false"}
    assert "a rollout is judged by the prediction log" in refuse(tried.ml("rollout", "start", "2", **without_log))


def test_a_rollback_in_the_middle_ends_the_rollout(make: Make, tried: Project) -> None:
    tried.run(**CANARY | {"ML_TRAIN__SEED": "2", "ML_ROLLOUT__STRATEGY": "direct"})
    assert serving(tried) == "3"
    assert "ended by a change of the champion" in succeed(tried.ml("rollout", "status")).stdout
