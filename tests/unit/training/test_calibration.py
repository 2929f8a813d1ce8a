"""Calibration: a sigmoid above a classifier where it helps, compiled and explained exactly, and reproduced."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io

from ondol.config import Settings, load_settings
from ondol.contract import Column, Contract, encode, encode_target
from ondol.deployment.explanation import build_explanation
from ondol.deployment.onnx import check_parity, compile_model
from ondol.errors import UserError
from ondol.evaluation.metrics import log_losses
from ondol.evaluation.scoring import Scorer
from ondol.registry.registry import TRUSTED
from ondol.selection.comparison import compare
from ondol.training.calibration import calibrate_folds
from ondol.training.candidates import Choice
from ondol.training.dataset import Holdout
from ondol.training.folds import predict_out_of_fold
from ondol.training.train import Fitted, fit_rows

FOREST = {"kind": "forest", "n_estimators": 20}
BALANCED = {"kind": "boosting", "class_weight": "balanced", "max_iter": 20, "early_stopping": False}


def settings(
    root: Any, problem: str = "binary", metric: str | None = None, by: str = "random", **train: Any
) -> Settings:
    data, gates = {"problem": problem, "target": "결과"}, {"metric": metric}
    given = {"root": root, "project": {"name": "t"}, "data": data, "gates": gates, "split": {"by": by}, "train": train}
    return Settings.model_validate(given)


def contract(problem: str = "binary", at: str = "ignored") -> Contract:
    kinds = {"크기": "number", "b": "number", "at": "date", "결과": "text"}
    roles = {"at": at, "결과": "target"}
    columns = tuple(Column(name=n, kind=k, role=roles.get(n, "feature")) for n, k in kinds.items())  # type: ignore[arg-type]
    return Contract(problem=problem, target="결과", columns=columns)  # type: ignore[arg-type]


def make_rows(rows: int, classes: int = 2, seed: int = 0, rare: float = 0.0) -> pd.DataFrame:
    """Return rows with a weak relation: a forest is too sure of them."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"크기": rng.normal(size=rows), "b": rng.normal(size=rows)})
    frame["at"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.permutation(rows), "h")
    noisy = frame["크기"] + rng.logistic(size=rows) * 1.5 - rare
    places = np.clip(np.floor(noisy + classes / 2), 0, classes - 1).astype(int)
    frame["결과"] = pd.Series(np.array(["아니오", "예", "하나"])[places]).astype("str")
    return frame


def only(monkeypatch: pytest.MonkeyPatch, *candidates: dict[str, Any]) -> None:
    monkeypatch.setattr("model.estimator.list_candidates", lambda problem: list(candidates))


def loss(fitted: Fitted, frame: pd.DataFrame) -> float:
    probabilities = fitted.pipeline.predict_proba(encode(fitted.contract, frame))
    return float(log_losses(encode_target(fitted.contract, frame["결과"]), probabilities).mean())


def test_the_sigmoid_of_a_row_is_fitted_on_other_folds():
    rng = np.random.default_rng(0)
    scores, folds = rng.normal(size=(300, 1)) * 5, np.arange(300) % 3
    target = (rng.random(300) < 1 / (1 + np.exp(-scores[:, 0] / 5))).astype(int)
    made = calibrate_folds(scores, target, folds)
    sure = np.column_stack([1 / (1 + np.exp(scores)), 1 / (1 + np.exp(-scores))])
    assert log_losses(target, made).mean() < 0.7 * log_losses(target, sure).mean()
    other = np.where(folds == 1, 1 - target, target)
    again = calibrate_folds(scores, other, folds)
    assert np.array_equal(made[folds == 1], again[folds == 1]) and not np.allclose(made[folds == 0], again[folds == 0])


@pytest.mark.parametrize(("problem", "classes"), [("binary", 2), ("multiclass", 3)])
def test_a_forest_that_is_too_sure_is_calibrated(tmp_path, monkeypatch, problem, classes):
    only(monkeypatch, FOREST, FOREST | {"min_samples_leaf": 2})
    frame, fresh = make_rows(700, classes), make_rows(1_000, classes, seed=1)
    metric = "log_loss" if classes > 2 else None
    choice = compare(settings(tmp_path, problem, metric), contract(problem), frame)
    assert choice.calibrated and "Its probabilities are calibrated, which lowers their log loss" in choice.reason
    assert choice.describe()["calibration"] == "sigmoid"
    chosen, holdout = settings(tmp_path, problem), Holdout(split=settings(tmp_path).split)
    calibrated, plain = (
        fit_rows(chosen, contract(problem), frame, holdout, one) for one in (choice, Choice(choice.params, ""))
    )
    assert loss(calibrated, fresh) < loss(plain, fresh) and calibrated.choice.calibrated
    off = compare(settings(tmp_path, problem, metric, calibration="none"), contract(problem), frame)
    assert not off.calibrated and off.params == choice.params and "calibrated" not in off.reason


