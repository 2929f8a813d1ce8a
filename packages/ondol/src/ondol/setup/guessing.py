"""Guesses of what kind the values of a column of text are."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ondol.contract.columns import Kind
from ondol.setup.dates import TRIED, prevails, reads
from ondol_serving.grammar import AMBIGUOUS_FORMATS, NUMBER, DateGrammar, date_grammar, parse_duration

EXACT = 2**53
CLOCK = r"\d{1,2}:\d{2}:\d{2}(\.\d+)?"
SHORT_CLOCK = r"\d{1,2}:\d{2}"
# A year and a day of the month, with anything short around them.
DATE_LIKE = (
    r"\D{0,12}((19|20)\d\d\D{1,12}[0-3]?\d(\D.{0,20})?|[0-3]?\d\D{1,12}([01]?\d\D{1,4})?(19|20)\d\d(\D.{0,20})?)"
)
FEW = 5
MOSTLY = 2 / 3  # share of the values
MOST_SHOWN = 3
MONEY = "%$€£¥₩원"
AMOUNT = rf"[+-]?[{MONEY}]? ?[+-]?(\d{{1,3}}([,.]\d{{3}})+([,.]\d+)?|\d+([,.]\d+)?) ?[{MONEY}]?"


def guess_text(values: pa.ChunkedArray, formats: tuple[str, ...] = AMBIGUOUS_FORMATS) -> tuple[Kind, str]:
    """Return the kind of a column of text, and a hint where it stays text for a reason.

    Args:
        values: The column.
        formats: The listed formats of dates; see `ondol_serving.grammar`.
    """
    counted = pc.value_counts(values.combine_chunks())
    texts = counted.field("values").to_pandas().astype("str")
    texts, counts = _present(texts, pd.Series(counted.field("counts").to_numpy()))
    kind, hint = guess_counted(texts, counts, formats)
    if kind == "text" and not hint and not texts.empty:
        hint = _hint_mixed(texts, counts, date_grammar(formats)) or _hint(texts)
    return kind, hint


def guess_counted(
    texts: "pd.Series[str]", counts: "pd.Series[int]", formats: tuple[str, ...] = AMBIGUOUS_FORMATS
) -> tuple[Kind, str]:
    """Return the kind of different texts and how often each is there, and a hint on how they are read."""
    texts, counts = _present(texts, counts)
    if texts.empty:
        return "text", ""
    if set(texts.str.lower()) <= {"true", "false"}:
        return "boolean", ""
    grammar = date_grammar(formats)
    if grammar.reads_digits and reads(grammar.parse, texts, counts):
        return "date", ""
    fits = texts.str.fullmatch(NUMBER)
    numbers = pd.to_numeric(texts.where(fits), errors="coerce").astype(np.float64)
    if prevails(numbers.abs() < np.inf, counts):
        return _guess_number(texts, numbers)
    if reads(parse_duration, texts, counts):
        clock = texts.str.fullmatch(CLOCK).all()
        return "duration", "clock times are read as durations, hours:minutes:seconds" if clock else ""
    if reads(grammar.parse, texts, counts):
        return "date", ""
    return "text", ""


def _present(texts: "pd.Series[str]", counts: "pd.Series[int]") -> "tuple[pd.Series[str], pd.Series[int]]":
    """Return the texts that are not blank, without spaces around them, and their counts."""
    texts = texts.str.strip()
    there = (texts.notna() & (texts != "")).to_numpy(dtype=bool)
    return texts[there], counts[there]


def _guess_number(texts: "pd.Series[str]", numbers: "pd.Series[float]") -> tuple[Kind, str]:
    if texts.str.match(r"[+-]?0\d").any():
        return "text", "codes with leading zeros stay text"
    readable = texts[np.isfinite(numbers)]
    if not readable.str.fullmatch(r"[+-]?\d+").all():
        return "number", ""
    if numbers.abs().max() >= EXACT:
        return "text", "numbers too long for arithmetic stay text"
    return "integer", ""


def _hint_mixed(texts: "pd.Series[str]", counts: "pd.Series[int]", grammar: DateGrammar) -> str:
    """Return a hint on a column that is of numbers or dates but for some texts."""
    texts, counts = texts.reset_index(drop=True), counts.reset_index(drop=True)
    dates = texts.iloc[:TRIED].map(lambda text: grammar.parse(text) is not None).astype(bool)
    if dates.mean() > MOSTLY:
        dates = texts.map(lambda text: grammar.parse(text) is not None).astype(bool)
    for what, fits in (
        ("numbers", texts.str.fullmatch(NUMBER)),
        ("dates", dates.reindex(texts.index, fill_value=False)),
    ):
        if fits.sum() < FEW or fits.all() or counts[fits].sum() <= MOSTLY * counts.sum():
            continue
        others = texts[~fits].loc[counts[~fits].sort_values(ascending=False, kind="stable").index]
        listed = json.dumps(others.head(MOST_SHOWN).tolist(), ensure_ascii=False)
        if len(others) <= MOST_SHOWN:
            return (
                f"most values are {what}, but {int(counts[~fits].sum()):,} are not: if they mean that there is no "
                f"value, write missing = {listed} under [data] in config.toml and run this again"
            )
        return f"most values are {what}, but {len(others):,} others are not, such as {listed[1:-1]}: it stays text"
    return ""


def _hint(texts: "pd.Series[str]") -> str:
    if texts.str.fullmatch(SHORT_CLOCK).all():
        return "clock times without seconds stay text: write them as 10:30:00 for them to be read as durations"
    if len(texts) >= FEW and texts.str.fullmatch(DATE_LIKE).all():
        return f'"{texts.iloc[0]}" and the like may be dates in a form that is not read: write them as 2024-01-31'
    plain = texts.str.translate(str.maketrans("−﹣－（）", "---()"))
    bare = plain.str.replace(r"^\((.*)\)$", r"-\1", regex=True).str.replace(r"^--", "-", regex=True)
    if bare.str.fullmatch(AMOUNT).all() and not texts.str.fullmatch(NUMBER).all():
        return (
            "numbers with commas, parentheses, another minus sign, or signs of money or percent stay text: write them "
            "as 1234.5"
        )
    return ""
