"""Parsing of texts as numbers, integers, booleans, dates and durations; see docs/reference/contract.md.

This module is the only definition of the grammar. Training, batch prediction and the service use it, so that a cell
means the same everywhere. The result depends only on the text and on the listed date formats, not on other texts, the
locale, the machine's time zone or the clock. It imports only the standard library.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from math import isfinite

EXACT = 2**53  # float64 represents every integer below exactly
SMALLEST_INTEGER, LARGEST_INTEGER = -(2**63), 2**63 - 1
LONGEST_SECONDS = 1e11  # of a duration: three thousand years
LONGEST_TEXT = 100  # characters of a date or a duration; the patterns would need seconds for some longer texts
MICROSECONDS = 1_000_000
AMBIGUOUS_FORMATS = ("%m/%d/%Y",)  # used if `[data] date_formats` lists none

# Forms that Arrow may parse as a whole column; they are valid as Arrow's regular expressions too.
NUMBER = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
ISO_DATE = (
    r"([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"([T ]([01][0-9]|2[0-3])(:[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?)?)?"
)

_NUMBER = re.compile(NUMBER)
_MOST_MARKS = 30  # consecutive marks, as in the Stream-Safe Text Format (UAX #15): sorting more takes quadratic time


def normalize(text: str) -> str:
    """Return `text` in Unicode's normal form C, in which names and texts are compared."""
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    parts, end = [], 0
    for run in _long_runs(text):
        parts += [unicodedata.normalize("NFC", text[end : run.start]), text[run.start : run.stop]]
        end = run.stop
    return "".join([*parts, unicodedata.normalize("NFC", text[end:])])


@cache
def _marks() -> re.Pattern[str]:
    """Return the pattern of combining marks in a row; Unicode has them below U+20000."""
    marks = "".join(mark for mark in map(chr, range(0x300, 0x20000)) if unicodedata.combining(mark))
    return re.compile(f"[{marks}]++")


def _long_runs(text: str) -> Iterator[slice]:
    """Yield the positions at which more than `_MOST_MARKS` combining marks are consecutive."""
    end = 0
    for place in range(0, len(text), _MOST_MARKS + 1):  # a long run has a mark at one of these places
        if place < end or not unicodedata.combining(text[place]):
            continue
        start = place
        while start and unicodedata.combining(text[start - 1]):
            start -= 1
        found = _marks().match(text, place)
        end = found.end() if found else place
        if end - start > _MOST_MARKS:
            yield slice(start, end)


