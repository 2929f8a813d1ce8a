"""The gates between a candidate and production, and verdicts: the comparison and the decision of each gate.

A gate is a pure function of a comparison on the holdout. There are two built-in gates:

- `floor`: the candidate must be better than a dummy model by more than the interval, that is, the low end of
  the paired difference on the holdout must be above 0. Where the owner set `gates.minimum`, the metric itself
  must reach that number instead (stay at or below it, for a metric where less is better).
- `margin`: the candidate must not be worse than the champion by more than `gates.margin` on the same holdout.
  The margin is in the metric's unit (0.01 of ROC AUC, of R²), except for errors in the target's unit (rmse,
  mae, median_absolute_error), where it is a share of the champion's error.

A third gate, `replay`, is in `ondol.monitoring.replay`. `slices` and `decision` are for those who set them.

An undefined metric (too few rows, one class only) does not pass.

Gates of the project's own are functions in `GATES` of `model/evaluation.py`.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ondol.config import Decision
from ondol.errors import UserError
from ondol.evaluation.metrics import (
    Decided,
    Interval,
    Metric,
    bootstrap,
    choose_metric,
    metrics_of,
    paired_difference,
    require_decision,
)
from ondol.evaluation.slices import Slice
from ondol.orchestration.reporting import plain, table
from ondol.project import EVALUATION, FILE, OWN_ERRORS, Project, describe_error, digest_extension, read_extension
from ondol.storage.files import digest_json, read_record
from ondol.storage.store import Store

if TYPE_CHECKING:
    from ondol.evaluation.evaluate import Scored


class FrozenModel(BaseModel):
    """An immutable model, serializable to JSON."""

    model_config = ConfigDict(frozen=True)


class Gate(FrozenModel):
    """The decision of one gate; `figure` and `limit` are None if there was nothing to compare."""

    name: str
    figure: float | None
    limit: float | None
    passed: bool
    sentence: str


class Comparison(FrozenModel):
    """Models scored on the same rows.

    Attributes:
        metric: The deciding metric.
        rows: The number of rows that the models were scored on.
        scores: Every metric with its interval, for "candidate" and, if there is one, "champion"; for "dummy" only the
            deciding metric.
        gains: The improvement over "dummy" and "champion" (above 0 is better).
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
        """Return the metric of "candidate", "dummy" or "champion"; None if it is undefined."""
        found = self.scores.get(who, {}).get(self.metric)
        return found.value if found else None

    def shown(self, who: str) -> str:
        """Return that value formatted for display."""
        return show_figure(self.value(who))


