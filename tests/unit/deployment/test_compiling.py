"""Compiled models predict like scikit-learn; a model that cannot be compiled correctly is refused."""

import warnings
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from compiling_support import (
    COLUMNS,
    DAY,
    PLAN,
    PROBLEMS,
    REGION,
    WON,
    add_target,
    boosting,
    contract_for,
    fit,
    nasty_frame,
    onehot_features,
    ordinal_features,
    training,
)
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_selector
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import ElasticNet, LinearRegression, LogisticRegression, Ridge
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from ondol.contract import Column, Contract, Encoding, encode
from ondol.deployment.onnx import check_parity, compile_model, floor_to_float32, prepare_copy
from ondol.errors import UserError
from ondol.evaluation.scoring import Scorer

# What scikit-learn says of categories that training never saw, and of solvers cut short for speed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Found unknown categories"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
TREES: dict[str, Any] = {"n_estimators": 15, "max_depth": 8, "random_state": 0}
NAMES = ("a b", "a_b", "a.b", "a/b", "class", "지역", "지 역", "variable", "c1", "1", "label", "value")


def gap(model: Any, contract: Contract, frame: pd.DataFrame) -> float:
    """Return the largest difference between compiled and scikit-learn on `frame`; labels must be equal."""
    encoded = encode(contract, frame)
    outputs = Scorer.from_onnx(compile_model(model, contract), contract).run(encoded)
    if contract.classes is None:
        expected = np.asarray(model.predict(encoded), np.float64).ravel()
        return float(np.abs(outputs[0].ravel() - expected).max() / np.abs(expected).mean())
    np.testing.assert_array_equal(outputs[0], model.predict(encoded))
    return float(np.abs(outputs[1] - model.predict_proba(encoded)).max())


def unseen(rows: int = 1000) -> pd.DataFrame:
    return nasty_frame(rows, seed=1, unknown=True)


def linear(estimator: Any) -> Any:
    return Pipeline([("features", onehot_features()), ("estimator", estimator)])


def trees(estimator: Any) -> Any:
    return Pipeline([("features", ordinal_features()), ("estimator", estimator)])


CLASSIFIERS: dict[str, Any] = {
    "HistGradientBoosting": lambda: boosting("binary"),
    "RandomForest": lambda: trees(RandomForestClassifier(**TREES)),
    "ExtraTrees": lambda: linear(ExtraTreesClassifier(**TREES)),
    "DecisionTree": lambda: trees(DecisionTreeClassifier(max_depth=6, random_state=0)),
    "GradientBoosting": lambda: linear(GradientBoostingClassifier(n_estimators=15, random_state=0)),
    "LogisticRegression": lambda: linear(LogisticRegression(max_iter=300)),
}
REGRESSORS: dict[str, Any] = {
    "HistGradientBoosting": lambda: boosting("regression"),
    "RandomForest": lambda: trees(RandomForestRegressor(**TREES)),
    "DecisionTree": lambda: trees(DecisionTreeRegressor(max_depth=6, random_state=0)),
    "LinearRegression": lambda: linear(LinearRegression()),
    "Ridge": lambda: linear(Ridge()),
    "ElasticNet": lambda: linear(ElasticNet(alpha=0.1, max_iter=100)),
}
WRAPPERS: dict[str, Any] = {
    "calibrated sigmoid": lambda: CalibratedClassifierCV(linear(LinearSVC()), cv=3),
    "calibrated after features": lambda: linear(CalibratedClassifierCV(LinearSVC(), cv=3)),
    "calibrated isotonic after features": lambda: linear(
        CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=3)
    ),
    "calibrated isotonic": lambda: CalibratedClassifierCV(boosting("binary"), method="isotonic", cv=3),
    "soft vote": lambda: VotingClassifier(
        [("a", linear(LogisticRegression(max_iter=300))), ("b", boosting("binary"))], voting="soft"
    ),
    "vote after features": lambda: linear(
        VotingClassifier(
            [("a", LogisticRegression(max_iter=300)), ("b", RandomForestClassifier(**TREES))], voting="soft"
        )
    ),
    "stack": lambda: StackingClassifier(
        [("a", linear(LogisticRegression(max_iter=300))), ("b", boosting("binary"))], cv=3
    ),
    "stack after features": lambda: linear(
        StackingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(**TREES))], cv=3)
    ),
    "hard vote": lambda: VotingClassifier([("a", linear(LogisticRegression())), ("b", boosting("binary"))]),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("problem", ["binary", "multiclass"])