def test_a_linear_model_of_several_classes_is_not_calibrated(tmp_path, monkeypatch):
    only(monkeypatch, {"kind": "linear", "C": 1e-4}, {"kind": "linear", "C": 2e-4})  # far from sure enough
    choices = [
        compare(settings(tmp_path, problem, "log_loss"), contract(problem), make_rows(700, classes))
        for problem, classes in (("multiclass", 3), ("binary", 2))
    ]
    assert [choice.calibrated for choice in choices] == [False, True]


def test_a_model_that_is_right_is_not_calibrated(tmp_path, monkeypatch):
    only(monkeypatch, {"kind": "linear"}, {"kind": "linear", "C": 0.5})
    assert not compare(settings(tmp_path), contract(), make_rows(700)).calibrated


def test_class_weights_that_the_metric_wants_are_kept(tmp_path, monkeypatch):
    only(monkeypatch, BALANCED, BALANCED | {"max_leaf_nodes": 5})
    frame = make_rows(1_000, rare=2.0)
    by_labels, by_ranks = (compare(settings(tmp_path, metric=one), contract(), frame) for one in ("f1", "roc_auc"))
    assert not by_labels.calibrated and by_ranks.calibrated


def test_a_recorded_decision_gives_the_same_model(tmp_path):
    frame, holdout = make_rows(400), Holdout(split=settings(tmp_path).split)
    chosen = fit_rows(settings(tmp_path), contract(), frame, holdout, Choice(FOREST, "", calibrated=True))
    recorded = settings(tmp_path, params=FOREST, calibration="sigmoid")
    again = fit_rows(recorded, contract(), frame, holdout, Choice(FOREST, "Recorded."))
    rows = encode(chosen.contract, frame)
    assert np.array_equal(chosen.pipeline.predict_proba(rows), again.pipeline.predict_proba(rows))


@pytest.mark.parametrize(
    ("problem", "classes", "params"),
    [
        *(("binary", 2, params) for params in (FOREST, BALANCED, {"kind": "linear"})),
        *(("multiclass", 3, params) for params in (FOREST, BALANCED)),
    ],
)
def test_a_calibrated_model_compiles_and_of_two_classes_is_explained_exactly(tmp_path, problem, classes, params):
    frame, chosen = make_rows(400, classes), settings(tmp_path, problem, params=params, calibration="sigmoid")
    fitted = fit_rows(chosen, contract(problem), frame, Holdout(split=chosen.split))
    pipeline = skops.io.loads(skops.io.dumps(fitted.pipeline), trusted=list(TRUSTED))
    model = compile_model(pipeline, fitted.contract)
    assert check_parity(model, pipeline, fitted.contract, frame, 1e-5).verified
    about = build_explanation(model, Scorer.from_onnx(model, fitted.contract), frame.head(200)).about
    exact = "linear" if params["kind"] == "linear" else "exact"
    expected = (exact, "log-odds") if classes == 2 else ("approximate", "probability")
    assert (about["method"], about["scale"]) == expected


def test_by_time_the_sigmoid_is_fitted_on_later_rows(tmp_path):
    shape, frame = contract(at="time"), make_rows(400)
    chosen = settings(tmp_path, by="time", params=FOREST, calibration="sigmoid")
    fitted = fit_rows(chosen, shape, frame, Holdout(split=chosen.split))
    assert len(fitted.pipeline[-1].calibrated_classifiers_) == 1
    found = predict_out_of_fold(chosen, fitted.contract, frame, FOREST)
    assert found.calibrated().predictions.shape == found.predictions.shape
    assert (
        log_losses(found.target, found.calibrated().predictions).mean()
        < log_losses(found.target, found.predictions).mean()
    )


def test_too_few_rows_to_calibrate_are_named(tmp_path):
    chosen = settings(tmp_path, params=FOREST, calibration="sigmoid")
    with pytest.raises(UserError, match="cannot be calibrated on 12 training rows"):
        fit_rows(chosen, contract(), make_rows(12), Holdout(split=chosen.split))


def test_a_regression_cannot_be_calibrated(tmp_path):
    (tmp_path / "config.toml").write_text('[data]\nproblem = "regression"\n[train]\ncalibration = "sigmoid"\n', "utf-8")
    with pytest.raises(UserError, match="needs classes: leave it out for a regression"):
        load_settings(tmp_path)
