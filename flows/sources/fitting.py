"""Which type a column of text fits."""

import pyarrow as pa
import pyarrow.compute as pc

DATE_FORMATS = ("%Y-%m", "%Y/%m/%d", "%Y/%m/%d %H:%M", "%Y/%m/%d %H:%M:%S", "%Y/%m", "%Y.%m.%d")
TEXT = pa.string()
LADDERS: dict[str, tuple[pa.DataType, ...]] = {
    "number": (pa.float64(), TEXT),
    "integer": (pa.int64(), pa.float64(), TEXT),
    "boolean": (pa.bool_(), TEXT),
    "date": (pa.timestamp("us"), TEXT),
    "duration": (pa.float64(), TEXT),  # seconds
    "text": (TEXT,),
}
EXACT = 2**53  # integers below survive as float64


def find_fitting(values: pa.Array, kind: str, current: pa.DataType) -> pa.DataType:
    """Return the first type, from `current` on, that holds every value of a text column.

    Args:
        values: Text; null where missing.
        kind: The contract's kind of the column.
        current: A rung of that kind's ladder: stricter ones have failed before.
    """
    ladder = LADDERS[kind]
    trimmed = pc.utf8_trim_whitespace(values)
    for rung in ladder[ladder.index(current) : -1]:
        # In an integer's place, a float64 of 12.0 is fine; 2^60 beside 0.5 would be rounded.
        if _fits(trimmed, rung, exact=kind == "integer" and rung == pa.float64()):
            return rung
    return TEXT


def survives_float(values: pa.Array) -> bool:
    """Tell whether integers in text are the same as float64."""
    return _is_exact(pc.cast(pc.utf8_trim_whitespace(values), pa.int64()))


def _fits(values: pa.Array, kind: pa.DataType, exact: bool) -> bool:
    try:
        if pa.types.is_timestamp(kind):
            return _fits_dates(values)
        numbers = pc.cast(values, kind)
    except pa.ArrowInvalid:
        return False
    return not exact or _is_exact(numbers)


def _is_exact(numbers: pa.Array) -> bool:
    largest = pc.max(pc.abs(numbers)).as_py()
    return largest is None or largest < EXACT


def _fits_dates(values: pa.Array) -> bool:
    for form in DATE_FORMATS:
        parsed = pc.strptime(values, format=form, unit="us", error_is_null=True)
        values = values.filter(pc.is_null(parsed)).drop_null()
    pc.cast(values, pa.timestamp("us"))
    return True
