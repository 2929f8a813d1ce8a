"""Validations: which rows of a snapshot broke the contract, and why. Valid rows are the snapshot less these."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from flows.errors import UserError
from flows.store.files import publish, read_json, scratch, write_bytes, write_json

ROW, REASONS = "_row", "_reasons"


class Validation(BaseModel):
    """The outcome of holding a snapshot against a contract.

    Attributes:
        id: Names the pair of snapshot and contract.
        snapshot: The snapshot's digest.
        rows: Rows checked.
        bad: Rows quarantined.
        reasons: How many cells failed, by `column: check`, most first.
    """

    id: str
    snapshot: str
    rows: int
    bad: int
    reasons: dict[str, int]

    @property
    def bad_share(self) -> float:
        """The share of rows that were quarantined."""
        return self.bad / self.rows


class Validations:
    """The validations of one store, and the quarantined rows beside them."""

    def __init__(self, store: Path) -> None:
        """Look into the store at `store`; nothing is made."""
        self.folder = store / "quarantine"

    def find(self, name: str) -> Validation | None:
        """Return the validation with the id `name`, or None."""
        value = read_json(self.folder / f"{name}.json")
        return None if value is None else Validation.model_validate(value)

    def get(self, name: str) -> Validation:
        """Return the validation with the id `name`.

        Raises:
            UserError: there is none.
        """
        found = self.find(name)
        if found is None:
            raise UserError(f"There is no validation {name} in {self.folder}: run `ml validate` first.")
        return found

    def write(self, validation: Validation, rows: pa.Table, numbers: np.ndarray, reasons: list[list[str]]) -> None:
        """Write the quarantined rows, raw, with their row numbers and reasons, and then the record."""
        rows = rows.rename_columns(
            [f"{name} of the data" if name in (ROW, REASONS) else name for name in rows.schema.names]
        )
        table = rows.append_column(ROW, pa.array(numbers, pa.int64()))
        table = table.append_column(REASONS, pa.array(reasons, pa.list_(pa.string())))
        path = self.rows_path(validation.id)
        with scratch(path) as made:
            pq.write_table(table, made)
            publish(made, path)
        write_bytes(self.folder / f"{validation.id}.json", validation.model_dump_json(indent=1).encode())

    def rows_path(self, name: str) -> Path:
        """Return where the quarantined rows of a validation are."""
        return self.folder / f"{name}.parquet"

    def bad_rows(self, name: str) -> np.ndarray:
        """Return the numbers of the quarantined rows, in order."""
        return pq.read_table(self.rows_path(name), columns=[ROW]).column(ROW).to_numpy()


class Latest:
    """What each stage made last, so that the next can be run alone."""

    def __init__(self, store: Path) -> None:
        """Look into the store at `store`; nothing is made."""
        self.path = store / "latest.json"

    def set(self, stage: str, value: str) -> None:
        """Remember what `stage` made."""
        write_json(self.path, (read_json(self.path) or {}) | {stage: value})

    def get(self, stage: str) -> str:
        """Return what `stage` made last.

        Raises:
            UserError: it has not run yet.
        """
        value = (read_json(self.path) or {}).get(stage)
        if value is None:
            raise UserError(f"Nothing to go on with: run `ml {stage}` first, or `ml run` for the whole pipeline.")
        return value
