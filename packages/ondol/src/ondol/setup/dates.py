"""Infers the date formats of a table."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd

from ondol_serving.grammar import STANDARD_FORMATS, compile_format, date_grammar, normalize, parse_number

READABLE = 0.98  # this share of values must be of a kind for the others to count as invalid
ENOUGH = 50  # with fewer rows, an invalid value is not treated as an exception
GLANCED, TRIED = 10, 200  # values that are tested first
DAY_FIRST, MONTH_FIRST = ("%d", "%m"), ("%m", "%d")
WORDS = {"%d": "day", "%m": "month", "%Y": "year", "%y": "year"}
DIGITS = re.compile(r"(19|20)[0-9]{6}([0-9]{6})?")
# Formats of which at most one can fit all values; day and month as numbers are tried in both orders.
SINGLE = (
    *(
        "%d-%b-%y",
        "%d %b %y",
        "%b %d, %y",
        "%d%b%Y",
        "%d%b%y",
        "%d. %b %Y",
        "%d. %b. %Y",
        "%d/%b/%Y",
        "%d/%b/%Y:%H:%M:%S %z",
    ),
    *(
        "%A, %B %d, %Y",
        "%A %B %d %Y",
        "%a %d %b %Y",
        "%A, %d %B %Y",
        "%a %b %d %H:%M:%S %Y",
        "%a, %d %b %Y %H:%M:%S %z",
    ),
    *("%Y년 %m월", "%y년 %m월 %d일", "%Y-%b-%d", "%Y %b %d", "%Y%m%d", "%Y.%m.%d.", "%Y%m%d", "%Y%m%d%H%M%S"),
)
SEPARATORS = ("/", "-", ".")


@dataclass(frozen=True)
class Written:
    """The date format of one column.

    Attributes:
        name: The column.
        fits: The formats that read its values; several if day and month are ambiguous.
        example: A value that only the first format reads, or any value if several formats fit.
        proof: The reason for the first format, if no value decides.
    """

    name: str
    fits: tuple[str, ...]
    example: str
    proof: str = ""


def prevails(fits: "pd.Series[bool]", counts: "pd.Series[int]") -> bool:
    """Return True if all values fit, or so many that the others are errors."""
    if fits.all():
        return True
    total = counts.sum()
    return bool(total >= ENOUGH and counts[fits].sum() >= READABLE * total and fits.sum() > 1)


def reads(parse: Callable[[str], object], texts: "pd.Series[str]", counts: "pd.Series[int]") -> bool:
    """Return True if `parse` reads nearly all distinct texts of a column; it returns None for others."""
    first = texts.iloc[:TRIED]
    if sum(parse(text) is not None for text in first) < READABLE * len(first) - 4:
        return False
    return prevails(texts.map(lambda text: parse(text) is not None).astype(bool), counts)


def _reads_form(form: str, texts: "pd.Series[str]", counts: "pd.Series[int]") -> bool:
    """Return True if a format reads nearly all distinct texts of a column."""
    shape, first = _compile(form), texts.iloc[:GLANCED]
    if sum(shape.fullmatch(normalize(text)) is not None for text in first) < len(first) / 2:  # most formats fail here
        return False
    return reads(date_grammar((form,)).parse, texts, counts)


_compile = cache(compile_format)


def find_written(name: str, texts: "pd.Series[str]", counts: "pd.Series[int]") -> Written | None:
    """Return the date format of a column that no standard form reads; None if it has no dates.

    Args:
        name: The column.
        texts: Its distinct values, without markers of missing values.
        counts: The number of each.
    """
    if (
        texts.empty
        or not texts.iloc[:TRIED].str.contains(r"[0-9]").all()
        or reads(date_grammar(()).parse, texts, counts)
    ):
        return None
    if texts.iloc[:TRIED].map(parse_number).notna().all() and not _are_digits(texts):
        return None
    example = str(texts.iloc[0])
    orders = [
        tuple(f"{a}{sign}{b}{sign}{year}" for a, b in (DAY_FIRST, MONTH_FIRST)) + tail
        for sign in SEPARATORS
        for year, tail in (("%Y", ()), ("%y", (f"%y{sign}%m{sign}%d",)))
    ]
    for forms in (*orders, *((form,) for form in SINGLE)):
        if fitting := [form for form in forms if _reads_form(form, texts, counts)]:
            others = [date_grammar((form,)) for form in forms if form not in fitting]
            deciding = (t for t in texts if all(other.parse(t) is None for other in others))
            if len(fitting) == 1:
                return Written(name, tuple(fitting), next(deciding, example))
            near = _keep_nearest(fitting, texts)
            proof = "as they then lie closest together" if len(near) == 1 else ""
            return Written(name, tuple(near), example, proof)
    return None


def _keep_nearest(forms: Sequence[str], texts: "pd.Series[str]") -> list[str]:
    """Drop formats with another position of the year for which the dates spread three times as far."""
    spans = {}
    for form in forms:
        moments = [moment for text in texts if (moment := date_grammar((form,)).parse(text)) is not None]
        spans[form] = (max(moments) - min(moments)).days + 1
    nearest = min(forms, key=lambda form: spans[form])
    place = nearest.index("y") if "y" in nearest else -1
    return [form for form in forms if form.find("y") == place or spans[form] < 3 * spans[nearest]]


def _are_digits(texts: "pd.Series[str]") -> bool:
    """Return True if numbers are all valid dates in digits, such as 20240131."""
    grammar = date_grammar(("%Y%m%d", "%Y%m%d%H%M%S"))
    return len(texts) >= 3 and all(DIGITS.fullmatch(t) and grammar.parse(t) is not None for t in texts)


def decide_formats(
    found: Sequence[Written], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Return the formats for `[data] date_formats`, notes on columns with dates, and doubts about others.

    A column with an ambiguous order of day and month is read like an unambiguous one of the same shape.

    Args:
        found: The formats of the columns.
        given: The formats in `[data] date_formats`, if set; they are kept.
    """
    chosen: dict[str, tuple[str, str]] = {}  # by shape: the format and the reason
    notes: list[str] = []
    doubts: list[str] = []
    for column in found:
        if len(column.fits) == 1 and (given is None or column.fits[0] in given):
            chosen.setdefault(shape(column.fits[0]), (column.fits[0], f'those of "{column.name}" are'))
    for form in given or ():
        chosen.setdefault(shape(form), (form, "date_formats says"))
    for column in found:
        form, by = chosen.get(shape(column.fits[0]), ("", ""))
        if form in column.fits:
            proof = f'as "{column.example}" shows' if len(column.fits) == 1 else f"as {by}"
            proof = column.proof or proof
            notes.append(f'Dates of "{column.name}" are written {describe_format(form)}, {proof}.')
        elif form:
            doubts.append(
                f'"{column.name}" stays text: its dates are written {describe_format(column.fits[0])} '
                f'("{column.example}"), {by} {describe_format(form)}, and a table has one order; write them '
                "as 2024-01-31."
            )
        else:
            settings = " or ".join(f'date_formats = ["{form}"]' for form in column.fits)
            doubts.append(
                f'"{column.name}" stays text: "{column.example}" and the others may be '
                f"{' or '.join(map(describe_format, column.fits))}, which the data does not decide; write {settings} "
                "under [data] in config.toml, and run this again."
            )
    return tuple(dict.fromkeys(form for form, _ in chosen.values())) if given is None else given, notes, doubts