class Verdict(Comparison):
    """A comparison and the decision of every gate."""

    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether the candidate passed every gate."""
        return all(gate.passed for gate in self.gates)


class GateLimits(Protocol):
    """The settings of the gates: `settings.gates`."""

    @property
    def metric(self) -> str | None:
        """The deciding metric; None for the default of the problem."""

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
        """The number of bootstrap samples of the intervals."""


def show_figure(figure: float | None) -> str:
    """Format a figure: four decimals, with thousands separators if large, three digits if tiny."""
    if figure is None:
        return "unknown"
    if 0 < abs(figure) < 1e-3:
        return f"{figure:.2g}"
    return f"{figure:.4f}" if abs(figure) < 100 else f"{figure:,.1f}"


def show_interval(value: float, low: float | None, high: float | None) -> str:
    """Format a figure with its interval, if any, in brackets."""
    shown = show_figure(value)
    return shown if low is None or high is None else f"{shown} [{show_figure(low)}, {show_figure(high)}]"


class StoredVerdict(BaseModel):
    """A stored verdict.

    Attributes:
        key: Digest of all inputs; an equal key gives the same verdict.
        version: The candidate.
        run_id: The run that made it.
        champion: The bundle in production at that time, None if there was none.
        verdict: The metrics of all models, and every gate.
        refusal: Why it was refused, in one sentence; empty for a pass.
        notes: Sentences for the reader.
        slices: The error in parts of the rows.
    """

    key: str
    version: str
    run_id: str
    champion: str | None
    verdict: Verdict
    refusal: str = ""
    notes: list[str] = []
    slices: list[Slice] = []

    def gate(self, name: str) -> Gate | None:
        """Return the decision of a gate, None if there is no such gate."""
        return next((gate for gate in self.verdict.gates if gate.name == name), None)

    def with_gate(self, gate: Gate, champion: str | None) -> "StoredVerdict":
        """Return the verdict with the decision of one gate more; `champion` is the version in production."""
        others = [one for one in self.verdict.gates if one.name != gate.name]
        verdict = self.verdict.model_copy(update={"gates": (*others, gate)})
        return self.model_copy(update={"verdict": verdict, "refusal": refusal_sentence(verdict, champion)})


class Verdicts:
    """The verdicts of one store, the last one of each version."""

    def __init__(self, store: Store) -> None:
        """Open `store`; creates nothing."""
        self.store = store
        self.folder = store.folder / "verdicts"

    def find(self, version: str) -> StoredVerdict | None:
        """Return the last verdict on a version, or None."""
        return read_record(self.folder / f"{version}.json", StoredVerdict)

    def of_run(self, version: str, run_id: str) -> StoredVerdict | None:
        """Return the last verdict on a version; None if there is none, or if it is on another run."""
        record = self.find(version)
        return record if record is not None and record.run_id == run_id else None

    def write(self, record: StoredVerdict) -> None:
        """Store a verdict and replace the version's previous one."""
        self.store.write_bytes(self.folder / f"{record.version}.json", record.model_dump_json(indent=1).encode())


def known_verdict(project: Project, version: str) -> StoredVerdict | None:
    """Return the valid verdict: that of the champion, or one whose inputs are unchanged."""
    champion, run_id = project.champion, project.registry.run_id(version)
    record = project.verdicts.of_run(version, run_id)
    if record is None:
        return None
    in_production = champion is not None and champion.run_id == run_id
    return record if in_production or record.key == verdict_key(project, version) else None


def verdict_key(project: Project, version: str) -> str:
    """Return the digest of all inputs of a verdict."""
    champion, settings = project.champion, project.settings
    own = digest_extension(settings.root, EVALUATION)
    return digest_json([version, champion and champion.bundle, settings.gates.model_dump(), *([own] if own else [])])


WHO = ("candidate", "champion", "dummy")


def verdict_markdown(record: StoredVerdict) -> str:
    """Return the verdict on a version, its metrics, and the decision of every gate."""
    word = "refused" if record.refusal else "passed"
    first = f"**Version {record.version} {word}** on {record.verdict.rows:,} held-out rows."
    gates = [f"- **{gate.name}** {_decision(gate)}: {plain(gate.sentence)}" for gate in record.verdict.gates]
    notes = [f"- {plain(note)}" for note in record.notes]
    return "\n".join([first, "", *metric_lines(record), "", *gates, *notes, "", plain(record.refusal)]).strip()


def gate_rows(record: StoredVerdict) -> list[dict[str, str]]:
    """Return the decision of every gate as table rows, by heading."""
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


__all__ = [
    "Comparison",
    "Gate",
    "Verdict",
    "apply_floor",
    "apply_gates",
    "apply_margin",
    "apply_minimum",
    "apply_own_gates",
    "refusal_sentence",
]
Array = NDArray[Any]


