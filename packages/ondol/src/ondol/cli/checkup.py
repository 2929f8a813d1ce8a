"""Checks of `ml doctor` of the project's own files: damaged, missing or in the way."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import BaseModel

from ondol.config import Settings, is_address
from ondol.errors import UserError
from ondol.evaluation.verdicts import Record as Judged
from ondol.ingestion.incremental import Line
from ondol.monitoring.retraining import Loop
from ondol.monitoring.windows import Window
from ondol.orchestration.environment import prefect_database
from ondol.orchestration.processes import Record as Process
from ondol.orchestration.processes import run_folder
from ondol.orchestration.server import PREFECT_REMEDY
from ondol.registry.bundles import open_bundle
from ondol.registry.champion import read_champion
from ondol.registry.models import FILE
from ondol.registry.registry import MLFLOW_REMEDY, check_schema, is_embedded, local_path, mlflow_database
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.files import BACKUP, explain_damage, explain_os_error, read_json, read_record
from ondol.storage.sqlite import WAIT_SECONDS, check_database
from ondol.validation.results import Validation, Validations, read_latest

RECORDS: tuple[tuple[str, type[BaseModel] | None], ...] = (
    (BACKUP, None),
    ("loop.json", Loop),
    ("release.json", None),
    ("verdicts/*.json", Judged),
    ("quarantine/*.json", Validation),
    ("windows/*.json", Window),
    ("holdouts/*.json", None),
    ("snapshots/*.json", Snapshot),
    ("snapshots/sources/*.json", None),
    ("snapshots/lines/*.json", Line),
    ("snapshots/mended/*.json", None),
    ("snapshots/mended/made/*.json", None),
    ("alerts/*.json", None),
    ("alerts/outbox/*.json", None),
)
FOLDERS = ("bundles", "verdicts", "quarantine", "windows", "holdouts", "snapshots", "alerts", "log")


def find_damage(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong; what decides most comes first."""
    for subject in (_check_folders, _check_databases, _check_champion, _check_registry, _check_records, _check_rows):
        for check in subject(settings):
            try:
                check()
            except UserError as error:
                yield str(error)
            except OSError as error:
                yield str(explain_os_error(error) or error)


def _check_folders(settings: Settings) -> Iterator[Callable[[], object]]:
    store = settings.store_path
    homes = [settings.home, *(settings.home / name for name in ("prefect", "mlflow", "logs", "run", "bentoml"))]
    for folder in (*homes, store, *(store / name for name in FOLDERS)):
        yield partial(_require_folder, folder)


def _require_folder(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        what = "a link that leads nowhere" if folder.is_symlink() and not folder.exists() else "a file"
        raise UserError(f"{folder} is {what} where a folder belongs: move it away.")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written: make it and its file system writable for this user.")


def _check_databases(settings: Settings) -> Iterator[Callable[[], object]]:
    for path, remedy in ((mlflow_database(settings), MLFLOW_REMEDY), (prefect_database(), PREFECT_REMEDY)):
        yield partial(check_database, path, remedy, thorough=True)


def _check_champion(settings: Settings) -> Iterator[Callable[[], object]]:
    def check() -> None:
        champion = read_champion(settings.store_path)
        if champion is not None:
            open_bundle(settings.store_path, champion.bundle)

    yield check
    yield partial(read_latest, settings.store_path)


REGISTERED = """
    select v.version, r.run_uuid, r.lifecycle_stage, v.storage_location
    from registered_model_aliases a
    join model_versions v on v.name = a.name and v.version = a.version
    left join runs r on r.run_uuid = v.run_id
    where a.name = ? group by v.version
"""


def _check_registry(settings: Settings) -> Iterator[Callable[[], object]]:
    """Look at the embedded MLflow: its version, and what was deleted of experiment and versions with an alias."""
    database = mlflow_database(settings)
    if is_embedded(settings) and database.is_file():
        yield partial(check_schema, settings)
        yield partial(_require_registered, settings.project.name, database)


def _require_registered(name: str, database: Path) -> None:
    """Check that the project's experiment is active, and that versions with an alias have their run and their model.

    Raises:
        UserError: something of it was deleted.
    """
    try:
        with closing(sqlite3.connect(database, timeout=WAIT_SECONDS)) as connection:
            stages = connection.execute("select lifecycle_stage from experiments where name = ?", (name,)).fetchall()
            versions = connection.execute(REGISTERED, (name,)).fetchall()
    except sqlite3.Error:  # no table yet, or what the check of the database has said
        return
    if ("deleted",) in stages:
        raise UserError(f'The experiment "{name}" was deleted in MLflow: the next training restores it.')
    for version, run, stage, place in versions:
        if stage == "deleted":
            raise UserError(f"The run of version {version} was deleted in MLflow: the next evaluation restores it.")
        path = local_path(place) if place and place.startswith("file:") else None
        if run is None or (path and not (path / FILE).is_file()):
            lost = "its run is gone" if run is None else f"{path} has no {FILE}"
            raise UserError(
                f"Version {version} is not whole in MLflow ({lost}): bring it back from a backup, or run `ml train`, "
                "which makes the version again."
            )


def _check_records(settings: Settings) -> Iterator[Callable[[], object]]:
    store = settings.store_path
    found = [(path, kind) for pattern, kind in RECORDS for path in _matching(store, pattern)]
    found += [(path, Process) for path in sorted(run_folder(settings).glob("*.json"))]
    found += [(path, None) for path in sorted(run_folder(settings).glob("*.restarts"))]
    found += [(settings.home / "drops.json", None)]
    for path, kind in found:
        yield partial(read_record, path, kind) if kind else partial(read_json, path)


def _matching(store: Path, pattern: str) -> list[Path]:
    return sorted(store.glob(pattern)) if "*" in pattern else [store / pattern]  # `glob` passes over dangling links


def _check_rows(settings: Settings) -> Iterator[Callable[[], object]]:
    """Look at the files of rows: whether each is whole Parquet, and of the rows that are used now every byte.

    What of a store in a bucket is not here is not brought here for this.
    """
    store = settings.store_path
    snapshots, validations = Snapshots(store), Validations(store)
    for path in (*sorted(snapshots.folder.glob("*.parquet")), *sorted(validations.folder.glob("*.parquet"))):
        yield partial(_require_parquet, path)
    if is_address(settings.store):
        return

    def check() -> None:
        name = read_latest(store).get("validate")
        record = validations.find(name) if name else None
        if record is not None:
            validations.rows_path(record.id)
            for part in snapshots.get(record.snapshot).parts:
                snapshots.parts.verify(part)

    yield check


def _require_parquet(path: Path) -> None:
    try:
        pq.read_metadata(path)
    except FileNotFoundError:
        raise explain_damage(path, "it is a link that leads nowhere") from None
    except (ValueError, RuntimeError):  # pyarrow.ArrowInvalid is a ValueError
        raise explain_damage(path, "it is no whole Parquet file") from None
