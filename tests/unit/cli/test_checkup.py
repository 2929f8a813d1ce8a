"""Damage to a project's files: each is found, reported in one sentence with a remedy, and can be repaired."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from template_support import repository_environment

from ondol.cli.doctor import find_damage
from ondol.config import Settings, load_settings
from ondol.errors import UserError
from ondol.evaluation.gates import StoredVerdict, Verdict, Verdicts
from ondol.monitoring.retraining import change_loop
from ondol.registry.bundles import write_bundle
from ondol.registry.champion import move_champion, read_champion
from ondol.registry.keys import add_key
from ondol.registry.registry import (
    ARTIFACT_ROOT,
    connect_mlflow,
    embedded_uri,
    explain_schema,
    mlflow_database,
    prepare_embedded,
)
from ondol.registry.rollout import start_rollout
from ondol.snapshots.snapshots import Snapshots
from ondol.storage.files import check_database, explain_os_error, write_json
from ondol.storage.store import Store, open_store
from ondol.validation.results import Latest, Validation, Validations

Damage = Callable[[Path], None]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def deep(path: Path) -> None:
    path.write_text("[" * 200_000, encoding="utf-8")


def other(path: Path) -> None:
    path.write_text('["another", "program\'s"]', encoding="utf-8")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


PROCESS = {"name": "service", "pid": None, "started": 0.0, "token": "t", "port": 1, "command": ["x"], "since": "2026"}
JSON = (empty, cut, binary, deep, other, dangling, folder)
FILES: dict[str, tuple[tuple[Damage, ...], str]] = {  # by path: how it is damaged, and the remedy that is named
    "store/champion.json": (JSON, "champion.backup.json"),
    "store/latest.json": (JSON, "ml run"),
    "store/loop.json": (JSON, "remove it"),
    "store/access.json": (JSON, "restore it from a backup"),
    "store/rollout.json": (JSON, "remove it"),
    "store/verdicts/1.json": (JSON, "ml run"),
    "store/quarantine/v.json": (JSON, "ml validate"),
    "store/quarantine/v.parquet": ((cut, binary), "ml validate"),
    "store/snapshots/SNAPSHOT.json": (JSON, "ml ingest --full"),
    "store/snapshots/SNAPSHOT.parquet": ((cut, binary, dangling), "ml ingest --full"),
    "store/bundles/BUNDLE/meta.json": ((empty, cut, binary, other), "ml run"),
    "mlflow/mlflow.db": ((cut, binary, folder), "move it away"),
    "prefect/prefect.db": ((cut, binary, folder), "move it away"),
    "run/service.json": (JSON, "ml up"),
}
CASES = [
    pytest.param(name, damage, id=f"{name}-{damage.__name__}") for name, (ways, _) in FILES.items() for damage in ways
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a file of each kind."""
    root = tmp_path_factory.mktemp("project") / "it's 한글"
    root.mkdir()
    (root / "config.toml").write_text("", encoding="utf-8")
    store = Store(root / ".ml" / "store")
    rows = pa.table({"x": list(range(1000))})
    snapshot = Snapshots(store).write(iter(rows.to_batches()), "rows.csv", "fingerprint")
    with Validations(store).quarantine("v", rows.schema) as quarantine:
        quarantine.add(rows.slice(0, 1), np.array([0]), pa.array([["x: bad"]]))
        quarantine.finish(Validation(id="v", snapshot=snapshot.digest, rows=1000, bad=1, reasons={"x: bad": 1}))
    Latest(store).set("validate", "v")
    verdict = Verdict(problem="regression", metric="rmse", rows=1, scores={}, gains={}, gates=())
    Verdicts(store).write(StoredVerdict(key="k", version="1", run_id="r", champion=None, verdict=verdict))
    bundle = write_bundle(store, "1", {"meta.json": b'{"run_id": "r", "version": "1"}', "contract.json": b"{}"})
    champion = move_champion(store, bundle, "deploy", "first")
    start_rollout(store, bundle, champion, "canary", (0.05,), "a trial")
    add_key(store, "billing", ("predict",), None)
    change_loop(store, lambda loop: loop)
    write_json(root / ".ml" / "run" / "service.json", PROCESS)
    for name in ("mlflow/mlflow.db", "prefect/prefect.db"):
        make_database(root / ".ml" / name)
    return root


