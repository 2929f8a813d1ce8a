"""From the body of a request to validated rows, at a cost that the size of the body bounds.

Pydantic's own reading of JSON makes an error of every unknown key and copies the row into the error of every missing
one: 5 MB of invalid JSON then cost seconds and gigabytes. So the values are counted before any is read, rows are
validated one after another, and an invalid request ends at its first fifty errors.
"""

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, NoReturn, get_args

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, from_json, to_json

from ondol_serving.contract import Contract
from ondol_serving.grammar import normalize

MOST_ERRORS = 50
NESTED_VALUES = 32  # that the columns of a row may hold which are not read, on average
LONGEST_NAME = 200  # of an unknown field, in an error
LONGEST_MESSAGE = 500
BLOCK = 65_536
# An escape of a character that may be changed by normalization, or change another: not of Latin, Greek, Cyrillic, kana,
# CJK, Hangul syllables, punctuation and emoji.
UNUSUAL_ESCAPE = re.compile(
    rb"\\u(?!0[0-2]|039[1-9a-f]|03[ab]|03c[0-9]|04[1-4]|201|202[0-7]|30[4-8]|309[0-6]|30[a-e]|30f[0-9a]|3[4-9a-f]"
    rb"|[4-9]|a[c-f]|[bc]|d[0-6]|d7[0-9]|d7a[0-3]|d83[c-e]|d[c-f])",
    re.IGNORECASE,
)
QUOTE = ord('"')
STARTS_VALUE = np.isin(np.arange(256), list(b",[{"))  # each value of a JSON text follows one of these

Error = dict[str, Any]


class Read(NamedTuple):
    """A valid request.

    Attributes:
        rows: The features of each row, in the order of the contract.
        keys: How many fields the request has, `rows` among them.
        unread: Whether a row holds a column that is neither a feature nor an id.
        body: The body, its names and texts in Unicode's normal form C.
    """

    rows: list[tuple[Any, ...]]
    keys: int
    unread: bool
    body: bytes


class Reader:
    """Reads the requests of one contract."""

    def __init__(self, contract: Contract, request_type: type[BaseModel], max_rows: int) -> None:
        """Prepare for requests of `request_type`, in whose rows the features come first."""
        self.max_rows = max_rows
        self._width = len(contract.features)
        self._logged = frozenset(c.name for c in (*contract.features, *contract.ids))
        self._known = self._logged | {c.name for c in contract.unread}
        self._normalizes = all(normalize(text) == text for text in _texts(contract))
        self._integers = frozenset(c.name for c in contract.features if c.kind == "integer")
        row_type: type[BaseModel] = get_args(request_type.model_fields["rows"].annotation)[0]
        self._validate = row_type.__pydantic_validator__.validate_python
        nested = NESTED_VALUES if len(self._known) > self._width else 0
        self.max_values = 64 + max_rows * (len(self._known) + 1 + nested)

    def read(self, body: bytes) -> Read:
        """Return the rows of a request.

        Raises:
            pydantic.ValidationError: the body is not of the contract's type.
        """
        rows, normal = self._parse(body)
        made: list[tuple[Any, ...]] = []
        keys, unread = 1, False
        try:
            for row in rows:
                if not row.keys() <= self._logged:
                    unread = True
                    if not row.keys() <= self._known:
                        self._refuse(rows, len(made))
                made.append(tuple(self._validate(row).__dict__.values())[: self._width])
                keys += len(row)
        except (ValidationError, AttributeError):  # of a row that is no object
            self._refuse(rows, len(made))
        return Read(made, keys, unread, normal)

    def _parse(self, body: bytes) -> tuple[list[Any], bytes]:
        """Return the unvalidated rows, at least one and at most `max_rows`, and the body in normal form."""
        if len(body) > self.max_values and count_values(body, self.max_values) > self.max_values:
            message = f"{self._at_most()}, and no more than {self.max_values} values in all"
            raise _error([_describe("too_long", ("rows",), message)])
        try:
            request = from_json(body)
        except ValueError as error:
            raise _error([_describe("json_invalid", (), f"Invalid JSON: {error}")]) from None
        if self._normalizes and not _is_normal(body):
            request = _normalize(request)
            body = to_json(request, inf_nan_mode="constants")
        if type(request) is not dict:
            raise _error([_describe("model_type", (), 'Input should be an object, {"rows": [{…}, …]}')])
        found = list(islice(_unknown(request, frozenset({"rows"}), ()), MOST_ERRORS - 1))
        if "rows" not in request:
            raise _error([_describe("missing", ("rows",), "Field required"), *found])
        if found:
            raise _error(found)
        rows = request["rows"]
        if type(rows) is not list:
            raise _error([_describe("list_type", ("rows",), "Input should be a valid array")])
        if not rows:
            raise _error([_describe("too_short", ("rows",), "A request holds at least one row")])
        if len(rows) > self.max_rows:
            raise _error([_describe("too_long", ("rows",), self._at_most())])
        return rows, body

    def _at_most(self) -> str:
        return f"A request may hold at most {self.max_rows} rows (max_rows)"

    def _refuse(self, rows: list[Any], first: int) -> NoReturn:
        """Raise the first fifty errors of the rows from `first` on."""
        found: list[Error] = []
        for number in range(first, len(rows)):
            found += islice(self._errors(number, rows[number]), MOST_ERRORS - len(found))
            if len(found) == MOST_ERRORS:
                break
        raise _error(found)

    def _errors(self, number: int, row: Any) -> Iterator[Error]:
        """Yield the errors of a row: its wrong and missing fields, then its unknown ones."""
        if type(row) is not dict:
            yield _describe("model_type", ("rows", number), "Input should be an object")
            return
        try:
            self._validate({name: row[name] for name in row.keys() & self._known})
        except ValidationError as error:
            for one in error.errors(include_url=False, include_context=False, include_input=False):
                place, kind, message = one["loc"], one["type"], one["msg"].removeprefix("Value error, ")
                if kind == "float_type" and place and place[-1] in self._integers:
                    kind, message = "int_type", "Input should be a valid integer"
                yield _describe(kind, ("rows", number, *place), message)
        yield from _unknown(row, self._known, ("rows", number))


