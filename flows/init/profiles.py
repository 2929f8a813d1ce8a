"""What each column of a table seems to be: its kind, and the few figures that guesses are made from."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from flows.contract.cleaning import clean_column
from flows.contract.columns import Column, Kind
from flows.errors import UserError

READABLE = 0.98  # as many values must be numbers (or dates) for the rest to be called broken
ENOUGH = 50  # rows below which a broken value is no exception
EXACT = 2**53
YEAR_FIRST = r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2}([ T]\d{1,2}:\d{2}.*)?)?"
NAMED_MONTH = r"(\d{1,2}[ -])?[A-Za-z]{3,9}[ -]\d{1,2}(, ?| |-)\d{4}|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{4}"
NUMBERED = r"(\d{1,2})/(\d{1,2})/\d{4}( \d{1,2}:\d{2}.*)?"


@dataclass(frozen=True)
class Profile:
    """One column as it was read.

    Attributes:
        name: Its real name.
        kind: What its values seem to be.
        values: The values as that kind (see `flows.contract.clean_column`), missing where unreadable.
        blanks: How many texts were blank where numbers or dates stand.
        broken: How many values could not be read as the kind.
        stored_as_text: Whether the source holds numbers as text.
        hint: Why it is read as text, where that needs saying.
    """

    name: str
    kind: Kind
    values: "pd.Series[Any]"
    blanks: int = 0
    broken: int = 0
    stored_as_text: bool = False
    hint: str = ""

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
        return Profile(self.name, kind, self.values, self.blanks, self.broken, self.stored_as_text, self.hint)


def profile_column(name: str, values: pa.ChunkedArray, typed: bool) -> Profile:
    """Return what the column seems to be.

    Args:
        name: Its real name.
        values: As its source gave it.
        typed: Whether the source has types, so that a number in a text column is stored as text.

    Raises:
        UserError: no row has a value.
    """
    text = pa.types.is_string(values.type)
    kind, hint = _guess_text(values) if text else (_of_type(values.type), "")
    series, unreadable = clean_column(_cast(values, kind) if text else values, Column(name=name, kind=kind))
    if not series.notna().any():
        raise UserError(f'Column "{name}" has no value in any row: leave it out of the file.')
    broken = int(unreadable.sum())
    blanks = _count_blanks(values) if text and kind != "text" else 0
    as_text = text and kind in ("number", "integer") and bool(typed or blanks or broken)
    return Profile(name, kind, series, blanks, broken, as_text, hint)


def _of_type(kind: pa.DataType) -> Kind:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "integer"
    return "date" if pa.types.is_temporal(kind) else "number"


def _count_blanks(values: pa.ChunkedArray) -> int:
    return int(pc.sum(pc.utf8_is_space(values)).as_py() or 0)


def _guess_text(values: pa.ChunkedArray) -> tuple[Kind, str]:
    """Return the kind of a column of text, and a hint where it stays text for a reason."""
    counted = pc.value_counts(values.combine_chunks())
    texts = counted.field("values").to_pandas().astype("str").str.strip()
    counts = pd.Series(counted.field("counts").to_numpy())
    there = (texts.notna() & (texts != "")).to_numpy(dtype=bool)
    texts, counts = texts[there], counts[there]
    if texts.empty:
        return "text", ""
    if set(texts.str.lower()) <= {"true", "false"}:
        return "boolean", ""
    numbers = _read_numbers(texts)
    if _prevails(numbers.abs() < np.inf, counts):
        return _guess_number(texts, numbers)
    return _guess_date(texts, counts)


def _read_numbers(texts: "pd.Series[str]") -> "pd.Series[float]":
    """Return texts as numbers, NaN where they are none; Arrow's cast is ten times faster where all are."""
    try:
        cast = pc.cast(pa.array(texts, pa.string()), pa.float64()).to_numpy(zero_copy_only=False)
        return pd.Series(cast, index=texts.index)
    except pa.ArrowInvalid:
        return pd.to_numeric(texts, errors="coerce").astype(np.float64)


def _cast(values: pa.ChunkedArray, kind: Kind) -> pa.ChunkedArray:
    """Return a text column of numbers as numbers, or as it is where one is none."""
    if kind not in ("number", "integer"):
        return values
    trimmed = pc.utf8_trim_whitespace(values)
    filled = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    try:
        return pc.cast(filled, pa.int64() if kind == "integer" else pa.float64())
    except pa.ArrowInvalid:
        return values


def _prevails(fits: "pd.Series[bool]", counts: "pd.Series[int]") -> bool:
    """Tell whether all values fit, or so many that the others are mistakes."""
    if fits.all():
        return True
    total = counts.sum()
    return bool(total >= ENOUGH and counts[fits].sum() >= READABLE * total and fits.sum() > 1)


def _guess_number(texts: "pd.Series[str]", numbers: "pd.Series[float]") -> tuple[Kind, str]:
    if texts.str.match(r"[+-]?0\d").any():
        return "text", "codes with leading zeros stay text"
    readable = texts[np.isfinite(numbers)]
    if not readable.str.fullmatch(r"[+-]?\d+").all():
        return "number", ""
    if numbers.abs().max() >= EXACT:
        return "text", "numbers too long for arithmetic stay text"
    return "integer", ""


def _guess_date(texts: "pd.Series[str]", counts: "pd.Series[int]") -> tuple[Kind, str]:
    clear = texts.str.fullmatch(f"{YEAR_FIRST}|{NAMED_MONTH}")
    if _prevails(clear, counts):
        dates, _ = clean_column(pa.chunked_array([pa.array(texts)]), Column(name="", kind="date"))
        fits = pd.Series(dates.notna().to_numpy(), index=texts.index)
        return ("date", "") if _prevails(fits, counts) else ("text", "")
    parts = texts.str.extract(f"^{NUMBERED}$")
    if not _prevails(parts[0].notna(), counts):
        return "text", _hint_number(texts)
    first, second = (pd.to_numeric(parts[i]).max() for i in (0, 1))
    if second > 12 >= first:
        return "date", "dates are read as month/day/year"
    return "text", "dates whose day and month cannot be told apart stay text: write them as 2024-01-31"


def _hint_number(texts: "pd.Series[str]") -> str:
    if texts.str.fullmatch(re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?|[+-]?\d+,\d+|[+-]?\d+")).all():
        return "numbers with commas stay text: write them as 1234.5"
    return ""
