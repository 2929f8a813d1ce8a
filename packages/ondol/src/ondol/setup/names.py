"""Python names for any column name, and literals as `ruff format` would write them."""

import keyword
import re
import unicodedata
from collections.abc import Iterable, Sequence

from ondol.contract import reserved_names

LONGEST = 40
# Names that annotations in the class refer to, and names that linters call ambiguous.
TAKEN = {"str", "int", "float", "bool", "pd", "pa", "Schema", "Config", "l", "O", "I"}


def make_attributes(names: Sequence[str], besides: Iterable[str] = ()) -> dict[str, str]:
    """Return an attribute for each column: an identifier close to the name, unique, shadowing nothing.

    Args:
        names: The columns.
        besides: What the class defines already.
    """
    taken = TAKEN | reserved_names() | set(besides)
    attributes: dict[str, str] = {}
    exact_first = sorted(names, key=lambda name: _identify(name) != name)
    for name in exact_first:
        attributes[name] = _free(_identify(name), taken)
        taken.add(attributes[name])
    return {name: attributes[name] for name in names}


def _identify(name: str) -> str:
    """Return the nearest identifier, which may be a keyword or taken."""
    letters = unicodedata.normalize("NFKC", name)
    kept = "".join(letter if _is_plain(letter) or letter == "_" else "_" for letter in letters)
    stem = re.sub(r"__+", "_", kept) if kept != name else kept
    stem = stem.strip("_") if kept != name else stem.lstrip("_")
    if not stem or not stem.isidentifier():
        stem = f"column_{stem}".rstrip("_")
    return stem[:LONGEST]


def _is_plain(letter: str) -> bool:
    """Tell whether a letter may stand in an identifier and looks the same everywhere."""
    stable = unicodedata.normalize("NFKC", letter) == letter
    return (letter.isascii() and letter.isalnum()) or (stable and unicodedata.category(letter) in {"Lu", "Ll", "Lo"})


def _free(stem: str, taken: set[str]) -> str:
    free = f"{stem}_" if keyword.iskeyword(stem) or (stem in taken and not stem.endswith("_")) else stem
    number = 2
    while free in taken or keyword.iskeyword(free):
        free = f"{stem.rstrip('_')}_{number}"
        number += 1
    return free


def quote(text: str) -> str:
    """Return `text` as the string literal that `ruff format` leaves alone; unusual letters are escaped."""
    mark = "'" if text.count('"') > text.count("'") else '"'
    return mark + "".join(_escape(letter, mark) for letter in text) + mark


def literal(value: object) -> str:
    """Return a category (text, number or truth value) as a literal."""
    return quote(value) if isinstance(value, str) else repr(value)


def readable(text: str) -> str:
    """Return `text` with unusual letters escaped and on one line, for a comment."""
    return "".join(_escape(letter, "") for letter in text)


def measure(text: str) -> int:
    """Return the width of `text` in columns, as ruff counts it."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _escape(letter: str, mark: str) -> str:
    if letter == mark or (letter == "\\" and mark):
        return f"\\{letter}"
    if " " <= letter <= "~" or _is_common(letter):
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def _is_common(letter: str) -> bool:
    """Tell whether a letter beyond ASCII is safe to show: Latin, Korean, Chinese or Japanese."""
    return (
        ("\u00c0" <= letter <= "\u017e" and letter.isalpha())
        or "가" <= letter <= "힣"
        or "一" <= letter <= "鿿"
        or ("ァ" <= letter <= "ヺ" or "ぁ" <= letter <= "ゖ")
    )
