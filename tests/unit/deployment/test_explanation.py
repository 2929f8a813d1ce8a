"""Contributions are the Shapley values of the contract's columns, or say that they are an approximation."""

import math
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from compiling_support import (
    PLAN,
    REGION,
    add_target,
    boosting,
    fit,
    nasty_frame,
    onehot_features,
    ordinal_features,
    training,
)
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from ondol.contract import Column, Contract, encode
from ondol.deployment import explanation
from ondol.deployment.explanation import ARRAYS, ENCODER, Explanation, build_explanation, open_encoder
from ondol.deployment.onnx import compile_model, prepare_copy
from ondol.evaluation.scoring import Scorer, make_tensors, open_session
from ondol_serving.shapley import Explainer, Trees, list_inputs, make_explainer, select_outputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found unknown categories"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
TREES: dict[str, Any] = {"n_estimators": 6, "max_depth": 5, "random_state": 0}
LINEAR: dict[str, Any] = {"max_iter": 300}
BACKGROUND = 20
EXACT: dict[str, tuple[str, str, Any]] = {  # problem, scale, model
    "boosting, binary": ("binary", "log-odds", boosting("binary")),
    "boosting, multiclass": ("multiclass", "score", boosting("multiclass", max_iter=8)),
    "boosting, regression": ("regression", "value", boosting("regression")),
    "gradient boosting": (
        "binary",
        "log-odds",
        make_pipeline(onehot_features(), GradientBoostingClassifier(n_estimators=15, random_state=0)),
    ),
    "forest, binary": ("binary", "probability", make_pipeline(ordinal_features(), RandomForestClassifier(**TREES))),
    "forest, multiclass": (
        "multiclass",
        "probability",
        make_pipeline(onehot_features(), ExtraTreesClassifier(**TREES)),
    ),
    "forest, regression": ("regression", "value", make_pipeline(ordinal_features(), RandomForestRegressor(**TREES))),
}
CLOSED: dict[str, tuple[str, str, Any]] = {
    "linear, binary": ("binary", "log-odds", make_pipeline(onehot_features(), LogisticRegression(**LINEAR))),
    "linear, multiclass": ("multiclass", "score", make_pipeline(onehot_features(), LogisticRegression(**LINEAR))),
    "linear, regression": ("regression", "value", make_pipeline(onehot_features(), LinearRegression())),
}


def build(model: Any, problem: str, frame: pd.DataFrame, **more: Any) -> tuple[Explanation, Scorer, Any]:
    """Fit and compile a model, and explain it by the first rows of `frame`."""
    fitted, contract = fit(model, problem, frame, **more)
    compiled = compile_model(fitted, contract)
    scorer = Scorer.from_onnx(compiled, contract)
    return build_explanation(compiled, scorer, frame.head(BACKGROUND)), scorer, fitted


def load(made: Explanation, scorer: Scorer, tmp_path: Any) -> Explainer:
    """Read what was built, as the service does."""
    (tmp_path / ARRAYS).write_bytes(made.files[ARRAYS])
    encode_matrix = open_encoder(made.files[ENCODER]) if ENCODER in made.files else None

    def run(tensors: dict[str, np.ndarray]) -> np.ndarray:
        return select_outputs(scorer.contract.problem, scorer.run_tensors(tensors)[-1])

    with np.load(tmp_path / ARRAYS, allow_pickle=False) as arrays:
        return make_explainer(made.about["method"], arrays, scorer.contract.features, encode_matrix, run)


def explain(explainer: Explainer, contract: Contract, rows: pd.DataFrame) -> np.ndarray:
    return explainer.explain(make_tensors(contract, encode(contract, rows)))


def margins(fitted: Any, contract: Contract, encoded: pd.DataFrame, scale: str) -> np.ndarray:
    """Return scikit-learn's own figures on the scale of the explanation, [N, K]."""
    if scale == "value":
        found = fitted.predict(encoded)
    elif scale == "probability":
        found = select_outputs(contract.problem, fitted.predict_proba(encoded))
    else:
        found = fitted.decision_function(encoded)
    return np.asarray(found, np.float64).reshape(len(encoded), -1)