def make_database(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table t (x text)")
        connection.executemany("insert into t values (?)", [("x" * 1000,) for _ in range(100)])


@pytest.fixture
def settings(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The project in a folder of the test's own; nothing of it is damaged."""
    root = tmp_path / "it's 한글"
    shutil.copytree(made, root)
    monkeypatch.setenv("PREFECT_HOME", str(root / ".ml" / "prefect"))
    found = load_settings(root)
    assert list(find_damage(found)) == []
    return found


def place_of(settings: Settings, name: str) -> Path:
    """Return the file that a row of the table names."""
    champion = read_champion(open_store(settings))
    (manifest,) = (settings.folder_of(settings.store) / "snapshots").glob("*.json")
    assert champion
    return settings.home / name.replace("SNAPSHOT", manifest.stem).replace("BUNDLE", champion.bundle)


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_damaged_file_is_named_with_the_way_back(settings: Settings, name: str, damage: Damage) -> None:
    path = place_of(settings, name)
    damage(path)
    found = list(find_damage(settings))
    assert found
    named = path.parent if name.startswith("store/bundles") else path
    assert str(named) in found[0]
    remedy = FILES[name][1]
    assert remedy in found[0]
    if remedy == "champion.backup.json":
        remove(path)
        shutil.copy2(path.with_name("champion.backup.json"), path)
    else:
        remove(named)
    gone = ("is missing", "No such snapshot")
    assert [said for said in find_damage(settings) if not any(word in said for word in gone)] == []


@pytest.mark.parametrize("name", ["", "store", "store/verdicts", "store/bundles", "logs", "mlflow", "prefect", "run"])
@pytest.mark.parametrize("link", [False, True], ids=["file", "dangling link"])
def test_what_is_in_the_place_of_a_folder_is_named(settings: Settings, name: str, link: bool) -> None:
    place = settings.home / name
    if place.exists():
        shutil.rmtree(place)
    place.symlink_to("nowhere") if link else place.write_text("in the way", encoding="utf-8")
    found = next(find_damage(settings))
    assert str(place) in found
    assert "move it away" in found


@pytest.mark.parametrize("name", ["pyproject.toml", "uv.lock", "prefect.yaml"])
def test_file_in_a_merge_conflict_is_named_with_its_line(settings: Settings, name: str) -> None:
    path = settings.root / name
    path.write_text("# 고객\n<<<<<<< before updating\na = 1\n=======\n>>>>>>> after updating\n", encoding="utf-8")
    said = f"{path} is in a merge conflict (<<<<<<< in line 2): resolve it in this file."
    assert list(find_damage(settings)) == [said]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO])
def test_error_of_the_system_is_one_sentence_with_the_file(tmp_path: Path, code: int) -> None:
    path = tmp_path / "champion.json"
    said = explain_os_error(OSError(code, os.strerror(code), str(path)))
    assert said
    assert str(tmp_path) in str(said)
    assert str(said).count("\n") == 0
    draft = OSError(code, os.strerror(code), str(tmp_path / ".tmp-1-2-x" / "a.json"))
    assert ".tmp-" not in str(explain_os_error(draft))
    assert ": " in str(said)


def test_file_that_does_not_exist_is_not_damage(tmp_path: Path) -> None:
    assert explain_os_error(FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "x"))) is None


def test_file_that_cannot_be_read_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in at the system's boundary: tests may run as root, which reads everything."""
    real = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.name == "champion.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UserError, match=r"champion.json cannot be used .*give this user the right"):
        read_champion(open_store(settings))


