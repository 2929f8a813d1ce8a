"""What of the stored data is not referenced any more, and its removal.

Kept are the snapshots that are asked for, the newest of each source, and the one that each source is read on from;
with them their files and validations. A snapshot lists all its files, so that it needs nothing of its parent's record.
What is young stays too: another host or project may have written it just now, and not yet what names it.
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
    """What may go.

    Attributes:
        store: Where it is.
        snapshots: The snapshots, the newest first.
        sizes: All files and their sizes, those that refer to others before these, so that an interruption of their
            removal leaves no reference to a removed file.
    """

    store: Store
    snapshots: tuple[Snapshot, ...]
    sizes: dict[Path, int]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in the order in which they may go."""
        return tuple(self.sizes)

    @property
    def size(self) -> int:
        """How many bytes the files have."""
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
    """Return what neither the given snapshots and validations, nor the next ingest, need.

    Args:
        store: Where they are.
        snapshots: Digests of snapshots that are needed.
        validations: Ids of validations that are needed.
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
    """Return what the records that were written after `until` are named by."""
    return {path.stem for path in folder.glob("*.json")} - {path.stem for path in store.sizes(folder, "*.json", until)}


def _newest(known: Iterable[Snapshot]) -> set[str]:
    """Return the newest snapshot of each source, all of them where several are equally new."""
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
    """Return the notes on snapshots that resulted from a source's bytes or from corrections and are not kept.

    It is made again when it is needed again.
    """
    found = [
        path for name in ("sources", f"{CORRECTIONS_FOLDER}/made") for path in sorted((folder / name).glob("*.json"))
    ]
    return [path for path in found if read_json(path) not in kept]


def _quarantines(
    store: Store, kept: set[str], validations: set[str], until: float
) -> tuple[list[Path], dict[Path, int]]:
    """Return the records of validations that may go, and the quarantined rows."""
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
    """Return the files that none of `snapshots` has; a file that bears a needed name stays, recorded or not."""
    needed = kept | {name for s in snapshots for part in s.parts for name in (part.digest, part.dropped) if name}
    found = source.store.sizes(source.folder, "*.parquet", until)
    files = {path: size for path, size in found.items() if NAME.fullmatch(path.stem)}
    return {path: size for path, size in files.items() if path.stem not in needed}


@dataclass(frozen=True)
class Use:
    """One that was made from data.

    Attributes:
        version: The model version; None if it is none.
        snapshot: The snapshot's digest.
        validation: The validation's id.
    """

    version: str | None
    snapshot: str | None
    validation: str | None


def registered_uses(project: Project) -> list[Use]:
    """Return what every version that MLflow has was made from.

    Raises:
        UserError: MLflow cannot be asked, or it is another than the one that the champion came from.
    """
    from ondol.registry.registry import read_version_tags

    found = read_version_tags(project)
    return [Use(version, tags.get("data_digest"), tags.get("validation")) for version, tags in found.items()]


def bundled_uses(project: Project) -> list[Use]:
    """Return what the bundle of every version that served, or may, was made from.

    Raises:
        Damaged: the record of one cannot be read.
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
    """Return by a snapshot's digest the model versions that were made from it, in order."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for use in uses:
        if use.version and use.snapshot:
            found[use.snapshot].add(use.version)
    return {digest: sorted(versions, key=lambda v: (len(v), v)) for digest, versions in found.items()}
