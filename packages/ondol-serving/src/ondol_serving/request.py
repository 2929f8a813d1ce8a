"""Parses the body of a request into validated rows, at a cost bounded by the size of the body.

The type of a request is compiled from the contract. Pydantic's own JSON parser creates an error for every unknown key
and copies the row into the error of every missing key: 5 MB of invalid JSON then cost seconds and gigabytes. So the
values are counted before parsing, rows are validated one after another, and validation stops after fifty errors.

Of many rows, whole columns are validated first, which is several times as fast: numbers by numpy, each distinct other
value once. Where that does not accept them, the rows are validated one after another, which names what is wrong.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from operator import itemgetter
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Optional, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictStr,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, from_json, to_json

from ondol_serving.contract import Column, Contract
from ondol_serving.grammar import (
    AMBIGUOUS_FORMATS,
    EXACT,
    LARGEST_INTEGER,
    MICROSECONDS,
    SMALLEST_INTEGER,
    DateGrammar,
    date_grammar,
    normalize,
    parse_duration,
    to_microseconds,
)

LARGEST = 3.4028234e38  # of float32, to which every number is converted
MOST_ERRORS = 50
MANY_ROWS = 16  # from here on, validating columns is faster
NESTED_VALUES = 32  # average limit for the columns of a row that are not read
LONGEST_NAME = 200  # of an unknown field, in an error
LONGEST_MESSAGE = 500
BLOCK = 65_536
# An escape of a character that normalization may change or combine: not one of Latin, Greek, Cyrillic, kana,
# CJK, Hangul syllables, punctuation and emoji.
UNUSUAL_ESCAPE = re.compile(
    rb"\\u(?!0[0-2]|039[1-9a-f]|03[ab]|03c[0-9]|04[1-4]|201|202[0-7]|30[4-8]|309[0-6]|30[a-e]|30f[0-9a]|3[4-9a-f]"
    rb"|[4-9]|a[c-f]|[bc]|d[0-6]|d7[0-9]|d7a[0-3]|d83[c-e]|d[c-f])",
    re.IGNORECASE,
)
QUOTE = ord('"')
STARTS_VALUE = np.isin(np.arange(256), list(b",[{"))  # each value in JSON follows one of these characters

COMPARE = {"ge": np.greater_equal, "le": np.less_equal, "gt": np.greater, "lt": np.less}  # False for NaN
NUMBERS, BOOLEANS = {int, float, type(None)}, {bool, type(None)}
OTHERS = {str, *NUMBERS}  # types in JSON of a date and a duration

Error = dict[str, Any]
REQUEST = "Request"  # the name of the type, in OpenAPI and in errors
EXPLAIN = "explain"  # a field beside `rows`


class Envelope(BaseModel):
    """The request of every model: rows of named values."""

    rows: list[dict[str, Any]] = Field(min_length=1)


def compile_request(contract: Contract, max_rows: int) -> type[BaseModel]:
    """Return the pydantic type of a request: `rows`, at least one and at most `max_rows` of them.

    The fields of a row are `f0`, `f1`, … in the order of the contract's features, with the real names as aliases, so
    that any name works. Columns that the model does not use come last: they are optional and ignored.
    """
    fields: dict[str, Any] = {}
    for i, column in enumerate(contract.features):
        default = None if column.nullable else ...
        fields[f"f{i}"] = (_type_of(column), Field(default, alias=column.name))
    for i, column in enumerate((*contract.ids, *contract.unread)):
        text = "Logged, but not read." if column.role == "id" else f"Not read ({column.role})."
        fields[f"x{i}"] = (Any, Field(None, alias=column.name, description=text))
    # Input is hidden so that logs of the project's own endpoints hold no values.
    config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    row = create_model("Row", __config__=config, **fields)
    rows: Any = (Annotated[list[row], Field(min_length=1, max_length=max_rows)], ...)  # type: ignore[valid-type]
    explain = (StrictBool, Field(False, description="Whether to add what each column contributed."))
    return create_model(REQUEST, __config__=config, rows=rows, explain=explain)


def _type_of(column: Column) -> Any:
    """Return the annotation of one column; strict, so that neither "3" nor true becomes a number."""
    base = _TYPES[column.kind](column)
    if column.kind == "text" and column.nullable:
        return Annotated[Optional[base], BeforeValidator(_blank_to_none)]  # noqa: UP045 - as below
    return Optional[base] if column.nullable else base  # noqa: UP045 - `base` is a value, not a type expression


def _number(column: Column) -> Any:
    # Integers are parsed as floats too: they become float64 anyway, and 3.0 is what pandas writes for 3.
    bounds = number_bounds(column)
    kind: Any = Annotated[float, Field(strict=True, allow_inf_nan=False, **bounds)]
    if column.kind == "integer":
        kind = Annotated[kind, BeforeValidator(_check_whole)]  # `multiple_of` would let 1000000000.5 pass
    schema = {"type": column.kind, **_bounds_schema(bounds)}
    if column.categories is None:
        return Annotated[kind, WithJsonSchema(schema)]
    inside = _inside({float(c) for c in column.categories}, column.categories)
    enum = {"type": column.kind, "enum": list(column.categories)}
    return Annotated[kind, AfterValidator(inside), WithJsonSchema(enum)]


def number_bounds(column: Column) -> dict[str, Any]:
    """Return the bounds of a number: those of the contract, and those of float32 once it is encoded."""
    rule = column.encoding
    offset, reach = rule.get("offset") or 0.0, LARGEST * (rule.get("scale") or 1.0)
    return {"ge": offset - reach, "le": offset + reach} | column.bounds


def _bounds_schema(bounds: dict[str, float]) -> dict[str, float]:
    names = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
    return {names[short]: bound for short, bound in bounds.items()}


def _boolean(column: Column) -> Any:
    if column.categories is None:
        return StrictBool
    inside = _inside(set(column.categories), tuple(json.dumps(c) for c in column.categories))
    enum = {"type": "boolean", "enum": list(column.categories)}
    return Annotated[StrictBool, AfterValidator(inside), WithJsonSchema(enum)]


def _text(column: Column) -> Any:
    if column.categories is not None:
        return Literal[column.categories]
    # A blank text means a missing value, which only a nullable column may have.
    filled: Any = Field(min_length=1, json_schema_extra={"pattern": r"\S"})
    return StrictStr if column.nullable else Annotated[StrictStr, filled, AfterValidator(_refuse_blank)]


def _refuse_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("Input should be a text that is not blank")
    return text


def _blank_to_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def _check_whole(value: Any) -> Any:
    """Refuse fractions and integers beyond 64 bits; values that are not numbers are refused afterwards."""
    if isinstance(value, float) and not value.is_integer():
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    if isinstance(value, int | float) and not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        raise PydanticCustomError("int_type", "Input should be an integer of 64 bits")
    return value


def _inside(allowed: set[Any], names: tuple[Any, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"Input should be one of {', '.join(map(str, names))}")
        return value

    return check


def date_type(bounds: dict[str, float], grammar: DateGrammar) -> Any:
    """Return the annotation of a date within `bounds` (seconds since 1970, UTC)."""
    # Pydantic compares and reports datetimes.
    moments: dict[str, Any] = {k: datetime.fromtimestamp(v, UTC).replace(tzinfo=None) for k, v in bounds.items()}
    schema = WithJsonSchema({"type": "string", "format": "date-time"})

    forms = " or ".join(("in ISO 8601", *grammar.formats)) if grammar.formats != AMBIGUOUS_FORMATS else "in ISO 8601"
    expected = f"Input should be a date or a date and time {forms}"

    def parse(value: Any) -> datetime:
        if not isinstance(value, str):
            number = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
            if not (number and grammar.reads_digits):  # 20240131, if its format is listed
                raise ValueError(f"{expected}, as text")
            value = str(int(value))
        moment = grammar.parse(value)
        if moment is None:
            raise ValueError(expected)
        return moment

    return Annotated[datetime, PlainValidator(parse), Field(**moments), schema]


def duration_type(bounds: dict[str, float], shown: dict[str, float]) -> Any:
    """Return the annotation of a duration (in seconds) within `bounds`; `shown` are the bounds in JSON Schema."""
    schema = {
        "anyOf": [{"type": "string", "format": "duration"}, {"type": "number", **shown}],
        "description": "An ISO 8601 duration of weeks to seconds, such as P1DT2H30M, or a number of seconds.",
    }
    limits: dict[str, Any] = dict(bounds)
    kind: Any = Annotated[float, PlainValidator(_parse_duration), Field(**limits)]
    return Annotated[kind, WithJsonSchema(schema)]


def _parse_duration(value: Any) -> float:
    """Convert a text or a number of seconds to seconds, to the microsecond."""
    micros = None
    if isinstance(value, str):
        micros = parse_duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        micros = to_microseconds(value)
    if micros is None:
        raise ValueError("Input should be a duration in ISO 8601, of weeks to seconds, or a number of seconds")
    return micros / MICROSECONDS


_TYPES: dict[str, Callable[[Column], Any]] = {
    "number": _number,
    "integer": _number,
    "boolean": _boolean,
    "text": _text,
    "date": lambda column: date_type(column.bounds, date_grammar(column.formats)),
    "duration": lambda column: duration_type(column.bounds, _bounds_schema(column.bounds)),
}


class ColumnRule:
    """Validates many values of one column together, by the rules of its type in a request."""

    def __init__(self, column: Column) -> None:
        """Compile the rules of `column`."""
        self.column = column
        self.validate = TypeAdapter(_type_of(column)).validator.validate_python
        self._is_number = column.kind in ("number", "integer")
        bounds = number_bounds(column) if self._is_number else column.bounds
        self._bounds = [(COMPARE[name], bound) for name, bound in bounds.items()]
        self._types = NUMBERS if self._is_number else BOOLEANS if column.kind == "boolean" else None

    def accept(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the valid values of a column in JSON.

        Raises:
            ValueError, OverflowError, TypeError: one is not valid, or only validating each by itself can tell.
        """
        if self.column.kind != "text":  # 1 and true would be one distinct value
            types = set(map(type, values))
            if not types <= (self._types or OTHERS):
                raise ValueError
            if self._is_number:
                self._accept_numbers(values, type(None) in types)
                return values
        valid = {value: self.validate(value) for value in set(values)}
        return values if all(old is new for old, new in valid.items()) else tuple(map(valid.__getitem__, values))

    def _accept_numbers(self, values: tuple[Any, ...], missing: bool) -> None:
        numbers = np.array(values, np.float64)
        if missing:
            present = ~np.isnan(numbers)
            numbers = numbers[present]
            if not self.column.nullable or len(numbers) + values.count(None) < len(values):  # NaN is not valid
                raise ValueError
        self.require_numbers(numbers)

    def require_numbers(self, numbers: NDArray[np.float64]) -> None:
        """Check numbers that are not missing.

        Raises:
            ValueError: one is not valid, or is an integer that float64 cannot represent exactly.
        """
        self.require_bounds(numbers)
        valid = True
        if self.column.kind == "integer":
            valid = bool((np.abs(numbers) < EXACT).all() and (np.floor(numbers) == numbers).all())
        if valid and self.column.categories is not None:
            valid = bool(np.isin(numbers, np.array(self.column.categories, np.float64)).all())
        if not valid:
            raise ValueError

    def require_bounds(self, numbers: NDArray[np.float64]) -> None:
        """Check that numbers are within the bounds of the column.

        Raises:
            ValueError: one is not.
        """
        if not all(compare(numbers, bound).all() for compare, bound in self._bounds):
            raise ValueError