def apply_gates(
    problem: str,
    y: Array,
    candidate: Decided | Array,
    champion: Decided | Array | None,
    dummy: Decided | Array,
    limits: GateLimits,
    seed: int = 0,
) -> Verdict:
    """Score the predictions on the same rows and put the candidate through the gates.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: The true targets, [N]; see `ondol.evaluation.metrics`.
        candidate: The candidate's predictions for these rows, [N, K] or [N].
        champion: The champion's; None if no model is in production yet.
        dummy: The predictions of a dummy model (`ondol.evaluation.scoring.predict_dummy`).
        limits: `settings.gates`.
        seed: Of the bootstrap.

    Raises:
        UserError: the problem has no such metric, it needs `[decision]`, or a prediction is not a finite number.
    """
    metric = choose_metric(problem, limits.metric)
    require_decision(problem, limits.metric, candidate if isinstance(candidate, Decided) else None)
    how: dict[str, Any] = {"confidence": limits.confidence, "resamples": limits.resamples, "seed": seed}
    others = {"dummy": dummy} if champion is None else {"dummy": dummy, "champion": champion}
    gains = {who: paired_difference(problem, metric, y, candidate, other, **how) for who, other in others.items()}
    scores = {"dummy": bootstrap(problem, y, dummy, metrics=[metric], **how)}
    scores |= {
        who: bootstrap(problem, y, p, needed=metric, **how)
        for who, p in (("candidate", candidate), ("champion", champion))
        if p is not None
    }
    found = {who: gain for who, gain in gains.items() if gain is not None}
    compared = Comparison(problem=problem, metric=metric, rows=len(y), scores=scores, gains=found)
    floor = apply_floor(compared) if limits.minimum is None else apply_minimum(compared, limits.minimum)
    return Verdict(**dict(compared), gates=(floor, apply_margin(compared, limits.margin)))


def apply_floor(compared: Comparison) -> Gate:
    """Require that the low end of the gain over the dummy model is above 0."""
    gain = compared.gains.get("dummy")
    if gain is None or gain.low is None:
        return _unknown("floor", compared, 0.0)
    sentence = (
        f"{compared.metric} {compared.shown('candidate')} against a dummy model's {compared.shown('dummy')}: "
        f"a gain of {show_figure(gain.value)} ({show_figure(gain.low)} to {show_figure(gain.high)}), "
        f"whose low end must be above 0"
    )
    return Gate(name="floor", figure=gain.low, limit=0.0, passed=gain.low > 0, sentence=sentence)


def apply_minimum(compared: Comparison, minimum: float) -> Gate:
    """Require that the metric reaches `gates.minimum`."""
    figure = compared.value("candidate")
    if figure is None:
        return _unknown("floor", compared, minimum)
    greater = compared.rule.greater_is_better
    passed = figure >= minimum if greater else figure <= minimum
    words = "at least" if greater else "at most"
    sentence = f"{compared.metric} {show_figure(figure)} must be {words} {show_figure(minimum)} (gates.minimum)"
    return Gate(name="floor", figure=figure, limit=minimum, passed=passed, sentence=sentence)


def apply_margin(compared: Comparison, margin: float) -> Gate:
    """Require that the candidate is not worse than the champion by more than the margin."""
    if "champion" not in compared.scores:
        return Gate(name="margin", figure=None, limit=None, passed=True, sentence="no champion to compare with")
    gain, champion = compared.gains.get("champion"), compared.value("champion")
    if gain is None or champion is None:
        return _unknown("margin", compared, -margin)
    limit = -margin * (champion if compared.rule.relative else 1.0)
    passed = gain.value >= limit - 1e-12 * abs(champion)
    worse = "better" if gain.value >= 0 else "worse"
    sentence = (
        f"{compared.metric} {compared.shown('candidate')} is {show_figure(abs(gain.value))} {worse} than "
        f"the champion's {compared.shown('champion')}, and at most {show_figure(-limit)} worse is allowed"
    )
    return Gate(name="margin", figure=gain.value, limit=limit, passed=passed, sentence=sentence)


def apply_wanted(compared: Comparison, decision: Decision) -> tuple[Gate, ...]:
    """Require that the precision or recall of `[decision]` is not missed beyond chance; there is no gate for costs."""
    wanted = decision.model_dump(include={"precision", "recall"}, exclude_none=True)
    return tuple(_apply_wanted(compared, name, value) for name, value in wanted.items())


