"""Corrected rows of the quarantine: matching, replay, and their place in later snapshots.

`snapshots/mended/<source>.json` lists them, and every ingest applies them. A raw row is identified by all its values,
so a row that has changed in the source since is not replaced.

Matching: memory holds only two 64-bit hashes of each searched row, and no values. Of two rows with the same first hash
only one is found; the probability is 3e-8 for 1,000,000 rows.

Several corrections are applied in one pass, although a later one may correct rows of an earlier one. Candidates are the
rows that may be replaced: rows of the snapshot that a correction searches for, then the corrected rows, the oldest
first. Each correction in turn replaces the last remaining candidates that equal its raw rows by its corrected rows.

Corrected rows are cast to the types of the snapshot, so that the spelling of one cell does not change the type of a
column. They were already validated, so the cast values are known to be valid.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from ondol.contract import Column, Contract, check_rows, clean, load_checks
from ondol.contract.checking import clean_column, find_repeats, hash_content, hash_rows, unique_sets
from ondol.errors import UserError
from ondol.ingestion.columns import EXACT
from ondol.ingestion.csv_files import NUMERIC, read_cells
from ondol.ingestion.sources import Reading, open_source, read_through
from ondol.project import Project
from ondol.snapshots.snapshots import ROW, Block, Part, Snapshot, Snapshots, cast_table, unify_files
from ondol.storage.files import digest_json, read_json
from ondol.validation.results import REASONS, Validation
from ondol.validation.validate import find_or_validate, hash_blocks, validation_id

CORRECTIONS_FOLDER = "mended"  # in the store's `snapshots/`; the name is recorded in existing stores
CORRECTED = "mended"  # the JSON field of the corrected rows' file; recorded too


@dataclass(frozen=True)
class Places:
    """Positions of rows in a snapshot, as arrays of one length.

    Attributes:
        position: Their numbers in the snapshot.
        part: Which of its parts they are in.
        number: Their numbers there.
    """

    position: np.ndarray
    part: np.ndarray
    number: np.ndarray

    def take(self, wanted: np.ndarray) -> "Places":
        """Return some positions, by index or by mask."""
        return Places(self.position[wanted], self.part[wanted], self.number[wanted])

    def by_part(self) -> dict[int, np.ndarray]:
        """Return the numbers of the rows in each part."""
        return {part: self.number[self.part == part] for part in np.unique(self.part).tolist()}


def join_places(places: Iterable[Places]) -> Places:
    """Concatenate positions."""
    empty = np.empty(0, np.int64)
    parts = [Places(empty, empty, empty), *places]
    return Places(*(np.concatenate([getattr(one, name) for one in parts]) for name in ("position", "part", "number")))


class Wanted:
    """Rows to search for. Equal rows share a key, a number from 0.

    Attributes:
        keys: The key of each row.
        size: The number of keys.
    """

    def __init__(
        self, tables: Iterable[pa.Table], names: Sequence[str], selective: str, columns: Mapping[str, Column]
    ) -> None:
        """Search for the rows of `tables` by their values in the columns `names`.

        Args:
            tables: The rows; other columns are ignored.
            names: The columns to compare, at least one.
            selective: The most selective of them: rows without its values are not examined further.
            columns: The columns of the contract, which decide how values are compared.
        """
        self._names, self._selective, self._columns = names, selective, columns
        hashes, selective_hashes = [], []
        for table in tables:
            hashes.append(self._hash(table))
            selective_hashes.append(self._hash_selective(table))
        whole = np.concatenate(hashes)
        hashes.clear()
        self._selective_hashes = np.sort(np.concatenate(selective_hashes))  # np.unique takes ten times as long
        self._heads, first = np.unique(whole[:, 0], return_index=True)
        self._tails = whole[first, 1]
        self.size = len(first)
        self.keys = self._find(whole)

    def among(self, table: pa.Table) -> np.ndarray:
        """Return the key of each row of `table`, -1 for rows that are not wanted; a column may be missing."""
        return self._find(self._hash(table))

    def within(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows of `block` are wanted, and their keys; for most blocks, only one column is read."""
        hashes = self._hash_selective(block.read([self._selective]))
        near = np.flatnonzero(self._selective_hashes[_look_up(self._selective_hashes, hashes)] == hashes)
        if not len(near):
            return near, near
        keys = self.among(block.read(self._names).take(pa.array(near)))
        return near[keys >= 0], keys[keys >= 0]

    def _find(self, hashes: np.ndarray) -> np.ndarray:
        at = _look_up(self._heads, hashes[:, 0])
        same = (self._heads[at] == hashes[:, 0]) & (self._tails[at] == hashes[:, 1])
        return np.where(same, at, -1)

    def _hash(self, table: pa.Table) -> np.ndarray:
        return hash_content(table, self._names, self._columns)

    def _hash_selective(self, table: pa.Table) -> np.ndarray:
        return hash_content(table, [self._selective], self._columns)[:, 0]


