"""The gates between a candidate and production: pure functions of a comparison on the holdout.

There are two built-in gates:

- `floor`: the candidate must be better than a dummy model by more than the interval, that is, the low end of
  the paired difference on the holdout must be above 0. Where the owner set `gates.minimum`, the metric itself
  must reach that number instead (stay at or below it, for a metric where less is better).
- `margin`: the candidate must not be worse than the champion by more than `gates.margin` on the same holdout.
  The margin is in the metric's unit (0.01 of ROC AUC, of R²), except for errors in the target's unit (rmse,
  mae, median_absolute_error), where it is a share of the champion's error.

An undefined metric (too few rows, one class only) does not pass.

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
    candidate: Array,
    champion: Array | None,
    dummy: Array,
    limits: Limits,
    seed: int = 0,
) -> Verdict:
    """Score the predictions on the same rows and put the candidate through the gates.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: The true targets, [N]; see `ondol.evaluation.metrics`.
        candidate: The candidate's predictions for these rows, [N, K] or [N].
        champion: The champion's; None if no model is in production yet.
        dummy: Those of a model without the features (`ondol.evaluation.scoring.predict_dummy`).
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


def apply_own_gates(compared: Comparison, scored: "Scored") -> tuple[Gate, ...]:
    """Return what the gates of the project's own decide.

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
    except Exception as error:  # the project's code may raise anything
        raise UserError(f'The gate "{name}" of {FILE(EVALUATION)} failed: {explain(error)}.') from error
    if not isinstance(result, Gate):
        raise UserError(f'The gate "{name}" of {FILE(EVALUATION)} returned {type(result).__name__}: return a Gate.')
    return result


def refusal_sentence(verdict: Verdict, champion: str | None = None) -> str:
    """Return a sentence with the gates that refused, by how much, and what stays in production; empty for a pass.

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
