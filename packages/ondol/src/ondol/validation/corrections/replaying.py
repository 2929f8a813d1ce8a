"""Replay: quarantined rows are judged again, once the contract or they themselves were mended."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ondol.config.settings import Settings
from ondol.contract import Contract, check_rows, clean, load_checks, load_contract
from ondol.contract.uniqueness import find_repeats, hash_rows, unique_sets
from ondol.errors import UserError
from ondol.ingestion.cells import NUMERIC, read_cells
from ondol.ingestion.sources import Reading, open_source, read_through
from ondol.snapshots.parts import ROW
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.validation.corrections import Mend, keep_mend, replace_rows
from ondol.validation.corrections.matching import find_rows
from ondol.validation.corrections.retyping import kinds_of, retype
from ondol.validation.results import REASONS, Latest, Validation, Validations
from ondol.validation.validate import hash_blocks, judge, validation_id

GONE = "the latest snapshot no longer has the row that this one replaces"


@dataclass(frozen=True)
class Again:
    """The quarantined rows under the contract of today.

    Attributes:
        validation: Of the same snapshot, by that contract.
        good: How many rows it no longer quarantines.
        still: How many it does.
        new: How many others it quarantines now.
    """

    validation: Validation
    good: int
    still: int
    new: int


@dataclass(frozen=True)
class Taken:
    """What became of mended rows.

    Attributes:
        snapshot: The one that the good rows joined; None where no row is good.
        rows: How many these are.
        refused: For each other row, by the number in its `_row`, the reasons.
    """

    snapshot: Snapshot | None
    rows: int
    refused: dict[int, list[str]]

    @property
    def reasons(self) -> dict[str, int]:
        """How many rows were refused for what, most first."""
        return dict(Counter(reason for reasons in self.refused.values() for reason in set(reasons)).most_common())


def judge_again(settings: Settings, before: Validation) -> Again:
    """Hold the snapshot of a validation against the contract as it is now; the next run finds the outcome.

    Raises:
        UserError: there are no such rows, or the contract is the one that put them into quarantine.
    """
    if not before.bad:
        raise UserError(f"No rows of validation {before.id} are in quarantine: there is nothing to judge again.")
    if validation_id(settings, before.snapshot) == before.id:
        raise UserError(
            f"model/schema.py is the one that put these {before.bad:,} rows into quarantine: correct it, or write the "
            "rows to a file by `ml quarantine show --out FILE`, mend them there, and give it by --from FILE."
        )
    store = Validations(settings.store_path)
    now = judge(settings, before.snapshot)
    still = len(np.intersect1d(store.bad_rows(before.id), store.bad_rows(now.id), assume_unique=True))
    return Again(now, before.bad - still, still, now.bad - still)


def take_mended(settings: Settings, validation: Validation, uri: str) -> Taken:
    """Let those of the mended rows at `uri` that keep the contract join the next snapshot, in place of the raw ones.

    Raises:
        UserError: the rows do not say by `_row` which they replace, or the latest snapshot is of another source.
    """
    contract, snapshots = load_contract(settings), Snapshots(settings.store_path)
    base = _latest(settings, validation)
    schema = snapshots.schema(base.digest)
    mended, numbers = _read_mended(settings, contract, schema, uri)
    raw = _raw_rows(settings, validation, numbers, uri)
    rows, places = find_rows(snapshots, base, raw, contract.by_name)
    positions = np.full(len(mended), -1)
    positions[rows] = places.position
    refused = _refuse(snapshots, base, contract, mended, positions)
    by_number = {int(numbers[row]): reasons for row, reasons in sorted(refused.items())}
    good = ~np.isin(rows, list(refused))
    if not good.any():
        return Taken(None, 0, by_number)
    raw, mended = (table.take(pa.array(rows[good])) for table in (raw, mended))
    both = [table.combine_chunks().to_batches() for table in (raw, retype(mended, schema, contract))]
    made = replace_rows(snapshots, base, places.take(good), both[1])
    kept = [part.digest for batches in both if (part := snapshots.parts.write(batches))]
    mend = Mend(raw=kept[0], mended=kept[1], rows=int(good.sum()), validation=validation.id)
    keep_mend(snapshots, base, made, mend)
    Latest(settings.store_path).set("ingest", made.digest)
    return Taken(made, mend.rows, by_number)


def _latest(settings: Settings, validation: Validation) -> Snapshot:
    """Return the snapshot that the next validation is of, which the mended rows join."""
    snapshots = Snapshots(settings.store_path)
    latest = snapshots.get(Latest(settings.store_path).get("ingest"))
    judged = snapshots.get(validation.snapshot)
    if latest.source != judged.source:
        raise UserError(
            f'The rows of validation {validation.id} came from "{judged.source}", and the latest snapshot from '
            f'"{latest.source}": set [data] source back and run `ml ingest`, or name another validation.'
        )
    return latest


def _read_mended(settings: Settings, contract: Contract, schema: pa.Schema, uri: str) -> tuple[pa.Table, np.ndarray]:
    """Return mended rows, which join some of `schema`, and the numbers of those they replace."""
    dialect = settings.data.dialect.model_copy(update={"header": True, "skip_lines": 0})
    clashed = {name: f"{name} of the data" for name in (ROW, REASONS)}  # as the quarantine renames them
    kinds = {clashed.get(name, name): kind for name, kind in kinds_of(schema).items()} | {ROW: "integer"}
    seconds = [name for name, kind in contract.kinds.items() if (kind, kinds.get(name)) == ("duration", "number")]
    kinds |= dict.fromkeys(seconds, "duration")  # whose decimal sign is always a point
    source = open_source(uri, Reading(kinds, settings.root, settings.fetch, quoted=True, dialect=dialect))
    if ROW not in source.schema.names:
        raise UserError(
            f'"{uri}" has no column "{ROW}", which says which row each replaces: mend the file that '
            "`ml quarantine show --out FILE` writes, and leave that column as it is."
        )
    batches = read_through(source, list)
    table = pa.Table.from_batches(batches) if batches else source.schema.empty_table()
    try:
        numbers = table.column(ROW).cast(pa.int64()).to_numpy()
    except pa.ArrowException:
        numbers = np.empty(0)
    if not len(numbers) or numbers.dtype != np.int64 or len(np.unique(numbers)) < len(numbers):
        raise UserError(f'"{uri}" needs a different whole number of a quarantined row in each "{ROW}".')
    for place, name in enumerate(table.schema.names):  # what the snapshot has as text, and the contract as numbers
        kind = contract.kinds.get(name, "text")
        if kinds.get(name) == "text" and kind in NUMERIC and getattr(source, "dialect", None) is not None:
            chunks = [read_cells(chunk, dialect, kind, name) for chunk in table.column(name).chunks]
            table = table.set_column(place, name, pa.chunked_array(chunks, pa.string()))
    shown = [(name, clashed.get(name, name)) for name in schema.names]
    return pa.table({name: table.column(told) for name, told in shown if told in table.schema.names}), numbers


def _raw_rows(settings: Settings, validation: Validation, numbers: np.ndarray, uri: str) -> pa.Table:
    """Return quarantined rows as the source gave them, in the order of `numbers`."""
    store = Validations(settings.store_path)
    held = store.bad_rows(validation.id)
    unknown = numbers[~np.isin(numbers, held)]
    if len(unknown):
        raise UserError(
            f'"{uri}" has the {ROW} {unknown[0]}, which is not in the quarantine of validation {validation.id}: '
            "name the validation whose rows these are."
        )
    table = store.read_rows(validation.id, np.searchsorted(held, numbers))
    return table.rename_columns(Snapshots(settings.store_path).schema(validation.snapshot).names)


def _refuse(
    snapshots: Snapshots, base: Snapshot, contract: Contract, mended: pa.Table, positions: np.ndarray
) -> dict[int, list[str]]:
    """Return the reasons why mended rows cannot join `base`, by their numbers.

    Args:
        snapshots: Where it is.
        base: The latest snapshot.
        contract: What the rows must keep.
        mended: They.
        positions: Where in `base` the rows are that they replace, -1 where these are gone.
    """
    checks = load_checks()
    refused = {int(row): [GONE] for row in np.flatnonzero(positions < 0)}
    reasons = check_rows(mended, contract.used, checks).without_unlabelled(contract.target)[0].reasons
    for row, column, check in zip(reasons["row"], reasons["column"], reasons["check"], strict=True):
        refused.setdefault(int(row), []).append(f"{column}: {check}")
    unique = []
    for names in unique_sets(checks, [c.name for c in contract.used]):
        columns = [contract.column(name) for name in names]
        theirs = np.concatenate(list(hash_blocks(snapshots, base.digest, columns)))
        unique.append((f"{', '.join(names)}: another row has it already", theirs, hash_rows(clean(mended, columns)[0])))
    while found := {  # a row that is refused leaves the raw one in its place, which others may repeat
        row: [reason] for reason, theirs, ours in unique for row in _repeated(theirs, ours, positions, refused)
    }:
        refused |= found
    return refused


def _repeated(theirs: np.ndarray, ours: np.ndarray, positions: np.ndarray, refused: dict[int, list[str]]) -> list[int]:
    """Return which rows, of those not refused yet, repeat one of the snapshot that they would be part of."""
    joining = np.setdiff1d(np.arange(len(ours)), list(refused))
    kept = np.delete(theirs, positions[joining], axis=0)
    found = find_repeats([kept, ours[joining]])
    return [int(row) for row in joining[found[found >= len(kept)] - len(kept)]]
