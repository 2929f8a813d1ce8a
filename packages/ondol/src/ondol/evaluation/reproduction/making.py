"""Makes a version again: its record, its files, its packages, its rows; nothing of the project is changed."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ondol.config.settings import Settings
from ondol.evaluation.reproduction.order import Order, Outcome
from ondol.evaluation.reproduction.record import Recorded, read_record, require_snapshot
from ondol.evaluation.reproduction.tree import SHORT, Origin, checked_out, find_origin, remove_tree
from ondol.evaluation.reproduction.work import Worker, install, retrain
from ondol.registry.tracking import Registry
from ondol.snapshots.snapshots import Snapshot
from ondol.storage.files import sole
from ondol.validation.results import Validations


class Progress(Protocol):
    """Is told how far it has come."""

    def begin(self, name: str, what: str) -> None:
        """Say which step begins; the one before is done."""

    def say(self, words: str) -> None:
        """Say how far the step has come."""


@dataclass(frozen=True)
class Again:
    """A version's record, where its files were found, and what came of training again."""

    recorded: Recorded
    snapshot: Snapshot
    origin: Origin
    outcome: Outcome


def make_again(settings: Settings, version: str, anyway: bool, fresh: bool, progress: Progress) -> Again:
    """Train a version again.

    Args:
        settings: Of the project as it is; of these only says where store and MLflow are.
        version: A registered version.
        anyway: Take the commit that it was based on where its files were never committed.
        fresh: Install its packages; else those that are here are used.
        progress: Is told.

    Raises:
        UserError: something that it was made from is missing, or it cannot be trained.
    """
    with _workplace(settings) as folder:
        progress.begin("record", "reading what made it, and its data")
        registry = Registry(settings)
        recorded = read_record(registry, version)
        snapshot = require_snapshot(settings, recorded.tags["data_digest"])
        order = _write_order(settings, registry, recorded, snapshot, folder)
        origin = find_origin(settings.root, recorded.origin, anyway)
        progress.begin("files", f"commit {origin.commit[:SHORT]}" if origin.commit else "a copy of those that are here")
        with checked_out(settings.root, origin, folder / "tree") as project:
            worker = Worker(project, settings.home / "logs" / "reproduce.log", progress.say)
            progress.begin("packages", "installing them" if fresh else "those that are here")
            python = install(worker, recorded.origin) if fresh else Path(sys.executable)
            progress.begin("train", "by its own code, settings and seed")
            outcome = retrain(worker, python, recorded.origin, order, folder)
    return Again(recorded, snapshot, origin, outcome)


@contextmanager
def _workplace(settings: Settings) -> Iterator[Path]:
    """Yield an empty folder, removed at the end; what a killed process left there is removed first."""
    folder = settings.home / "reproduce"
    with sole(settings.home / "reproduce.lock", "Another `ml reproduce` is at work here: wait until it ends."):
        try:
            _clear(settings, folder)
            folder.mkdir(parents=True)
            yield folder
        finally:
            _clear(settings, folder)


def _clear(settings: Settings, folder: Path) -> None:
    remove_tree(settings.root, folder / "tree")
    shutil.rmtree(folder, ignore_errors=True)


def _write_order(settings: Settings, registry: Registry, recorded: Recorded, snapshot: Snapshot, folder: Path) -> Order:
    """Lay out what the retraining reads: links to the data, and the recorded model."""
    here, store = settings.store_path.resolve(), folder / "store"
    files = [name for part in snapshot.parts for name in (part.digest, part.dropped) if name]
    data = [here / "snapshots" / name for name in (f"{snapshot.digest}.json", *(f"{f}.parquet" for f in files))]
    validation = recorded.tags["validation"]
    rows = [Validations(here).find_rows(validation), Validations(here).folder / f"{validation}.json"]
    for path in [*data, *(path for path in rows if path.exists())]:
        link = store / path.relative_to(here)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return Order(
        settings=recorded.settings,
        store=store,
        snapshot=snapshot.digest,
        validation=validation,
        holdout=recorded.holdout,
        basis=recorded.basis,
        model=registry.download(recorded.version, folder / "model"),
    )
