"""Verdicts: what was compared, what the gates decided, and how both are stored and shown."""

from collections.abc import Iterator
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from ondol.evaluation.metrics import Interval, Metric, metrics_of
from ondol.orchestration.artifacts import plain, table
from ondol.storage.files import read_record
from ondol.storage.store import Store


class FrozenModel(BaseModel):
    """Frozen, and serializable to JSON."""

    model_config = ConfigDict(frozen=True)


class Gate(FrozenModel):
    """The decision of one gate; `figure` or `limit` is None if there was nothing to compare."""

    name: str
    figure: float | None
    limit: float | None
    passed: bool
    sentence: str


class Comparison(FrozenModel):
    """Models scored on the same rows.

    Attributes:
        metric: The one that decides.
        rows: How many rows the models were scored on.
        scores: Every metric with its interval, of "candidate" and, if there is one, "champion"; of "dummy"
            the deciding one alone.
        gains: By how much the candidate is better than "dummy" and "champion" (above 0 is better).
    """

    problem: str
    metric: str
    rows: int
    scores: dict[str, dict[str, Interval]]
    gains: dict[str, Interval]

    @property
    def rule(self) -> Metric:
        """Direction and unit of the metric."""
        return metrics_of(self.problem)[self.metric]

    def value(self, who: str) -> float | None:
        """Return the metric of "candidate", "dummy" or "champion"; None where it is undefined."""
        found = self.scores.get(who, {}).get(self.metric)
        return found.value if found else None

    def shown(self, who: str) -> str:
        """Return that figure as it is shown."""
        return show_figure(self.value(who))


class Verdict(Comparison):
    """A comparison and the decision of every gate."""

    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether the candidate passed every gate."""
        return all(gate.passed for gate in self.gates)


class Limits(Protocol):
    """The part of the settings that is read here: `settings.gates`."""

    @property
    def metric(self) -> str | None:
        """The metric that decides; None for the problem's own."""

    @property
    def minimum(self) -> float | None:
        """The value that the metric must reach; None if it must beat a dummy model."""

    @property
    def margin(self) -> float:
        """How much worse than the champion the candidate may be."""

    @property
    def confidence(self) -> float:
        """The coverage of the intervals."""

    @property
    def resamples(self) -> int:
        """How many resamples the intervals rest on."""


def show_figure(figure: float | None) -> str:
    """Return a figure with four decimals, with thousands marked where large, with three digits where tiny."""
    if figure is None:
        return "unknown"
    if 0 < abs(figure) < 1e-3:
        return f"{figure:.2g}"
    return f"{figure:.4f}" if abs(figure) < 100 else f"{figure:,.1f}"


def show_interval(value: float, low: float | None, high: float | None) -> str:
    """Return a figure with its interval in brackets, where it has one."""
    shown = show_figure(value)
    return shown if low is None or high is None else f"{shown} [{show_figure(low)}, {show_figure(high)}]"


class StoredVerdict(BaseModel):
    """A verdict as it is stored.

    Attributes:
        key: Digest of everything that it depends on; an equal key gives the same verdict.
        version: The candidate.
        run_id: The run that made it.
        champion: The bundle in production at that time, None if there was none.
        verdict: The metrics of all models, and every gate.
        refusal: Why it was refused, in one sentence; empty for a pass.
        notes: What a reader should know, in sentences.
    """

    key: str
    version: str
    run_id: str
    champion: str | None
    verdict: Verdict
    refusal: str = ""
    notes: list[str] = []


class Verdicts:
    """The verdicts of one store, the last one of each version."""

    def __init__(self, store: Store) -> None:
        """Open `store`; creates nothing."""
        self.store = store
        self.folder = store.folder / "verdicts"

    def find(self, version: str) -> StoredVerdict | None:
        """Return the last verdict on a version, or None."""
        return read_record(self.folder / f"{version}.json", StoredVerdict)

    def write(self, record: StoredVerdict) -> None:
        """Store a verdict in place of the version's last."""
        self.store.write_bytes(self.folder / f"{record.version}.json", record.model_dump_json(indent=1).encode())


WHO = ("candidate", "champion", "dummy")


def verdict_markdown(record: StoredVerdict) -> str:
    """Return the verdict on a version, its metrics, and the decision of every gate."""
    word = "refused" if record.refusal else "passed"
    first = f"**Version {record.version} {word}** on {record.verdict.rows:,} held-out rows."
    gates = [f"- **{gate.name}** {_decision(gate)}: {plain(gate.sentence)}" for gate in record.verdict.gates]
    notes = [f"- {plain(note)}" for note in record.notes]
    return "\n".join([first, "", *metric_lines(record), "", *gates, *notes, "", plain(record.refusal)]).strip()


def gate_rows(record: StoredVerdict) -> list[dict[str, str]]:
    """Return the decision of every gate, by heading."""
    return [
        {
            "gate": gate.name,
            "figure": _figure(gate.figure),
            "limit": _figure(gate.limit),
            "ruling": _decision(gate),
            "explanation": gate.sentence,
        }
        for gate in record.verdict.gates
    ]


def metric_lines(record: StoredVerdict) -> Iterator[str]:
    """Yield a table in Markdown of all metrics of all models."""
    scores = {who: record.verdict.scores[who] for who in WHO if who in record.verdict.scores}
    yield from table(
        ("metric", *scores),
        (
            (name, *(show_interval(f.value, f.low, f.high) if (f := scores[who].get(name)) else "–" for who in scores))
            for name in scores["candidate"]
        ),
    )


def _decision(gate: Gate) -> str:
    return "passed" if gate.passed else "refused"


def _figure(value: float | None) -> str:
    return "–" if value is None else show_figure(value)