def test_classifiers_are_equal_on_gaps_and_unknown_categories(name, problem):
    model, contract = fit(CLASSIFIERS[name](), problem, training(problem))
    assert gap(model, contract, unseen()) <= 1e-6


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_are_equal_on_gaps_and_unknown_categories(name):
    model, contract = fit(REGRESSORS[name](), "regression", training("regression"))
    assert gap(model, contract, unseen()) <= 1e-6


@pytest.mark.parametrize("scaler", [StandardScaler, MinMaxScaler, RobustScaler])
def test_scalers_are_equal(scaler):
    numbers = make_pipeline(SimpleImputer(strategy="mean"), scaler())
    chosen = make_column_selector(dtype_include="number")
    model = make_pipeline(ColumnTransformer([("n", numbers, chosen)]), LogisticRegression(max_iter=300))
    model, contract = fit(model, "binary", training("binary"))
    assert gap(model, contract, unseen()) <= 2e-6


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_classifiers_are_equal_or_refused_but_never_silently_wrong(name):
    model, contract = fit(WRAPPERS[name](), "binary", training("binary"))
    try:
        parity = check_parity(compile_model(model, contract), model, contract, unseen(), 1e-5)
    except UserError as error:  # isotonic steps, for one, fall on another side in float32: parity sees it
        assert 'runtime = "sklearn"' in str(error) or "CalibratedClassifierCV" in str(error)
    else:
        assert parity.verified


@pytest.mark.parametrize(
    "name", ["soft vote", "vote after features", "stack after features", "calibrated after features"]
)
def test_wrapped_classifiers_that_work_still_work(name):
    model, contract = fit(WRAPPERS[name](), "binary", training("binary"))
    assert gap(model, contract, unseen()) <= 1e-6


@pytest.mark.parametrize("inverse", ["standard", "log"])
def test_a_transformed_target_is_equal_or_refused(inverse):
    chosen = {"transformer": StandardScaler()} if inverse == "standard" else {"func": np.cbrt, "inverse_func": np.exp}
    model = TransformedTargetRegressor(linear(Ridge()), check_inverse=False, **chosen)
    model, contract = fit(model, "regression", training("regression"))
    try:
        compiled = compile_model(model, contract)
    except UserError as error:
        assert 'runtime = "sklearn"' in str(error)
    else:
        assert check_parity(compiled, model, contract, unseen(), 1e-5).verified


# Native categories convert without an error and predict wrongly.


def test_native_categories_are_refused_naming_the_encoder_to_use():
    texts = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    features = ColumnTransformer([("texts", texts, [REGION, PLAN])], remainder="passthrough").set_output(
        transform="default"
    )
    features.set_params(remainder="drop")
    estimator = HistGradientBoostingClassifier(max_iter=5, categorical_features=[0, 1])
    model, contract = fit(make_pipeline(features, estimator), "binary", training("binary"))
    with pytest.raises(UserError, match=r"HistGradientBoostingClassifier with categorical_features .*OrdinalEncoder"):
        compile_model(model, contract)


def test_native_categories_are_refused_inside_a_vote():
    texts = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    estimator = HistGradientBoostingClassifier(max_iter=5, categorical_features=[0])
    inner = make_pipeline(ColumnTransformer([("texts", texts, [REGION])]), estimator)
    vote = VotingClassifier([("a", inner), ("b", boosting("binary"))], voting="soft")
    model, contract = fit(vote, "binary", training("binary"))
    with pytest.raises(UserError, match="categorical_features"):
        compile_model(model, contract)