def parse_number(text: str) -> float | None:
    """Return the double nearest to a decimal number; None if the text is not a number, or the double is not finite."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if isfinite(number) else None


def parse_integer(text: str) -> int | None:
    """Return the exact value of a 64-bit integer, which may be written as `1e3` or `2.0`; None for other texts."""
    number = parse_number(text)
    if number is None:
        return None
    if abs(number) < EXACT:
        return int(number) if number.is_integer() else None
    exact = Decimal(text.strip())
    whole = int(exact) if exact.adjusted() < 19 else LARGEST_INTEGER + 1
    return whole if whole == exact and SMALLEST_INTEGER <= whole <= LARGEST_INTEGER else None


def parse_boolean(text: str) -> bool | None:
    """Return the boolean for `true`, `false`, `1` or `0` in any case; None for other texts."""
    word = text.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    number = parse_number(word)
    return bool(number) if number in (0.0, 1.0) else None


# --- durations -------------------------------------------------------------------------------------------------------

_DIGITS = r"[0-9]{1,15}(?:\.[0-9]{1,100})?"
_PART = rf"([+-]?{_DIGITS})"
ISO_DURATION = rf"([+-]?)P(?=.)(?:{_PART}W)?(?:{_PART}D)?(?:T(?=.)(?:{_PART}H)?(?:{_PART}M)?(?:{_PART}S)?)?"
_ISO_DURATION = re.compile(ISO_DURATION)
_UNITS = (604_800, 86_400, 3_600, 60, 1)
_HOURS = r"([+-]?)([0-9]{1,15}):([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]{1,100})?)"
_CLOCK = re.compile(_HOURS)
_DAYS = re.compile(rf"([+-]?)([0-9]{{1,15}}) ?days?(?:,? +{_HOURS})?", re.ASCII | re.IGNORECASE)


def to_microseconds(seconds: float) -> int | None:
    """Return a number of seconds as whole microseconds, None beyond `LONGEST_SECONDS`."""
    return round(seconds * MICROSECONDS) if abs(seconds) <= LONGEST_SECONDS else None


def parse_duration(text: str) -> int | None:
    """Return the microseconds of ISO 8601's `P1DT2H30M`, of `1 days 02:03:04`, or of a number of seconds.

    Years and months are not accepted, because their length varies.
    """
    text = text.strip()
    number = parse_number(text)
    if number is not None:
        return to_microseconds(number)
    if len(text) > LONGEST_TEXT:
        return None
    if found := _ISO_DURATION.fullmatch(text):
        sign, *parts = found.groups("0")
        seconds = sum(_exact(part) * unit for part, unit in zip(parts, _UNITS, strict=True))
        return _within(-seconds if sign == "-" else seconds)
    if found := _CLOCK.fullmatch(text):
        return _within(_sum_clock(*found.groups()))
    if found := _DAYS.fullmatch(text):
        sign, days, *clock = found.groups()
        whole = int(sign + days) * 86_400
        return _within(whole + (_sum_clock(*clock) if clock[1] else 0))
    return None


def _sum_clock(sign: str, hours: str, minutes: str, seconds: str) -> Fraction | int:
    clock = int(hours) * 3_600 + int(minutes) * 60 + _exact(seconds)
    return -clock if sign == "-" else clock


def _exact(digits: str) -> Fraction | int:
    return Fraction(digits) if "." in digits else int(digits)


def _within(seconds: Fraction | int) -> int | None:
    return round(seconds * MICROSECONDS) if -LONGEST_SECONDS <= seconds <= LONGEST_SECONDS else None


# --- dates -----------------------------------------------------------------------------------------------------------

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAME = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_DAY_NAME = "mon(?:day)?|tue(?:s(?:day)?)?|wed(?:nesday)?|thu(?:rs(?:day)?)?|fri(?:day)?|sat(?:urday)?|sun(?:day)?"
_ZONE = "(?P<z>Z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)"
_HALF = r"(?P<p>[ap]\.?m\.?)"
_HALF_BEFORE = "(?:(?P<h>오전|오후) ?)?"  # in Korean it comes before the clock time
DIRECTIVES = {  # as in strptime, but in English on every machine
    "Y": "(?P<Y>[0-9]{4})",
    "y": "(?P<y>[0-9]{2})",
    "m": "(?P<m>[0-9]{1,2})",
    "d": "(?P<d>[0-9]{1,2})",
    **dict.fromkeys("bB", f"(?P<b>{_MONTH_NAME})"),
    **dict.fromkeys("aA", f"(?:{_DAY_NAME})"),
    **dict.fromkeys("HI", "(?P<H>[0-9]{1,2})"),
    "M": "(?P<M>[0-9]{1,2})",
    "S": "(?P<S>[0-9]{1,2})",
    "f": "(?P<f>[0-9]+)",
    "p": _HALF,
    "z": _ZONE,
    "%": "%",
}
_NUMERIC = set("YymdHIMSf")
_TOKEN = re.compile(r"%(.)|(\s+)|(.)", re.DOTALL)
_CLOCK_TIME = r"(?P<H>[0-9]{1,2}):(?P<M>[0-9]{2})(?::(?P<S>[0-9]{2})(?:[.,](?P<f>[0-9]+))?)?"
_TIME = rf"(?:[T ] *{_HALF_BEFORE}{_CLOCK_TIME}(?: ?{_HALF})?(?: ?{_ZONE})?)?"
_ISO = re.compile(
    "(?P<Y>[0-9]{4})-(?P<m>[0-9]{2})-(?P<d>[0-9]{2})"
    rf"(?:[T ](?P<H>[0-9]{{2}})(?::(?P<M>[0-9]{{2}})(?::(?P<S>[0-9]{{2}})(?:[.,](?P<f>[0-9]+))?)?)?(?: ?{_ZONE})?)?",
    re.ASCII | re.IGNORECASE,
)
# No text matches two of them with different results. A time may follow each form that ends in a day.
STANDARD_FORMATS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y"),
    *("%Y. %m. %d", "%Y. %m. %d.", "%Y년 %m월 %d일", "%Y년%m월%d일"),
    *("%b %d, %Y", "%b %d %Y", "%d %b %Y", "%d-%b-%Y"),
    *("%Y-%m", "%Y/%m", "%b %Y"),
    *("%Y-%m-%dT%H%M", "%Y-%m-%dT%H%M%S", "%Y%m%dT%H%M", "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%z", "%Y%m%dT%H%M%S%z"),
)
_LAST_CENTURY = 69  # two-digit years from here on mean 19xx, as in POSIX
_ISO_SAMPLES = ("2001-02-03", "2001-02-03T04", "2001-02-03T04:05", "2001-02-03 04:05:06", "2001-02-03 04:05:06.789")


class DateGrammar:
    """The texts that are dates in a column: those in its listed formats, and the standard forms."""

    def __init__(self, formats: Sequence[str] | None = None) -> None:
        """Try `formats`, in this order, before the standard forms; the default is month/day/year.

        Raises:
            ValueError: one is not a date format.
        """
        self.formats = tuple(AMBIGUOUS_FORMATS if formats is None else formats)
        self._listed = tuple(compile_format(form) for form in self.formats)
        self.reads_iso = not any(shape.fullmatch(text) for shape in self._listed for text in _ISO_SAMPLES)
        self.reads_digits = any(shape.fullmatch("1" * length) for shape in self._listed for length in range(1, 30))

    def parse(self, text: str) -> datetime | None:
        """Return the date and time of a text, in UTC without a zone, to the microsecond; None if it is not a date."""
        text = text.strip()
        if len(text) > LONGEST_TEXT:
            return None
        if self.reads_iso:
            if _is_plain_iso(text):  # the usual case: ten times as fast
                with suppress(ValueError):
                    return datetime.fromisoformat(text)
            if found := _ISO.fullmatch(text):
                return _to_moment(found)
        if not text.isascii():
            text = normalize(text)
        if self.reads_digits and text.endswith(".0") and text[:-2].isdecimal():
            text = text[:-2]  # 20240131.0, the form of a number where other cells are not integers
        if listed := [found for shape in self._listed if (found := shape.fullmatch(text))]:
            # A standard form may have day and month in the other order, so it is not tried on texts that look like a
            # listed one.
            return next((moment for moment in map(_to_moment, listed) if moment is not None), None)
        return next((_to_moment(found) for shape in _standard() if (found := shape.fullmatch(text))), None)


def _is_plain_iso(text: str) -> bool:
    """Return True if a text can only be `2024-01-31` or `2024-01-31T10:30:00` to `datetime.fromisoformat`."""
    size = len(text)
    if size == 19 and text[10] in "T " and text[13] == text[16] == ":":
        size = 10
    return size == 10 and text[4] == text[7] == "-"


@cache
def date_grammar(formats: tuple[str, ...] | None = None) -> DateGrammar:
    """Return the grammar of the listed `formats` (cached)."""
    return DateGrammar(formats)


def compile_format(form: str) -> re.Pattern[str]:
    """Return the pattern of a date format in strptime directives; a time may follow a format that has no time.

    Raises:
        ValueError: it has an unknown or a repeated directive, or lacks the year or the month.
    """
    tokens = [(found[1], found[2], found[3]) for found in _TOKEN.finditer(form)]
    named = [directive for directive, _, _ in tokens if directive]
    for directive in named:
        if directive not in DIRECTIVES:
            known = ", ".join(f"%{name}" for name in DIRECTIVES)
            raise ValueError(f'the date format "{form}" has %{directive}: known are {known}')
    groups = [re.sub(r"\W", "", "".join(re.findall(r"\?P<(\w)>", DIRECTIVES[name]))) for name in named]
    directives = {{"y": "Y", "b": "m"}.get(group, group) for group in groups if group}
    if form.endswith("%") and not form.endswith("%%"):
        raise ValueError(f'the date format "{form}" ends in %')
    if len(directives) < len([group for group in groups if group]):
        raise ValueError(f'the date format "{form}" says one part of a date twice')
    if not {"Y", "m"} <= directives:
        raise ValueError(f'the date format "{form}" does not say the year and the month, as "%d/%m/%Y" does')
    parts = []
    for place, (directive, blank, letter) in enumerate(tokens):
        if directive:
            beside = {tokens[i][0] for i in (place - 1, place + 1) if 0 <= i < len(tokens)} & _NUMERIC
            pattern = DIRECTIVES[directive]
            parts.append(pattern.replace("{1,2}", "{2}") if beside else pattern)
        else:
            parts.append(r" +" if blank else re.escape(letter))
    time = _TIME if "d" in directives and "H" not in directives else ""
    return re.compile(normalize("".join(parts)) + time, re.ASCII | re.IGNORECASE)


@cache
def _standard() -> tuple[re.Pattern[str], ...]:
    return tuple(map(compile_format, STANDARD_FORMATS))


def _to_moment(found: re.Match[str]) -> datetime | None:
    part = {name: text for name, text in found.groupdict().items() if text}
    year = int(part["Y"]) if "Y" in part else int(part["y"]) + (1900 if int(part["y"]) >= _LAST_CENTURY else 2000)
    month = int(part["m"]) if "m" in part else _MONTHS.index(part["b"][:3].lower()) + 1
    hour, half = int(part.get("H", 0)), part.get("p", "").lower()
    if "h" in part:
        if half:
            return None
        half = "a" if part["h"] == "오전" else "p"
    if half:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half[0] == "p" else 0)
    fraction = part.get("f", "")[:6].ljust(6, "0")
    try:
        moment = datetime(
            year, month, int(part.get("d", 1)), hour, int(part.get("M", 0)), int(part.get("S", 0)), int(fraction)
        )
        return moment - _offset(part["z"]) if "z" in part else moment
    except (ValueError, OverflowError):
        return None


def _offset(zone: str) -> timedelta:
    """Return the offset from UTC of a zone such as `+09:00`.

    Raises:
        ValueError: there is no such zone.
    """
    if zone[0] not in "+-":
        return timedelta(0)
    hours, minutes = int(zone[1:3]), int(zone[-2:]) if len(zone) > 3 else 0
    if hours > 23 or minutes > 59:
        raise ValueError(zone)
    offset = timedelta(hours=hours, minutes=minutes)
    return -offset if zone[0] == "-" else offset
