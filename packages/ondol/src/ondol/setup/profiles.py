"""What each column of a table seems to be: its kind, and the few figures that guesses are made from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ondol.config.data import Dialect
from ondol.contract import Column
from ondol.contract.cleaning import clean_column
from ondol.contract.columns import Kind
from ondol.ingestion.cells import NUMERIC, converts, read_cells
from ondol.ingestion.parquet import DURATION, ORDER
from ondol.setup.guessing import guess_text
from ondol_serving.grammar import AMBIGUOUS_FORMATS


@dataclass(frozen=True)
class Profile:
    """One column as it was read.

    Attributes:
        name: Its real name.
        kind: What its values seem to be.
        values: The values as that kind (see `ondol.contract.clean_column`), missing where unreadable.
        blanks: How many texts were blank where numbers or dates stand.
        broken: How many values could not be read as the kind.
        stored_as_text: Whether the source holds numbers as text.
        hint: Why it is read as text, where that needs saying.
        order: The values in order, where the source has them so.
    """

    name: str
    kind: Kind
    values: "pd.Series[Any]"
    blanks: int = 0
    broken: int = 0
    stored_as_text: bool = False
    hint: str = ""
    order: tuple[str, ...] | None = None

    @cached_property
    def counts(self) -> "pd.Series[int]":
        """How often each value occurs, the most frequent first."""
        return self.values.value_counts()

    @cached_property
    def missing(self) -> int:
        """How many rows have no value."""
        return int(self.values.isna().sum()) - self.broken

    @property
    def distinct(self) -> int:
        """How many different values there are."""
        return len(self.counts)

    @property
    def present(self) -> int:
        """How many rows have a value."""
        return int(self.values.notna().sum())

    @property
    def unique(self) -> bool:
        """Whether every row has a value of its own."""
        return self.distinct == len(self.values)

    @property
    def whole(self) -> bool:
        """Whether all values are whole numbers."""
        return self.kind == "integer" or (self.kind == "number" and bool((self.values.dropna() % 1 == 0).all()))

    def read_as(self, kind: Kind) -> "Profile":
        """Return the profile with another kind, for values that are of it already."""
        return replace(self, kind=kind)


@dataclass(frozen=True)
class TableFormat:
    """How a table is read beyond what its file says.

    Attributes:
        dialect: How its text is written; None where it is not of delimited text.
        formats: The listed formats of its dates; see `ondol_serving.grammar`.
        notes: Sentences that say so, where that is not as usual.
        doubts: Sentences that say what the table does not tell.
        dated: The columns whose date format `notes` or `doubts` explain.
    """

    dialect: Dialect | None = None
    formats: tuple[str, ...] = AMBIGUOUS_FORMATS
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    dated: frozenset[str] = frozenset()

    def column(self, name: str, kind: Kind) -> Column:
        """Return a column of a kind as the contract reads it."""
        return Column(name=name, kind=kind, formats=self.formats if kind == "date" else None)

    def spell(self, values: pa.ChunkedArray, kind: str, name: str) -> pa.ChunkedArray:
        """Return a column of raw text as a source reads it that knows its kind; others as they are."""
        if self.dialect is None or not pa.types.is_string(values.type) or not converts(self.dialect, kind, name):
            return values
        return pa.chunked_array([read_cells(chunk, self.dialect, kind, name) for chunk in values.chunks], values.type)


def profile_column(
    field: pa.Field, values: pa.ChunkedArray, typed: bool, written: TableFormat | None = None
) -> Profile:
    """Return what the column seems to be.

    Args:
        field: Its real name, and what the source says of it beyond its type.
        values: As its source gave it.
        typed: Whether the source has types, so that a number in a text column is stored as text.
        written: How its table is read.
    """
    name, said, written = field.name, field.metadata or {}, written or TableFormat()
    text, order = pa.types.is_string(values.type), said.get(ORDER)
    kind: Kind = "text"
    hint = ""
    if order is None:
        kind, hint = _guess(values, name, written) if text else (_of_type(values.type, said), "")
        hint = "" if name in written.dated else hint
    blanks = _count_blanks(values) if text and kind != "text" else 0
    values = written.spell(values, kind, name)
    series, unreadable = clean_column(_cast(values, kind) if text else values, written.column(name, kind))
    broken = int(unreadable.sum())
    as_text = text and kind in NUMERIC and bool(typed or blanks or broken)
    return Profile(name, kind, series, blanks, broken, as_text, hint, order and tuple(json.loads(order)))


def _guess(values: pa.ChunkedArray, name: str, written: TableFormat) -> tuple[Kind, str]:
    """Return the kind of a column of text, and a hint; its numbers may be written otherwise than its dates."""
    guess = guess_text(written.spell(values, "number", name), written.formats)
    if guess[0] in NUMERIC or written.dialect is None or not converts(written.dialect, "number", name):
        return guess
    return guess_text(written.spell(values, "date", name), written.formats)


def _of_type(kind: pa.DataType, said: Mapping[bytes, bytes]) -> Kind:
    if DURATION in said:
        return "duration"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "integer"
    return "date" if pa.types.is_temporal(kind) else "number"


def _count_blanks(values: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.utf8_is_space(values)).as_py() or 0)


def _cast(values: pa.ChunkedArray, kind: Kind) -> pa.ChunkedArray:
    """Return a text column of numbers as numbers, or as it is where one is none."""
    if kind not in NUMERIC:
        return values
    trimmed = pc.utf8_trim_whitespace(values)
    filled = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    try:
        return pc.cast(filled, pa.int64() if kind == "integer" else pa.float64())
    except pa.ArrowInvalid:
        return values