def test_an_encoder_that_groups_rare_categories_is_refused_in_one_sentence():
    features = ColumnTransformer(
        [("texts", OneHotEncoder(min_frequency=20, handle_unknown="infrequent_if_exist"), [REGION])]
    )
    model, contract = fit(make_pipeline(features, LogisticRegression()), "binary", training("binary"))
    with pytest.raises(UserError, match="OneHotEncoder with min_frequency") as refusal:
        compile_model(model, contract)
    assert "\n" not in str(refusal.value)


def test_numbers_that_need_not_be_whole_are_refused_as_indicators():
    """The converter cuts off their fractions."""
    features = ColumnTransformer([("n", OneHotEncoder(handle_unknown="ignore"), [DAY])])
    model, contract = fit(make_pipeline(features, LogisticRegression()), "binary", training("binary"))
    with pytest.raises(UserError, match='OneHotEncoder on the column "a b"'):
        compile_model(model, contract)


class Doubler(TransformerMixin, BaseEstimator):
    """A transformer of one's own, without a converter."""

    def fit(self, X: Any, y: Any = None) -> "Doubler":
        self.fitted_ = True
        return self

    def transform(self, X: Any) -> Any:
        return np.asarray(X) * 2


def test_a_class_without_a_converter_is_refused_by_its_name():
    features = ColumnTransformer([("n", make_pipeline(SimpleImputer(), Doubler()), ["a_b"])])
    model, contract = fit(make_pipeline(features, LogisticRegression()), "binary", training("binary"))
    with pytest.raises(UserError, match=r"Doubler has no converter .*model/converters.py"):
        compile_model(model, contract)


def test_a_function_of_ones_own_is_refused():
    step = make_pipeline(SimpleImputer(), FunctionTransformer(np.cbrt))
    features = ColumnTransformer([("n", step, ["a_b"])])
    model, contract = fit(make_pipeline(features, LogisticRegression()), "binary", training("binary"))
    with pytest.raises(UserError, match="FunctionTransformer"):
        compile_model(model, contract)


def test_a_classifier_without_probabilities_is_refused():
    model, contract = fit(linear(LinearSVC()), "binary", training("binary"))
    with pytest.raises(UserError, match=r"LinearSVC in model/estimator\.py gives no probabilities"):
        compile_model(model, contract)


def test_an_outlier_detector_is_refused_rather_than_compiled_into_something_else():
    model, contract = fit(linear(LocalOutlierFactor(novelty=True)), "regression", training("regression"))
    with pytest.raises(UserError):
        check_parity(compile_model(model, contract), model, contract, unseen(100), 1e-5)


# Missing texts.


@pytest.mark.parametrize("features", [ordinal_features, onehot_features])
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, ""])
def test_missing_texts_of_every_kind_are_one_category(features, missing):
    model, contract = fit(make_pipeline(features(), RandomForestClassifier(**TREES)), "binary", training("binary"))
    frame = unseen(200)
    texts = frame[REGION].astype(object)
    texts[:] = missing
    frame[REGION] = texts
    expected = frame.assign(**{REGION: pd.Series([None] * len(frame), dtype="str")})
    scorer = Scorer.from_onnx(compile_model(model, contract), contract)
    np.testing.assert_array_equal(scorer.predict(frame), scorer.predict(expected))
    assert gap(model, contract, frame) <= 1e-6


def test_the_words_nan_and_none_are_categories_of_their_own():
    model, contract = fit(boosting("binary"), "binary", training("binary"))
    scorer = Scorer.from_onnx(compile_model(model, contract), contract)
    frame = unseen(200)
    made = {word: scorer.predict(frame.assign(**{REGION: word})) for word in ("nan", "None")}
    made["missing"] = scorer.predict(frame.assign(**{REGION: pd.Series([None] * len(frame), dtype="str")}))
    assert not np.allclose(made["nan"], made["missing"])
    assert not np.allclose(made["None"], made["missing"])


# float32.


