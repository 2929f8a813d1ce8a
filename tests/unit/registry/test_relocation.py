"""Artifact locations of the embedded MLflow after a project's folder was copied or moved."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from ondol.cli.doctor import _check_registry
from ondol.config import Settings, load_settings
from ondol.errors import UserError
from ondol.registry.registry import Registry, local_path, mlflow_database, relocate_artifacts
from ondol.storage.files import sqlite_url

NAMES = ["copy", "한글 복사본", "a#b%20c?d", 'it\'s "quoted" 😀']


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one run that has an artifact."""
    root = tmp_path_factory.mktemp("original") / "project"
    root.mkdir()
    (root / "config.toml").write_text('[project]\nname = "moved"\n', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        log_run(load_settings(root), "first")
    return root


@pytest.fixture
def original(made: Path, tmp_path: Path) -> Path:
    """The project in a folder of its own, as if it had been made there."""
    root = tmp_path / "original"
    shutil.copytree(made, root)
    open_registry(load_settings(root))
    return root


def open_registry(settings: Settings) -> Registry:
    """Connect as a process of this project alone would."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return Registry(settings)


def log_run(settings: Settings, text: str) -> str:
    registry = open_registry(settings)
    run = registry.client.create_run(registry.experiment_id())
    registry.client.log_text(run.info.run_id, text, "note.txt")
    return str(run.info.run_id)


def only_run(settings: Settings) -> str:
    registry = open_registry(settings)
    (run,) = registry.client.search_runs([registry.experiment_id()])
    return str(run.info.run_id)


def read_note(settings: Settings, run_id: str) -> str:
    registry = open_registry(settings)
    return Path(registry.client.download_artifacts(run_id, "note.txt")).read_text(encoding="utf-8")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def uris_of(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        query = "select artifact_location from experiments union all select artifact_uri from runs"
        return [uri for (uri,) in connection.execute(query)]


@pytest.mark.parametrize("name", NAMES)
def test_copy_reads_and_writes_in_its_own_folder_alone(original: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(original, tmp_path / name)
    before = files_of(original)
    copy = load_settings(tmp_path / name)
    assert read_note(copy, only_run(copy)) == "first"
    assert read_note(copy, log_run(copy, "second")) == "second"
    assert files_of(original) == before
    assert all(uri.startswith(f"{copy.root.as_uri()}/.ml/mlflow/artifacts") for uri in uris_of(mlflow_database(copy)))


@pytest.mark.parametrize("driver", ["pysqlite", "aiosqlite"])
@pytest.mark.parametrize("name", [*NAMES, "100%25 done", "50%", "x?y", "a b+c"])
def test_url_of_a_database_names_its_file(tmp_path: Path, name: str, driver: str) -> None:
    """SQLAlchemy 2.1 decodes the path in a URL: a folder called `a%20b` was taken for `a b`."""
    file = tmp_path / name / "x.db"
    file.parent.mkdir()
    url = make_url(sqlite_url(file, driver)).set(drivername="sqlite+pysqlite")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("create table t (a)"))
    engine.dispose()
    assert file.stat().st_size > 0


@pytest.mark.parametrize("name", NAMES)
def test_moved_project_keeps_its_records(original: Path, tmp_path: Path, name: str) -> None:
    original.rename(tmp_path / name)
    moved = load_settings(tmp_path / name)
    assert read_note(moved, only_run(moved)) == "first"
    log_run(moved, "second")
    assert not original.exists()


def test_moved_twice_and_back(original: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        original = original.rename(tmp_path / name)
        settings = load_settings(original)
        assert read_note(settings, only_run(settings)) == "first"


def test_artifacts_that_an_earlier_version_wrote_to_the_old_folder_come_along(original: Path, tmp_path: Path) -> None:
    """0.3.0 left the database as it was, so that a moved project's runs were written where it had been."""
    moved = load_settings(Path(shutil.copytree(original, tmp_path / "moved")))
    shutil.rmtree(moved.home / "mlflow" / "artifacts")
    (original / "config.toml").unlink()
    assert read_note(moved, only_run(moved)) == "first"


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/runs",
        "s3://bucket/mlruns/1",
        "s3://bucket/project/.ml/mlflow/artifacts/1",
        "mlflow-artifacts:/mlruns/1",
        "file:///nas/mlruns/1",
        "file:///nas/mlruns-old/1",
        "file:///other/.ml/mlflow/artifacts-old/1",
    ],
)
def test_other_places_stay(original: Path, place: str) -> None:
    database = original / ".ml" / "mlflow" / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update experiments set artifact_location = ? where name = 'moved'", (place,))
    assert relocate_artifacts(database, original / ".ml" / "mlflow" / "artifacts") == 0
    assert place in uris_of(database)


def test_default_folder_of_mlflow_follows_the_project(original: Path, tmp_path: Path) -> None:
    """0.3.0 left the experiment "Default" in `mlruns` beside the configuration."""
    database = original / ".ml" / "mlflow" / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        old = f"{original.as_uri()}/mlruns/0"
        connection.execute("update experiments set artifact_location = ? where name = 'Default'", (old,))
    moved = load_settings(original.rename(tmp_path / "moved"))
    open_registry(moved)
    assert f"{moved.root.as_uri()}/.ml/mlflow/artifacts/0" in uris_of(mlflow_database(moved))


def test_killed_repair_changes_nothing(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(shutil.copytree(original, tmp_path / "copy"))
    database, artifacts = root / ".ml" / "mlflow" / "mlflow.db", root / ".ml" / "mlflow" / "artifacts"
    before = uris_of(database)

    def killed(old: str, new: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ondol.registry.registry._bring", killed)
        with pytest.raises(KeyboardInterrupt):
            relocate_artifacts(database, artifacts)
    assert uris_of(database) == before
    assert relocate_artifacts(database, artifacts) > 0
    assert relocate_artifacts(database, artifacts) == 0


def test_doctor_finds_what_was_deleted_in_mlflow(original: Path) -> None:
    settings = load_settings(original)
    registry = open_registry(settings)
    run = only_run(settings)
    place = registry.client.get_run(run).info.artifact_uri
    (local_path(place) / "model.skops").touch()
    registry.client.create_registered_model(registry.name)
    registry.client.create_model_version(registry.name, place, run)
    registry.set_alias("champion", "1")
    found = partial(_said, settings)
    assert found() == ""
    registry.client.delete_run(run)
    assert "was deleted in MLflow: the next evaluation restores it" in found()
    registry.restore_run(run)
    assert found() == ""
    registry.client.delete_experiment(registry.experiment_id())
    assert 'The experiment "moved" was deleted in MLflow: the next training restores it.' in found()
    registry.experiment_id()
    assert found() == ""
    shutil.rmtree(original / ".ml" / "mlflow" / "artifacts")
    assert "Version 1 is incomplete in MLflow" in found()


def _said(settings: Settings) -> str:
    return " ".join(said for check in _check_registry(settings) for said in [_sentence(check)] if said)


def _sentence(check: Callable[[], object]) -> str:
    try:
        check()
    except UserError as error:
        return str(error)
    return ""