class Read(NamedTuple):
    """A valid request.

    Attributes:
        rows: The features of each row, in the order of the contract.
        keys: The number of fields of the request, including `rows`.
        unread: Whether a row holds a column that is neither a feature nor an id.
        body: The body, with names and texts in Unicode's normal form C, and nothing beside `rows`.
        explain: Whether an explanation is wanted.
    """

    rows: list[tuple[Any, ...]]
    keys: int
    unread: bool
    body: bytes
    explain: bool


class Reader:
    """Reads the requests of one contract."""

    def __init__(self, contract: Contract, request_type: type[BaseModel], max_rows: int) -> None:
        """Prepare for requests of `request_type`, in whose rows the features come first."""
        self.max_rows = max_rows
        self._width = len(contract.features)
        self.logged = frozenset(c.name for c in (*contract.features, *contract.ids))
        self.allowed = self.logged | {c.name for c in contract.unread}
        self.normalizes = all(normalize(text) == text for text in _texts(contract))
        self._integers = frozenset(c.name for c in contract.features if c.kind == "integer")
        row_type: type[BaseModel] = get_args(request_type.model_fields["rows"].annotation)[0]
        self.rules = tuple(ColumnRule(column) for column in contract.features)
        self._validate = row_type.__pydantic_validator__.validate_python
        nested = NESTED_VALUES if len(self.allowed) > self._width else 0
        self.max_values = 64 + max_rows * (len(self.allowed) + 1 + nested)

    def read(self, body: bytes) -> Read:
        """Return the rows of a request.

        Raises:
            pydantic.ValidationError: the body does not match the contract.
        """
        rows, normal, explain = self._parse(body)
        if len(rows) >= MANY_ROWS and (found := self._read_columns(rows)) is not None:
            return Read(*found, normal, explain)
        made: list[tuple[Any, ...]] = []
        keys, unread = 1, False
        try:
            for row in rows:
                if not row.keys() <= self.logged:
                    unread = True
                    if not row.keys() <= self.allowed:
                        self._refuse(rows, len(made))
                made.append(tuple(self._validate(row).__dict__.values())[: self._width])
                keys += len(row)
        except (ValidationError, AttributeError):  # of a row that is not an object
            self._refuse(rows, len(made))
        return Read(made, keys, unread, normal, explain)

    def _read_columns(self, rows: list[Any]) -> tuple[list[tuple[Any, ...]], int, bool] | None:
        """Return what `read` returns, except the body; None if the rows have to be validated one after another."""
        first = rows[0]
        if set(map(type, rows)) != {dict} or set(map(len, rows)) != {len(first)} or not first.keys() <= self.allowed:
            return None
        if len(first) == 1:  # of one name, `itemgetter` returns the value itself
            return None
        try:
            columns = dict(zip(first, zip(*map(itemgetter(*first), rows), strict=True), strict=True))
            absent = (None,) * len(rows)
            made = [rule.accept(columns.get(rule.column.name, absent)) for rule in self.rules]
        except (KeyError, OverflowError, TypeError, ValueError):
            return None
        return list(zip(*made, strict=True)), 1 + len(first) * len(rows), not first.keys() <= self.logged

    def _parse(self, body: bytes) -> tuple[list[Any], bytes, bool]:
        """Return the unvalidated rows (from one to `max_rows`), the body of them in normal form, and `explain`."""
        if len(body) > self.max_values and count_values(body, self.max_values) > self.max_values:
            message = f"{self._at_most()}, and no more than {self.max_values} values in all"
            raise _error([_describe("too_long", ("rows",), message)])
        try:
            request = from_json(body)
        except ValueError as error:
            raise _error([_describe("json_invalid", (), f"Invalid JSON: {error}")]) from None
        if self.normalizes and not _is_normal(body):
            request = _normalize(request)
            body = to_json(request, inf_nan_mode="constants")
        if type(request) is not dict:
            raise _error([_describe("model_type", (), 'Input should be an object, {"rows": [{…}, …]}')])
        explain = False
        if EXPLAIN in request:
            explain = request.pop(EXPLAIN)
            body = to_json(request, inf_nan_mode="constants")
        found = list(islice(_unknown(request, frozenset({"rows"}), ()), MOST_ERRORS - 2))
        if type(explain) is not bool:
            found.append(_describe("bool_type", (EXPLAIN,), "Input should be a valid boolean"))
        if "rows" not in request:
            raise _error([_describe("missing", ("rows",), "Field required"), *found])
        if found:
            raise _error(found)
        rows = request["rows"]
        if type(rows) is not list:
            raise _error([_describe("list_type", ("rows",), "Input should be a valid array")])
        self.require_length(len(rows))
        return rows, body, explain

    def require_length(self, rows: int) -> None:
        """Check the number of rows.

        Raises:
            pydantic.ValidationError: there is none, or there are too many.
        """
        if not rows:
            raise _error([_describe("too_short", ("rows",), "A request holds at least one row")])
        if rows > self.max_rows:
            raise _error([_describe("too_long", ("rows",), self._at_most())])

    def _at_most(self) -> str:
        return f"A request may hold at most {self.max_rows} rows (max_rows)"

    def _refuse(self, rows: list[Any], first: int) -> NoReturn:
        """Raise the first fifty errors, starting at row `first`."""
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
            self._validate({name: row[name] for name in row.keys() & self.allowed})
        except ValidationError as error:
            for one in error.errors(include_url=False, include_context=False, include_input=False):
                place, kind, message = one["loc"], one["type"], one["msg"].removeprefix("Value error, ")
                if kind == "float_type" and place and place[-1] in self._integers:
                    kind, message = "int_type", "Input should be a valid integer"
                yield _describe(kind, ("rows", number, *place), message)
        yield from _unknown(row, self.allowed, ("rows", number))


