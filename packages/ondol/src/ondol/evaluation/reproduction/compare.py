"""Two sets of figures side by side: equal, or by how much not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ondol.training.provenance import SHAPING

TOLERANCE = 1e-9  # of figures above 1, relative to them
Figure = tuple[float | None, ...]  # a value, or a value and the ends of its interval
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Line:
    """One figure, as recorded and as it came again; None where there is none.

    Attributes:
        name: Of the metric.
        recorded: As it was.
        again: As it is.
        apart: By how much they differ at most; infinite where one lacks what the other has.
    """

    name: str
    recorded: Figure | None
    again: Figure | None
    apart: float

    @property
    def equal(self) -> bool:
        """Whether they are the same to `TOLERANCE`."""
        return self.apart <= TOLERANCE


def figures_of(train_rows: float, verdict: Mapping[str, Any] | None) -> dict[str, Figure]:
    """Return every figure of a version that does not depend on another: not the champion's, not the seconds.

    Args:
        train_rows: On how many rows it was fitted.
        verdict: As `verdict.json` holds it; None where it was never judged.
    """
    made: dict[str, Figure] = {"train_rows": (float(train_rows),)}
    if verdict is None:
        return made
    made["holdout_rows"] = (float(verdict["rows"]),)
    made |= {name: _figure(found) for name, found in verdict["scores"]["candidate"].items()}
    made |= {f"dummy {name}": _figure(found) for name, found in verdict["scores"]["dummy"].items()}
    return made | {f"gain over {who}": _figure(found) for who, found in verdict["gains"].items() if who == "dummy"}


def compare_figures(recorded: Mapping[str, Figure], again: Mapping[str, Figure]) -> list[Line]:
    """Return a line for each figure that either has, in the order of the record."""
    names = dict.fromkeys([*recorded, *again])
    pairs = [(name, recorded.get(name), again.get(name)) for name in names]
    return [Line(name, old, new, distance(old, new)) for name, old, new in pairs]


def compare_all(recorded: Mapping[str, Figure], again: Mapping[str, Figure], apart: float | None) -> list[Line]:
    """Return a line for each figure, and one for the prediction that is farthest from the recorded model's."""
    farthest = Line(PREDICTIONS, None, None, math.inf if apart is None or math.isnan(apart) else apart)
    return [*compare_figures(recorded, again), farthest]


def distance(old: Figure | None, new: Figure | None) -> float:
    """Return by how much two figures differ, relative to the old one where that is above 1."""
    if old is None or new is None or len(old) != len(new):
        return math.inf
    return max((_apart(a, b) for a, b in zip(old, new, strict=True)), default=0.0)


def other_packages(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return in words which packages are not of the recorded version: of those in both, and those that shape models."""
    names = [name for name in recorded if name in now or name in SHAPING]
    return [f"{name} {recorded[name]} → {now.get(name, 'none')}" for name in names if now.get(name) != recorded[name]]


def _apart(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    made = abs(a - b) / max(1.0, abs(a))
    return math.inf if math.isnan(made) else made


def _figure(found: Mapping[str, Any]) -> Figure:
    return (found["value"], found["low"], found["high"])
