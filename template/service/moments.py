"""Dates and durations as requests carry them: texts that `service.grammar` reads, or seconds."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from service.grammar import MICROSECONDS, DateGrammar, parse_duration, to_microseconds

ISO_ONLY = "Input should be a date or a date and time in ISO 8601"


def date_type(bounds: dict[str, float], grammar: DateGrammar) -> Any:
    """Return the annotation of a date within `bounds`, which are seconds since 1970, UTC."""
    # Pydantic compares and reports datetimes.
    moments: dict[str, Any] = {k: datetime.fromtimestamp(v, UTC).replace(tzinfo=None) for k, v in bounds.items()}
    schema = WithJsonSchema({"type": "string", "format": "date-time"})

    def parse(value: Any) -> datetime:
        if isinstance(value, int | float) and not isinstance(value, bool):  # 20240131, where its format is listed
            value = str(int(value)) if grammar.reads_digits and value % 1 == 0 else ""
        if not isinstance(value, str):
            raise ValueError(f"{ISO_ONLY}, as text")
        moment = grammar.parse(value)
        if moment is None:
            raise ValueError(ISO_ONLY)
        return moment

    return Annotated[datetime, PlainValidator(parse), Field(**moments), schema]


def duration_type(bounds: dict[str, float], shown: dict[str, float]) -> Any:
    """Return the annotation of a duration, which becomes seconds, within `bounds`, `shown` in JSON Schema's words."""
    schema = {
        "anyOf": [{"type": "string", "format": "duration"}, {"type": "number", **shown}],
        "description": "An ISO 8601 duration of weeks to seconds, such as P1DT2H30M, or a number of seconds.",
    }
    limits: dict[str, Any] = dict(bounds)
    kind: Any = Annotated[float, PlainValidator(_parse_duration), Field(**limits)]
    return Annotated[kind, WithJsonSchema(schema)]


def _parse_duration(value: Any) -> float:
    """Return a text, or a number of seconds, as seconds to the microsecond."""
    micros = None
    if isinstance(value, str):
        micros = parse_duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        micros = to_microseconds(value)
    if micros is None:
        raise ValueError("Input should be a duration in ISO 8601, of weeks to seconds, or a number of seconds")
    return micros / MICROSECONDS
