"""The gates between a candidate and production: pure functions of a comparison on the holdout.

Two gates stand:

- `floor`: the candidate must be better than a dummy model by more than the interval, that is, the low end of
  the paired difference on the holdout must be above 0. Where the owner set `gates.minimum`, the metric itself
  must reach that number instead (stay at or below it, for a metric where less is better).
- `margin`: the candidate must not be worse than the champion by more than `gates.margin` on the same holdout.
  The margin is in the metric's unit (0.01 of ROC AUC, of R²), except for errors in the target's unit (rmse,
  mae, median_absolute_error), where it is a share of the champion's error.

What is unknown (too few rows, one class only) does not pass.

Gates of the project's own are functions in `GATES` of `model/evaluation.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ondol.errors import UserError
from ondol.evaluation.metrics import bootstrap, choose_metric, paired_difference
from ondol.evaluation.verdicts import Comparison, Gate, Limits, Verdict, show_figure
from ondol.extensions import EVALUATION, FILE, explain, read_extension

if TYPE_CHECKING:
    from ondol.evaluation.evaluate import Scored

__all__ = [
    "Comparison",
    "Gate",
    "Verdict",
    "apply_gates",
    "apply_own_gates",
    "judge_floor",
    "judge_margin",
    "judge_minimum",
    "refusal_sentence",
]
Array = NDArray[Any]


def apply_gates(
    problem: str,
    y: Array,
    candidate: Array,
    champion: Array | None,
    dummy: Array,
    limits: Limits,
    seed: int = 0,
) -> Verdict:
    """Score the predictions on the same rows and put the candidate through the gates.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: What is true, [N]; see `ondol.evaluation.metrics`.
        candidate: The candidate's predictions for these rows, [N, K] or [N].
        champion: The champion's; None where nothing serves yet.
        dummy: Those of a model without the features (`ondol.training.baseline.predict_dummy`).
        limits: `settings.gates`.
        seed: Of the bootstrap.

    Raises:
        UserError: the problem has no such metric, or a prediction is no finite number.
    """
    metric = choose_metric(problem, limits.metric)
    how: dict[str, Any] = {"confidence": limits.confidence, "resamples": limits.resamples, "seed": seed}
    others = {"dummy": dummy} if champion is None else {"dummy": dummy, "champion": champion}
    gains = {who: paired_difference(problem, metric, y, candidate, other, **how) for who, other in others.items()}
    scores = {"dummy": bootstrap(problem, y, dummy, metrics=[metric], **how)}
    scores |= {
        who: bootstrap(problem, y, p, **how)
        for who, p in (("candidate", candidate), ("champion", champion))
        if p is not None
    }
    found = {who: gain for who, gain in gains.items() if gain is not None}
    compared = Comparison(problem=problem, metric=metric, rows=len(y), scores=scores, gains=found)
    floor = judge_floor(compared) if limits.minimum is None else judge_minimum(compared, limits.minimum)
    return Verdict(**dict(compared), gates=(floor, judge_margin(compared, limits.margin)))


def judge_floor(compared: Comparison) -> Gate:
    """Ask that the low end of the gain over the dummy model is above 0."""
    gain = compared.gains.get("dummy")
    if gain is None or gain.low is None:
        return _unknown("floor", compared, 0.0)
    sentence = (
        f"{compared.metric} {compared.shown('candidate')} against a dummy model's {compared.shown('dummy')}: "
        f"a gain of {show_figure(gain.value)} ({show_figure(gain.low)} to {show_figure(gain.high)}), "
        f"whose low end must be above 0"
    )
    return Gate(name="floor", figure=gain.low, limit=0.0, passed=gain.low > 0, sentence=sentence)


def judge_minimum(compared: Comparison, minimum: float) -> Gate:
    """Ask that the metric reaches the owner's number."""
    figure = compared.value("candidate")
    if figure is None:
        return _unknown("floor", compared, minimum)
    greater = compared.rule.greater_is_better
    passed = figure >= minimum if greater else figure <= minimum
    words = "at least" if greater else "at most"
    sentence = f"{compared.metric} {show_figure(figure)} must be {words} {show_figure(minimum)} (gates.minimum)"
    return Gate(name="floor", figure=figure, limit=minimum, passed=passed, sentence=sentence)


def judge_margin(compared: Comparison, margin: float) -> Gate:
    """Ask that the candidate is not worse than the champion by more than the margin."""
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
        f"the champion's {compared.shown('champion')}, and at most {show_figure(-limit)} worse is let through"
    )
    return Gate(name="margin", figure=gain.value, limit=limit, passed=passed, sentence=sentence)


def apply_own_gates(compared: Comparison, scored: "Scored") -> tuple[Gate, ...]:
    """Return what the gates of the project's own decide.

    Args:
        compared: The figures of all models.
        scored: The held-out rows, and every model's predictions for them.

    Raises:
        UserError: `GATES` is no list of functions, or one of them failed or returned no `Gate`.
    """
    own = read_extension(EVALUATION, "GATES") or ()
    if not isinstance(own, Sequence) or not all(callable(gate) for gate in own):
        raise UserError(f"GATES in {FILE(EVALUATION)} is no list of functions.")
    return tuple(_judge_by(gate, compared, scored) for gate in own)


def _judge_by(gate: Any, compared: Comparison, scored: "Scored") -> Gate:
    name = getattr(gate, "__name__", repr(gate))
    try:
        ruling = gate(compared, scored)
    except Exception as error:  # whatever the project's code raises
        raise UserError(f'The gate "{name}" of {FILE(EVALUATION)} failed: {explain(error)}.') from error
    if not isinstance(ruling, Gate):
        raise UserError(f'The gate "{name}" of {FILE(EVALUATION)} returned {type(ruling).__name__}: return a Gate.')
    return ruling


def refusal_sentence(verdict: Verdict, champion: str | None = None) -> str:
    """Say which gates refused, by how much, and what serves on; empty where none did.

    Args:
        verdict: What was ruled.
        champion: The version that serves; None where there is none.
    """
    refused = [f"the {gate.name} gate ({gate.sentence}{_short(gate)})" for gate in verdict.gates if not gate.passed]
    if not refused:
        return ""
    serves = f"champion version {champion} still serves" if champion else "nothing serves yet"
    return f"The candidate is refused by {' and '.join(refused)}; {serves}."


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
        sentence=f"{why}: bring more rows, or raise split.holdout",
    )
