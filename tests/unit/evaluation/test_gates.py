"""Each gate refuses bad candidates, and reports by how much they fail."""

import json

import numpy as np
import pytest

from ondol.config import Gates
from ondol.evaluation.gates import (
    Comparison,
    Verdict,
    apply_floor,
    apply_gates,
    apply_margin,
    apply_minimum,
    refusal_sentence,
)
from ondol.evaluation.metrics import METRICS, Interval
from ondol.evaluation.scoring import predict_dummy

ROWS = 600


def truth(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(ROWS) < 0.3).astype(np.int64)


def predict(y: np.ndarray, strength: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=len(y))
    score = 1 / (1 + np.exp(1 - strength * y - noise))
    return np.column_stack([1 - score, score])


def rule(candidate: float, champion: float | None = None, **limits) -> Verdict:
    y = truth()
    dummy = predict_dummy("binary", limits.get("metric") or "roc_auc", [0.7, 0.3], ROWS)
    other = None if champion is None else predict(y, champion)
    return apply_gates("binary", y, predict(y, candidate), other, dummy, Gates(**limits))


def compare(problem: str, metric: str, candidate: float, champion: float) -> Comparison:
    sign = 1 if METRICS[problem][metric].greater_is_better else -1
    figures = {"candidate": candidate, "champion": champion}
    return Comparison(
        problem=problem,
        metric=metric,
        rows=100,
        scores={who: {metric: Interval(figure, None, None)} for who, figure in figures.items()},
        gains={"champion": Interval(sign * (candidate - champion), None, None)},
    )


def test_good_candidate_passes_and_there_is_nothing_to_refuse():
    verdict = rule(2.0)
    assert verdict.passed and refusal_sentence(verdict) == ""
    assert [gate.name for gate in verdict.gates] == ["floor", "margin"]


def test_floor_refuses_what_is_no_better_than_a_dummy():
    verdict = rule(0.0)
    assert [gate.name for gate in verdict.gates if not gate.passed] == ["floor"]
    floor = verdict.gates[0]
    assert floor.figure == verdict.gains["dummy"].low <= floor.limit == 0
    sentence = refusal_sentence(verdict)
    assert "floor gate" in sentence and "no model is in production yet" in sentence and "misses by 0.0" in sentence


def test_floor_asks_for_more_than_the_interval():
    better_by_luck = Interval(0.02, -0.01, 0.05)
    scores = {who: {"roc_auc": Interval(0.5, None, None)} for who in ("candidate", "dummy")}
    compared = Comparison(problem="binary", metric="roc_auc", rows=100, scores=scores, gains={"dummy": better_by_luck})
    assert not apply_floor(compared).passed
    assert apply_floor(compared.model_copy(update={"gains": {"dummy": Interval(0.02, 0.001, 0.05)}})).passed


def test_margin_refuses_what_is_worse_than_the_champion():
    verdict = rule(1.0, champion=2.0)
    assert [gate.name for gate in verdict.gates if not gate.passed] == ["margin"]
    sentence = refusal_sentence(verdict, "7")
    gain = verdict.gains["champion"].value
    assert f"misses by {-gain - 0.01:.4f}" in sentence and "champion version 7 stays in production" in sentence


def test_no_champion_is_recorded_and_passes():
    margin = rule(2.0).gates[1]
    assert margin.passed and margin.figure is None and margin.sentence == "no champion to compare with"


def test_equal_candidate_passes_even_without_a_margin():
    assert rule(1.5, champion=1.5, margin=0.0).passed


@pytest.mark.parametrize(
    ("problem", "metric", "champion", "edge"),
    [
        ("binary", "roc_auc", 0.80, 0.79),
        ("binary", "log_loss", 0.40, 0.41),
        ("regression", "r2", 0.90, 0.89),
        ("regression", "rmse", 50_000.0, 50_500.0),
        ("regression", "mape", 0.10, 0.11),
    ],
)
def test_margin_is_in_the_metrics_unit_and_relative_for_errors_in_the_targets(problem, metric, champion, edge):
    worse = edge + (edge - champion) * 1e-3
    assert apply_margin(compare(problem, metric, edge, champion), 0.01).passed
    assert not apply_margin(compare(problem, metric, worse, champion), 0.01).passed


def test_owners_minimum_replaces_the_dummy():
    assert rule(2.0, minimum=0.8).passed
    refused = rule(2.0, minimum=0.99)
    assert [gate.name for gate in refused.gates if not gate.passed] == ["floor"]
    assert "at least 0.9900 (gates.minimum)" in refusal_sentence(refused)
    errors = compare("regression", "rmse", 90.0, 90.0)
    assert apply_minimum(errors, 90.0).passed and not apply_minimum(errors, 89.0).passed


def test_every_refusing_gate_is_named():
    sentence = refusal_sentence(rule(0.0, champion=2.0), "3")
    assert "floor gate" in sentence and "margin gate" in sentence


def test_the_metric_that_decides_is_measured_with_any_number_of_classes():
    y = np.random.default_rng(0).integers(0, 12, 600)
    probabilities = 0.5 * np.eye(12)[y] + 0.5 / 12
    dummy = np.full((600, 12), 1 / 12)
    verdict = apply_gates("multiclass", y, probabilities, probabilities, dummy, Gates(metric="roc_auc_ovr"))
    assert verdict.passed and verdict.value("candidate") == verdict.value("champion") == 1
    assert "roc_auc_ovr" not in apply_gates("multiclass", y, probabilities, None, dummy, Gates()).scores["candidate"]


def test_unknown_figures_do_not_pass():
    y = np.array([0, 1, 1, 0, 1])
    few = apply_gates("binary", y, predict(y, 9.0), None, np.tile([0.4, 0.6], (5, 1)), Gates())
    assert not few.passed and "holdout of 5 rows" in refusal_sentence(few)
    one = np.ones(50, np.int64)
    both = apply_gates("binary", one, predict(one, 2.0), predict(one, 1.0), np.tile([0.4, 0.6], (50, 1)), Gates())
    assert [gate.passed for gate in both.gates] == [False, False]


def test_verdict_survives_strict_json():
    for verdict in (rule(2.0, champion=1.0), rule(1.0, minimum=0.3)):
        text = json.dumps(verdict.model_dump(mode="json"), allow_nan=False)
        assert Verdict.model_validate_json(text) == verdict


@pytest.mark.parametrize("problem", ["binary", "multiclass", "regression"])
def test_floor_refuses_a_guess_by_every_metric(problem):
    rng = np.random.default_rng(5)
    shares = {"binary": [0.7, 0.3], "multiclass": [0.6, 0.3, 0.1]}.get(problem, [10.0, 10.0])
    for metric in METRICS[problem]:
        if problem == "regression":
            y, guess = rng.normal(10, 1, ROWS), rng.normal(10, 0.3, ROWS)
        else:
            y = rng.choice(len(shares), ROWS, p=shares)
            guess = rng.dirichlet(10 * np.array(shares), ROWS)
        dummy = predict_dummy(problem, metric, shares, ROWS)
        verdict = apply_gates(problem, y, guess, None, dummy, Gates(metric=metric))
        assert not verdict.passed, metric