def shapley_by_definition(worth: np.ndarray, columns: int) -> np.ndarray:
    """Return the Shapley values [columns, K]; `worth` [2^columns, K] is the value of each set, by its bits."""
    made = np.zeros((columns, worth.shape[1]))
    sizes = np.bitwise_count(np.arange(len(worth)))
    for column in range(columns):
        without = np.flatnonzero(~np.arange(len(worth)) >> column & 1)
        shares = [math.factorial(n) * math.factorial(columns - 1 - n) / math.factorial(columns) for n in range(columns)]
        gains = worth[without | 1 << column] - worth[without]
        made[column] = np.take(shares, sizes[without]) @ gains
    return made


def worth_of_sets(fitted: Any, contract: Contract, row: pd.DataFrame, background: pd.DataFrame, scale: str) -> Any:
    """Return the mean prediction [2^columns, K] with each set of the row's columns in all rows of the background."""
    sets = np.arange(1 << len(contract.features))
    one, many = encode(contract, row), encode(contract, background)
    mixed = {
        made.name: np.where(
            (sets[:, None] >> place & 1).astype(bool), one[made.name].to_numpy()[0], many[made.name].to_numpy()
        ).ravel()
        for place, column in enumerate(contract.features)
        for made in column.inputs
    }
    found = margins(fitted, contract, pd.DataFrame(mixed)[list(many)].astype(many.dtypes), scale)
    return found.reshape(len(sets), len(background), -1).mean(axis=1)


