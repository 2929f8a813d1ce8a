"""`[decision]`: the threshold is chosen on out-of-fold rows, for costs, a precision or a recall."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ondol.config import Decision, FileSettings, Settings, load_settings
from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.training.dataset import Holdout
from ondol.training.decision import build_costs, find_rule, require_classes
from ondol.training.train import fit_rows
from ondol_serving.decision import DecisionRule, decide, measure_margins

NO_YES = ("no", "yes")


def draw(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return true classes, and their probabilities, which are calibrated."""
    rng = np.random.default_rng(seed)
    score = rng.beta(1, 2, rows)
    return (rng.random(rows) < score).astype(np.int64), np.column_stack([1 - score, score])


def mean_cost(rule: DecisionRule, y: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.array(rule.costs)[y, decide(rule, probabilities)].mean())


@pytest.mark.parametrize("ratio", [0.2, 1, 5, 20])
def test_the_threshold_of_costs_is_close_to_the_best_one_on_fresh_rows(ratio):
    rule = find_rule(Decision(costs={"yes": {"no": ratio}}), NO_YES, *draw(4_000))
    assert rule.threshold == pytest.approx(1 / (1 + ratio), abs=0.06)  # of calibrated probabilities
    y, probabilities = draw(50_000, seed=1)
    best = min(mean_cost(DecisionRule(t, rule.costs), y, probabilities) for t in np.linspace(0, 1, 201))
    assert mean_cost(rule, y, probabilities) <= 1.02 * best


def test_the_threshold_corrects_probabilities_that_are_not_calibrated():
    y, probabilities = draw(20_000)
    lower = probabilities[:, 1] ** 3
    rule = find_rule(Decision(costs={"yes": {"no": 1}}), NO_YES, y, np.column_stack([1 - lower, lower]))
    assert rule.threshold == pytest.approx(0.5**3, abs=0.03)


def test_a_wanted_precision_or_recall_is_reached_with_as_much_of_the_other_as_possible():
    y, probabilities = draw(2_000)
    score = probabilities[:, 1]

    def reached(threshold: float) -> tuple[float, float]:
        labels = score >= threshold
        return (y[labels] == 1).mean() if labels.any() else 0.0, labels[y == 1].mean()

    every = np.array([reached(t) for t in np.unique(score)])
    found = find_rule(Decision(precision=0.7), NO_YES, y, probabilities)
    precision, recall = reached(float(found.threshold or 0))
    assert precision >= 0.7 and recall == pytest.approx(every[every[:, 0] >= 0.7, 1].max())
    found = find_rule(Decision(recall=0.8), NO_YES, y, probabilities)
    precision, recall = reached(float(found.threshold or 0))
    assert recall >= 0.8 and precision == pytest.approx(every[every[:, 1] >= 0.8, 0].max())


def test_a_threshold_is_a_float32_so_that_the_service_compares_with_the_same_number():
    threshold = find_rule(Decision(recall=0.8), NO_YES, *draw(500)).threshold
    assert threshold == float(np.float32(threshold))