def hard_thresholds() -> tuple[Any, Contract, pd.DataFrame]:
    """Return a model on a column near 1e8 with unit steps, unscaled, and on an ordinary one, with its rows."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"near 1e8": 1e8 + rng.integers(0, 900, 4000), "plain": rng.normal(size=4000)})
    frame["떠남"] = frame["near 1e8"] % 40 + 10 * frame["plain"]
    as_it_is = Encoding(tensor="float32")
    columns = tuple(
        Column(name=name, kind="number", input=f"c{i}", encoding=as_it_is)
        for i, name in enumerate(("near 1e8", "plain"))
    )
    contract = contract_for("regression", columns)
    model = make_pipeline(HistGradientBoostingRegressor(max_iter=30, random_state=0))
    return model.fit(encode(contract, frame), frame["떠남"]), contract, frame


@pytest.mark.parametrize("column", ["near 1e8", "plain"])
def test_thresholds_must_be_floored_to_float32_and_are(column, monkeypatch):
    """Rounded to nearest, as the converter does, a threshold may land on the wrong side of a value."""
    model, contract, frame = hard_thresholds()
    rows = frame if column == "near 1e8" else at_thresholds(model, contract, frame, column)
    assert gap(model, contract, rows) <= 1e-6
    monkeypatch.setattr("ondol.deployment.onnx._floor_thresholds", lambda boosting: None)
    assert gap(model, contract, rows) > 1e-2


def at_thresholds(model: Any, contract: Contract, frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return rows whose values of `column` are the float32 nearest to each of the model's thresholds."""
    nodes = np.concatenate([stage[0].nodes for stage in model[-1]._predictors])
    place = [c.name for c in contract.features].index(column)
    chosen = nodes[(nodes["is_leaf"] == 0) & (nodes["feature_idx"] == place)]["num_threshold"]
    rows = frame.iloc[np.arange(len(chosen)) % len(frame)].reset_index(drop=True)
    return rows.assign(**{column: chosen.astype(np.float32).astype(np.float64)})


def test_the_encoding_keeps_a_column_near_1e8_exact():
    frame = hard_thresholds()[2]
    columns = tuple(Column(name=name, kind="number") for name in ("near 1e8", "plain"))
    model, contract = fit(boosting("regression"), "regression", frame, columns)
    encoded = encode(contract, frame)["near 1e8"]
    assert encoded.nunique() == frame["near 1e8"].nunique()
    assert gap(model, contract, frame) <= 1e-6


def test_a_floored_threshold_says_the_same_for_every_float32():
    rng = np.random.default_rng(0)
    thresholds = np.concatenate([rng.normal(size=500), rng.normal(size=500) * 1e8, [0.0, -0.0, 1.5, 2.0**24 + 1]])
    floored = floor_to_float32(thresholds)
    for steps in (-np.inf, np.inf, None):
        x = thresholds.astype(np.float32) if steps is None else np.nextafter(floored, np.float32(steps))
        np.testing.assert_array_equal(x.astype(np.float64) <= thresholds, x <= floored)


def test_the_model_itself_is_left_as_it_was():
    model, contract = fit(boosting("binary"), "binary", training("binary"))
    before = model.predict_proba(encode(contract, unseen(300)))
    nodes = [stage[0].nodes.copy() for stage in model[-1]._predictors]
    columns = [chosen for _, _, chosen in model[0].transformers_]
    compile_model(model, contract)
    np.testing.assert_array_equal(model.predict_proba(encode(contract, unseen(300))), before)
    for stage, kept in zip(model[-1]._predictors, nodes, strict=True):
        np.testing.assert_array_equal(stage[0].nodes, kept)
    assert [chosen for _, _, chosen in model[0].transformers_] == columns
    assert list(model.feature_names_in_) == [made.name for made in contract.inputs]


def test_a_copy_shares_the_trees():
    model, _ = fit(trees(RandomForestClassifier(**TREES)), "binary", training("binary"))
    copied = prepare_copy(model)
    pairs = zip(model[-1].estimators_, copied[-1].estimators_, strict=True)
    assert all(a.tree_ is b.tree_ for a, b in pairs)


# Missing values in trees.


