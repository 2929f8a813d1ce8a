"""Where rows come from, which are held out, and what looks like a leak."""

from typing import Any, Literal

from pydantic import Field, field_validator

from flows.sections.base import Problem, Section


class Data(Section):
    """Where the rows come from and what is predicted.

    Attributes:
        source: See docs/data.md.
        target: The column to predict.
        problem: What kind of prediction it is.
        max_bad_share: The share of rows in quarantine from which on a run fails.
        watermark: A column that grows from row to row, such as the time of the last change: each ingest reads only
            what is new by it, and appends.
        lateness: How far behind the newest value rows may still arrive: days of a date, else the column's unit.
        window_days: Only rows of the last so many days, by the column with the role time, are learned from.
    """

    source: str = "sample://"
    target: str | None = None
    problem: Problem = "binary"
    max_bad_share: float = Field(0.1, ge=0, le=1)
    watermark: str | None = None
    lateness: float = Field(0.0, ge=0)
    window_days: float | None = Field(None, gt=0)


class Fetch(Section):
    """How patiently sources are read.

    Attributes:
        timeout_seconds: How long one request, connection or message may take.
        retries: How often a request that failed for a passing reason is made again, after a growing pause.
        max_ratio: How many times its size a compressed file may hold.
    """

    timeout_seconds: float = Field(60.0, gt=0)
    retries: int = Field(5, ge=0)
    max_ratio: int = Field(200, ge=1)


class Split(Section):
    """Which rows are held out, see docs/pipeline.md.

    Attributes:
        by: "random" (by a hash of the group, else the id, else the row; once called "hash"), "group" (the same, and a
            column with that role is asked for), "stratified" (the same share of each class, or of each tenth of a
            number) or "time" (the latest).
        holdout: Their share.
        seed: Another seed holds out other rows.
    """

    by: Literal["random", "stratified", "group", "time"] = "random"
    holdout: float = Field(0.2, gt=0, lt=1)
    seed: int = 0

    @field_validator("by", mode="before")
    @classmethod
    def _read_former_name(cls, value: Any) -> Any:
        return "random" if value == "hash" else value


class Leakage(Section):
    """Alarms that do not block: the name of a column, and why what was found of it is no leak."""

    accept: dict[str, str] = Field({})

    @field_validator("accept")
    @classmethod
    def _require_reasons(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reason in value.items():
            if not reason.strip():
                raise ValueError(f'say why "{name}" is no leak')
        return value