@pytest.mark.parametrize("truth", [[0, 1, 0, 1, 0, 1], [0] * 6, [1] * 6])
@pytest.mark.parametrize("score", [[0.5] * 6, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
@pytest.mark.parametrize("decision", [Decision(costs={"1": {"0": 5}}), Decision(precision=0.5), Decision(recall=0.5)])
def test_probabilities_that_are_equal_or_certain_give_a_threshold_too(score, decision, truth):
    scores = np.array(score)
    rule = find_rule(decision, (0, 1), np.array(truth), np.column_stack([1 - scores, scores]))
    assert 0 <= float(rule.threshold if rule.threshold is not None else -1) <= 1


@pytest.mark.parametrize(
    ("classes", "costs", "matrix"),
    [
        (("아니오", "예"), {"예": {"아니오": 5}}, ((0, 1), (5, 0))),
        ((False, True), {"true": {"false": 5}, "false": {"true": 2}}, ((0, 2), (5, 0))),
        ((1, 2, 30), {"30": {"1": 9, "30": -1}}, ((0, 1, 1), (1, 0, 1), (9, 1, -1))),
    ],
)
def test_costs_are_written_by_the_names_of_the_classes(classes, costs, matrix):
    assert build_costs(Decision(costs=costs), classes) == matrix


def test_a_class_that_does_not_exist_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r'has the class "yess", which the target does not have\. .*"yes"'):
        require_classes(Decision(costs={"yess": {"no": 5}}), NO_YES)
    with pytest.raises(UserError, match=r'has the class "maybe"'):
        require_classes(Decision(costs={"yes": {"maybe": 5}}), NO_YES)
    require_classes(Decision(costs={"1": {"0": 5}}), (0, 1))


def test_of_several_classes_the_label_has_the_least_expected_cost():
    costs = {"a": {"b": 1, "c": 1}, "b": {"a": 1, "c": 1}, "c": {"a": 10, "b": 10}}
    rule = find_rule(Decision(costs=costs), ("a", "b", "c"), np.zeros(1, np.int64), np.zeros((1, 3)))
    probabilities = np.array([[0.5, 0.4, 0.1], [0.6, 0.35, 0.05]])
    assert decide(rule, probabilities).tolist() == [2, 0]
    assert decide(None, probabilities).tolist() == [0, 0]


def test_no_smaller_change_of_the_probabilities_than_the_margin_changes_a_label():
    rng = np.random.default_rng(0)
    costs = ((0.0, 1.0, 2.0), (5.0, 0.0, 1.0), (9.0, 3.0, -1.0))
    for rule, count in ((None, 3), (DecisionRule(0.3), 2), (DecisionRule(None, costs), 3)):
        probabilities = rng.dirichlet(np.ones(count), 2_000)
        margins = measure_margins(rule, probabilities)
        assert (margins > 0).all()
        moved = probabilities + 0.999 * margins[:, None] * rng.choice([-1.0, 1.0], probabilities.shape)
        assert (decide(rule, moved) == decide(rule, probabilities)).all()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("precision = 0.9\nrecall = 0.8", r"section \[decision\] .*: it has precision and recall: keep one of them\."),
        ("precision = 1.5", r'"decision.precision" .* is 1\.5'),
        ("costs = {}", "write what a mistake costs"),
        ("costs = { yes = { no = 0 } }", 'for the true class "yes", a wrong label must cost more than the right one'),
        ("costs = { yes = { yes = 1 } }", 'for the true class "yes", a wrong label must cost more than the right one'),
        ("cost = { yes = { no = 1 } }", r'unknown setting "decision.cost"\. .*costs'),
        (
            'recall = 0.9\n[data]\nproblem = "regression"',
            r"\[decision\] is about labels, and the problem is regression",
        ),
        (
            'recall = 0.9\n[data]\nproblem = "multiclass"',
            "precision and recall are for two classes: use costs for more",
        ),
    ],
)
def test_a_mistake_in_the_section_is_one_sentence(tmp_path, section, message):
    (tmp_path / "config.toml").write_text(f"[decision]\n{section}\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_settings(tmp_path, FileSettings)


def test_without_the_section_nothing_of_it_is_recorded(tmp_path):
    assert "decision" not in Settings(root=tmp_path).model_dump()
    plain = Contract(problem="binary", target="y", classes=NO_YES, columns=())
    assert "decision" not in plain.model_dump() and "decision" not in plain.model_dump_json()
    ruled = plain.model_copy(update={"decision": DecisionRule(0.25, ((0.0, 1.0), (3.0, 0.0)))})
    assert Contract.model_validate_json(ruled.model_dump_json()) == ruled


COLUMNS = (Column(name="x", kind="number"), Column(name="떠남", kind="text", role="target"))


def fit(tmp_path: Any, rows: int = 600, strength: float = 1.0, **decision: Any) -> Any:
    data = {"problem": "binary", "target": "떠남"}
    settings = Settings.model_validate({"root": tmp_path, "data": data, "decision": decision})
    x = np.random.default_rng(0).normal(size=rows)
    label = np.where(strength * x + np.random.default_rng(1).normal(size=rows) > 1, "예", "아니오")
    frame = pd.DataFrame({"x": x, "떠남": pd.Series(label, dtype="str")})
    contract = Contract(problem="binary", target="떠남", columns=COLUMNS)
    return fit_rows(settings, contract, frame, Holdout(split=settings.split))


def test_a_model_is_fitted_with_its_rule_again_and_again(tmp_path):
    first, second = (fit(tmp_path, costs={"예": {"아니오": 8}}) for _ in range(2))
    assert first.contract.decision == second.contract.decision == first.decision.rule
    assert first.contract.decision.threshold < 0.3
    assert 'The label is "예" from a probability of 0.' in first.decision.reason
    assert first.decision.figures["out_of_fold_cost"] < first.decision.figures["out_of_fold_usual_cost"]
    assert fit(tmp_path).contract.decision is None


def test_what_cannot_be_reached_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"precision = 0\.999 is not reached: the highest precision .* Ask for less"):
        fit(tmp_path, strength=0.0, precision=0.999)
    with pytest.raises(UserError, match=r"15 rows make no folds with every class: add rows, or remove the section"):
        fit(tmp_path, rows=15, recall=0.9)