def _texts(contract: Contract) -> Iterator[str]:
    """Yield the names and texts of a contract; bundles of earlier versions have them as in the data."""
    for column in contract.columns:
        texts = (*(column.categories or ()), *(column.encoding.get("known") or ()))
        yield from (text for text in (column.name, *texts) if isinstance(text, str))


def _is_normal(body: bytes) -> bool:
    """Return True if all texts of a body are certainly in normal form C, as in nearly all requests."""
    if body.isascii():
        return not UNUSUAL_ESCAPE.search(body)
    # A mark after an escaped letter belongs to that letter, not to the character before it.
    return b"\\" not in body and unicodedata.is_normalized("NFC", body.decode())


def _normalize(value: Any) -> Any:
    if isinstance(value, str):
        return normalize(value)
    if isinstance(value, list):
        return [_normalize(one) for one in value]
    return {normalize(name): _normalize(one) for name, one in value.items()} if isinstance(value, dict) else value


def count_bytes(body: bytes, wanted: bytes) -> int:
    """Return how many bytes of a body are one of `wanted`; in a long body, numpy counts them five times as fast."""
    if len(body) < BLOCK:
        return sum([body.count(byte) for byte in wanted])
    view = np.frombuffer(body, np.uint8)
    return sum([int(np.count_nonzero(view == byte)) for byte in wanted])


def count_values(body: bytes, limit: int) -> int:
    """Count the values of a JSON text, as a lower bound; stop in the block that exceeds `limit`."""
    rough = count_bytes(body, b",[{")
    if rough <= limit:
        return rough
    if b"\\" in body:  # an escaped quote does not end a text; in JSON, backslashes occur only in texts
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
    """Shorten a text to at most that many characters and a sign that some are left out."""
    return text if len(text) <= length else f"{text[:length]}…"