def test_copy_beside_the_champion_is_what_it_last_said(settings: Settings) -> None:
    store = open_store(settings)
    second = write_bundle(store, "2", {"meta.json": b'{"run_id": "s", "version": "2"}', "contract.json": b"{}"})
    move_champion(store, second, "deploy", "second")
    assert (store.folder / "champion.json").read_bytes() == (store.folder / "champion.backup.json").read_bytes()


def test_locked_database_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ondol.storage.files.SQLITE_WAIT_SECONDS", 0.1)
    path = settings.home / "mlflow" / "mlflow.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("begin exclusive")
        with pytest.raises(UserError, match="locked by another process"):
            check_database(path, "…")
    check_database(path, "…")


KILLED = """
import os, sqlite3, sys
made = sqlite3.connect(sys.argv[1], isolation_level=None)
made.execute("pragma cache_size = 1")
made.execute("create table t (x)")
made.execute("begin immediate")
made.executemany("insert into t values (?)", [("x" * 1000,)] * 500)
os.kill(os.getpid(), 9)
"""


def test_database_that_a_killed_process_was_writing_is_not_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert path.with_name("a.db-journal").stat().st_size > 0
    check_database(path, "restore it", thorough=True)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select count(*) from t").fetchone() == (0,)


SCHEMAS = [
    ("cc1f77228345", r"by an earlier version .*, make a backup, and run `uv run mlflow db upgrade '?sqlite"),
    ("0123456789ab", r"by a later version than MLflow [\d.]+: install that version again, or restore"),
]


@pytest.mark.parametrize(("revision", "told"), SCHEMAS)
def test_database_of_another_mlflow_is_reported_in_one_sentence_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, told: str
) -> None:
    for variable in ("MLFLOW_TRACKING_URI", ARTIFACT_ROOT):
        monkeypatch.setenv(variable, "")  # so that it is removed again at the end
        monkeypatch.delenv(variable)
    settings = Settings(root=tmp_path / "it's 100% 한글")
    monkeypatch.setenv("PREFECT_HOME", str(settings.home / "prefect"))
    prepare_embedded(settings)
    assert list(find_damage(settings)) == []
    with closing(sqlite3.connect(mlflow_database(settings))) as database, database:
        database.execute("update alembic_version set version_num = ?", (revision,))
    [found] = find_damage(settings)
    with pytest.raises(UserError, match=told) as refused:
        connect_mlflow(settings)
    server = subprocess.run(
        [sys.executable, "-c", "from ondol.registry.mlflow_server import mlflow; mlflow()"],
        env=repository_environment() | {"MLFLOW_BACKEND_STORE_URI": embedded_uri(settings)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found == str(refused.value) == server.stderr.splitlines()[-1]


def test_address_with_a_password_is_not_shown() -> None:
    said = "Detected out-of-date database schema (found version cc1f77228345, but expected dc11669786a5)."
    told = explain_schema(said, "postgresql://ml:s3cret@host/mlflow", "MLFLOW_BACKEND_STORE_URI")
    assert 'run `uv run mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"`' in told and "s3cret" not in told
    assert explain_schema("the disk is full", "sqlite:///x", "X") == ""


CONNECT = """
import sys
from pathlib import Path
from ondol.registry.registry import connect_mlflow
from ondol.config import load_settings
connect_mlflow(load_settings(Path(sys.argv[1]))).search_experiments()
"""


def test_database_of_mlflow_whose_making_was_killed_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    folder = tmp_path / ".ml" / "mlflow"
    command = [sys.executable, "-c", CONNECT, str(tmp_path)]
    with subprocess.Popen(command, env=repository_environment()) as process:
        while not any(path.stat().st_size for path in folder.glob(".tmp-*/mlflow.db")):
            assert process.poll() is None, "it was made too fast to be killed"
            time.sleep(0.005)
        process.kill()
    assert not (folder / "mlflow.db").exists()
    subprocess.run(command, env=repository_environment(), check=True)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".tmp-")] == []
