"""Dates and durations as requests carry them: texts that `ondol_serving.grammar` reads, or seconds."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from ondol_serving.grammar import AMBIGUOUS_FORMATS, MICROSECONDS, DateGrammar, parse_duration, to_microseconds


def date_type(bounds: dict[str, float], grammar: DateGrammar) -> Any:
    """Return the annotation of a date within `bounds`, which are seconds since 1970, UTC."""
    # Pydantic compares and reports datetimes.
    moments: dict[str, Any] = {k: datetime.fromtimestamp(v, UTC).replace(tzinfo=None) for k, v in bounds.items()}
    schema = WithJsonSchema({"type": "string", "format": "date-time"})

    forms = " or ".join(("in ISO 8601", *grammar.formats)) if grammar.formats != AMBIGUOUS_FORMATS else "in ISO 8601"
    expected = f"Input should be a date or a date and time {forms}"

    def parse(value: Any) -> datetime:
        if not isinstance(value, str):
            number = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
            if not (number and grammar.reads_digits):  # 20240131, where its format is listed
                raise ValueError(f"{expected}, as text")
            value = str(int(value))
        moment = grammar.parse(value)
        if moment is None:
            raise ValueError(expected)
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