def _apply_wanted(compared: Comparison, name: str, wanted: float) -> Gate:
    found = compared.scores["candidate"].get(name)
    if found is None or found.high is None:
        return _unknown("decision", compared.model_copy(update={"metric": name}), wanted)
    sentence = (
        f"{name} {show_interval(found.value, found.low, found.high)}, whose high end must reach {show_figure(wanted)} "
        f"([decision] {name})"
    )
    return Gate(name="decision", figure=found.high, limit=wanted, passed=found.high >= wanted, sentence=sentence)


def apply_slice_margin(slices: Sequence[Slice], margin: float) -> Gate:
    """Require that in no slice the error is larger than the champion's by more than the margin and by chance.

    Args:
        slices: The slices.
        margin: The largest allowed difference: a share of wrong labels, or in the target's unit.
    """
    compared = [one for one in slices if one.worse is not None and one.worse_low is not None]
    if not compared:
        return Gate(name="slices", figure=None, limit=None, passed=True, sentence="no slice to compare with a champion")
    bad = [one for one in compared if one.worse > margin and one.worse_low > 0]  # type: ignore[operator]
    worst = max(bad or compared, key=lambda one: one.worse or 0.0)
    sentence = (
        f"where {worst.name} ({worst.rows:,} rows) the error is {show_figure(worst.worse or 0.0)} larger than the "
        f"champion's, and at most {show_figure(margin)} is allowed beyond chance"
    )
    return Gate(name="slices", figure=worst.worse, limit=margin, passed=not bad, sentence=sentence)


def apply_own_gates(compared: Comparison, scored: "Scored") -> tuple[Gate, ...]:
    """Return the decisions of the project's own gates.

    Args:
        compared: The figures of all models.
        scored: The held-out rows, and every model's predictions for them.

    Raises:
        UserError: `GATES` is not a list of functions, or one of them failed or returned no `Gate`.
    """
    own = read_extension(EVALUATION, "GATES") or ()
    if not isinstance(own, Sequence) or not all(callable(gate) for gate in own):
        raise UserError(f"GATES in {FILE(EVALUATION)} is not a list of functions.")
    return tuple(_apply_gate(gate, compared, scored) for gate in own)


def _apply_gate(gate: Any, compared: Comparison, scored: "Scored") -> Gate:
    name = getattr(gate, "__name__", repr(gate))
    try:
        result = gate(compared, scored)
    except OWN_ERRORS as error:
        raise UserError(f'The gate "{name}" of {FILE(EVALUATION)} failed: {describe_error(error)}.') from error
    if not isinstance(result, Gate):
        raise UserError(f'The gate "{name}" of {FILE(EVALUATION)} returned {type(result).__name__}: return a Gate.')
    return result


def refusal_sentence(verdict: Verdict, champion: str | None = None) -> str:
    """Return a sentence on the gates that refused, by how much, and what stays in production; empty for a pass.

    Args:
        verdict: The verdict.
        champion: The version in production; None if there is none.
    """
    refused = [f"the {gate.name} gate ({gate.sentence}{_short(gate)})" for gate in verdict.gates if not gate.passed]
    if not refused:
        return ""
    rest = f"champion version {champion} stays in production" if champion else "no model is in production yet"
    return f"The candidate is refused by {' and '.join(refused)}; {rest}."


def _short(gate: Gate) -> str:
    """Return by how much the figure misses the limit."""
    if gate.figure is None or gate.limit is None:
        return ""
    return f": it misses by {show_figure(abs(gate.limit - gate.figure))}"


def _unknown(name: str, compared: Comparison, limit: float) -> Gate:
    why = f"{compared.metric} is unknown on a holdout of {compared.rows:,} rows (too few, or of one class)"
    return Gate(
        name=name,
        figure=None,
        limit=limit,
        passed=False,
        sentence=f"{why}: add more rows, or raise split.holdout",
    )
