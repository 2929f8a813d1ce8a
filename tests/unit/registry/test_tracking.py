"""What a run is given in MLflow, and what is read back of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ondol.config import Settings
from ondol.errors import UserError
from ondol.project import Project
from ondol.registry.champion import Champion, write_champion
from ondol.registry.registry import MODEL_FILE, RECORD, Registry, mlflow_artifacts, read_version_tags
from ondol.storage.store import open_store


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that what `connect_mlflow` sets is removed at the end
    return Registry(Settings(root=tmp_path))


@pytest.fixture
def run_id(registry: Registry) -> Iterator[str]:
    """A run with a model that is version 1, without a record."""
    with registry.run("a run", {"data_digest": "of the run"}) as run_id:
        registry.log_files(run_id, {MODEL_FILE: b"a pipeline"})
    registry.register(registry.client.get_run(run_id).info.artifact_uri, None, run_id, {})
    return run_id


def test_results_are_added_also_to_a_run_that_was_deleted_and_take_the_place_of_earlier_ones(registry, run_id):
    registry.client.delete_run(run_id)
    registry.log_results(run_id, {"auc": 0.7}, {"a.json": {"n": 1}}, {"curve": b"png"}, {"seed": "7"})
    registry.log_results(run_id, {"auc": 0.8}, {"a.json": {"n": 2}})
    run = registry.run_of("1")
    assert (run.data.metrics, run.data.params) == ({"auc": 0.8}, {"seed": "7"})
    assert registry.read_documents(run, ("a.json", "b.json")) == {"a.json": {"n": 2}}
    assert [file.path for file in registry.client.list_artifacts(run_id, "plots")] == ["plots/curve.png"]
    registry.remove_files(run)
    assert not registry.client.list_artifacts(run_id)
    assert registry.run_of("1").data.metrics == {"auc": 0.8}


def test_a_record_that_is_not_whole_is_named(registry, run_id):
    with pytest.raises(UserError, match=r"Version 1 is no longer complete in MLflow \(no contract.json, no baseline"):
        registry.read_record("1")
    registry.log_results(run_id, {}, {name: {"of": name} for name in RECORD})
    assert registry.read_record("1") == {name: {"of": name} for name in RECORD}
    [damaged] = mlflow_artifacts(registry.settings).rglob(RECORD[0])
    damaged.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{RECORD[0]} is damaged\)"):
        registry.read_record("1")


def test_a_dataset_is_an_input_of_its_run(registry, run_id):
    fields = {"name": "rows", "digest": "d", "source_type": "local", "source": "{}", "schema": "{}", "profile": "{}"}
    registry.log_input(run_id, "training", fields)
    [made] = registry.run_of("1").inputs.dataset_inputs
    assert dict(made.dataset) == fields
    assert [(tag.key, tag.value) for tag in made.tags] == [("mlflow.data.context", "training")]


def test_the_tags_of_all_versions_are_read_unless_the_champion_is_of_another_server(registry, run_id, monkeypatch):
    monkeypatch.setattr("ondol.registry.registry.PAGE", 1)
    registry.register("file:///model", None, run_id, {"data_digest": "of the version"})
    tags = read_version_tags(Project(registry.settings))
    assert {version: found["data_digest"] for version, found in tags.items()} == {
        "1": "of the run",
        "2": "of the version",
    }
    other = Champion(version="1", run_id="of another", bundle="1-b", digest="d", since="2026-01-01")
    write_champion(open_store(registry.settings), other)
    with pytest.raises(UserError, match="MLflow does not know version 1, which is in production"):
        read_version_tags(Project(registry.settings))
