"""Finds and removes stored data that is no longer referenced.

These are kept, with their files and validations: the given snapshots, the newest snapshot of each source, and the one
from which each source is read further. A snapshot lists all its files, so it does not need its parent's record. New
files are also kept: another host or project may have just written them, and not yet the record that refers to them.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from ondol.project import Project
from ondol.registry.champion import version_of
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.files import TEMPORARY, read_json, read_record
from ondol.storage.store import Store
from ondol.validation.corrections import CORRECTED, CORRECTIONS_FOLDER
from ondol.validation.results import Validation, Validations, read_latest

T = TypeVar("T", bound=BaseModel)
YOUNG_SECONDS = 24 * 3600.0
NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Garbage:
    """Data that can be deleted.

    Attributes:
        store: The store.
        snapshots: The snapshots, the newest first.
        sizes: All files and their sizes. Files that refer to others come first, so that an interrupted removal leaves
            no reference to a removed file.
    """

    store: Store
    snapshots: tuple[Snapshot, ...]
    sizes: dict[Path, int]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order of removal."""
        return tuple(self.sizes)

    @property
    def size(self) -> int:
        """The total size of the files in bytes."""
        return sum(self.sizes.values())

    def remove(self) -> None:
        """Remove the files."""
        for path in self.files:
            self.store.remove(path)


def all_snapshots(snapshots: Snapshots) -> list[Snapshot]:
    """Return every snapshot, the newest first.

    Raises:
        UserError: a record cannot be read.
    """
    found = [read_record(path, Snapshot) for path in sorted(snapshots.folder.glob("*.json"))]
    return sorted(filter(None, found), key=lambda snapshot: snapshot.created, reverse=True)


def find_garbage(store: Store, snapshots: set[str], validations: set[str]) -> Garbage:
    """Return the data that is not needed by the given snapshots and validations, nor by the next ingest.

    Args:
        store: The store.
        snapshots: The digests of needed snapshots.
        validations: The ids of needed validations.
    """
    source = Snapshots(store)
    known = all_snapshots(source)
    until = time.time() - YOUNG_SECONDS
    kept = snapshots | _read_on_from(source.folder) | _newest(known) | _young(store, source.folder, until)
    gone = [snapshot for snapshot in known if snapshot.digest not in kept]
    notes = _notes(source.folder, {s.digest for s in known if s.digest in kept})
    records, rows = _quarantines(store, kept, validations | _young(store, Validations(store).folder, until), until)
    manifests = [source.folder / f"{snapshot.digest}.json" for snapshot in gone]
    named = kept | _correction_files(source.folder)
    parts = _parts(source, [snapshot for snapshot in known if snapshot.digest in kept], named, until)
    small = {path: path.stat().st_size for path in (*notes, *records, *manifests)}
    return Garbage(store, tuple(gone), small | rows | parts)


def _read_on_from(folder: Path) -> set[str]:
    lines = [read_json(path) or {} for path in sorted((folder / "lines").glob("*.json"))]
    return {line["snapshot"] for line in lines if "snapshot" in line}


def _young(store: Store, folder: Path, until: float) -> set[str]:
    """Return the names of the records that were written after `until`."""
    return {path.stem for path in folder.glob("*.json")} - {path.stem for path in store.sizes(folder, "*.json", until)}


def _newest(known: Iterable[Snapshot]) -> set[str]:
    """Return the newest snapshot of each source; if several are equally new, all of them."""
    times: dict[str, str] = {}
    for snapshot in known:
        times[snapshot.source] = max(snapshot.created, times.get(snapshot.source, ""))
    return {snapshot.digest for snapshot in known if snapshot.created == times[snapshot.source]}


def _correction_files(folder: Path) -> set[str]:
    """Return the files of corrections, which every ingest applies again."""
    corrections = [
        one for path in sorted((folder / CORRECTIONS_FOLDER).glob("*.json")) for one in read_json(path) or []
    ]
    return {correction[name] for correction in corrections for name in ("raw", CORRECTED)}


def _notes(folder: Path, kept: set[str]) -> list[Path]:
    """Return the notes on results of sources or corrections whose snapshots are not kept.

    A note is written again when it is needed.
    """
    found = [
        path for name in ("sources", f"{CORRECTIONS_FOLDER}/made") for path in sorted((folder / name).glob("*.json"))
    ]
    return [path for path in found if read_json(path) not in kept]


def _quarantines(
    store: Store, kept: set[str], validations: set[str], until: float
) -> tuple[list[Path], dict[Path, int]]:
    """Return the unneeded records of validations, and their quarantined rows."""
    folder = Validations(store).folder
    records, needed = [], set()
    for path in sorted(folder.glob("*.json")):
        record = read_record(path, Validation)
        if path.stem in validations or (record and record.snapshot in kept):
            needed.add(path.stem)
        else:
            records.append(path)
    rows = store.sizes(folder, "*.parquet", until)
    return records, {path: size for path, size in rows.items() if path.stem not in needed}


def _parts(source: Snapshots, snapshots: Iterable[Snapshot], kept: set[str], until: float) -> dict[Path, int]:
    """Return the files that are in none of `snapshots`; a file with a needed name is kept, recorded or not."""
    needed = kept | {name for s in snapshots for part in s.parts for name in (part.digest, part.dropped) if name}
    found = source.store.sizes(source.folder, "*.parquet", until)
    files = {path: size for path, size in found.items() if NAME.fullmatch(path.stem)}
    return {path: size for path, size in files.items() if path.stem not in needed}


@dataclass(frozen=True)
class Use:
    """One use of data.

    Attributes:
        version: The model version; None if the user is not a version.
        snapshot: The digest of the snapshot.
        validation: The id of the validation.
    """

    version: str | None
    snapshot: str | None
    validation: str | None


def registered_uses(project: Project) -> list[Use]:
    """Return the data of every version in MLflow.

    Raises:
        UserError: MLflow does not answer, or the champion is not from this registry.
    """
    from ondol.registry.registry import read_version_tags

    found = read_version_tags(project)
    return [Use(version, tags.get("data_digest"), tags.get("validation")) for version, tags in found.items()]


def bundled_uses(project: Project) -> list[Use]:
    """Return the data of every bundle that was in production, or may be.

    Raises:
        Damaged: the record of a bundle cannot be read.
    """
    found = []
    for folder in sorted((project.store.folder / "bundles").glob("*")):
        if folder.name.startswith(TEMPORARY) or not folder.is_dir():
            continue
        meta = read_json(folder / "meta.json") or {}
        found.append(Use(version_of(folder.name), meta.get("data_digest"), meta.get("validation")))
    return found


def latest_use(project: Project) -> Use:
    """Return the last results of the stages, which the next ones use."""
    made = read_latest(project.store)
    return Use(None, made.get("ingest"), made.get("validate"))


def needed(project: Project, uses: Iterable[Use]) -> tuple[set[str], set[str]]:
    """Return the digests of the snapshots, and the ids of the validations, that `uses` refer to."""
    names = {use.validation for use in uses if use.validation}
    records = filter(None, map(project.validations.find, names))
    return {use.snapshot for use in uses if use.snapshot} | {record.snapshot for record in records}, names


def versions_of(uses: Iterable[Use]) -> dict[str, list[str]]:
    """Return the model versions of each snapshot, by its digest, in order."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for use in uses:
        if use.version and use.snapshot:
            found[use.snapshot].add(use.version)
    return {digest: sorted(versions, key=lambda v: (len(v), v)) for digest, versions in found.items()}