def want(
    snapshots: Snapshots,
    snapshot: Snapshot,
    tables: Iterable[pa.Table],
    names: Sequence[str],
    columns: Mapping[str, Column],
) -> Wanted | None:
    """Prepare the search of a snapshot for the raw rows of `tables`, whose columns are `names`.

    Columns that the snapshot lacks are ignored. Return None if it lacks all of them. See `Wanted` for the rest.
    """
    shared = [name for name in names if name in snapshot.columns]
    if not shared:
        return None
    return Wanted(tables, shared, find_selective_column(next(snapshots.batches(snapshot.digest, shared))), columns)


def find_rows(
    snapshots: Snapshots, snapshot: Snapshot, raw: pa.Table, columns: Mapping[str, Column]
) -> tuple[np.ndarray, Places]:
    """Return which rows of `raw` are in the snapshot, in order, and their positions; among equal rows, the last."""
    wanted = want(snapshots, snapshot, [raw], raw.schema.names, columns)
    found = list(search(snapshots, snapshot, [wanted])) if wanted else []
    keys = np.concatenate([np.empty(0, np.int64), *(keys for _, keys, _ in found)])
    rows, others = pair_keys(wanted.keys if wanted else keys, keys)
    order = np.argsort(rows)
    return rows[order], join_places(places for *_, places in found).take(others[order])


def search(
    snapshots: Snapshots, snapshot: Snapshot, wanted: Sequence[Wanted]
) -> Iterator[tuple[int, np.ndarray, Places]]:
    """Yield the wanted rows of a snapshot, in one pass: the index in `wanted`, the keys and the positions."""
    for block in snapshots.blocks(snapshot.digest):
        for which, one in enumerate(wanted):
            rows, keys = one.within(block)
            if len(rows):
                parts = np.full(len(rows), block.place)
                yield which, keys, Places(block.start + rows, parts, block.numbers[rows])