def shape(form: str) -> str:
    """Return the shape of a format, without the order of its parts; a table has one format for each shape."""
    return re.sub("%[a-zA-Z]", "%", form) + ("4" if "%Y" in form else "2") if "b" not in form.lower() else form


def describe_standard(name: str, texts: "pd.Series[str]", counts: "pd.Series[int]") -> str:
    """Return a note on a column with dates in one standard form that is not ISO 8601, or an empty string."""
    if texts.empty or texts.iloc[:TRIED].map(parse_number).notna().any():
        return ""
    if not reads(date_grammar(()).parse, texts, counts):
        return ""
    for form in STANDARD_FORMATS[1:]:
        shape = _compile(form)
        if texts.map(lambda text, shape=shape: shape.fullmatch(text) is not None).all():
            return f'Dates of "{name}" are written {describe_format(form)}, as in "{texts.iloc[0]}".'
    return ""


def describe_format(form: str) -> str:
    """Return a format in words, such as day/month/year."""
    if set(re.findall("%[a-zA-Z]", form)) <= set(WORDS) and re.fullmatch(r"(%[a-zA-Z][-/.]?)+", form):
        words = re.sub("%[a-zA-Z]", lambda found: WORDS[found[0]], form)
        return f"{words} (two digits of the year)" if "%y" in form else (words if words != "yearmonthday" else form)
    return form
