"""LightGBM, XGBoost, CatBoost and estimators with a graph of their own compile, and predict as before."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from compiling_support import add_target, fit, nasty_frame, onehot_features, ordinal_features, training
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.pipeline import make_pipeline

from ondol.contract import encode
from ondol.deployment.explanation import build_explanation
from ondol.deployment.onnx import check_parity, compile_model
from ondol.errors import UserError
from ondol.evaluation.scoring import Scorer
from ondol.registry.registry import TRUSTED

TOLERANCE = 1e-5
PROBLEMS = ("binary", "multiclass", "regression")
CATBOOST = {"iterations": 40, "verbose": 0, "thread_count": 1, "allow_writing_files": False}
LIBRARIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lightgbm": ("LGBMClassifier", "LGBMRegressor", {"n_estimators": 40, "verbose": -1, "n_jobs": 1}),
    "xgboost": ("XGBClassifier", "XGBRegressor", {"n_estimators": 40, "n_jobs": 1}),
    "catboost": ("CatBoostClassifier", "CatBoostRegressor", CATBOOST),
}


def build(library: str, problem: str, **params: Any) -> Any:
    module = pytest.importorskip(library, reason=f"{library} is not installed: make test-all installs it")
    classifier, regressor, usual = LIBRARIES[library]
    return getattr(module, regressor if problem == "regression" else classifier)(**usual | params)


def verify(model: Any, problem: str, features: Any = None) -> tuple[Any, Any]:
    frame = training(problem)
    if problem == "regression":  # some objectives need targets above 0
        frame = frame.assign(떠남=np.exp(frame["떠남"] / frame["떠남"].std()))
    fitted, contract = fit(make_pipeline(features or ordinal_features(), model), problem, frame)
    rows = add_target(nasty_frame(1000, seed=7, unknown=True), problem)
    compiled = compile_model(fitted, contract)
    parity = check_parity(compiled, fitted, contract, rows, TOLERANCE)
    assert parity.verified and (parity.rows, parity.probes) == (1000, 1000) and parity.extremes > 100
    return compiled, contract


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_compiles_and_is_explained_exactly(library: str, problem: str) -> None:
    compiled, contract = verify(build(library, problem), problem)
    explanation = build_explanation(compiled, Scorer.from_onnx(compiled, contract), training(problem).head(100))
    assert explanation.about["method"] == "exact", explanation.about


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_stored_and_compiles_to_the_same_bytes(library: str, problem: str) -> None:
    import skops.io

    fitted, contract = fit(make_pipeline(ordinal_features(), build(library, problem)), problem, training(problem))
    back = skops.io.loads(skops.io.dumps(fitted), trusted=list(TRUSTED))
    assert compile_model(back, contract) == compile_model(fitted, contract)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_labels_of_a_library_are_one_for_each_row(library: str) -> None:
    fitted, contract = fit(
        make_pipeline(ordinal_features(), build(library, "multiclass")), "multiclass", training("multiclass")
    )
    labels, probabilities = Scorer.from_pipeline(fitted, contract).run(encode(contract, training("multiclass").head(5)))
    assert labels.shape == (5,) and np.array_equal(labels, probabilities.argmax(axis=1))


OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("lightgbm", "regression", {"objective": "poisson"}),
    ("lightgbm", "regression", {"objective": "quantile", "alpha": 0.8}),
    ("lightgbm", "binary", {"is_unbalance": True}),
    ("lightgbm", "binary", {"use_missing": False}),
    ("lightgbm", "multiclass", {"boosting_type": "rf", "subsample": 0.7, "subsample_freq": 1}),
    ("lightgbm", "regression", {"boosting_type": "dart"}),
    ("lightgbm", "binary", {"n_estimators": 1, "min_child_samples": 10_000}),
    ("xgboost", "regression", {"objective": "reg:gamma"}),
    ("xgboost", "regression", {"objective": "reg:absoluteerror"}),
    ("xgboost", "binary", {"num_parallel_tree": 3, "subsample": 0.5, "learning_rate": 1.0, "n_estimators": 3}),
    ("xgboost", "multiclass", {"base_score": 0.3}),
    ("xgboost", "binary", {"scale_pos_weight": 20.0, "n_estimators": 1, "max_depth": 1, "base_score": 0.9}),
    ("catboost", "regression", {"loss_function": "Poisson"}),
    ("catboost", "regression", {"nan_mode": "Max"}),
    ("catboost", "binary", {"auto_class_weights": "Balanced", "depth": 1}),
    ("catboost", "multiclass", {"depth": 8, "iterations": 5}),
]


@pytest.mark.parametrize(("library", "problem", "params"), OPTIONS, ids=lambda value: str(value)[:40])
def test_options_of_a_library_compile(library: str, problem: str, params: dict[str, Any]) -> None:
    verify(build(library, problem, **params), problem)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("lightgbm", {"linear_tree": True}, "linear_tree"),
    ("lightgbm", {"zero_as_missing": True}, "zero_as_missing"),
    ("lightgbm", {"objective": "regression", "reg_sqrt": True}, "sqrt"),
    ("xgboost", {"booster": "gblinear"}, "gblinear"),
    ("catboost", {"grow_policy": "Lossguide"}, "grow_policy"),
]


@pytest.mark.parametrize(("library", "params", "word"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_has_no_equal_is_refused_in_one_sentence(library: str, params: dict[str, Any], word: str) -> None:
    features = onehot_features() if word in ("gblinear", "linear_tree") else ordinal_features()
    fitted, contract = fit(
        make_pipeline(features, build(library, "regression", **params)), "regression", training("regression")
    )
    with pytest.raises(UserError, match=rf"{word}.* cannot be converted to ONNX: leave that out"):
        compile_model(fitted, contract)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_compiles_inside_a_calibration(library: str) -> None:
    verify(CalibratedClassifierCV(build(library, "binary"), cv=2), "binary")


def test_early_stopping_of_xgboost_keeps_the_best_trees() -> None:
    model = build("xgboost", "binary", n_estimators=300, early_stopping_rounds=5, learning_rate=0.5)
    xgboost = import_module("xgboost")

    class Stopped(xgboost.XGBClassifier):  # type: ignore[name-defined, misc]
        def fit(self, rows: Any, target: Any) -> Any:
            return super().fit(rows[200:], target[200:], eval_set=[(rows[:200], target[:200])], verbose=False)

    Stopped.__module__ = "xgboost.sklearn"
    verify(Stopped(**{key: value for key, value in model.get_params().items() if value is not None}), "binary")


class Network(ClassifierMixin, BaseEstimator):
    """A network with one hidden layer of random weights, in numpy; the last layer is a logistic regression."""

    def __init__(self, regression: bool = False, opset: int = 17) -> None:
        self.regression, self.opset = regression, opset

    def fit(self, rows: Any, target: Any) -> "Network":
        from sklearn.linear_model import LogisticRegression, Ridge

        rows = np.asarray(rows, np.float32)
        self.hidden_ = np.random.default_rng(0).normal(size=(rows.shape[1], 16)).astype(np.float32)
        last = (Ridge() if self.regression else LogisticRegression(max_iter=500)).fit(self._hide(rows), target)
        self.weights_ = np.atleast_2d(last.coef_).T.astype(np.float32)
        self.shift_ = np.atleast_1d(last.intercept_).astype(np.float32)
        self.classes_ = np.unique(target)
        return self

    def _hide(self, rows: Any) -> Any:
        return np.tanh(np.asarray(rows, np.float32) @ self.hidden_)

    def predict_proba(self, rows: Any) -> Any:
        margins = self._hide(rows) @ self.weights_ + self.shift_
        if margins.shape[1] == 1:
            margins = np.hstack([np.zeros_like(margins), margins])
        grown = np.exp(margins - margins.max(axis=1, keepdims=True))
        return grown / grown.sum(axis=1, keepdims=True)

    def predict(self, rows: Any) -> Any:
        return self.classes_[self.predict_proba(rows).argmax(axis=1)]

    def to_onnx(self) -> Any:
        from onnx import TensorProto, helper, numpy_helper

        weights, shift = self.weights_, self.shift_
        if not self.regression and weights.shape[1] == 1:
            weights, shift = np.hstack([weights * 0, weights]), np.hstack([shift * 0, shift])
        nodes = [
            helper.make_node("MatMul", ["rows", "hidden"], ["sums"]),
            helper.make_node("Tanh", ["sums"], ["signals"]),
            helper.make_node("Gemm", ["signals", "weights", "shift"], ["margins"]),
            helper.make_node("Identity" if self.regression else "Softmax", ["margins"], ["answer"]),
        ]
        constants = {"hidden": self.hidden_, "weights": weights, "shift": shift}
        graph = helper.make_graph(
            nodes,
            "network",
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, len(self.hidden_)])],
            [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [None, weights.shape[1]])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])


class Values(RegressorMixin, BaseEstimator):
    """The same network for values; it returns the bytes of its graph."""

    def fit(self, rows: Any, target: Any) -> "Values":
        self.network_ = Network(regression=True).fit(rows, target)
        return self

    def predict(self, rows: Any) -> Any:
        network = self.network_
        return (network._hide(rows) @ network.weights_ + network.shift_).ravel()

    def to_onnx(self) -> Any:
        return self.network_.to_onnx().SerializeToString()


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("problem", ["binary", "multiclass"])
def test_an_estimator_may_bring_its_own_graph(problem: str, opset: int) -> None:
    compiled, contract = verify(Network(opset=opset), problem, onehot_features())
    explanation = build_explanation(compiled, Scorer.from_onnx(compiled, contract), training(problem).head(100))
    assert explanation.about["method"] == "approximate"


def test_a_regressor_may_bring_its_own_graph() -> None:
    verify(Values(), "regression", onehot_features())


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (lambda model: None, "returned NoneType: return an onnx.ModelProto, or its bytes"),
        (lambda model: _with_opset(model, 24), "returned a graph of opset 24, which cannot be converted to 21"),
        (lambda model: _with_input(model), "returned a graph with 2 inputs and 1 outputs"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(monkeypatch: Any, returned: Any, sentence: str) -> None:
    fitted, contract = fit(make_pipeline(onehot_features(), Network()), "binary", training("binary"))
    whole = fitted[-1].to_onnx()
    monkeypatch.setattr(Network, "to_onnx", lambda self: returned(whole))
    with pytest.raises(UserError, match=sentence):
        compile_model(fitted, contract)


def _with_opset(model: Any, version: int) -> Any:
    model.opset_import[0].version = version
    model.graph.node[0].op_type = "Unknown"
    return model


def _with_input(model: Any) -> Any:
    model.graph.input.append(type(model.graph.input[0])(name="more"))
    return model