@pytest.mark.parametrize("estimator", [RandomForestClassifier, ExtraTreesClassifier, DecisionTreeClassifier])
def test_missing_numbers_go_where_training_sent_them(estimator):
    """skl2onnx sends them right in every tree but HistGradientBoosting's."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(2000) < 0.3, np.nan, rng.normal(size=2000))
    answer = np.where(np.isnan(x) | (x < -0.5), "예", "아니오")
    frame = pd.DataFrame({"x": x, "y": rng.normal(size=2000), "떠남": answer})
    columns = tuple(Column(name=name, kind="number", nullable=True) for name in "xy")
    forest = {} if estimator is DecisionTreeClassifier else {"n_estimators": 5}
    model = estimator(max_depth=4, random_state=0, **forest)
    model, contract = fit(make_pipeline(model), "binary", frame, columns)
    assert gap(model, contract, frame) <= 1e-6


# Names.


def named_table(kinds: dict[str, str]) -> tuple[pd.DataFrame, tuple[Column, ...]]:
    rng = np.random.default_rng(3)
    made: dict[str, Any] = {}
    for name, kind in kinds.items():
        text = pd.Series(rng.choice(["가", "b", "c d"], 600), dtype="str")
        made[name] = text if kind == "text" else rng.normal(size=600)
    numbers = [name for name, kind in kinds.items() if kind == "number"]
    texts = [name for name, kind in kinds.items() if kind == "text"]
    score = sum((i + 1) * made[name] for i, name in enumerate(numbers))
    score = score + sum((i + 1.5) * (made[name] == "가") for i, name in enumerate(texts))
    frame = pd.DataFrame(made).assign(떠남=np.where(score > np.median(score), "예", "아니오"))
    return frame, tuple(Column(name=name, kind=kind) for name, kind in kinds.items())  # type: ignore[arg-type]


@pytest.mark.parametrize("first", ["number", "text"])
def test_names_that_collide_after_rewriting_are_distinguished(first):
    other = "text" if first == "number" else "number"
    kinds = {name: first if i % 2 else other for i, name in enumerate(NAMES)}
    frame, columns = named_table(kinds)
    model, contract = fit(boosting("binary"), "binary", frame, columns)
    assert gap(model, contract, frame) <= 1e-6
    model, contract = fit(linear(LogisticRegression()), "binary", frame, columns)
    assert gap(model, contract, frame) <= 1e-6


def test_inputs_and_outputs_carry_the_names_of_the_bundles_format():
    model, contract = fit(boosting("binary"), "binary", training("binary"))
    graph = onnx.load_from_string(compile_model(model, contract)).graph
    assert [value.name for value in graph.input] == [
        *(f"c{i}" for i in range(len(COLUMNS) - 1)),
        *("c5_month", "c5_weekday", "c5_hour"),
    ]
    assert [value.name for value in graph.output] == ["label", "probabilities"]
    model, contract = fit(boosting("regression"), "regression", training("regression"))
    graph = onnx.load_from_string(compile_model(model, contract)).graph
    assert [value.name for value in graph.output] == ["value"]


def test_a_nested_transformer_by_names_is_equal():
    inner = ColumnTransformer(
        [("scale", make_pipeline(SimpleImputer(), StandardScaler()), [DAY, "a.b"]), ("keep", SimpleImputer(), ["a_b"])]
    )
    features = ColumnTransformer(
        [
            ("inner", inner, ["a_b", DAY, "a.b"]),
            ("texts", OneHotEncoder(handle_unknown="ignore"), [REGION, PLAN]),
            ("won", SimpleImputer(), [WON]),
        ]
    )
    model, contract = fit(make_pipeline(features, LogisticRegression(max_iter=300)), "binary", training("binary"))
    assert gap(model, contract, unseen()) <= 1e-6


PARTS = ["month", "weekday", "hour"]  # of the date, behind all columns
FEATURE_NAMES = [*(c.name for c in COLUMNS if c.role != "id"), *PARTS]
SELECTIONS: dict[str, Any] = {
    "mask": [name in ("a_b", WON) for name in FEATURE_NAMES],
    "array mask": np.array([name in ("a_b", WON) for name in FEATURE_NAMES]),
    "slice": slice(0, 3),
    "slice of names": slice("a_b", "a.b"),
    "position": [0, -11],
    "one name": ["a_b"],
    "callable": lambda frame: [name for name in frame if name.startswith("a")],
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_columns_may_be_chosen_in_every_way_that_scikit_learn_knows(selection):
    numbers = ColumnTransformer([("n", SimpleImputer(), SELECTIONS[selection])])
    model, contract = fit(make_pipeline(numbers, StandardScaler(), LogisticRegression()), "binary", training("binary"))
    assert gap(model, contract, unseen()) <= 1e-6


def test_a_union_of_features_is_equal():
    numbers = ["a_b", DAY, "a.b"]
    union = FeatureUnion(
        [
            ("scaled", ColumnTransformer([("n", make_pipeline(SimpleImputer(), StandardScaler()), numbers)])),
            ("texts", ColumnTransformer([("t", OneHotEncoder(handle_unknown="ignore"), [REGION])])),
        ]
    )
    model, contract = fit(make_pipeline(union, LogisticRegression(max_iter=300)), "binary", training("binary"))
    assert gap(model, contract, unseen()) <= 1e-6


def test_numbers_alone_need_no_column_transformer():
    frame, columns = named_table(dict.fromkeys(NAMES, "number"))
    model, contract = fit(make_pipeline(StandardScaler(), LogisticRegression()), "binary", frame, columns)
    assert gap(model, contract, frame) <= 1e-6


# The proof.


def test_the_same_model_gives_the_same_bytes():
    for make in (lambda: boosting("binary"), lambda: trees(RandomForestClassifier(**TREES))):
        model, contract = fit(make(), "binary", training("binary"))
        again, _ = fit(make(), "binary", training("binary"))
        assert compile_model(model, contract) == compile_model(again, contract)


def tamper(content: bytes, by: float) -> bytes:
    """Return the model with one leaf moved."""
    model = onnx.load_from_string(content)
    node = next(n for n in model.graph.node if n.op_type.startswith("TreeEnsemble"))
    leaves = next(a for a in node.attribute if a.name in ("class_weights", "target_weights"))
    leaves.floats[0] += by
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_tampered_model_is_refused_saying_by_how_much(problem):
    frame = training(problem)
    model, contract = fit(boosting(problem), problem, frame)
    content = compile_model(model, contract)
    parity = check_parity(content, model, contract, frame, 1e-5)
    assert parity.verified and parity.rows == len(frame) and parity.largest <= 1e-6
    by = 1e6 if problem == "regression" else 0.5
    with pytest.raises(UserError, match=r"differs from scikit-learn on the held-out rows: by up to 0?\.\d+ \(row \d+"):
        check_parity(tamper(content, by), model, contract, frame, 1e-5)


def test_parity_probes_what_the_holdout_happens_not_to_have():
    """A holdout without gaps or new texts proves nothing about them."""
    frame = training("binary").dropna()
    model, contract = fit(boosting("binary"), "binary", frame)
    parity = check_parity(compile_model(model, contract), model, contract, frame, 1e-5)
    assert parity.probes > 0 and parity.verified


def test_an_encoder_that_fails_on_new_texts_is_refused_with_the_setting_to_use():
    texts = ColumnTransformer([("texts", OrdinalEncoder(), [REGION])], remainder="drop")
    model, contract = fit(make_pipeline(texts, LogisticRegression()), "binary", training("binary"))
    with pytest.raises(UserError, match="handle_unknown"):
        check_parity(compile_model(model, contract), model, contract, training("binary"), 1e-5)


def test_compiling_warns_of_nothing_and_prints_nothing(capfd):
    model, contract = fit(boosting("multiclass"), "multiclass", training("multiclass"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_model(model, contract)
    assert capfd.readouterr() == ("", "")


def test_a_contract_of_one_feature_compiles():
    frame = add_target(nasty_frame(400), "binary")
    columns = tuple(c for c in COLUMNS if c.name == REGION)
    model, contract = fit(boosting("binary"), "binary", frame, columns)
    assert contract_for("binary", columns).features[0].name == REGION
    assert gap(model, contract, unseen()) <= 1e-6