@pytest.mark.parametrize("name", EXACT | CLOSED)
def test_contributions_are_the_shapley_values_of_the_columns_by_definition(name: str, tmp_path: Any) -> None:
    """With gaps, unseen texts, a date with parts, and texts as codes or as indicators."""
    problem, scale, model = (EXACT | CLOSED)[name]
    frame = training(problem)
    made, scorer, fitted = build(model, problem, frame)
    contract = scorer.contract
    assert made.about == {
        "method": "exact" if name in EXACT else "linear",
        "scale": scale,
        "background": BACKGROUND,
    }
    explainer = load(made, scorer, tmp_path)
    rows = nasty_frame(2, seed=5, unknown=True)
    found = explain(explainer, contract, rows)
    for number in range(len(rows)):
        worth = worth_of_sets(fitted, contract, rows.iloc[[number]], frame.head(BACKGROUND), scale)
        size = max(1.0, float(np.abs(worth).max()))
        expected = shapley_by_definition(worth, len(contract.features))
        np.testing.assert_allclose(found[number], expected, rtol=0, atol=1e-6 * size)
        np.testing.assert_allclose(explainer.baseline, worth[0], rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("name", EXACT | CLOSED)
def test_baseline_and_contributions_add_up_to_what_the_service_answers(name: str, tmp_path: Any) -> None:
    problem, scale, model = (EXACT | CLOSED)[name]
    made, scorer, fitted = build(model, problem, training(problem))
    rows = nasty_frame(300, seed=2, unknown=True)
    explainer = load(made, scorer, tmp_path)
    sums = explainer.baseline + explain(explainer, scorer.contract, rows).sum(axis=1)
    expected = margins(fitted, scorer.contract, encode(scorer.contract, rows), scale)
    np.testing.assert_allclose(sums, expected, rtol=2e-6, atol=2e-6)  # the compiled model has weights of float32
    answered = select_outputs(problem, scorer.run(encode(scorer.contract, rows))[-1])
    if scale == "log-odds":
        sums = 1 / (1 + np.exp(-sums))
    elif scale == "score":
        sums = np.exp(sums) / np.exp(sums).sum(axis=1, keepdims=True)
    tolerance = 1e-6 * max(1.0, float(np.abs(answered).max()))
    np.testing.assert_allclose(sums, answered, rtol=0, atol=tolerance)


def test_additivity_of_the_tables_is_exact(tmp_path: Any) -> None:
    frame = training("binary")
    fitted, contract = fit(boosting("binary", max_iter=60), "binary", frame)
    compiled = compile_model(fitted, contract)
    made = build_explanation(compiled, Scorer.from_onnx(compiled, contract), frame.head(1000))
    explainer = load(made, Scorer.from_onnx(compiled, contract), tmp_path)
    assert isinstance(explainer, Trees)
    rows = nasty_frame(200, seed=3, unknown=True)
    tensors = make_tensors(contract, encode(contract, rows))
    split = explanation.split_model(
        compiled, make_tensors(contract, encode(contract, frame.head(1000))), list_inputs(contract.features)
    )
    matrix = open_encoder(made.files[ENCODER])(tensors)
    sums = explainer.baseline + explainer.explain(tensors).sum(axis=1)
    np.testing.assert_allclose(sums, explanation.sum_margins(split, matrix, 1), rtol=0, atol=1e-9)


APPROXIMATE: dict[str, tuple[str, Any]] = {
    "several models": (
        "one tree ensemble or one linear model",
        make_pipeline(
            onehot_features(),
            VotingClassifier(
                [("a", LogisticRegression(**LINEAR)), ("b", RandomForestClassifier(**TREES))], voting="soft"
            ),
        ),
    ),
    "mixed columns": (
        "combine several columns",
        Pipeline([("f", onehot_features()), ("p", PCA(5, random_state=0)), ("e", LogisticRegression(**LINEAR))]),
    ),
    "a large forest": (
        "larger than 10 MB",
        make_pipeline(onehot_features(), RandomForestClassifier(100, random_state=0)),
    ),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_what_has_no_exact_values_is_approximated_and_says_why(name: str, tmp_path: Any) -> None:
    reason, model = APPROXIMATE[name]
    made, scorer, _ = build(model, "binary", training("binary"))
    assert (made.about["method"], made.about["scale"]) == ("approximate", "probability")
    assert reason in made.about["reason"]
    explainer = load(made, scorer, tmp_path)
    rows = nasty_frame(3, seed=5, unknown=True)
    found = explain(explainer, scorer.contract, rows)
    answered = scorer.run(encode(scorer.contract, rows))[-1][:, 1:]
    np.testing.assert_allclose(explainer.baseline + found.sum(axis=1), answered, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(found, explain(explainer, scorer.contract, rows))  # the same at every call


def test_an_approximation_is_near_the_exact_values(tmp_path: Any) -> None:
    frame = training("regression")
    made, scorer, _ = build(boosting("regression"), "regression", frame)
    rows = nasty_frame(20, seed=5)
    exact = explain(load(made, scorer, tmp_path), scorer.contract, rows)[:, :, 0]
    made = build_explanation(None, scorer, frame.head(100))
    near = explain(load(made, scorer, tmp_path), scorer.contract, rows)[:, :, 0]
    assert made.about["reason"] == "the model is not compiled to ONNX"
    assert np.corrcoef(exact.ravel(), near.ravel())[0, 1] > 0.95


def test_a_path_over_many_columns_is_approximated() -> None:
    def chain(columns: int) -> Any:
        """A tree whose longest path splits each column once."""
        inner, leaves = list(range(columns)), list(range(columns, 2 * columns + 1))
        modes = ["BRANCH_LEQ"] * columns + ["LEAF"] * len(leaves)
        return onnx.helper.make_node(
            "TreeEnsembleRegressor",
            ["matrix"],
            ["value"],
            n_targets=1,
            nodes_treeids=[0] * len(modes),
            nodes_nodeids=[*inner, *leaves],
            nodes_modes=modes,
            nodes_featureids=[*inner, *[0] * len(leaves)],
            nodes_values=[0.0] * len(modes),
            nodes_truenodeids=[*leaves[:columns], *[0] * len(leaves)],
            nodes_falsenodeids=[*inner[1:], leaves[-1], *[0] * len(leaves)],
            target_treeids=[0] * len(leaves),
            target_nodeids=leaves,
            target_ids=[0] * len(leaves),
            target_weights=[1.0 + leaf for leaf in leaves],
        )

    _, leaves = explanation.read_trees(chain(14), np.arange(14), 1)
    assert max(leaf.depth for leaf in leaves) == 14
    with pytest.raises(explanation.Inexact, match="more than 14 columns"):
        explanation.read_trees(chain(15), np.arange(15), 1)
    _, leaves = explanation.read_trees(chain(15), np.array([*range(14), 0]), 1)  # two of them are parts of one date
    assert max(leaf.depth for leaf in leaves) == 14


def test_a_column_that_the_features_drop_contributes_nothing(tmp_path: Any) -> None:
    numbers = ColumnTransformer([("n", "passthrough", make_column_selector(dtype_include="number"))])
    model = Pipeline([("features", numbers), ("estimator", boosting("binary")[-1])])
    made, scorer, _ = build(model, "binary", training("binary"))
    found = explain(load(made, scorer, tmp_path), scorer.contract, nasty_frame(50, seed=4))
    names = [column.name for column in scorer.contract.features]
    assert made.about["method"] == "exact"
    assert not found[:, [names.index(REGION), names.index(PLAN)]].any()
    assert found.any()


def test_a_model_of_one_column_is_explained(tmp_path: Any) -> None:
    columns = (Column(name="a_b", kind="number", nullable=True),)
    frame = add_target(nasty_frame(500), "regression")[["a_b", "떠남"]]
    model = Pipeline([("e", boosting("regression")[-1])])
    for explained in (True, False):
        made, scorer, _ = build(model, "regression", frame, columns=columns)
        if not explained:
            made = build_explanation(None, scorer, frame.head(BACKGROUND))
        explainer = load(made, scorer, tmp_path)
        found = explain(explainer, scorer.contract, frame.head(10))
        assert np.allclose(found[:, 0, 0], scorer.predict(frame.head(10)) - explainer.baseline, rtol=1e-5)


@pytest.mark.parametrize(
    "name, message",
    [
        ("_check_sums", "its contributions do not add up"),
        ("_check_link", "its answers do not follow from its trees or coefficients alone"),
        ("_check_mixing", "its features combine several columns"),
    ],
)
def test_a_failed_check_leads_to_an_approximation(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    """Each check finds the mistake that it is for."""
    if name == "_check_sums":
        right = Trees.explain
        monkeypatch.setattr(Trees, "explain", lambda self, tensors: right(self, tensors) * 1.0001)
    elif name == "_check_link":
        monkeypatch.setattr(explanation, "find_link", lambda *_: explanation.Link("value", lambda margins: margins))
    else:
        right_trace = explanation.trace_columns

        def trace(*given: Any) -> Any:
            sources, matrix = right_trace(*given)
            return [sources[1], sources[0], *sources[2:]], matrix

        monkeypatch.setattr(explanation, "trace_columns", trace)
    problem = "multiclass" if name == "_check_link" else "binary"  # of two classes, the right link is found again
    made, *_ = build(boosting(problem), problem, training(problem))
    assert (made.about["method"], made.about["reason"]) == ("approximate", message)


def test_only_answers_that_a_sigmoid_of_the_margins_gives_are_followed() -> None:
    margins = np.linspace(-2, 2, 50)[:, None]
    arrays = {"coefficients": np.ones((1, 2)), "baseline": np.zeros(1)}
    for bent, right in ((margins, True), (margins**3, False)):
        answers = 1 / (1 + np.exp(-(0.5 * bent + 1)))
        scaled, link, moved = explanation._follow_sigmoid(arrays, margins, answers, "binary")
        assert np.allclose(link.apply(moved), answers, rtol=0, atol=1e-9) == right
        if right:
            assert np.allclose(scaled["coefficients"], 0.5) and np.allclose(scaled["baseline"], 1)
        else:
            with pytest.raises(explanation.Inexact):
                explanation._check_link(link, moved, answers, values=False)


def test_the_same_model_and_rows_give_the_same_files() -> None:
    first, scorer, _ = build(boosting("binary"), "binary", training("binary"))
    second, *_ = build(boosting("binary"), "binary", training("binary"))
    assert first.files == second.files
    assert build_explanation(None, scorer, training("binary").head(50)).files == (
        build_explanation(None, scorer, training("binary").head(50)).files
    )


def test_stored_rows_do_not_tell_which_sensitive_value_belongs_to_whom(tmp_path: Any) -> None:
    frame = training("binary")
    _, scorer, _ = build(boosting("binary"), "binary", frame)
    made = build_explanation(None, scorer, frame.head(100))
    (tmp_path / ARRAYS).write_bytes(made.files[ARRAYS])
    key = next(column.input for column in scorer.contract.features if column.name == PLAN)
    with np.load(tmp_path / ARRAYS, allow_pickle=False) as arrays:
        stored = arrays[key].ravel()
    plans = frame[PLAN].head(100).to_numpy()
    assert sorted(stored) == sorted(plans)
    assert (stored != plans).any()


def test_operators_that_are_not_known_mix_their_columns() -> None:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Concat", ["c0", "c1"], ["both"], axis=1),
        helper.make_node("CumSum", ["both", "axis"], ["sums"]),
        helper.make_node("Concat", ["sums", "c2"], ["matrix"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info(name, floats, [None, 1]) for name in ("c0", "c1", "c2")]
    outputs = [helper.make_tensor_value_info("matrix", floats, [None, 3])]
    axis = onnx.numpy_helper.from_array(np.array(1), "axis")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    tensors = {name: np.ones((4, 1), np.float32) for name in ("c0", "c1", "c2")}
    sources, _ = explanation.trace_columns(model, tensors, {"c0": 0, "c1": 1, "c2": 2})
    assert sources == [{0, 1}, {0, 1}, {2}]


@pytest.mark.parametrize("mode", ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"])
@pytest.mark.parametrize("tracks", [0, 1])
def test_trees_of_other_libraries_are_read_as_the_runtime_reads_them(mode: str, tracks: int) -> None:
    """LightGBM, XGBoost and others write other comparisons; a missing value may go either way."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["matrix"],
        ["value"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * 3,
        nodes_nodeids=[0, 1, 2],
        nodes_modes=[mode, "LEAF", "LEAF"],
        nodes_featureids=[0] * 3,
        nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        nodes_missing_value_tracks_true=[tracks, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights=[1.0, 2.0],
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("matrix", floats, [None, 1])],
        [helper.make_tensor_value_info("value", floats, [None, 1])],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    session = open_session(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    below, above = np.nextafter(np.float32(0.5), np.float32([-1, 1]))
    matrix = np.array([[below], [0.5], [above], [np.nan], [-np.inf], [np.inf]], np.float32)
    split = explanation.Split(node, b"", matrix, np.zeros(1, np.intp))
    found = explanation.sum_margins(split, matrix, 1)
    np.testing.assert_array_equal(found, session.run(None, {"matrix": matrix})[0])


@pytest.mark.slow
def test_values_of_a_boosted_model_equal_those_of_shap(tmp_path: Any) -> None:
    shap = pytest.importorskip("shap", reason="190 MB: `uv pip install shap` to compare with it")
    rng = np.random.default_rng(0)
    names = [f"x{place}" for place in range(8)]
    frame = pd.DataFrame(rng.normal(size=(2000, 8)).astype(np.float32).astype(np.float64), columns=names)
    frame["떠남"] = (frame["x0"] * frame["x1"] + frame["x2"] > 0).astype(float)
    columns = tuple(Column(name=name, kind="number") for name in names)
    made, scorer, fitted = build(Pipeline([("e", boosting("regression")[-1])]), "regression", frame, columns=columns)
    many, rows = (frame[names][part] for part in (slice(0, BACKGROUND), slice(500, 600)))
    estimator = prepare_copy(fitted)[-1]  # with thresholds of float32
    explainer = shap.TreeExplainer(estimator, many.to_numpy(), feature_perturbation="interventional")
    found = explain(load(made, scorer, tmp_path), scorer.contract, rows)[:, :, 0]
    np.testing.assert_allclose(found, explainer.shap_values(rows.to_numpy()), rtol=0, atol=1e-6)
