"""Where rows come from, which are held out, and what looks like a leak."""

import codecs
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from ondol.config.base import Problem, Section
from ondol_serving.grammar import AMBIGUOUS_FORMATS, compile_format, normalize

THOUSANDS = (",", ".", " ", "'", "’", "_")
NAMED_CHARACTERS = {"tab": "\t", "space": " ", "comma": ",", "semicolon": ";", "point": ".", "none": ""}


def _read_character(value: Any) -> Any:
    """Return the character that a name such as "tab" stands for; others stay as they are."""
    return NAMED_CHARACTERS.get(value.lower(), value) if isinstance(value, str) and len(value) > 1 else value


def _require_one(value: str) -> str:
    if len(value) > 1:
        raise ValueError("use one character")
    return value


def _require_sign(value: Any) -> Any:
    if _read_character(value) not in (".", ","):
        raise ValueError('use "." or ","')
    return _read_character(value)


def _require_header(value: Any) -> Any:
    if not isinstance(value, bool) and not (isinstance(value, list | tuple) and all(isinstance(n, str) for n in value)):
        raise ValueError("use true, false, or a list of the columns' names")
    return value


def _require_texts(value: Any) -> Any:
    lists = value.values() if isinstance(value, dict) else [value]
    if not all(isinstance(texts, list | tuple) and all(isinstance(t, str) for t in texts) for texts in lists):
        raise ValueError('use a list of texts such as ["?", "-"], or a table of such lists by the column\'s name')
    return value


Character = Annotated[str, AfterValidator(_require_one), BeforeValidator(_read_character)]


def _bare(text: str) -> str:
    return normalize(text.strip())


class Dialect(Section):
    """How delimited text (CSV, TSV, …) is written; see docs/data.md. `ml init` finds it.

    Attributes:
        encoding: A codec of Python, such as "cp949" or "utf-16", of files without the mark of UTF-8.
        delimiter: The character between two fields, or "tab"; None to find it in each file.
        skip_lines: How many lines above the header (or above the first row) are passed over.
        header: Whether the first line has the columns' names. False: they are called column_1, column_2, … A list
            has the names of a table without a header.
        trim: Whether spaces around names and values are dropped.
        decimal: The decimal sign of numbers, "." or ",".
        thousands: What stands between the thousands of numbers, or "" for nothing.
        missing: Texts that mean that there is no value. A list holds in columns of numbers, dates, durations and
            truth values. A table, by a column's name, holds in that column, of whichever kind.
    """

    encoding: str = "utf-8"
    delimiter: Character | None = None
    skip_lines: int = Field(0, ge=0)
    header: Annotated[bool | tuple[str, ...], BeforeValidator(_require_header)] = True
    trim: bool = False
    decimal: Annotated[Literal[".", ","], BeforeValidator(_require_sign)] = "."
    thousands: Character = ""
    missing: Annotated[tuple[str, ...] | dict[str, tuple[str, ...]], BeforeValidator(_require_texts)] = ()

    @property
    def dialect(self) -> "Dialect":
        """These settings alone."""
        return Dialect(**self.model_dump(include=self.model_fields_set & set(Dialect.model_fields)))

    @field_validator("encoding")
    @classmethod
    def _require_codec(cls, value: str) -> str:
        try:
            "".encode(value)
        except (LookupError, ValueError):
            raise ValueError(
                'no such encoding is known: write "utf-8", "cp949", "utf-16", "cp1252" or the like'
            ) from None
        return codecs.lookup(value).name

    @field_validator("delimiter")
    @classmethod
    def _require_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (value in ('"', "\n", "\r", "") or ord(value) > 127):
            raise ValueError('use one character such as ";", ",", "|" or "tab"')
        return value

    @field_validator("header")
    @classmethod
    def _require_names(cls, value: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        if isinstance(value, bool):
            return value
        if not value or not all(name.strip() for name in value):
            raise ValueError("name every column, or write false")
        name, times = Counter(value).most_common(1)[0]
        if times > 1:
            raise ValueError(f'"{name}" is there {times} times: give each column a name of its own')
        return value

    @field_validator("thousands")
    @classmethod
    def _require_thousands(cls, value: str) -> str:
        if value and value not in THOUSANDS:
            raise ValueError(f'use one of {", ".join(map(repr, THOUSANDS))}, or "" for none')
        return value

    @field_validator("missing")
    @classmethod
    def _strip_markers(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {normalize(name): tuple(map(_bare, texts)) for name, texts in value.items()}
        return tuple(map(_bare, value))

    @model_validator(mode="after")
    def _require_different_signs(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError(f'decimal and thousands are both "{self.decimal}": one sign cannot mean two things')
        if self.decimal == self.delimiter:
            raise ValueError(
                f'decimal and delimiter are both "{self.decimal}": leave delimiter out if such numbers are in quotes'
            )
        return self


class Data(Dialect):
    """Where the rows come from, how they are written, and what is predicted.

    Attributes:
        source: See docs/data.md.
        target: The column to predict.
        problem: What kind of prediction it is.
        date_formats: How dates are written whose order of day and month cannot be told, or with two digits of a year,
            in the directives of strptime (English names on every machine). They are read beside the standard forms
            of docs/contract.md, in place of the default's month/day/year.
        max_bad_share: The share of the rows with a label in quarantine from which on a run fails.
        watermark: A column that grows from row to row, such as the time of the last change: each ingest reads only
            what is new by it, and appends.
        lateness: How far behind the newest value rows may still arrive: days of a date, else the column's unit.
        window_days: Only rows of the last so many days, by the column with the role time, are learned from.
    """

    source: str = "sample://"
    target: str | None = None
    problem: Problem = "binary"
    date_formats: tuple[str, ...] = AMBIGUOUS_FORMATS
    max_bad_share: float = Field(0.1, ge=0, le=1)
    watermark: str | None = None
    lateness: float = Field(0.0, ge=0)
    window_days: float | None = Field(None, gt=0)

    @field_validator("target", "watermark")
    @classmethod
    def _normalize_name(cls, value: str | None) -> str | None:
        return value and normalize(value)

    @field_validator("date_formats")
    @classmethod
    def _require_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for form in value:
            compile_format(form)
        return value


class Fetch(Section):
    """How patiently sources are read.

    Attributes:
        timeout_seconds: How long one request, connection or message may take.
        retries: How often a request that failed for a passing reason is made again, after a growing pause.
        max_ratio: How many times its size a compressed file may hold.
    """

    timeout_seconds: float = Field(60.0, gt=0)
    retries: int = Field(5, ge=0)
    max_ratio: int = Field(200, ge=1)


class Split(Section):
    """Which rows are held out, see docs/pipeline.md.

    Attributes:
        by: "random" (by a hash of the group, else the id, else the row; once called "hash"), "group" (the same, and a
            column with that role is asked for), "stratified" (the same share of each class, or of each tenth of a
            number) or "time" (the latest).
        holdout: Their share.
        seed: Another seed holds out other rows.
    """

    by: Literal["random", "stratified", "group", "time"] = "random"
    holdout: float = Field(0.2, gt=0, lt=1)
    seed: int = 0

    @field_validator("by", mode="before")
    @classmethod
    def _read_former_name(cls, value: Any) -> Any:
        return "random" if value == "hash" else value


class Leakage(Section):
    """Alarms that do not block: the name of a column, and why what was found of it is no leak."""

    accept: dict[str, str] = Field({})

    @field_validator("accept")
    @classmethod
    def _require_reasons(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reason in value.items():
            if not reason.strip():
                raise ValueError(f'say why "{name}" is no leak')
        return {normalize(name): reason for name, reason in value.items()}
