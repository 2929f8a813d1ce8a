"""The champion moved by hand, with all servers up or down."""

from collections.abc import Iterator

import pytest

from e2e.conftest import Make
from e2e.support import NOWHERE, Project, refuse, succeed, wait_for_version

DOWN = {"MLFLOW_TRACKING_URI": NOWHERE, "PREFECT_API_URL": f"{NOWHERE}/api"}


@pytest.fixture(scope="module")
def three_once(make: Make) -> Project:
    """Versions 1, 2 and 3 served, one after the other."""
    project = make(rows=1_000)
    for seed in "012":
        project.run(ML_TRAIN__SEED=seed)
    return project.save()


@pytest.fixture
def three(three_once: Project) -> Iterator[Project]:
    yield three_once
    three_once.restore()


def serving(project: Project) -> str:
    assert project.champion
    return str(project.champion["version"])


def test_running_service_takes_up_the_previous_version(three: Project) -> None:
    body = {"rows": [{"age": 40}]}
    with three.serve() as client:
        wait_for_version(client, "3")
        done = succeed(three.ml("rollback", "--why", "too many complaints"))
        assert "version 2 is in production in place of version 3 (too many complaints)" in done.stdout
        wait_for_version(client, "2")
        answer = client.post("/predict", json=body)
        assert answer.status_code in (400, 422)  # it answers; the row lacks columns
    status = succeed(three.ml("status")).stdout
    assert "version 2 is in production since" in status
    assert "too many complaints" in status
    assert "rollback" in status
    assert status.count("deploy ") >= 3
    assert three.aliases()["champion"] == "2"


def test_rollback_needs_neither_mlflow_nor_prefect(three: Project) -> None:
    done = succeed(three.ml("rollback", "--why", "night", timeout=60, **DOWN))
    assert serving(three) == "2"
    assert "MLflow's alias was not moved" in done.stdout
    assert not done.stderr
    assert three.aliases()["champion"] == "3"
    assert "version 2 is in production" in succeed(three.ml("status", **DOWN)).stdout


@pytest.mark.slow
def test_next_run_makes_the_alias_agree(three: Project) -> None:
    succeed(three.ml("rollback", "--why", "night", **DOWN))
    three.run(ML_TRAIN__SEED="1")
    assert three.aliases()["champion"] == serving(three)


def test_next_run_does_not_bring_back_what_was_rolled_back(three: Project) -> None:
    """Version 3 is the result of the unchanged settings, and a user rolled it back."""
    succeed(three.ml("rollback", "--why", "too many complaints", **DOWN))
    sentence = refuse(three.ml("run", ML_TRAIN__SEED="2"), status=1)
    assert "Version 3 was taken out of production" in sentence
    assert "too many complaints" in sentence
    assert serving(three) == "2"
    assert three.aliases()["champion"] == "2"


def test_rollback_twice_goes_back_two_versions_and_then_no_further(three: Project) -> None:
    succeed(three.ml("rollback", "--why", "one"))
    succeed(three.ml("rollback", "--why", "two"))
    assert serving(three) == "1"
    before = three.champion
    assert "there is no earlier one to roll back to" in refuse(three.ml("rollback", "--why", "three"))
    assert three.champion == before


def test_promote_brings_a_version_back(three: Project) -> None:
    succeed(three.ml("promote", "1", "--why", "the old one was right"))
    assert serving(three) == "1"
    assert three.aliases()["champion"] == "1"
    succeed(three.ml("rollback", "--why", "no, it was not"))
    assert serving(three) == "3"
    assert three.champion
    assert [change["action"] for change in three.champion["history"]] == ["deploy"] * 3 + ["promote", "rollback"]
    assert three.champion["history"][-1]["why"] == "no, it was not"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("promote", "3", "--why", "x"), "Version 3 is in production already"),
        (("promote", "9", "--why", "x"), "Version 9 never was in production"),
    ],
)
def test_promote_says_why_it_does_nothing(three_once: Project, words: tuple[str, ...], said: str) -> None:
    before = three_once.champion
    assert said in refuse(three_once.ml(*words))
    assert three_once.champion == before


def test_damaged_bundle_is_not_put_into_service(three: Project) -> None:
    before = three.champion
    for path in (three.store / "bundles").glob("2-*/model.onnx"):
        path.write_bytes(path.read_bytes()[:-1])
    assert "was changed after it was written" in refuse(three.ml("rollback", "--why", "night"))
    assert three.champion == before


@pytest.mark.parametrize("command", ["rollback", "promote"])
def test_there_is_nothing_to_move_without_a_champion(make: Make, command: str) -> None:
    project = make()
    words = ["1"] if command == "promote" else []
    assert "No model is in production yet" in refuse(project.ml(command, *words, "--why", "x"))


@pytest.mark.parametrize("variable", DOWN)
def test_run_says_at_once_which_server_is_down(three_once: Project, variable: str) -> None:
    before = three_once.champion
    assert variable in refuse(three_once.ml("run", timeout=90, **{variable: DOWN[variable]}))
    assert three_once.champion == before
