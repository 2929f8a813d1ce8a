"""`model/evaluation.py`: metrics and gates of the project's own, and what is said of mistakes in them."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ondol import project
from ondol.config import Gates
from ondol.errors import UserError
from ondol.evaluation.gates import Gate, apply_gates, apply_own_gates
from ondol.evaluation.metrics import Metric, choose_metric, metrics_of, paired_difference, score_metrics

Y = np.array([0, 1] * 50)
GOOD = np.column_stack([1 - (0.1 + 0.8 * Y), 0.1 + 0.8 * Y])
DUMMY = np.full((100, 2), 0.5)


def hits(y: Any, probabilities: Any, weights: Any) -> float:
    return float(weights @ (probabilities.argmax(axis=1) == y) / weights.sum())


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `model.evaluation` of a project, to be filled."""
    module = ModuleType("model.evaluation")
    monkeypatch.setattr(project.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "model.evaluation", module)
    return module


def evaluated(**settings: Any) -> Any:
    return apply_gates("binary", Y, GOOD, None, DUMMY, Gates(**settings))


def test_own_metrics_stand_behind_those_of_the_problem(own):
    before = list(metrics_of("binary"))
    own.METRICS = {"hits": Metric(True, score=hits)}
    assert list(metrics_of("binary")) == [*before, "hits"]
    assert choose_metric("binary", None) == before[0]
    assert choose_metric("binary", "hits") == "hits"
    assert score_metrics("binary", Y, GOOD)["hits"] == score_metrics("binary", Y, GOOD)["accuracy"] == 1.0


def test_own_metric_decides(own):
    own.METRICS = {"hits": Metric(True, score=hits), "misses": Metric(False, score=lambda *a: 1 - hits(*a))}
    assert evaluated(metric="hits").passed
    assert evaluated(metric="misses", minimum=0.1).passed
    assert not evaluated(metric="hits", minimum=1.1).passed
    gain = paired_difference("binary", "misses", Y, GOOD, DUMMY)
    assert gain is not None and gain.value == pytest.approx(0.5)


def test_own_metric_without_a_value_is_left_out(own):
    own.METRICS = {"hits": Metric(True, score=lambda *_: float("nan"))}
    assert "hits" not in score_metrics("binary", Y, GOOD)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"hits": hits}, "METRICS in model/evaluation.py is wrong at 'hits': map a name to Metric(…, score=function)."),
        ({"hits": Metric(True)}, "METRICS in model/evaluation.py is wrong at 'hits'"),
        ([hits], "METRICS in model/evaluation.py is wrong at"),
        ({"rmse": Metric(True, score=hits)}, 'has the name "rmse", which is taken'),
        ({"my hits": Metric(True, score=hits)}, 'has the name "my hits", which is taken or no identifier'),
        ({"hits": Metric(True, score=lambda y, p: 1.0)}, 'The metric "hits" of model/evaluation.py failed: TypeError:'),
        (
            {"hits": Metric(True, score=lambda *_: "much")},
            'The metric "hits" of model/evaluation.py failed: ValueError:',
        ),
    ],
)
def test_mistakes_in_metrics_are_one_sentence(own, metrics, said):
    own.METRICS = metrics
    with pytest.raises(UserError) as caught:
        score_metrics("binary", Y, GOOD)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_own_gates_decide_by_the_comparison_and_the_rows(own):
    def few(compared: Any, scored: Any) -> Gate:
        return Gate(name="few", figure=compared.rows, limit=200, passed=compared.rows > scored, sentence="few rows")

    own.GATES = [few]
    assert [gate.passed for gate in apply_own_gates(evaluated(), 99)] == [True]  # type: ignore[arg-type]
    assert [gate.passed for gate in apply_own_gates(evaluated(), 100)] == [False]  # type: ignore[arg-type]


def fail(compared: Any, scored: Any) -> Gate:
    raise KeyError("plan")


def forget(compared: Any, scored: Any) -> None:
    return


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        (fail, "GATES in model/evaluation.py is not a list of functions."),
        (["fail"], "GATES in model/evaluation.py is not a list of functions."),
        ([fail], "The gate \"fail\" of model/evaluation.py failed: KeyError: 'plan'."),
        ([forget], 'The gate "forget" of model/evaluation.py returned NoneType: return a Gate.'),
    ],
)
def test_mistakes_in_gates_are_one_sentence(own, gates, said):
    own.GATES = gates
    with pytest.raises(UserError) as caught:
        apply_own_gates(evaluated(), None)  # type: ignore[arg-type]
    assert str(caught.value) == said


def test_module_that_cannot_be_imported_is_one_sentence(own, monkeypatch):
    def refuse(name: str) -> None:
        raise SyntaxError("invalid\n syntax")

    monkeypatch.setattr(project.importlib, "import_module", refuse)
    with pytest.raises(UserError) as caught:
        choose_metric("binary", None)
    assert str(caught.value) == "model/evaluation.py cannot be imported: SyntaxError: invalid syntax."
