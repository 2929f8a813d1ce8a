"""Guesses of what kind the values of a column of text are."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from flows.contract.cleaning import clean_column
from flows.contract.columns import Column, Kind
from service.grammar import ISO_DURATION

READABLE = 0.98  # as many values must be numbers (or dates) for the rest to be called broken
ENOUGH = 50  # rows below which a broken value is no exception
EXACT = 2**53
YEAR_FIRST = r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2}([ T]\d{1,2}:\d{2}.*)?)?"
NAMED_MONTH = r"(\d{1,2}[ -])?[A-Za-z]{3,9}[ -]\d{1,2}(, ?| |-)\d{4}|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{4}"
CLOCK = r"\d{1,2}:\d{2}:\d{2}(\.\d+)?"
DURATIONS = rf"{ISO_DURATION}|-?\d+ days?|(-?\d+ days?,? [+-]?)?-?\d+:\d{{2}}:\d{{2}}(\.\d+)?"
MONEY = "%$€£¥₩원"
AMOUNT = rf"[+-]?[{MONEY}]? ?[+-]?(\d{{1,3}}([,.]\d{{3}})+([,.]\d+)?|\d+([,.]\d+)?) ?[{MONEY}]?"
NUMBERED = r"(\d{1,2})/(\d{1,2})/\d{4}( \d{1,2}:\d{2}.*)?"


def guess_text(values: pa.ChunkedArray) -> tuple[Kind, str]:
    """Return the kind of a column of text, and a hint where it stays text for a reason."""
    counted = pc.value_counts(values.combine_chunks())
    texts = counted.field("values").to_pandas().astype("str")
    return guess_counted(texts, pd.Series(counted.field("counts").to_numpy()))


def guess_counted(texts: "pd.Series[str]", counts: "pd.Series[int]") -> tuple[Kind, str]:
    """Return the same of different texts and how often each is there."""
    texts = texts.str.strip()
    there = (texts.notna() & (texts != "")).to_numpy(dtype=bool)
    texts, counts = texts[there], counts[there]
    if texts.empty:
        return "text", ""
    if set(texts.str.lower()) <= {"true", "false"}:
        return "boolean", ""
    numbers = _read_numbers(texts)
    if _prevails(numbers.abs() < np.inf, counts):
        return _guess_number(texts, numbers)
    if _prevails(texts.str.fullmatch(DURATIONS), counts):
        clock = texts.str.fullmatch(CLOCK).all()
        return "duration", "clock times are read as durations, hours:minutes:seconds" if clock else ""
    return _guess_date(texts, counts)


def _read_numbers(texts: "pd.Series[str]") -> "pd.Series[float]":
    """Return texts as numbers, NaN where they are none; Arrow's cast is ten times faster where all are."""
    try:
        cast = pc.cast(pa.array(texts, pa.string()), pa.float64()).to_numpy(zero_copy_only=False)
        return pd.Series(cast, index=texts.index)
    except pa.ArrowInvalid:
        return pd.to_numeric(texts, errors="coerce").astype(np.float64)


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
    if texts.str.fullmatch(AMOUNT).all() and texts.str.contains(rf"[,{MONEY}]").any():
        return "numbers with commas or signs of money or percent stay text: write them as 1234.5"
    return ""
