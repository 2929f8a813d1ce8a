"""Rows that a person mended stand in for the raw ones wherever the source gives these again.

`snapshots/mended/<source>.json` lists them, and every ingest goes through it. A raw row is known by all that it holds,
so a row that the source itself has changed since is left as the source has it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ondol.contract import Column
from ondol.project import Project
from ondol.snapshots.parts import Part
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.files import digest_json, read_json, write_json
from ondol.storage.parquet import cast_table, unify_files
from ondol.validation.corrections.folding import fold, read_tables
from ondol.validation.corrections.matching import Places


class Mend(BaseModel):
    """Rows that were mended together.

    Attributes:
        raw: The file with the rows as the source gave them.
        mended: The file with those that stand in for them, in the same order.
        rows: How many there are.
        validation: Whose quarantine they were in.
    """

    raw: str
    mended: str
    rows: int
    validation: str


def keep_mend(snapshots: Snapshots, base: Snapshot, made: Snapshot, mend: Mend) -> None:
    """Remember what was mended in the rows of `base`, which gave `made`: what the source's next ingest gives too."""
    before = read_mends(snapshots, base.source)
    mends = [*before, mend]
    write_json(_path(snapshots, base.source), [one.model_dump() for one in mends])
    if raw := _find_raw(snapshots, base, before):
        write_json(_note(snapshots, raw, mends), made.digest)


def read_mends(snapshots: Snapshots, source: str) -> list[Mend]:
    """Return what was mended in the rows of `source`, the oldest first."""
    return [Mend.model_validate(one) for one in read_json(_path(snapshots, source)) or []]


def apply_corrections(project: Project, snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with the project's corrected rows in place of the raw ones."""
    return mend_snapshot(project.snapshots, snapshot, project.contract.by_name)


def mend_snapshot(snapshots: Snapshots, snapshot: Snapshot, columns: Mapping[str, Column]) -> Snapshot:
    """Return the snapshot with mended rows in place of those raw ones that it has; itself where it has none.

    Rows are equal where the `columns` of the contract read the same in them.
    """
    mends = read_mends(snapshots, snapshot.source)
    if not mends:
        return snapshot
    note = _note(snapshots, snapshot.digest, mends)
    if (digest := read_json(note)) and snapshots.is_whole(snapshots.get(digest)):
        return snapshots.get(digest)
    files = [[_verify(snapshots, name, mend.rows) for name in (mend.raw, mend.mended)] for mend in mends]
    gone, taken = fold(snapshots, snapshot, files, columns)
    made = replace_rows(snapshots, snapshot, gone, _read_taken([mended for _, mended in files], taken))
    write_json(note, made.digest)
    return made


def replace_rows(snapshots: Snapshots, snapshot: Snapshot, gone: Places, mended: Iterable[pa.RecordBatch]) -> Snapshot:
    """Record the snapshot without the rows at `gone`, and behind it those of `mended` that stand in for them."""
    if not len(gone.position):
        return snapshot
    return snapshots.succeed(snapshot, gone.by_part(), snapshots.parts.write(mended), snapshot.watermark)


def _read_taken(files: Sequence[Path], taken: Sequence[np.ndarray]) -> Iterator[pa.RecordBatch]:
    """Yield of each file the rows that its mask names, in the types that hold all of them."""
    chosen = [(file, mask) for file, mask in zip(files, taken, strict=True) if mask.any()]
    schema = unify_files(pq.read_metadata(file) for file, _ in chosen)
    for file, mask in chosen:
        start = 0
        for table in read_tables(file):
            rows = table.filter(pa.array(mask[start : start + len(table)]))
            yield from cast_table(rows, schema, len(rows)).combine_chunks().to_batches()
            start += len(table)


def _find_raw(snapshots: Snapshots, made: Snapshot, mends: list[Mend]) -> str | None:
    """Return the snapshot that `mends` made `made` of: itself or one that it grew from; None where that is unknown."""
    digest: str | None = made.digest
    for _ in range(len(mends) + 1):
        if digest is None or not mends or read_json(_note(snapshots, digest, mends)) == made.digest:
            return digest
        digest = (read_json(snapshots.folder / f"{digest}.json") or {}).get("parent")
    return None


def _verify(snapshots: Snapshots, digest: str, rows: int) -> Path:
    snapshots.parts.verify(Part(digest=digest, rows=rows))
    return snapshots.parts.path(digest)


def _note(snapshots: Snapshots, digest: str, mends: list[Mend]) -> Path:
    """Return where it is noted which snapshot `mends` make of another."""
    name = digest_json([digest, [[mend.raw, mend.mended] for mend in mends]])
    return snapshots.folder / "mended" / "made" / f"{name}.json"


def _path(snapshots: Snapshots, source: str) -> Path:
    return snapshots.folder / "mended" / f"{digest_json(source)}.json"
