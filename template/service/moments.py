"""Dates and durations as requests carry them: text of ISO 8601, or seconds."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

LONGEST = 1e11  # seconds of a duration: three thousand years
SECONDS = (604_800, 86_400, 3_600, 60, 1)
PART = r"([-+]?[0-9]+(?:\.[0-9]+)?)"
ISO = re.compile(rf"([-+]?)P(?=.)(?:{PART}W)?(?:{PART}D)?(?:T(?=.)(?:{PART}H)?(?:{PART}M)?(?:{PART}S)?)?")


def date_type(bounds: dict[str, float]) -> Any:
    """Return the annotation of a date within `bounds`, which are seconds since 1970, UTC."""
    # Pydantic compares and reports datetimes.
    moments: dict[str, Any] = {k: datetime.fromtimestamp(v, UTC).replace(tzinfo=None) for k, v in bounds.items()}
    schema = WithJsonSchema({"type": "string", "format": "date-time"})
    return Annotated[datetime, PlainValidator(_parse_date), Field(**moments), schema]


def duration_type(bounds: dict[str, float], shown: dict[str, float]) -> Any:
    """Return the annotation of a duration, which becomes seconds, within `bounds`, `shown` in JSON Schema's words."""
    schema = {
        "anyOf": [{"type": "string", "format": "duration"}, {"type": "number", **shown}],
        "description": "An ISO 8601 duration of weeks to seconds, such as P1DT2H30M, or a number of seconds.",
    }
    limits: dict[str, Any] = dict(bounds)
    kind: Any = Annotated[float, PlainValidator(_parse_duration), Field(**limits)]
    return Annotated[kind, WithJsonSchema(schema)]


def _parse_date(value: Any) -> datetime:
    """Return an ISO 8601 text as a naive datetime in UTC."""
    if not isinstance(value, str):
        raise ValueError("Input should be a date or a date and time in ISO 8601, as text")
    try:
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise ValueError("Input should be a date or a date and time in ISO 8601") from None


def _parse_duration(value: Any) -> float:
    """Return an ISO 8601 text, or a number of seconds, as seconds to the microsecond."""
    if isinstance(value, str) and (found := ISO.fullmatch(value.strip())):
        sign, *parts = found.groups(default="0")
        seconds = sum(float(part) * unit for part, unit in zip(parts, SECONDS, strict=True))
        value = -seconds if sign == "-" else seconds
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LONGEST:
        raise ValueError("Input should be a duration in ISO 8601, of weeks to seconds, or a number of seconds")
    return timedelta(seconds=value).total_seconds()
