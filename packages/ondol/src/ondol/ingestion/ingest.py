"""Steps of the ingest flow: the source's rows become a snapshot, read completely or extended by new rows.

Incremental ingestion appends new rows as a part; no row is lost or duplicated if the process is killed.
`snapshots/lines/<key>.json` stores how far a source was read. It is replaced in one step after everything else is
written, and only then a stream's position is committed: if a run is killed before that, the next one reads the same
rows again.

The watermark of a source is a column of growing dates or numbers. It is stored as a number; a date as microseconds
since 1970.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from ondol.config import Settings
from ondol.contract import Column, Contract, clean, require_columns, require_known_markers
from ondol.errors import UserError, nearest
from ondol.ingestion.python import change_rows
from ondol.ingestion.sources import (
    MultiFileSource,
    Reading,
    Source,
    StreamingSource,
    SupportsSince,
    open_source,
    read_through,
)
from ondol.orchestration.reporting import code, publish_markdown, say, track
from ondol.project import SOURCE, Project, read_extension
from ondol.redaction import redact_exceptions, show_uri
from ondol.snapshots.snapshots import Choice, Keys, Snapshot, Snapshots, choose_newest, rows_of
from ondol.storage.files import SHORT, digest_json, read_record

EPOCH = datetime(1970, 1, 1)


@redact_exceptions()
def read_source(project: Project, full: bool = False) -> Snapshot:
    """Return the snapshot of the source in `config.toml`, which is read only if it changed.

    With a watermark, and from a stream, only new rows are read and appended to the last snapshot.

    Raises:
        UserError: the source is missing, is not a table, or lacks a column of the contract.
    """
    snapshots, source = project.snapshots, open_project_source(project.settings, project.contract)
    if project.settings.data.watermark is not None or isinstance(source, StreamingSource):
        return grow(project, source, full)
    fingerprint = source.fingerprint()
    known = None if full else snapshots.by_fingerprint(fingerprint)
    if known is not None:
        return known
    require_columns(source.schema.names, project.contract.used)
    return read_through(source, lambda batches: snapshots.write(track(batches, "rows read"), source.uri, fingerprint))


def open_project_source(settings: Settings, contract: Contract) -> Source:
    """Open the source in `config.toml`, with the types of the contract.

    If `model/source.py` has a function `prepare`, it is applied to the rows.

    Raises:
        UserError: there is no source, or `[data] missing` names a column that the contract lacks.
    """
    require_known_markers(settings.data, contract.kinds)
    required = [column.name for column in contract.used]
    reading = Reading(contract.kinds, settings.root, settings.fetch, required, dialect=settings.data.dialect)
    source = open_source(settings.data.source, reading)
    prepare = read_extension(SOURCE, "prepare")
    return source if prepare is None else change_rows(source, prepare, reading)


def report_snapshot(snapshot: Snapshot) -> None:
    """Show the snapshot in the log and in the Prefect UI."""
    summary = f"{snapshot.rows:,} rows × {len(snapshot.columns)} columns"
    say(f"{summary} from {show_uri(snapshot.source)}: snapshot {snapshot.digest[:SHORT]}, taken {snapshot.created}.")
    publish_markdown(
        "snapshot",
        f"**{summary}** from {code(snapshot.source)}\n\nSnapshot `{snapshot.digest}`, taken {snapshot.created}.",
    )


def find_keys(project: Project, source: Source) -> Keys:
    """Return the id column and the watermark column.

    Raises:
        UserError: there is no column with the role id, or the watermark is not in the contract, or is a text.
    """
    identity = project.contract.role("id")
    if identity is None:
        raise UserError(
            f'"{source.uri}" is read incrementally, which needs a column with metadata={{"role": "id"}} in '
            "model/schema.py, so that a row that comes again is known."
        )
    columns, watermark = project.contract.by_name, project.settings.data.watermark
    column = None if watermark is None else columns.get(watermark)
    if watermark is not None and column is None:
        known = nearest(watermark, columns) or f" It has: {', '.join(columns)}."
        raise UserError(f'[data] watermark in config.toml names "{watermark}", which is not in model/schema.py.{known}')
    if column and column.kind not in ("integer", "number", "date"):
        raise UserError(
            f'The watermark "{column.name}" is a {column.kind} in model/schema.py: name a date or a number.'
        )
    return Keys(identity, column, columns)


class WentBack(UserError):
    """The newest row that was read before is no longer there."""


def require_forward(
    source: Source, watermark: Column | None, before: int | float | None, newest: int | float | None
) -> None:
    """Check that the rows reach at least the newest row read before, which is read again each time.

    Raises:
        WentBack: they do not.
    """
    if watermark is None or before is None:
        return
    if newest is None or newest < before:
        was, now = (show_watermark(watermark, value) for value in (before, newest))
        raise WentBack(
            f'The watermark of "{source.uri}" went back: "{watermark.name}" was {was} and is '
            f"{'in no row' if now is None else now} now; if the source was replaced, run `ml ingest --full`."
        )


def find_start(watermark: Column | None, before: int | float | None, lateness: float) -> int | float | datetime | None:
    """Return the watermark from which rows are read; None for all rows."""
    if watermark is None or before is None:
        return None
    if watermark.kind == "date":
        return EPOCH + timedelta(microseconds=int(before)) - timedelta(days=lateness)
    return before - (int(lateness) if lateness.is_integer() else lateness)


def not_before(batches: Iterator[pa.RecordBatch], watermark: Column | None, since: Any) -> Iterator[pa.RecordBatch]:
    """Yield the rows whose watermark is at or after `since`, or is missing, which may be new."""
    for batch in batches:
        if since is None or watermark is None:
            yield batch
            continue
        frame, _ = clean(pa.Table.from_batches([batch]).select([watermark.name]), [watermark])
        values = frame[watermark.name]
        yield batch.filter(pa.array((values.isna() | (values >= since)).to_numpy(bool)))


def show_watermark(watermark: Column | None, value: int | float | None) -> Any:
    """Format a watermark; a date in ISO 8601, UTC."""
    if watermark is None or value is None:
        return None
    if watermark.kind == "date":
        return (EPOCH + timedelta(microseconds=int(value))).isoformat()
    return value


class Cursor(BaseModel):
    """How far a source was read.

    Attributes:
        snapshot: The snapshot of all rows read so far.
        watermark: The greatest value of the watermark column: a number, or a date in microseconds since 1970.
        position: The position at which a stream continues.
        fingerprint: The fingerprint of the source at the last read.
        files: A tag of each file, which changes with its content, if the source has tags.
        identity: The name and the kind of the id column; None for cursors from before 0.3.
    """

    snapshot: str
    watermark: int | float | None = None
    position: Any = None
    fingerprint: str | None = None
    files: dict[str, str] | None = None
    identity: tuple[str, str] | None = None


def grow(project: Project, source: Source, full: bool = False) -> Snapshot:
    """Read the new rows of `source`, append them to its last snapshot, and return the new snapshot.

    Args:
        project: The project: its settings have the watermark and the lateness, its contract the id.
        source: The source.
        full: Read everything, and start again.

    Raises:
        UserError: the source is invalid, has no id column or a different one than before, or its watermark went back.
    """
    keys, snapshots = find_keys(project, source), project.snapshots
    path, known = _find_cursor(snapshots.folder / "lines", source, project.settings.data.watermark)
    cursor = known if known and not full else None
    identity = (keys.id.name, keys.id.kind)
    _require_same_id(source, cursor, identity)
    fingerprint = source.fingerprint()
    if cursor and fingerprint and fingerprint == cursor.fingerprint:
        return snapshots.get(cursor.snapshot)
    if isinstance(source, StreamingSource):
        source.resume(cursor.position if cursor else None, full)
    files = source.files() if isinstance(source, MultiFileSource) else None
    snapshot, newest = _read_rest(project, source, keys, cursor, files)
    position = source.position if isinstance(source, StreamingSource) else None
    made = Cursor(
        snapshot=snapshot.digest,
        watermark=newest,
        position=position,
        fingerprint=fingerprint,
        files=files,
        identity=identity,
    )
    snapshots.store.write_json(path, made.model_dump())
    if isinstance(source, StreamingSource):
        source.commit(position)
    return snapshot


def _find_cursor(folder: Path, source: Source, watermark: str | None) -> tuple[Path, Cursor | None]:
    """Return the path of the cursor of `source`, and the cursor, None if there is none.

    A stream's position stays valid if its address or the settings change; earlier versions stored it under both.
    """
    path = folder / f"{digest_json([source.uri, watermark])}.json"
    lasting = folder / f"{digest_json(source.key)}.json" if isinstance(source, StreamingSource) else path
    return lasting, read_record(lasting, Cursor) or read_record(path, Cursor)


def _require_same_id(source: Source, cursor: Cursor | None, identity: tuple[str, str]) -> None:
    if cursor and cursor.identity not in (None, identity):
        was, now = (f'"{name}" ({kind})' for name, kind in (cursor.identity or identity, identity))
        raise UserError(
            f'The rows of "{source.uri}" were identified by {was}, and model/schema.py now has {now}: '
            "run `ml ingest --full`, which reads all of them again."
        )


def _read_rest(
    project: Project,
    source: Source,
    keys: Keys,
    cursor: Cursor | None,
    files: dict[str, str] | None,
) -> tuple[Snapshot, int | float | None]:
    """Read the rows that may be new. Files, and tables of `prepare`, are read completely from the first changed one on.

    Their order matters, because the last of equally new rows counts. All are read if the changed ones do not reach the
    newest row read before.
    """
    if isinstance(source, StreamingSource):  # a stream continues at its position, for any watermark
        return _read(project, source, keys, cursor, None, reaches=True)
    if not isinstance(source, MultiFileSource):
        # A cursor with files belongs to tables of `prepare`; without `prepare`, all rows are different.
        before = cursor.watermark if cursor and cursor.files is None else None
        since = find_start(keys.watermark, before, project.settings.data.lateness)
        return _read(project, source, keys, cursor, since)
    now, known = files or {}, (cursor.files if cursor else None) or {}
    same = list(takewhile(lambda name: known.get(name) == now[name], now))
    if same and len(same) < len(now):
        with contextlib.suppress(WentBack):
            reaches = all(now.get(name) == state for name, state in known.items())
            return _read(project, source.without(same), keys, cursor, None, reaches)
    return _read(project, source, keys, cursor, None)


def _read(
    project: Project,
    source: Source,
    keys: Keys,
    cursor: Cursor | None,
    since: Any,
    reaches: bool = False,
) -> tuple[Snapshot, int | float | None]:
    """Append the new rows, from `since` on, to the snapshot of `cursor`.

    Returns:
        The snapshot, and the greatest watermark.

    Raises:
        WentBack: the newest row read before is missing, and `reaches` is False.
    """
    snapshots = project.snapshots
    head = snapshots.get(cursor.snapshot) if cursor else None
    if isinstance(source, SupportsSince) and since is not None and keys.watermark:
        source = source.since(keys.watermark.name, since)

    def write(batches: Iterator[pa.RecordBatch]) -> tuple[Snapshot, int | float | None]:
        rows = not_before(_complete(track(batches, "rows read"), project.contract), keys.watermark, since)
        with snapshots.parts.draft(rows) as draft:
            choice = choose_newest(draft, snapshots, head, keys) if draft else None
            before = cursor.watermark if cursor else None
            if not reaches:
                require_forward(source, keys.watermark, before, choice.newest if choice else None)
            if draft is None or choice is None or not choice.new.any():
                return _unchanged(source, head), before
            # Files that were left out may be newer, and so may earlier rows of a stream.
            newest = max((value for value in (choice.newest, before) if value is not None), default=None)
            return _append(snapshots, source, head, draft, choice, show_watermark(keys.watermark, newest)), newest

    return read_through(source, write)


def _append(
    snapshots: Snapshots, source: Source, head: Snapshot | None, draft: Path, choice: Choice, watermark: Any
) -> Snapshot:
    """Record a snapshot: `head` without the replaced rows, then the draft's new rows."""
    parts = snapshots.parts
    part = parts.keep(draft) if choice.new.all() else parts.write(rows_of(draft, choice.new))
    if head is None:
        return snapshots.record([part] if part else [], source.uri, watermark=watermark)
    return snapshots.succeed(head, choice.replaced, part, watermark)


def _unchanged(source: Source, head: Snapshot | None) -> Snapshot:
    if head is None:
        raise UserError(f"{source.uri} has no rows: there is nothing to train on.")
    return head


def _complete(batches: Iterator[pa.RecordBatch], contract: Contract) -> Iterator[pa.RecordBatch]:
    """Yield the rows after a check that they have every column of the contract."""
    for batch in batches:
        require_columns(batch.schema.names, contract.used)
        yield batch