def pair_keys(wanted: np.ndarray, offered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return index pairs of equal keys in `wanted` and `offered`, each once; surplus keys are used from the end."""
    ours, theirs = (np.argsort(keys, kind="stable") for keys in (wanted, offered))
    keys, sorted_offered = wanted[ours], offered[theirs]
    rank = np.arange(len(keys)) - np.searchsorted(keys, keys)  # among equal ones
    first = np.searchsorted(sorted_offered, keys)
    count = np.searchsorted(sorted_offered, keys, "right") - first
    served = rank < count
    count -= np.bincount(keys)[keys]
    chosen = first[served] + count[served].clip(min=0) + rank[served]
    return ours[served], theirs[chosen]


def find_selective_column(sample: pa.Table) -> str:
    """Return the column of a sample with the most distinct values; among equal ones, preferably not a text."""

    def rate(name: str) -> tuple[int, bool]:
        values = sample.column(name)
        if pa.types.is_null(values.type):  # a column that came later
            return 0, False
        return pc.count_distinct(values).as_py(), not pa.types.is_string(values.type)

    return max(sample.schema.names, key=rate)


def _look_up(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the position of each value in `known`, which is sorted; sorting `values` first is many times faster."""
    order = np.argsort(values)
    at = np.empty(len(values), np.int64)
    at[order] = np.searchsorted(known, values[order])
    return at.clip(max=len(known) - 1)


@dataclass(frozen=True)
class _Group:
    """Corrections whose raw rows have the same columns.

    Attributes:
        wanted: These rows.
        keys: The keys of each correction's rows.
        candidates: The numbers of the wanted candidates, in order.
        theirs: The keys of the candidates.
    """

    wanted: Wanted
    keys: dict[int, np.ndarray]
    candidates: np.ndarray
    theirs: np.ndarray

    def take(self, correction: int, there: np.ndarray, start: int) -> None:
        """Replace raw rows by the corrected rows, which are the candidates from `start` on."""
        ours = self.keys[correction]
        asked = np.zeros(self.wanted.size, bool)
        asked[ours] = True
        near = np.flatnonzero(there[self.candidates] & asked[self.theirs])
        rows, others = pair_keys(ours, self.theirs[near])
        there[self.candidates[near[others]]] = False
        there[start + rows] = True


def fold_corrections(
    snapshots: Snapshots, snapshot: Snapshot, corrections: Sequence[Sequence[Path]], columns: Mapping[str, Column]
) -> tuple[Places, list[np.ndarray]]:
    """Return the positions of the replaced rows, and a mask of the replacing rows of each correction.

    Args:
        snapshots: The snapshots of the store.
        snapshot: The snapshot to correct.
        corrections: Two files each, with the raw and the corrected rows; the oldest correction first.
        columns: The contract's columns, with which values are compared.
    """
    searches = _prepare_searches(snapshots, snapshot, corrections, columns)
    found = list(search(snapshots, snapshot, [wanted for wanted, _ in searches]))
    places = join_places(places for *_, places in found)
    places = places.take(np.unique(places.position, return_index=True)[1])
    starts = np.cumsum([len(places.position), *(pq.read_metadata(raw).num_rows for raw, _ in corrections)])
    groups: dict[int, _Group] = {}
    for which, (wanted, keys) in enumerate(searches):
        hits = [(np.searchsorted(places.position, one.position), theirs) for at, theirs, one in found if at == which]
        made = [
            _among(wanted, corrected, starts[correction])
            for correction, (_, corrected) in enumerate(corrections[: max(keys)])
        ]
        empty = (np.empty(0, np.int64),) * 2
        candidates, theirs = (np.concatenate(parts) for parts in zip(empty, *hits, *made, strict=True))
        groups |= dict.fromkeys(keys, _Group(wanted, keys, candidates, theirs))
    there = np.arange(starts[-1]) < starts[0]
    for correction in sorted(groups):
        groups[correction].take(correction, there, starts[correction])
    return places.take(~there[: starts[0]]), np.split(there, starts[:-1])[1:]


def read_tables(path: Path) -> Iterator[pa.Table]:
    """Yield the rows of a file, a row group at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _prepare_searches(
    snapshots: Snapshots, snapshot: Snapshot, corrections: Sequence[Sequence[Path]], columns: Mapping[str, Column]
) -> list[tuple[Wanted, dict[int, np.ndarray]]]:
    """Return the raw rows for each set of columns, with the keys of each correction's rows."""
    by_names: dict[tuple[str, ...], list[int]] = {}
    for correction, (raw, _) in enumerate(corrections):
        by_names.setdefault(tuple(pq.read_schema(raw).names), []).append(correction)
    searches = []
    for names, ours in by_names.items():
        files = [corrections[correction][0] for correction in ours]
        wanted = want(snapshots, snapshot, chain.from_iterable(map(read_tables, files)), names, columns)
        if wanted:
            ends = np.cumsum([pq.read_metadata(file).num_rows for file in files])[:-1]
            searches.append((wanted, dict(zip(ours, np.split(wanted.keys, ends), strict=True))))
    return searches


def _among(wanted: Wanted, corrected: Path, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the wanted rows of a file as candidates, numbered from `start`, and their keys."""
    keys = np.concatenate([wanted.among(table) for table in read_tables(corrected)])
    rows = np.flatnonzero(keys >= 0)
    return start + rows, keys[rows]


class Correction(BaseModel):
    """Rows that were corrected together.

    Attributes:
        raw: The digest of the file with the rows as the source gave them.
        corrected: The digest of the file with the corrected rows, in the same order.
        rows: The number of rows.
        validation: The validation that quarantined them.
    """

    model_config = ConfigDict(populate_by_name=True)

    raw: str
    corrected: str = Field(alias=CORRECTED)
    rows: int
    validation: str


def record_correction(snapshots: Snapshots, base: Snapshot, made: Snapshot, correction: Correction) -> None:
    """Record a correction of rows of `base`, with the result `made`, so that later ingests apply it too."""
    before = read_corrections(snapshots, base.source)
    corrections = [*before, correction]
    snapshots.store.write_json(_path(snapshots, base.source), [one.model_dump(by_alias=True) for one in corrections])
    if raw := _find_raw(snapshots, base, before):
        snapshots.store.write_json(_note(snapshots, raw, corrections), made.digest)


def read_corrections(snapshots: Snapshots, source: str) -> list[Correction]:
    """Return the corrections of rows of `source`, the oldest first."""
    return [Correction.model_validate(one) for one in read_json(_path(snapshots, source)) or []]


def apply_corrections(project: Project, snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with the project's corrected rows in place of the raw ones."""
    return correct_snapshot(project.snapshots, snapshot, project.contract.by_name)


def correct_snapshot(snapshots: Snapshots, snapshot: Snapshot, columns: Mapping[str, Column]) -> Snapshot:
    """Return the snapshot with corrected rows instead of raw ones; the snapshot itself if it has none of them.

    Rows are equal if the `columns` of the contract have equal values.
    """
    corrections = read_corrections(snapshots, snapshot.source)
    if not corrections:
        return snapshot
    note = _note(snapshots, snapshot.digest, corrections)
    if (digest := read_json(note)) and snapshots.is_whole(snapshots.get(digest)):
        return snapshots.get(digest)
    files = [
        [_verify(snapshots, name, correction.rows) for name in (correction.raw, correction.corrected)]
        for correction in corrections
    ]
    gone, taken = fold_corrections(snapshots, snapshot, files, columns)
    made = replace_rows(snapshots, snapshot, gone, _read_masked([corrected for _, corrected in files], taken))
    snapshots.store.write_json(note, made.digest)
    return made


def replace_rows(
    snapshots: Snapshots, snapshot: Snapshot, gone: Places, corrected: Iterable[pa.RecordBatch]
) -> Snapshot:
    """Record the snapshot without the rows at `gone`, and with their replacements from `corrected` at its end."""
    if not len(gone.position):
        return snapshot
    return snapshots.succeed(snapshot, gone.by_part(), snapshots.parts.write(corrected), snapshot.watermark)


def _read_masked(files: Sequence[Path], taken: Sequence[np.ndarray]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of each file selected by its mask, in types that can represent all of them."""
    chosen = [(file, mask) for file, mask in zip(files, taken, strict=True) if mask.any()]
    schema = unify_files(pq.read_metadata(file) for file, _ in chosen)
    for file, mask in chosen:
        start = 0
        for table in read_tables(file):
            rows = table.filter(pa.array(mask[start : start + len(table)]))
            yield from cast_table(rows, schema, len(rows)).combine_chunks().to_batches()
            start += len(table)


def _find_raw(snapshots: Snapshots, made: Snapshot, corrections: list[Correction]) -> str | None:
    """Return the snapshot from which `corrections` made `made`: itself or an ancestor; None if unknown."""
    digest: str | None = made.digest
    for _ in range(len(corrections) + 1):
        if digest is None or not corrections or read_json(_note(snapshots, digest, corrections)) == made.digest:
            return digest
        digest = (read_json(snapshots.folder / f"{digest}.json") or {}).get("parent")
    return None


def _verify(snapshots: Snapshots, digest: str, rows: int) -> Path:
    snapshots.parts.verify(Part(digest=digest, rows=rows))
    return snapshots.parts.path(digest)


def _note(snapshots: Snapshots, digest: str, corrections: list[Correction]) -> Path:
    """Return the path of the note on which snapshot results from `corrections` of another."""
    name = digest_json([digest, [[correction.raw, correction.corrected] for correction in corrections]])
    return snapshots.folder / CORRECTIONS_FOLDER / "made" / f"{name}.json"


def _path(snapshots: Snapshots, source: str) -> Path:
    return snapshots.folder / CORRECTIONS_FOLDER / f"{digest_json(source)}.json"


TEXT = pa.string()
NUMBERS = (pa.int64(), pa.float64())
KINDS = {pa.int64(): "integer", pa.float64(): "number", pa.bool_(): "boolean", pa.timestamp("us"): "date"}


def kinds_of(schema: pa.Schema) -> dict[str, str]:
    """Return the kind of each column with which a text format is read in the types of `schema`."""
    return {field.name: KINDS.get(field.type, "text") for field in schema}


def cast_to_schema(table: pa.Table, schema: pa.Schema, contract: Contract) -> pa.Table:
    """Cast valid rows to the columns and types of `schema`, as far as they have these columns.

    The type of the column changes instead of the value if the contract has text, if a column of integers gets a
    fraction, and if float64 would round an integer.

    Raises:
        UserError: a value does not have the type of its column.
    """
    columns = {column.name: column for column in contract.used}
    made = {}
    for field in schema:
        if field.name not in table.schema.names:
            continue
        values = table.column(field.name)
        same = _retype(values, field.type, columns.get(field.name))
        if same is None:
            raise UserError(
                f'"{field.name}" of the corrected rows is not all {field.type}, as in the snapshot: write its '
                "values as `ml quarantine show --out FILE` does."
            )
        made[field.name] = same
    return pa.table(made)


def _retype(values: pa.ChunkedArray, kind: pa.DataType, column: Column | None) -> pa.ChunkedArray | None:
    """Return the same values as `kind`; None if there are none."""
    if values.type == kind:
        return values
    if column is not None and column.kind == "date" and values.type == TEXT and kind != TEXT:
        return _read(values, kind, column)  # by its listed formats
    made = _cast(values, kind)
    if column is None:
        return made
    if column.kind == "integer" and kind == pa.float64():
        read = pa.chunked_array([pa.array(clean_column(values, column)[0], pa.int64(), from_pandas=True)])
        return read if (pc.max(pc.abs(read)).as_py() or 0) >= EXACT else read.cast(kind)
    if column.kind == "text":  # 007 is not 7
        return values if made is None or not made.cast(TEXT).equals(values.cast(TEXT)) else made
    return _read(values, kind, column) if made is None else made


def _cast(values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Convert the values to `kind`, from text or from another numeric type; None if impossible."""
    if values.null_count == len(values):
        return pa.chunked_array([pa.nulls(len(values), kind)])
    if values.type == TEXT:
        values = pc.utf8_trim_whitespace(values)
        values = pc.if_else(pc.equal(values, ""), None, values)
        if pa.types.is_integer(kind) and pc.any(pc.match_substring(values, "x", ignore_case=True)).as_py():
            return None  # Arrow reads 0x10 as 16
    elif kind != TEXT and not (values.type in NUMBERS and kind in NUMBERS):
        return None
    try:
        return values.cast(kind)
    except pa.ArrowException:
        return None


def _read(values: pa.ChunkedArray, kind: pa.DataType, column: Column) -> pa.ChunkedArray | None:
    """Convert the values to `kind` as the contract reads them."""
    series, _ = clean_column(values, column)
    if (series.dtype.kind == "M") != pa.types.is_timestamp(kind):
        return None
    read = series.dt.total_seconds() if series.dtype.kind == "m" else series
    made = pa.chunked_array([pa.array(read, from_pandas=True)])
    if kind == pa.int64() and made.type == pa.float64():
        return _to_integers(values, made, column)
    try:
        return made.cast(kind)
    except pa.ArrowException:
        return None


def _to_integers(values: pa.ChunkedArray, read: pa.ChunkedArray, column: Column) -> pa.ChunkedArray | None:
    """Convert the numbers `read` to integers, exactly if written as integers; unchanged if the contract has numbers."""
    plain = pc.match_substring_regex(pc.utf8_trim_whitespace(values.cast(TEXT)), r"^[+-]?[0-9]+$")
    digits = pc.utf8_ltrim(pc.utf8_trim_whitespace(values.cast(TEXT)), "+")
    rest = pc.if_else(plain, None, read)
    try:
        exact = pc.if_else(plain, digits, None).cast(pa.int64())
        if (pc.max(pc.abs(rest)).as_py() or 0) < EXACT:
            return pc.coalesce(exact, rest.cast(pa.int64()))
    except pa.ArrowException:
        pass
    return read if column.kind == "number" else None


GONE = "the latest snapshot no longer has the row that this one replaces"


@dataclass(frozen=True)
class Revalidation:
    """The quarantined rows under the current contract.

    Attributes:
        validation: The validation of the same snapshot with the current contract.
        good: Number of rows that are no longer quarantined.
        still: Number of rows that still are.
        new: Number of other rows that are now quarantined.
    """

    validation: Validation
    good: int
    still: int
    new: int


@dataclass(frozen=True)
class CorrectionResult:
    """Which corrected rows were accepted.

    Attributes:
        snapshot: The snapshot that the valid rows joined; None if no row is valid.
        rows: The number of valid rows.
        refused: The reasons for each other row, by the number in its `_row`.
    """

    snapshot: Snapshot | None
    rows: int
    refused: dict[int, list[str]]

    @property
    def reasons(self) -> dict[str, int]:
        """The number of refused rows for each reason, most first."""
        return dict(Counter(reason for reasons in self.refused.values() for reason in set(reasons)).most_common())


def revalidate(project: Project, before: Validation) -> Revalidation:
    """Validate the snapshot of a validation again with the current contract; the next run finds the result.

    Raises:
        UserError: no rows are quarantined, or the contract has not changed since.
    """
    if not before.bad:
        raise UserError(f"No rows of validation {before.id} are in quarantine: there is nothing to validate again.")
    if validation_id(project.settings, before.snapshot) == before.id:
        raise UserError(
            f"model/schema.py has not changed since it put these {before.bad:,} rows into quarantine: correct it, or "
            "write the rows to a file with `ml quarantine show --out FILE`, correct them there, and pass --from FILE."
        )
    validations = project.validations
    now = find_or_validate(project, before.snapshot)
    still = len(np.intersect1d(validations.bad_rows(before.id), validations.bad_rows(now.id), assume_unique=True))
    return Revalidation(now, before.bad - still, still, now.bad - still)


def accept_corrected_rows(project: Project, validation: Validation, uri: str) -> CorrectionResult:
    """Add the valid ones of the corrected rows at `uri` to the next snapshot, in place of the raw ones.

    Raises:
        UserError: `_row` does not name the rows to replace, or the latest snapshot is of another source.
    """
    contract, snapshots = project.contract, project.snapshots
    base = _latest(project, validation)
    schema = snapshots.schema(base.digest)
    corrected, numbers = _read_corrected(project, schema, uri)
    raw = _raw_rows(project, validation, numbers, uri)
    rows, places = find_rows(snapshots, base, raw, contract.by_name)
    positions = np.full(len(corrected), -1)
    positions[rows] = places.position
    refused = _refuse(snapshots, base, contract, corrected, positions)
    by_number = {int(numbers[row]): reasons for row, reasons in sorted(refused.items())}
    good = ~np.isin(rows, list(refused))
    if not good.any():
        return CorrectionResult(None, 0, by_number)
    raw, corrected = (table.take(pa.array(rows[good])) for table in (raw, corrected))
    both = [table.combine_chunks().to_batches() for table in (raw, cast_to_schema(corrected, schema, contract))]
    made = replace_rows(snapshots, base, places.take(good), both[1])
    kept = [part.digest for batches in both if (part := snapshots.parts.write(batches))]
    correction = Correction(raw=kept[0], corrected=kept[1], rows=int(good.sum()), validation=validation.id)
    record_correction(snapshots, base, made, correction)
    project.latest.set("ingest", made.digest)
    return CorrectionResult(made, correction.rows, by_number)


def _latest(project: Project, validation: Validation) -> Snapshot:
    """Return the snapshot that will be validated next, which the corrected rows join."""
    latest = project.snapshots.get(project.latest.get("ingest"))
    validated = project.snapshots.get(validation.snapshot)
    if latest.source != validated.source:
        raise UserError(
            f'The rows of validation {validation.id} came from "{validated.source}", and the latest snapshot from '
            f'"{latest.source}": set [data] source back and run `ml ingest`, or name another validation.'
        )
    return latest


def _read_corrected(project: Project, schema: pa.Schema, uri: str) -> tuple[pa.Table, np.ndarray]:
    """Read corrected rows in the columns of `schema`, and the numbers of the rows that they replace."""
    settings, contract = project.settings, project.contract
    dialect = settings.data.dialect.model_copy(update={"header": True, "skip_lines": 0})
    # The name that the quarantine gives such columns.
    clashed = {name: f"{name} of the data" for name in (ROW, REASONS)}
    kinds = {clashed.get(name, name): kind for name, kind in kinds_of(schema).items()} | {ROW: "integer"}
    seconds = [name for name, kind in contract.kinds.items() if (kind, kinds.get(name)) == ("duration", "number")]
    kinds |= dict.fromkeys(seconds, "duration")  # the decimal sign of JSON is always a point
    source = open_source(uri, Reading(kinds, settings.root, settings.fetch, quoted=True, dialect=dialect))
    if ROW not in source.schema.names:
        raise UserError(
            f'"{uri}" has no column "{ROW}", which names the row that each replaces: correct the file that '
            "`ml quarantine show --out FILE` writes, and leave that column unchanged."
        )
    batches = read_through(source, list)
    table = pa.Table.from_batches(batches) if batches else source.schema.empty_table()
    try:
        numbers = table.column(ROW).cast(pa.int64()).to_numpy()
    except pa.ArrowException:
        numbers = np.empty(0)
    if not len(numbers) or numbers.dtype != np.int64 or len(np.unique(numbers)) < len(numbers):
        raise UserError(f'"{uri}" needs a different whole number of a quarantined row in each "{ROW}".')
    # Columns that are text in the snapshot and numbers in the contract.
    for place, name in enumerate(table.schema.names):
        kind = contract.kinds.get(name, "text")
        if kinds.get(name) == "text" and kind in NUMERIC and getattr(source, "dialect", None) is not None:
            chunks = [read_cells(chunk, dialect, kind, name) for chunk in table.column(name).chunks]
            table = table.set_column(place, name, pa.chunked_array(chunks, pa.string()))
    shown = [(name, clashed.get(name, name)) for name in schema.names]
    return pa.table({name: table.column(text) for name, text in shown if text in table.schema.names}), numbers


def _raw_rows(project: Project, validation: Validation, numbers: np.ndarray, uri: str) -> pa.Table:
    """Return quarantined rows as the source gave them, in the order of `numbers`."""
    validations = project.validations
    quarantined = validations.bad_rows(validation.id)
    unknown = numbers[~np.isin(numbers, quarantined)]
    if len(unknown):
        raise UserError(
            f'"{uri}" has the {ROW} {unknown[0]}, which is not in the quarantine of validation {validation.id}: '
            "name the validation whose rows these are."
        )
    table = validations.read_rows(validation.id, np.searchsorted(quarantined, numbers))
    return table.rename_columns(project.snapshots.schema(validation.snapshot).names)


def _refuse(
    snapshots: Snapshots, base: Snapshot, contract: Contract, corrected: pa.Table, positions: np.ndarray
) -> dict[int, list[str]]:
    """Return the reasons why corrected rows cannot join `base`, by their numbers.

    Args:
        snapshots: The store's snapshots.
        base: The latest snapshot.
        contract: The contract that the rows must satisfy.
        corrected: The corrected rows.
        positions: The positions in `base` of the rows that they replace, -1 for rows that are gone.
    """
    checks = load_checks()
    refused = {int(row): [GONE] for row in np.flatnonzero(positions < 0)}
    reasons = check_rows(corrected, contract.used, checks).without_unlabelled(contract.target)[0].reasons
    for row, column, check in zip(reasons["row"], reasons["column"], reasons["check"], strict=True):
        refused.setdefault(int(row), []).append(f"{column}: {check}")
    unique = []
    for names in unique_sets(checks, [c.name for c in contract.used]):
        columns = [contract.column(name) for name in names]
        theirs = np.concatenate(list(hash_blocks(snapshots, base.digest, columns)))
        unique.append(
            (f"{', '.join(names)}: another row has it already", theirs, hash_rows(clean(corrected, columns)[0]))
        )
    while found := {  # if a row is refused, its raw row stays, and other rows may repeat that
        row: [reason] for reason, theirs, ours in unique for row in _repeated(theirs, ours, positions, refused)
    }:
        refused |= found
    return refused


def _repeated(theirs: np.ndarray, ours: np.ndarray, positions: np.ndarray, refused: dict[int, list[str]]) -> list[int]:
    """Return which of the accepted rows repeat a row of the snapshot that they would join."""
    joining = np.setdiff1d(np.arange(len(ours)), list(refused))
    kept = np.delete(theirs, positions[joining], axis=0)
    found = find_repeats([kept, ours[joining]])
    return [int(row) for row in joining[found[found >= len(kept)] - len(kept)]]
