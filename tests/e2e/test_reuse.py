"""Which steps a second run repeats, and which it reuses."""

import pytest

from e2e.support import Project, files_of, refuse, sample, succeed


def test_second_run_on_unchanged_data_does_no_work_twice_and_says_so(trained: Project) -> None:
    before, runs = files_of(trained.store), trained.training_runs()
    done = trained.run()
    assert "Nothing changed: version 1" in done.stdout
    assert trained.versions() == ["1"]
    assert trained.training_runs() == runs
    assert files_of(trained.store) == before


@pytest.mark.slow
def test_changed_seed_gives_a_new_version(trained: Project) -> None:
    done = trained.run(ML_TRAIN__SEED="1")
    assert "Version 2 is in production in place of version 1" in done.stdout
    assert trained.versions() == ["1", "2"]
    assert trained.aliases() == {"challenger": "2", "champion": "2"}


@pytest.mark.slow
def test_changed_parameter_in_config_gives_a_new_version(trained: Project) -> None:
    trained.configure("train", params={"max_iter": 90})
    succeed(trained.ml("train"))
    assert trained.versions() == ["1", "2"]


def test_changed_estimator_gives_a_new_version(trained: Project) -> None:
    path = trained.root / "model" / "estimator.py"
    text = path.read_text(encoding="utf-8")
    assert '"max_leaf_nodes": 15' in text
    path.write_text(text.replace('"max_leaf_nodes": 15', '"max_leaf_nodes": 14'), encoding="utf-8")
    succeed(trained.ml("train"))
    assert trained.versions() == ["1", "2"]
    assert trained.aliases() == {"challenger": "2", "champion": "1"}


def test_more_rows_give_a_new_snapshot_and_a_new_version(trained: Project) -> None:
    trained.configure("data", source="sample://?rows=1700")
    trained.configure("gates", margin=0.1)  # whether some rows more make a better model is chance
    trained.run()
    assert trained.versions() == ["1", "2"]
    assert len(list((trained.store / "snapshots").glob("*.parquet"))) == 2


@pytest.mark.slow
def test_same_content_under_another_name_is_the_same_snapshot(trained: Project) -> None:
    """Version 1 of a CSV; a copy of the file is neither stored nor learned from again."""
    frame = sample()
    trained.use(frame, "one.csv")
    trained.run()
    before = files_of(trained.store / "snapshots", "sources")
    trained.use(frame, "two.csv")
    done = trained.run()
    assert "Nothing changed" in done.stdout
    assert files_of(trained.store / "snapshots", "sources") == before


def test_changed_gate_evaluates_again_without_refit(trained: Project) -> None:
    """The champion's own verdict is kept; a candidate's is computed again."""
    runs = trained.training_runs()
    trained.configure("gates", minimum=0.5)
    trained.run()
    assert trained.training_runs() == runs


@pytest.mark.slow
def test_stages_run_alone_one_after_the_other(trained: Project) -> None:
    trained.configure("train", seed=5)
    for stage in ("ingest", "validate", "train", "evaluate", "deploy"):
        done = succeed(trained.ml(stage))
        assert f"✓ {stage}" in done.stdout
        assert not done.stderr
    assert trained.champion and trained.champion["version"] == "2"
    assert "Nothing changed" in trained.run().stdout


@pytest.mark.parametrize("stage", ["validate", "deploy"])
def test_stage_without_its_predecessor_says_what_to_run(trained: Project, stage: str) -> None:
    (trained.store / "latest.json").unlink()
    assert "run `ml " in refuse(trained.ml(stage))


def test_second_command_at_the_same_time_is_asked_to_wait(trained: Project) -> None:
    import fcntl

    with (trained.root / ".ml" / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "Another run of this project is in progress" in refuse(trained.ml("run"))
