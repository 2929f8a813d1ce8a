"""Where a rule decides labels: the metrics of labels follow it, the others do not, and costs can decide the gates."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ondol.config import Decision, Gates
from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.evaluation.evaluate import predict_champion
from ondol.evaluation.gates import apply_gates, apply_wanted
from ondol.evaluation.metrics import Decided, bootstrap, labels_of, measure_importance, require_decision, score_metrics
from ondol.evaluation.plots import draw_plots
from ondol.evaluation.scoring import predict_dummy
from ondol.evaluation.slices import row_losses
from ondol.evaluation.targets import output_columns
from ondol_serving.decision import DecisionRule

COSTS = ((0.0, 1.0), (5.0, 0.0))
ROWS = 800


def draw(seed: int = 0, strength: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = (rng.random(ROWS) < 0.3).astype(np.int64)
    noise = np.random.default_rng(seed + 1).normal(size=ROWS)
    score = 1 / (1 + np.exp(2 - strength * y - noise))
    return y, np.column_stack([1 - score, score])


def test_metrics_of_labels_follow_the_threshold_and_the_others_do_not():
    y, probabilities = draw()
    usual = score_metrics("binary", y, probabilities)
    found = score_metrics("binary", y, Decided.by(DecisionRule(0.2, COSTS), probabilities))
    said = probabilities[:, 1] >= 0.2
    assert found["accuracy"] == pytest.approx((said == (y == 1)).mean()) != usual["accuracy"]
    assert found["precision"] == pytest.approx((y[said] == 1).mean())
    assert found["recall"] == pytest.approx(said[y == 1].mean())
    assert found["cost"] == pytest.approx(np.where(y == 1, 5 * ~said, said).mean())
    for name in ("roc_auc", "average_precision", "log_loss", "brier"):
        assert found[name] == usual[name]
    assert not {"precision", "recall", "cost"} & usual.keys()


def test_costs_of_several_classes_are_the_mean_over_the_rows():
    rng = np.random.default_rng(0)
    costs = np.array([[0, 1, 2], [3, 0, 1], [9, 4, 0.5]])
    y, probabilities = rng.integers(0, 3, 200), rng.dirichlet(np.ones(3), 200)
    rule = DecisionRule(None, tuple(map(tuple, costs.tolist())))
    labels = (probabilities @ costs).argmin(axis=1)
    found = score_metrics("multiclass", y, Decided.by(rule, probabilities))
    assert found["cost"] == pytest.approx(costs[y, labels].mean())
    assert found["accuracy"] == pytest.approx((labels == y).mean())


def test_intervals_slices_importance_and_references_use_the_labels():
    y, probabilities = draw()
    rule = DecisionRule(0.2, COSTS)
    decided = Decided.by(rule, probabilities)
    found = bootstrap("binary", y, decided, resamples=50, metrics=["cost"])["cost"]
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    assert row_losses("binary", y, decided).tolist() == (labels_of(decided) != y).astype(float).tolist()
    frame = pd.DataFrame({"score": probabilities[:, 1], "other": 0.0})

    def predict(rows: pd.DataFrame) -> Decided | np.ndarray:
        score = rows["score"].to_numpy()
        return Decided.by(rule, np.column_stack([1 - score, score]))

    importance = measure_importance("binary", "cost", y, frame, ["score", "other"], predict, resamples=20)
    assert importance["score"].value > 0.1 > abs(importance["other"].value)
    contract = contract_with(rule)
    assert (output_columns(contract, probabilities, "p", "q")["p"] == "예").sum() == (probabilities[:, 1] >= 0.2).sum()


def contract_with(rule: DecisionRule | None, classes: tuple[str, ...] = ("아니오", "예")) -> Contract:
    columns = (Column(name="x", kind="number"), Column(name="y", kind="text", role="target", categories=classes))
    return Contract(problem="binary", target="y", classes=classes, columns=columns, decision=rule)


def judge(candidate: float, champion: float | None, **limits):
    y, probabilities = draw()
    rule = DecisionRule(candidate, COSTS)
    theirs = None if champion is None else Decided.by(DecisionRule(champion, COSTS), probabilities, rule)
    gates = Gates(metric="cost", **limits)
    dummy = Decided.by(None, predict_dummy("binary", "cost", [0.7, 0.3], ROWS, rule), rule)
    return apply_gates("binary", y, Decided.by(rule, probabilities), theirs, dummy, gates)


def test_costs_decide_the_gates_and_the_champion_is_judged_at_its_own_threshold():
    assert judge(0.2, None).passed
    worse = judge(0.9, 0.2)
    assert [gate.name for gate in worse.gates if not gate.passed] == ["floor", "margin"]
    assert worse.scores["champion"]["cost"].value < worse.scores["candidate"]["cost"].value
    assert judge(0.2, 0.9).gains["champion"].value > 0.3
    assert not judge(0.2, None, minimum=0.01).passed and judge(0.2, None, minimum=2).passed


@pytest.mark.parametrize(("wanted", "passed"), [(0.3, True), (0.99, False)])
@pytest.mark.parametrize("name", ["precision", "recall"])
def test_a_wanted_precision_or_recall_that_is_missed_beyond_chance_is_refused(name, wanted, passed):
    y, probabilities = draw()
    decided = Decided.by(DecisionRule(0.4), probabilities)
    verdict = apply_gates("binary", y, decided, None, Decided.by(None, probabilities, DecisionRule(0.4)), Gates())
    (gate,) = apply_wanted(verdict, Decision(**{name: wanted}))
    assert (gate.name, gate.passed, gate.limit) == ("decision", passed, wanted)
    assert f"([decision] {name})" in gate.sentence
    assert apply_wanted(verdict, Decision(costs={"yes": {"no": 2}})) == ()


def test_the_dummy_of_costs_has_the_cheapest_label():
    dummy = predict_dummy("binary", "cost", [0.7, 0.3], 3, DecisionRule(0.2, COSTS))
    assert labels_of(dummy).tolist() == [1, 1, 1]  # 0.7 a row instead of 1.5
    cheap = predict_dummy("binary", "cost", [0.9, 0.1], 3, DecisionRule(0.2, COSTS))
    assert labels_of(cheap).tolist() == [0, 0, 0]


@pytest.mark.parametrize("metric", ["cost", "precision", "recall"])
def test_a_metric_of_a_decision_needs_one(metric):
    y, probabilities = draw()
    with pytest.raises(UserError, match=rf'gates.metric is "{metric}", which needs costs.* under \[decision\]'):
        apply_gates("binary", y, probabilities, None, probabilities, Gates(metric=metric))


def test_costs_need_costs_and_a_recall_needs_any_decision():
    require_decision("binary", "recall", Decision(costs={"yes": {"no": 2}}))
    require_decision("binary", "roc_auc", None)
    with pytest.raises(UserError, match=r'"cost", which needs costs under \[decision\]'):
        require_decision("binary", "cost", Decision(recall=0.9))


@pytest.mark.parametrize("theirs", [DecisionRule(0.9), None])
def test_the_champions_labels_are_those_that_it_answers_with(theirs, monkeypatch):
    from types import SimpleNamespace

    _, probabilities = draw()
    served = SimpleNamespace(predict=lambda frame: probabilities)
    monkeypatch.setattr("ondol.evaluation.evaluate.Scorer", SimpleNamespace(open=lambda path: served))
    candidate = SimpleNamespace(contract=contract_with(DecisionRule(0.2, COSTS)))
    bundle = SimpleNamespace(path=None, contract=contract_with(theirs))
    found = predict_champion(bundle, candidate, pd.DataFrame({"x": np.zeros(ROWS)}))  # type: ignore[arg-type]
    threshold = theirs.threshold if theirs else 0.5
    assert isinstance(found, Decided) and found.costs == COSTS
    assert (found.labels == (probabilities[:, 1] >= threshold)).all()
    candidate.contract = contract_with(None)
    plain = predict_champion(bundle, candidate, pd.DataFrame({"x": np.zeros(ROWS)}))  # type: ignore[arg-type]
    assert isinstance(plain, Decided) is (theirs is not None)


@pytest.mark.parametrize("rule", [DecisionRule(0.2, COSTS), DecisionRule(0.01), DecisionRule(0.0), DecisionRule(1.0)])
def test_the_threshold_has_a_picture(rule):
    y, probabilities = draw()
    decided, other = Decided.by(rule, probabilities), Decided.by(DecisionRule(0.6), probabilities, rule)
    plots = draw_plots("binary", y, decided, other, ["아니오", "예"], "해지", rule=rule)
    assert list(plots) == ["roc", "precision-recall", "calibration", "confusion-matrix", "threshold"]
    assert all(Image.open(io.BytesIO(png)).size[0] > 300 for png in plots.values())
    assert plots["roc"] != draw_plots("binary", y, probabilities, None, ["아니오", "예"], "해지")["roc"]