def _texts(contract: Contract) -> Iterator[str]:
    """Yield the names and texts of a contract; bundles of earlier versions hold them as the data had them."""
    for column in contract.columns:
        texts = (*(column.categories or ()), *(column.encoding.get("known") or ()))
        yield from (text for text in (column.name, *texts) if isinstance(text, str))


def _is_normal(body: bytes) -> bool:
    """Return True if all texts of a body certainly are in normal form C, as those of nearly all bodies."""
    if body.isascii():
        return not UNUSUAL_ESCAPE.search(body)
    # A mark behind an escaped letter belongs to another letter than it seems to.
    return b"\\" not in body and unicodedata.is_normalized("NFC", body.decode())


def _normalize(value: Any) -> Any:
    if isinstance(value, str):
        return normalize(value)
    if isinstance(value, list):
        return [_normalize(one) for one in value]
    return {normalize(name): _normalize(one) for name, one in value.items()} if isinstance(value, dict) else value


def count_values(body: bytes, limit: int) -> int:
    """Return at least how many values a JSON text holds, but no more than one block counted over `limit`."""
    rough = body.count(b",") + body.count(b"[") + body.count(b"{")
    if rough <= limit:
        return rough
    if b"\\" in body:  # escaped quotes end no text; in JSON a backslash is nowhere else than in a text
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    found, inside = 0, 0
    for start in range(0, len(body), BLOCK):
        block = np.frombuffer(body, np.uint8, min(BLOCK, len(body) - start), start)
        texts = np.bitwise_xor.accumulate((block == QUOTE).view(np.uint8)) ^ inside  # 1 from a text's first quote on
        found += int(np.count_nonzero(STARTS_VALUE[block] & (texts == 0)))
        inside = int(texts[-1])
        if found > limit:
            break
    return found


def _unknown(given: dict[str, Any], known: frozenset[str], place: tuple[Any, ...]) -> Iterator[Error]:
    for name in given:
        if name not in known:
            yield _describe("extra_forbidden", (*place, shorten(name, LONGEST_NAME)), "The model has no such field")


def _describe(kind: str, place: tuple[Any, ...], message: str) -> Error:
    return {"type": kind, "loc": place, "msg": shorten(message, LONGEST_MESSAGE)}


def _error(found: list[Error]) -> ValidationError:
    details = [InitErrorDetails(type=PydanticCustomError(e["type"], e["msg"]), loc=e["loc"], input=None) for e in found]
    return ValidationError.from_exception_data("Request", details)


def shorten(text: str, length: int) -> str:
    """Return a text of at most that many characters and a sign that some are left out."""
    return text if len(text) <= length else f"{text[:length]}…"
