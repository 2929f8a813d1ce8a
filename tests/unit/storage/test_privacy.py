"""Who may read what is written: in `.ml` the user alone, elsewhere as the user's umask says."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ondol.config import Settings, load_settings
from ondol.orchestration.environment import prepare
from ondol.storage.files import keep_private, locked, make_private, open_for_others, publish, scratch, write_json


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_paths(folder: Path) -> list[str]:
    """The files and folders that others may read, write or enter."""
    return sorted(str(p.relative_to(folder.parent)) for p in (folder, *folder.rglob("*")) if mode(p) & 0o077)


@pytest.fixture
def umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The umask that most users have, restored after the test."""
    monkeypatch.delenv("ML_UMASK", raising=False)
    before = os.umask(0o022)
    yield
    os.umask(before)
    os.environ.pop("ML_UMASK", None)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: None) -> Settings:
    for name in ("PREFECT_HOME", "PREFECT_PROFILES_PATH", "BENTOML_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "config.toml").touch()
    return load_settings(tmp_path)


def test_files_and_folders_below_ml_are_private(settings: Settings) -> None:
    prepare(settings)
    write_json(settings.folder_of(settings.store) / "deep" / "a.json", {})
    with (
        locked(settings.home / "locks" / "one", wait=True),
        scratch(settings.folder_of(settings.store) / "parts") as made,
    ):
        made.mkdir()
        (made / "rows").write_bytes(b"1")
        publish(made, settings.folder_of(settings.store) / "parts")
    keep_private()
    (settings.home / "logs").mkdir()
    (settings.home / "logs" / "of-a-library.log").touch()
    assert open_paths(settings.home / "store") == open_paths(settings.home / "logs") == []
    assert mode(settings.home) == 0o700


def test_existing_project_is_made_private_at_its_next_start(settings: Settings) -> None:
    folder = settings.home / "store" / "snapshots"
    folder.mkdir(parents=True)
    (folder / "rows.parquet").touch(0o666)
    (folder / "run").touch(0o755)
    (folder / "elsewhere").symlink_to("/etc/hostname")
    keep_private()
    prepare(settings)
    assert open_paths(settings.home) == [".ml/store/snapshots/elsewhere"]  # what it leads to
    assert mode(folder / "run") == 0o700


def test_file_with_several_names_is_left_alone(settings: Settings, tmp_path: Path) -> None:
    cached = tmp_path / "cache"
    cached.touch(0o644)
    settings.home.mkdir()
    os.link(cached, settings.home / "installed")
    make_private(settings.home)
    assert mode(cached) == 0o644
    assert mode(settings.home) == 0o700


@pytest.mark.parametrize("umask_of_user, wanted", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_output_that_the_user_names_has_the_mode_of_the_umask(
    settings: Settings, tmp_path: Path, umask_of_user: int, wanted: int
) -> None:
    os.umask(umask_of_user)
    keep_private()
    write_json(tmp_path / "out" / "predictions.json", [])
    assert mode(tmp_path / "out" / "predictions.json") == wanted
    assert mode(tmp_path / "out") == 0o777 & ~umask_of_user


def test_umask_of_the_user_is_known_to_processes_that_inherit_ours(settings: Settings, tmp_path: Path) -> None:
    keep_private()
    keep_private()  # as a process does that was started by one that did
    write_json(tmp_path / "predictions.json", [])
    assert mode(tmp_path / "predictions.json") == 0o644


def test_file_that_is_replaced_keeps_its_mode(settings: Settings, tmp_path: Path) -> None:
    keep_private()
    path = tmp_path / "config.toml"
    path.chmod(0o664)
    write_json(path, {})
    assert mode(path) == 0o664


def test_store_of_a_container_is_open_and_stays_so(settings: Settings) -> None:
    keep_private()
    prepare(settings)
    store = settings.home / "staging"
    write_json(store / "bundles" / "1-a" / "meta.json", {})
    open_for_others(store)
    write_json(store / "champion.json", {})
    write_json(store / "bundles" / "2-b" / "meta.json", {})
    assert {mode(path) for path in store.rglob("*.json")} == {0o644}
    assert {mode(path) for path in (store, *store.rglob("*")) if path.is_dir()} == {0o755}
    settings.home.chmod(0o755)  # as an earlier version left it
    make_private(settings.home, {store})
    assert mode(store / "champion.json") == 0o644
    assert mode(settings.home) == 0o700
