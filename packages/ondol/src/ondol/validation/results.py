"""Validations: the invalid rows of a snapshot and the reasons; all other rows are valid."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ondol.errors import UserError
from ondol.snapshots.snapshots import ROW, require_whole
from ondol.storage.files import digest_file, explain_damage, read_json, read_record, scratch
from ondol.storage.store import Store

REASONS = "_reasons"


class Validation(BaseModel):
    """The result of validating a snapshot with a contract.

    Attributes:
        id: The id of the pair of snapshot and contract.
        snapshot: The snapshot's digest.
        rows: Rows checked.
        bad: Rows quarantined.
        unlabelled: Rows left out because they have no target; they do not count as bad.
        reasons: How many cells failed, by `column: check`, most first.
        digest: The SHA-256 of the file of the quarantined rows; None in older records.
    """

    id: str
    snapshot: str
    rows: int
    bad: int
    unlabelled: int = 0
    reasons: dict[str, int]
    digest: str | None = None

    @property
    def bad_share(self) -> float:
        """The share of the rows with a label that were quarantined."""
        return self.bad / self.labelled if self.labelled else 0.0

    @property
    def labelled(self) -> int:
        """The number of labelled rows."""
        return self.rows - self.unlabelled

    @property
    def kept(self) -> int:
        """The number of rows for training and evaluation."""
        return self.labelled - self.bad

    def describe(self) -> str:
        """Return a sentence on how many rows were kept and quarantined, and why."""
        text = f"{self.kept:,} rows kept, {self.bad:,} quarantined ({self.bad_share:.2%})"
        return f"{text}, {self.unlabelled:,} without a label left out" if self.unlabelled else text


class Validations:
    """The validations of one store, and the quarantined rows beside them."""

    def __init__(self, store: Store) -> None:
        """Open `store`; creates nothing."""
        self.store = store
        self.folder = store.folder / "quarantine"

    def find(self, name: str) -> Validation | None:
        """Return the validation with the id `name`, or None."""
        return read_record(self.folder / f"{name}.json", Validation)

    def get(self, name: str) -> Validation:
        """Return the validation with the id `name`.

        Raises:
            UserError: there is none.
        """
        found = self.find(name)
        if found is None:
            raise UserError(
                f"There is no validation {name} in {self.folder}: `ml quarantine list` names those there are, "
                "and `ml validate` makes one."
            )
        return found

    def recent(self) -> list[tuple[datetime, Validation]]:
        """Return all validations, and when they were made, the newest first."""
        made = sorted(((path.stat().st_mtime, path) for path in self.folder.glob("*.json")), reverse=True)
        found = [(datetime.fromtimestamp(when, UTC), read_record(path, Validation)) for when, path in made]
        return [(when, validation) for when, validation in found if validation]

    @contextmanager
    def quarantine(self, name: str, schema: pa.Schema) -> "Iterator[Quarantine]":
        """Open the quarantine of a validation for rows of `schema`; the file is kept only if `finish` is called."""
        place = self._place(name)
        with scratch(place) as made, closing(Quarantine(made, schema)) as quarantine:
            yield quarantine
            quarantine.close()
            if quarantine.validation is not None:
                quarantine.validation.digest = digest_file(made)
                self.store.publish(made, place)
                record = quarantine.validation.model_dump_json(indent=1)
                self.store.write_bytes(self.folder / f"{name}.json", record.encode())

    def has_rows(self, name: str) -> bool:
        """Return True if the quarantined rows of a validation exist."""
        return self.store.has(self._place(name))

    def find_rows(self, name: str) -> Path:
        """Return the path of a validation's quarantined rows, which may not exist."""
        return self.store.fetch(self._place(name))

    def rows_path(self, name: str) -> Path:
        """Return the path of a validation's quarantined rows, downloaded if necessary.

        Raises:
            UserError: the file is missing, or its bytes are no longer what they were.
        """
        path = self.find_rows(name)
        record = self.find(name)
        require_whole(path, record.digest if record else None, "The quarantined rows' file", "run `ml validate` again")
        return path

    def _place(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def bad_rows(self, name: str) -> np.ndarray:
        """Return the numbers of the quarantined rows, in order."""
        return pq.read_table(self.rows_path(name), columns=[ROW]).column(ROW).to_numpy()

    def read_rows(self, name: str, places: np.ndarray) -> pa.Table:
        """Return raw quarantined rows, in the order of their `places` in the file; only the needed row groups are read.

        Columns of the data with the name of one of the quarantine's own columns get the suffix " of the data".
        """
        with pq.ParquetFile(self.rows_path(name)) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = np.searchsorted(ends, places, "right")
            hit = np.unique(groups)
            names = [column for column in file.schema_arrow.names if column not in (ROW, REASONS)]
            table = file.read_row_groups(hit.tolist(), columns=names)
            before = np.cumsum([0, *np.array(sizes)[hit]])[:-1]  # rows in the groups before each
            at = places - (ends - sizes)[groups] + before[np.searchsorted(hit, groups)]
        return table.take(pa.array(at))


class Quarantine:
    """Writes bad rows, raw, with their row numbers and reasons."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Write rows of `schema` to the file at `path`."""
        self.validation: Validation | None = None
        names = [f"{name} of the data" if name in (ROW, REASONS) else name for name in schema.names]
        fields = [field.with_name(name) for field, name in zip(schema, names, strict=True)]
        self._schema = pa.schema([*fields, (ROW, pa.int64()), (REASONS, pa.list_(pa.string()))])
        self._writer = pq.ParquetWriter(path, self._schema)

    def add(self, rows: pa.Table, numbers: np.ndarray, reasons: pa.ListArray) -> None:
        """Write bad rows, each with its number and its reasons."""
        more = [pa.array(numbers, pa.int64()), reasons]
        self._writer.write_table(pa.table([*rows.columns, *more], schema=self._schema))

    def finish(self, validation: Validation) -> Validation:
        """Finish the file of quarantined rows, with the record of the validation."""
        self.validation = validation
        return validation

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


FILE = "latest.json"


def read_latest(store: Store) -> dict[str, str]:
    """Return the last result of each stage.

    Raises:
        Damaged: the file cannot be read.
    """
    path = store.folder / FILE
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise explain_damage(path, "it is not an object")
    return value or {}


class Latest:
    """The last result of each stage, so that the next stage can be run alone."""

    def __init__(self, store: Store) -> None:
        """Open `store`; creates nothing."""
        self.store = store

    def set(self, stage: str, value: str) -> None:
        """Store the result of `stage`."""
        self.store.write_json(self.store.folder / FILE, read_latest(self.store) | {stage: value})

    def find(self, stage: str) -> str | None:
        """Return the last result of `stage`, or None."""
        return read_latest(self.store).get(stage)

    def get(self, stage: str) -> str:
        """Return the last result of `stage`.

        Raises:
            UserError: it has not run yet.
        """
        value = self.find(stage)
        if value is None:
            raise UserError(
                f"`ml {stage}` has no result yet: run `ml {stage}` first, or `ml run` for the whole pipeline."
            )
        return value
