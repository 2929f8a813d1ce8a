"""Tables as streams of Arrow's IPC format in `/predict`, for requests of thousands of rows.

Columns are validated, encoded and answered as numpy arrays. A table that this does not accept becomes the rows of a
request in JSON. So its errors, and all rare cases, are those of JSON. https://arrow.apache.org/docs/format/Columnar.html
"""

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from itertools import count
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from ondol_serving import ipc
from ondol_serving.bundle import Bundle
from ondol_serving.contract import Column
from ondol_serving.errors import RequestRefused, RowsRefused
from ondol_serving.grammar import EXACT, LONGEST_SECONDS, MICROSECONDS, date_grammar, normalize
from ondol_serving.ipc import Batch, Field, InvalidStream, read_messages
from ondol_serving.log import Answered, prediction_log
from ondol_serving.metrics import counters
from ondol_serving.names import label_key
from ondol_serving.request import MOST_ERRORS, ColumnRule

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
AVAILABLE = find_spec("nanoarrow") is not None
MISSING_EXTRA = (
    "This service does not read Arrow: run `uv add --group service 'ondol-serving[arrow]'`, and build a new image"
)
LONGEST_WORD = 64  # bytes: longer texts are compared one after another
MIXERS = np.random.default_rng(0).integers(2**62, 2**63, LONGEST_WORD // 8 + 1, dtype=np.uint64) * 2 + 1
BUCKETS = 14  # bits of a hash
FEW = 64  # texts, as in a dictionary, are found faster one after another
DAY_MICROSECONDS = 86_400 * MICROSECONDS
FIRST_MOMENT, LAST_MOMENT = (
    int(np.datetime64(day, "us").astype(np.int64)) for day in ("0001-01-01", "9999-12-31T23:59:59.999999")
)
EXPLAINED_IN_JSON = 'An answer in Arrow has no explanation: leave out "explain", or accept application/json'
Kind = Literal["number", "boolean", "text", "date", "duration", "missing"]


class Values(NamedTuple):
    """One column of a table.

    Attributes:
        kind: What the values are.
        values: [N] numbers, booleans, places in `texts`, microseconds since 1970 (dates) or seconds (durations).
        missing: [N] whether a value is missing; None if none is.
        texts: The distinct texts.
    """

    kind: Kind
    values: NDArray[Any]
    missing: NDArray[np.bool_] | None = None
    texts: tuple[str, ...] = ()

    def write_fields(self, name: str) -> list[str]:
        """Return the field of each row in JSON."""
        key = f"{to_json(name).decode()}:"
        if self.kind in ("text", "boolean"):
            texts = self.texts if self.kind == "text" else (False, True)
            codes = self.values.astype(np.intp)
            if self.missing is not None:
                codes[self.missing] = len(texts)
            return list(np.array([f"{key}{to_json(one).decode()}" for one in (*texts, None)], object)[codes].tolist())
        values: NDArray[Any] = self.values
        if self.kind == "date":
            whole = not (values % MICROSECONDS).any()
            values = np.datetime_as_string(values.astype("M8[us]"), unit="s" if whole else "us").astype(object)
        if self.missing is not None:
            values = values.astype(object)
            values[self.missing] = None
        return [f"{key}{value}" for value in to_json(values.tolist())[1:-1].decode().split(",")]


class Table(NamedTuple):
    """The columns of a request by name; `rows` is their length."""

    rows: int
    columns: dict[str, Values]

    def to_json(self) -> bytes:
        """Return the table as the body of a request in JSON."""
        if not self.columns:
            return to_json({"rows": [{}] * self.rows})
        return b'{"rows":%b}' % write_objects([values.write_fields(name) for name, values in self.columns.items()])


def write_objects(columns: list[list[str]]) -> bytes:
    """Return an array of objects in JSON, of the fields of each column: twice as fast as by objects of Python."""
    return f"[{{{'},{'.join(map(','.join, zip(*columns, strict=True)))}}}]".encode()


class Encoded(NamedTuple):
    """A valid request: the tensors of its rows, and what is counted and logged of them."""

    rows: int
    tensors: dict[str, NDArray[Any]]
    unknown: dict[str, int]  # values never seen in training, by column
    keys: int  # of the body
    unread: bool  # whether the body has columns that are neither read nor logged
    write_body: Callable[[], bytes]  # returns the body in JSON


def find_tables(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bool, bool]:
    """Return whether the body of a request is a table, and whether its answer is to be one.

    Raises:
        RequestRefused: one is, and the extra is not installed.
    """
    given = accepted = b""
    for name, value in headers:
        if name == b"content-type":
            given = value
        elif name == b"accept":
            accepted = value.lower()
    is_table = b"arrow" in given.lower()  # `Application` accepts no other type of Arrow
    wants_table = MEDIA_TYPE.encode() in accepted or (is_table and b"application/json" not in accepted)
    if (is_table or wants_table) and not AVAILABLE:
        raise RequestRefused(415, "unsupported_media_type", MISSING_EXTRA)
    return is_table, wants_table


def refuse_explanation(explain: bool) -> None:
    """Check that a request whose answer is a table wants no explanation.

    Raises:
        RequestRefused: it does.
    """
    if explain:
        raise RequestRefused(400, "explanation_in_json", EXPLAINED_IN_JSON)


def to_json_body(bundle: Bundle, body: bytes) -> bytes:
    """Return a table as the body of a request in JSON.

    Raises:
        RequestRefused: it is not one.
    """
    return read_table(bundle, body).to_json()


def predict_table(bundle: Bundle, body: bytes, is_table: bool, request_id: str) -> bytes:
    """Return the answer to a request as a table, after it has been counted and logged.

    Args:
        bundle: The model that validates and predicts.
        body: Of the request.
        is_table: Whether it is a table; else it is JSON.
        request_id: Of the answer.

    Raises:
        RequestRefused: the body does not match the contract.
    """
    arrived = time.perf_counter()
    encoded = encode_table(bundle, body) if is_table else encode_rows(bundle, body)
    labels, probabilities = bundle.runtime.run(encoded.tensors)
    counters().add(bundle.version, encoded.rows, encoded.unknown)
    answer = write_answer(bundle, labels, probabilities, request_id)
    if bundle.recorder.rules.enabled:
        predictions = write_predictions(bundle, labels, probabilities)
        ms = (time.perf_counter() - arrived) * 1000
        record = Answered(request_id, ms, encoded.write_body(), encoded.keys, predictions, encoded.unread)
        prediction_log.append(bundle.recorder, [record])
    return answer


def write_predictions(bundle: Bundle, labels: NDArray[Any], probabilities: NDArray[Any] | None) -> bytes:
    """Return the predictions in JSON, as in an answer in JSON."""
    if probabilities is None:
        return write_objects([_read_floats(labels).write_fields("value")])
    classes = bundle.contract.classes or ()
    texts = np.array([f'"label":{to_json(one).decode()},"probabilities":{{' for one in (*classes, None)], object)
    valid = np.isfinite(probabilities).all(axis=1)
    heads = texts[np.where(valid, labels, len(classes)).astype(np.intp)].tolist()
    names = bundle.class_names or ()
    columns = [_read_floats(probabilities[:, place]).write_fields(name) for place, name in enumerate(names)]
    columns[0] = [f"{head}{field}" for head, field in zip(heads, columns[0], strict=True)]
    columns[-1] = [f"{field}}}" for field in columns[-1]]
    return write_objects(columns)


def _read_floats(numbers: NDArray[Any]) -> Values:
    valid = np.isfinite(numbers)
    return Values("number", numbers, None if valid.all() else ~valid)


def encode_rows(bundle: Bundle, body: bytes) -> Encoded:
    """Validate and encode a request in JSON.

    Raises:
        RequestRefused: it does not match the contract.
    """
    try:
        read = bundle.read(body)
    except ValidationError as error:
        raise RowsRefused(error) from None
    refuse_explanation(read.explain)
    tensors, unknown = bundle.encoder.encode(read.rows), bundle.count_unknown(read.rows)
    return Encoded(len(read.rows), tensors, unknown, read.keys, read.unread, lambda: read.body)


def encode_table(bundle: Bundle, body: bytes) -> Encoded:
    """Validate and encode a table.

    Raises:
        RequestRefused: it is not one, or does not match the contract.
    """
    table = read_table(bundle, body)
    try:
        tensors, unknown = encode_columns(bundle, table)
    except (KeyError, OverflowError, ValueError):
        return encode_rows(bundle, table.to_json())
    return Encoded(table.rows, tensors, unknown, 1 + table.rows * len(table.columns), False, table.to_json)


def encode_columns(bundle: Bundle, table: Table) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """Validate the columns of a table, and return the tensors, and the number of values never seen in training.

    Raises:
        KeyError, OverflowError, ValueError: a column is not valid, or only its values one by one can tell.
    """
    if table.columns.keys() - bundle.reader.logged:
        raise ValueError
    encoder, known = bundle.encoder, {name: seen for _, name, seen in bundle.known}
    absent = _absent(table.rows)
    matrix = np.empty((len(encoder.numbers), table.rows))
    places = {place: i for i, place in enumerate(encoder.numbers)}
    tensors: dict[str, NDArray[Any]] = {}
    unknown: dict[str, int] = {}
    for place, rule in enumerate(bundle.reader.rules):
        column = rule.column
        values = table.columns.get(column.name, absent)
        if column.kind != "text":
            numbers, missing = _read_numbers(rule, values)
            if "parts" in column.encoding:
                tensors |= _encode_parts(column, numbers, missing)
            if column.kind == "date":
                numbers = _count_days(column, numbers)
            matrix[places[place]] = numbers
            matrix[places[place], missing] = np.nan
            continue
        texts, codes = _read_texts(rule, values)
        if (seen := known.get(column.name)) is not None and not seen.issuperset(texts):
            unseen = np.array([text not in seen for text in texts])
            unknown[column.name] = int(np.count_nonzero(unseen[codes]))
        if column.encoding["tensor"] == "string":
            fill = column.encoding.get("missing") or "<missing>"
            tensors[str(column.input)] = np.array([text or fill for text in texts], dtype=object)[codes][:, None]
        else:
            ranks = {text: float(rank) for rank, text in enumerate(column.encoding["order"])}
            matrix[places[place]] = np.array([ranks.get(text, np.nan) for text in texts])[codes]
    return tensors | encoder.scale(matrix), {name: number for name, number in unknown.items() if number}


def _read_texts(rule: ColumnRule, values: Values) -> tuple[list[str | None], NDArray[np.intp]]:
    """Return the distinct valid texts and None of a column, and the places in them of its values."""
    if values.kind not in ("text", "missing"):
        raise ValueError
    if values.missing is not None and not rule.column.nullable:
        raise ValueError
    codes = values.values.astype(np.intp)
    if values.missing is not None:
        codes[values.missing] = len(values.texts)
    used = np.bincount(codes, minlength=len(values.texts) + 1)
    texts = [rule.validate(text) if used[code] else None for code, text in enumerate(values.texts)]
    return [*texts, None], codes


def _read_numbers(rule: ColumnRule, values: Values) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return a valid column as numbers (dates: whole microseconds since 1970), and which of them are missing."""
    column, kind = rule.column, values.kind
    wanted = {"integer": "number"}.get(column.kind, column.kind)
    if kind == "text" and column.kind in ("date", "duration"):
        texts, codes = _read_texts(rule, values)
        read = _to_microseconds if column.kind == "date" else float
        numbers = np.array([0 if one is None else read(one) for one in texts])[codes]  # type: ignore[arg-type]
        return numbers, np.array([one is None for one in texts])[codes]
    if kind == "date" and not date_grammar(column.formats).reads_iso:
        raise invalid(f"The dates of {column.name[:200]!r} are in other formats than ISO 8601: send them as texts")
    if kind not in (wanted, "missing") and (column.kind, kind) != ("duration", "number"):
        raise ValueError
    missing = np.zeros(len(values.values), dtype=bool) if values.missing is None else values.missing
    with np.errstate(invalid="ignore"):  # some NaN raise a warning
        numbers = values.values.astype(np.int64 if column.kind == "date" else np.float64)
    numbers[missing] = 0  # what is there may be anything
    present = numbers if values.missing is None else numbers[~missing]
    if len(present) < len(numbers) and not column.nullable:
        raise ValueError
    if column.kind in ("number", "integer"):
        rule.require_numbers(present)
    elif column.kind == "boolean":
        if column.categories is not None and not np.isin(present, np.array(column.categories, np.float64)).all():
            raise ValueError
    elif column.kind == "duration":
        if not (np.abs(present) <= LONGEST_SECONDS).all():
            raise ValueError
        numbers = np.rint(numbers * MICROSECONDS) / MICROSECONDS
        rule.require_bounds(numbers[~missing])
    elif len(present):
        if present.min() < FIRST_MOMENT or present.max() > LAST_MOMENT:
            raise ValueError
        for extreme in (present.min(), present.max()):  # bounds are an interval
            rule.validate(np.datetime_as_string(extreme.astype("M8[us]")))
    return numbers, missing


def _to_microseconds(moment: Any) -> int:
    return int(np.datetime64(moment, "us").astype(np.int64))


def _count_days(column: Column, moments: NDArray[Any]) -> NDArray[np.float64]:
    """Return the days from the origin, as exactly as `timedelta` divides."""
    since = moments - _to_microseconds(column.encoding["origin"])
    if (np.abs(since) >= EXACT).any():
        raise ValueError
    return since / DAY_MICROSECONDS


def _encode_parts(column: Column, moments: NDArray[Any], missing: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Return the tensors of the parts of dates."""
    dates, days = moments.astype("M8[us]"), moments // DAY_MICROSECONDS
    tensors = {}
    for part in column.encoding["parts"] or ():
        if part == "month":
            values = dates.astype("M8[M]").astype(np.int64) % 12 + 1
        elif part == "weekday":
            values = (days + 3) % 7  # 1970-01-01 was a Thursday
        else:
            values = moments // (3_600 * MICROSECONDS) % 24
        tensors[f"{column.input}_{part}"] = np.where(missing, np.nan, values).astype(np.float32)[:, None]
    return tensors


# --- reading ---------------------------------------------------------------------------------------------------------


def invalid(message: str) -> RequestRefused:
    """Return the refusal of a body that is not a table of this service."""
    return RequestRefused(400, "invalid_arrow", message)


def read_table(bundle: Bundle, body: bytes) -> Table:
    """Return the columns of a table; those that are neither read nor logged are left out.

    Raises:
        RequestRefused: the body is not a stream, or has too many rows or columns, or columns of unknown types.
    """
    reader = bundle.reader
    fields: list[Field] = []
    dictionaries: dict[int, Values] = {}
    rows, parts = 0, dict[str, list[Values]]()
    try:
        for message in read_messages(body, len(reader.allowed) + MOST_ERRORS):
            if isinstance(message, list):
                if fields:
                    raise InvalidStream("it has two schemas")
                fields = _name_fields(bundle, message)
                parts = {field.name: [] for field in fields if field.name in reader.logged}
            elif isinstance(message, tuple):
                number, continues, batch = message
                values = _read_dictionary(fields, number, batch)
                if values is not None:
                    before = dictionaries.get(number)
                    dictionaries[number] = _join([before, values]) if continues and before else values
            elif message.rows:
                rows += message.rows
                if rows > reader.max_rows:
                    reader.require_length(rows)
                for field in fields:
                    if field.name in parts:
                        parts[field.name].append(_read(message, message.rows, field, dictionaries))
                    else:
                        message.skip(field)
        reader.require_length(rows)
    except ValidationError as error:
        raise RowsRefused(error) from None
    except (UnicodeDecodeError, InvalidStream) as error:
        raise invalid(f"The body is not a stream of Arrow's IPC format that is read here: {error}") from None
    columns = {name: _join(found) for name, found in parts.items()}
    if reader.normalizes:
        columns = {n: v._replace(texts=tuple(map(normalize, v.texts))) if v.texts else v for n, v in columns.items()}
    strangers = {field.name: _absent(rows) for field in fields if field.name not in reader.allowed}
    return Table(rows, columns | strangers)


def _name_fields(bundle: Bundle, fields: list[Field]) -> list[Field]:
    """Return the fields with their names in normal form.

    Raises:
        RequestRefused: two have the same name, or one that is read has a type that is not.
    """
    reader = bundle.reader
    named: dict[str, Field] = {}
    for field in fields:
        name = normalize(field.name) if reader.normalizes else field.name
        if name in named:
            raise invalid(f"The column {name[:200]!r} is there twice")
        if field.type.numbers is None and name in reader.logged:
            raise invalid(
                f"The column {name[:200]!r} has a type of Arrow that is not read: cast it to a number, boolean, "
                "string, date, timestamp or duration"
            )
        named[name] = field._replace(name=name)
    return list(named.values())


def _absent(rows: int) -> Values:
    return Values("missing", np.zeros(rows, np.int8), np.ones(rows, dtype=bool))


def _read_dictionary(fields: list[Field], number: int, batch: Batch) -> Values | None:
    """Return the values of a dictionary, None if no column that is read has it."""
    for field in fields:
        if field.dictionary == number and field.type.numbers is not None:
            if field.type.kind == ipc.NULL:
                raise InvalidStream("a dictionary has no values")
            return _read(batch, batch.rows, field._replace(dictionary=None), {})
    return None


def _read(batch: Batch, rows: int, field: Field, dictionaries: Mapping[int, Values]) -> Values:
    """Return the next column of a batch."""
    kind, numbers, per_second = field.type.kind, field.type.numbers, field.type.per_second
    count_missing = batch.read_node(rows)
    if field.dictionary is None and kind == ipc.NULL:
        return _absent(rows)
    bits = batch.read_buffer()
    missing = ~_read_bits(bits, rows) if count_missing and len(bits) else None
    if missing is not None and not missing.any():
        missing = None
    if field.dictionary is not None and field.indexes is not None:
        codes = _cut(batch.read_buffer(), field.indexes.numbers, rows).astype(np.intp)
        if missing is not None and missing.all():
            return _absent(rows)
        if missing is not None:
            codes[missing] = codes[~missing][0]  # what is there may be anything
        inner = dictionaries.get(field.dictionary)
        if inner is None or codes.min() < 0 or codes.max() >= len(inner.values):
            raise InvalidStream("an index is outside of its dictionary")
        if inner.missing is not None:
            missing = inner.missing[codes] | (False if missing is None else missing)
        return Values(inner.kind, inner.values[codes], missing, inner.texts)
    if kind in (ipc.UTF8, ipc.LARGE_UTF8):
        return _read_text(_cut(batch.read_buffer(), numbers, rows + 1), batch.read_buffer(), missing)
    if kind == ipc.BOOL:
        return Values("boolean", _read_bits(batch.read_buffer(), rows), missing)
    values = _cut(batch.read_buffer(), numbers, rows)
    if kind == ipc.DURATION:
        return Values("duration", values / per_second, missing)
    if kind == ipc.TIMESTAMP or per_second:
        return Values("date", _scale_moments(values, per_second, missing), missing)
    if kind == ipc.DATE:
        return Values("date", values.astype(np.int64) * DAY_MICROSECONDS, missing)
    if values.dtype.kind == "f" and np.isnan(values).any():  # NaN is a missing value, as in numpy and pandas
        missing = np.isnan(values) | (False if missing is None else missing)
    return Values("number", values, missing)


def _scale_moments(values: NDArray[np.int64], per_second: int, missing: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Return moments in microseconds; digits beyond are cut off, as in a text."""
    if per_second >= MICROSECONDS:
        return values // (per_second // MICROSECONDS)
    times = MICROSECONDS // per_second
    if missing is not None:
        values = np.where(missing, 0, values)
    # A moment beyond the year 9999 stays beyond it, and does not overflow.
    return np.clip(values, FIRST_MOMENT // times - 1, LAST_MOMENT // times + 1) * times


def _read_text(offsets: NDArray[Any], data: NDArray[np.uint8], missing: NDArray[np.bool_] | None) -> Values:
    """Return a column of texts: the distinct ones, and the place of each value among them."""
    starts, lengths = offsets[:-1].astype(np.intp), np.diff(offsets).astype(np.intp)
    if len(lengths) and (lengths.min() < 0 or offsets[0] < 0 or offsets[-1] > len(data)):
        raise InvalidStream("a text is outside of its buffer")
    if missing is not None:
        lengths[missing] = 0
    found = _find_distinct(data, starts, lengths)
    if found is None:
        raw = data.tobytes()
        pieces = [raw[start : start + length] for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
        places = dict(zip(dict.fromkeys(pieces), count(), strict=False))
        return Values("text", np.array(list(map(places.__getitem__, pieces)), np.intp), missing, _decode(places))
    firsts, codes = found
    distinct = [data[starts[i] : starts[i] + lengths[i]].tobytes() for i in firsts.tolist()]
    return Values("text", codes, missing, _decode(distinct))


def _decode(texts: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(text.decode() for text in texts)


def _find_distinct(
    data: NDArray[np.uint8], starts: NDArray[np.intp], lengths: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    """Return the place of the first of each distinct text, and each text's number among them.

    Texts of a row of a matrix fall into buckets by a hash. Return None if a text is long, or if different texts fall
    into one bucket, as the many texts of a column without categories do.
    """
    longest = int(lengths.max(initial=0))
    if longest > LONGEST_WORD or len(starts) < FEW:
        return None
    width = -(-max(longest, 1) // 8) * 8
    padded = np.zeros(len(data) + width, np.uint8)
    padded[: len(data)] = data
    windows = np.ndarray((len(data) + 1, width), np.uint8, padded, strides=(1, 1))[starts]
    windows *= np.arange(width) < lengths[:, None]  # what follows a text belongs to others
    words = windows.view(np.uint64)
    hashed = words @ MIXERS[: words.shape[1]] + lengths.astype(np.uint64) * MIXERS[-1]
    buckets = (hashed >> np.uint64(64 - BUCKETS)).astype(np.intp)
    firsts = np.empty(1 << BUCKETS, np.int32)  # by bucket; those without a text are never read
    own = np.arange(len(starts), dtype=np.int32)
    firsts[buckets] = own
    first = firsts[buckets]
    if (words != words[first]).any() or (lengths != lengths[first]).any():
        return None
    distinct = np.flatnonzero(first == own)
    numbers = np.empty(len(starts), np.intp)
    numbers[distinct] = np.arange(len(distinct))
    return distinct, numbers[first]


def _read_bits(raw: NDArray[np.uint8], rows: int) -> NDArray[np.bool_]:
    if len(raw) * 8 < rows:
        raise InvalidStream("a buffer is too short")
    return np.unpackbits(raw, count=rows, bitorder="little").view(np.bool_)


def _cut(raw: NDArray[np.uint8], dtype: Any, rows: int) -> NDArray[Any]:
    """Return the values of a buffer."""
    size = rows * np.dtype(dtype).itemsize
    if len(raw) < size:
        raise InvalidStream("a buffer is too short")
    return raw[:size].view(dtype)


def _join(parts: list[Values]) -> Values:
    """Return one column of the columns of all batches."""
    if len(parts) == 1:
        return parts[0]
    kinds: set[Kind] = {part.kind for part in parts if part.kind != "missing"} or {"missing"}
    assert len(kinds) == 1, "the batches of a stream have the same types"
    values: list[NDArray[Any]] = []
    texts: list[str] = []
    for part in parts:
        values.append(part.values + len(texts) if part.kind == "text" else part.values)
        texts += part.texts
    missing = None
    if any(part.missing is not None for part in parts):
        missing = np.concatenate(
            [np.zeros(len(p.values), dtype=bool) if p.missing is None else p.missing for p in parts]
        )
    return Values(kinds.pop(), np.concatenate(values), missing, tuple(texts))


# --- writing ---------------------------------------------------------------------------------------------------------


def rewrite_answer(bundle: Bundle, answer: bytes, request_id: str, role: str) -> bytes:
    """Return an answer in JSON as a table: during a rollout, tables are answered as JSON is."""
    predictions = from_json(answer)["predictions"]
    dtype = np.float64 if bundle.meta.get("runtime") == "sklearn" else np.float32
    if bundle.contract.classes is None:
        return write_answer(bundle, np.array([one["value"] for one in predictions], dtype), None, request_id, role)
    places = {label_key(one): place for place, one in enumerate(bundle.contract.classes)}
    labels = np.array([0 if one["label"] is None else places[label_key(one["label"])] for one in predictions])
    probabilities = np.array([list(one["probabilities"].values()) for one in predictions], dtype)
    return write_answer(bundle, labels, probabilities, request_id, role)


def write_answer(
    bundle: Bundle,
    labels: NDArray[Any],
    probabilities: NDArray[Any] | None,
    request_id: str,
    role: str = "champion",
) -> bytes:
    """Return the answer as a stream: `label` and a column for each class, or `value`; null if a number overflowed."""
    import nanoarrow as na
    from nanoarrow.ipc import StreamWriter

    columns = dict(_write_columns(bundle, labels, probabilities))
    metadata = {"request_id": request_id, "model_version": bundle.version, "role": role}
    fields = {name: column.schema for name, column in columns.items()}
    schema = na.c_schema(na.struct(fields)).modify(metadata=metadata)
    table = na.c_array_from_buffers(schema, len(labels), [None], children=columns.values())
    stream = io.BytesIO()
    with StreamWriter.from_writable(stream) as writer:
        writer.write_array(table)
    return stream.getvalue()


def _write_columns(
    bundle: Bundle, labels: NDArray[Any], probabilities: NDArray[Any] | None
) -> Iterator[tuple[str, Any]]:
    import nanoarrow as na

    floats: Mapping[str, Any] = {"f4": na.float32(), "f8": na.float64()}
    array: Callable[..., Any] = partial(na.c_array_from_buffers, length=len(labels))

    def numbers(values: NDArray[Any]) -> Any:
        valid = np.isfinite(values)
        bits = None if valid.all() else np.packbits(valid, bitorder="little")
        return array(floats[values.dtype.str[1:]], buffers=[bits, np.ascontiguousarray(values)])

    if probabilities is None:
        yield "value", numbers(labels)
        return
    classes = bundle.contract.classes or ()
    valid = np.isfinite(probabilities).all(axis=1)
    bits = None if valid.all() else np.packbits(valid, bitorder="little")
    labels = np.where(valid, labels, 0).astype(np.intp)
    if all(isinstance(one, bool) for one in classes):
        yield "label", array(na.bool_(), buffers=[bits, np.packbits(np.array(classes)[labels], bitorder="little")])
    elif all(isinstance(one, int) for one in classes):
        yield "label", array(na.int64(), buffers=[bits, np.array(classes, np.int64)[labels]])
    else:
        texts = [label_key(one).encode() for one in classes]
        offsets = np.concatenate([[0], np.cumsum(np.array([len(text) for text in texts])[labels])]).astype(np.int32)
        data = b"".join([texts[label] for label in labels.tolist()])
        yield "label", array(na.string(), buffers=[bits, offsets, data])
    for place, one in enumerate(bundle.class_names or ()):
        yield f"probability {one}", numbers(probabilities[:, place])
