"""JSON as text and as values: by orjson, which is several times quicker than `json`, but exactly as by that."""

import json
import re
from math import isfinite
from typing import Any

import orjson

from ondol.ingestion.files import check_names

LARGEST = float(2**63)  # orjson makes a float of an integer that is much longer
NAME_END = re.compile(r'"[ \t\r\n]*:')


def parse(text: str | bytes, uri: str) -> Any:
    """Return the JSON value in `text`.

    Raises:
        UserError: an object has one name twice.
        ValueError: it is no JSON.
    """
    try:
        value = orjson.loads(text)
        if _has_names(text if isinstance(text, str) else text.decode(), _count_names(value)):
            return value
    except (ValueError, RecursionError):  # also of what `json` alone takes: NaN, half a \\u pair
        pass
    return _parse_exactly(text, uri)


def write(value: Any) -> bytes:
    """Return a JSON-able value as JSON, from which `parse` makes the same again."""
    try:
        text = orjson.dumps(value)
    except TypeError:  # of what `json` alone writes: integers beyond 64 bits, half a \\u pair
        return json.dumps(value).encode()
    return text if b"null" not in text or _is_finite(value) else json.dumps(value).encode()


def _has_names(text: str, count: int) -> bool:
    """Tell whether the objects in `text` certainly have `count` names; more are there where one comes twice.

    What ends a name may stand in a string too, behind an escaped quote: such a text is not certain.
    """
    if not any(blank in text for blank in (" :", "\t:", "\r:", "\n:")):
        return text.count('":') == count
    return len(NAME_END.findall(text)) == count


def _parse_exactly(text: str | bytes, uri: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            check_names([name for name, _ in pairs], uri)
        return made

    try:
        return json.loads(text, object_pairs_hook=build)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _count_names(value: Any) -> int:
    """Return how many names the objects in `value` have.

    Raises:
        ValueError: a number in it may have been an integer.
    """
    names, inside = 0, value
    if isinstance(value, dict):
        names, inside = len(value), value.values()
    elif not isinstance(value, list):
        inside = (value,)
    for one in inside:
        kind = type(one)
        if kind is dict or kind is list:
            names += _count_names(one)
        elif kind is float and not -LARGEST < one < LARGEST:
            raise ValueError("rounded")
    return names


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or isfinite(value)
