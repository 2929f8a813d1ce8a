"""Metrics agree with scikit-learn; intervals are seeded, cover, and are unknown where rows are too few."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from ondol.errors import UserError
from ondol.evaluation.metrics import (
    IMPORTANCE_ROWS,
    METRICS,
    SAMPLE_ROWS,
    Interval,
    bootstrap,
    choose_metric,
    measure_importance,
    paired_difference,
    prepare_scorers,
    sample_rows,
    score_metrics,
)


def binary(rows: int, strength: float = 1.5, seed: int = 0, decimals: int = 2):
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.3).astype(np.int64)
    score = np.round(1 / (1 + np.exp(1 - strength * y - rng.normal(size=rows))), decimals)  # rounded: with ties
    return y, np.column_stack([1 - score, score])


def multiclass(rows: int, classes: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    share = rng.random((rows, classes))
    share[np.arange(rows), y] += 0.4
    return y, share / share.sum(axis=1, keepdims=True)


def regression(rows: int, noise: float = 0.2, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.lognormal(10, 0.5, rows)
    return y, y * np.exp(rng.normal(0, noise, rows))


def test_binary_metrics_equal_sklearn():
    y, p = binary(501)
    label = p.argmax(axis=1)
    assert score_metrics("binary", y, p) == pytest.approx(
        {
            "roc_auc": sk.roc_auc_score(y, p[:, 1]),
            "average_precision": sk.average_precision_score(y, p[:, 1]),
            "log_loss": sk.log_loss(y, p),
            "brier": sk.brier_score_loss(y, p[:, 1]),
            "accuracy": sk.accuracy_score(y, label),
            "balanced_accuracy": sk.balanced_accuracy_score(y, label),
            "f1": sk.f1_score(y, label),
        }
    )


def test_multiclass_metrics_equal_sklearn():
    y, p = multiclass(500)
    label = p.argmax(axis=1)
    assert score_metrics("multiclass", y, p) == pytest.approx(
        {
            "f1_macro": sk.f1_score(y, label, average="macro"),
            "accuracy": sk.accuracy_score(y, label),
            "balanced_accuracy": sk.balanced_accuracy_score(y, label),
            "log_loss": sk.log_loss(y, p),
            "roc_auc_ovr": sk.roc_auc_score(y, p, multi_class="ovr"),
        }
    )


@pytest.mark.parametrize("rows", [500, 501])
def test_regression_metrics_equal_sklearn(rows):
    y, value = regression(rows)
    assert score_metrics("regression", y, value) == pytest.approx(
        {
            "r2": sk.r2_score(y, value),
            "rmse": sk.root_mean_squared_error(y, value),
            "mae": sk.mean_absolute_error(y, value),
            "median_absolute_error": sk.median_absolute_error(y, value),
            "mape": sk.mean_absolute_percentage_error(y, value),
        }
    )


@pytest.mark.parametrize(
    ("problem", "made"), [("binary", binary), ("multiclass", multiclass), ("regression", regression)]
)
def test_weighted_rows_score_as_repeated_rows(problem, made):
    y, prediction = made(60)
    times = np.random.default_rng(1).integers(0, 4, 60)
    weighted = {n: f(times.astype(float)) for n, f in prepare_scorers(problem, y, prediction).items()}
    repeated = score_metrics(problem, np.repeat(y, times), np.repeat(prediction, times, axis=0))
    assert weighted == pytest.approx(repeated)


def test_every_scored_metric_has_a_direction():
    for problem, made in (("binary", binary), ("multiclass", multiclass), ("regression", regression)):
        assert list(METRICS[problem]) == list(score_metrics(problem, *made(50)))


def test_undefined_metrics_are_left_out():
    p = np.column_stack([[0.2, 0.4, 0.5], [0.8, 0.6, 0.5]])
    assert "roc_auc" not in score_metrics("binary", np.array([1, 1, 1]), p)
    found = score_metrics("regression", np.array([0.0, 5, 7]), np.array([1.0, 5, 7]))
    assert "mape" not in found and found["mae"] == pytest.approx(1 / 3)
    assert "r2" not in score_metrics("regression", np.full(3, 2.0), np.arange(3.0))
    assert score_metrics("regression", np.empty(0), np.empty(0)) == {}


def test_predictions_that_are_not_numbers_are_an_error_of_the_model():
    with pytest.raises(UserError, match="1 predictions that are not finite numbers"):
        score_metrics("regression", np.ones(2), np.array([1.0, np.nan]))


def test_intervals_hold_the_value_and_are_the_same_for_a_seed():
    y, p = binary(2_000)
    found = bootstrap("binary", y, p, seed=3)
    assert found == bootstrap("binary", y, p, seed=3) != bootstrap("binary", y, p, seed=4)
    assert {name: i.value for name, i in found.items()} == pytest.approx(score_metrics("binary", y, p))
    assert all(i.low < i.value < i.high for i in found.values())


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth = score_metrics("binary", *binary(400_000, seed=99, decimals=6))["roc_auc"]
    hits = 0
    for seed in range(100):
        y, p = binary(400, seed=seed, decimals=6)
        interval = bootstrap("binary", y, p, metrics=["roc_auc"])["roc_auc"]
        hits += interval.low <= truth <= interval.high
    assert hits >= 88


def test_interval_grows_with_confidence():
    y, value = regression(500)
    wide, narrow = (bootstrap("regression", y, value, confidence=c)["r2"] for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_paired_difference_is_above_zero_for_the_better_in_both_directions():
    y, good = binary(1_000, strength=2.5)
    _, bad = binary(1_000, strength=0.5, seed=0)
    for metric in METRICS["binary"]:
        gain = paired_difference("binary", metric, y, good, bad)
        assert gain.low > 0, metric
        assert paired_difference("binary", metric, y, bad, good).value == pytest.approx(-gain.value)


def test_paired_difference_is_narrower_than_the_metrics_themselves():
    y, p = binary(2_000, decimals=6)
    near = np.clip(p + np.random.default_rng(0).normal(0, 0.01, len(y))[:, None] * [1, -1], 0, 1)
    gain = paired_difference("binary", "roc_auc", y, p, near)
    alone = bootstrap("binary", y, p)["roc_auc"]
    assert gain.high - gain.low < 0.3 * (alone.high - alone.low)


def test_equal_predictions_differ_by_nothing():
    y, p = multiclass(100)
    gain = paired_difference("multiclass", "f1_macro", y, p, p)
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_too_few_rows_give_a_value_without_an_interval():
    y, p = np.array([0, 1, 0, 1, 1]), np.column_stack([np.linspace(1, 0, 5), np.linspace(0, 1, 5)])
    found = bootstrap("binary", y, p)["roc_auc"]
    assert (found.low, found.high) == (None, None) and 0 <= found.value <= 1


def test_interval_is_unknown_where_most_resamples_have_one_class():
    y = np.zeros(30, np.int64)
    p = np.column_stack([np.linspace(1, 0, 30), np.linspace(0, 1, 30)])
    assert paired_difference("binary", "roc_auc", y, p, p) is None
    assert "roc_auc" not in bootstrap("binary", y, p)
    y[3] = 1  # 36% of resamples leave it out: evaluated by the others
    assert bootstrap("binary", y, p)["roc_auc"].low is not None


def test_above_the_sample_the_value_is_of_all_rows():
    y, p = binary(SAMPLE_ROWS + 20_000, decimals=6)
    found = bootstrap("binary", y, p, metrics=["roc_auc"], resamples=20)["roc_auc"]
    assert found.value == pytest.approx(score_metrics("binary", y, p)["roc_auc"])
    assert found.low < found.value < found.high
    rows = sample_rows(len(y), seed=1)
    assert len(np.unique(rows)) == SAMPLE_ROWS and (rows == sample_rows(len(y), seed=1)).all()
    assert sample_rows(SAMPLE_ROWS, seed=1) is None


def test_problem_decides_the_metric_unless_it_is_named():
    assert [choose_metric(problem, None) for problem in METRICS] == ["roc_auc", "f1_macro", "r2"]
    assert choose_metric("regression", "rmse") == "rmse"
    with pytest.raises(UserError, match='Did you mean "roc_auc"'):
        choose_metric("binary", "rocauc")


def importance_of(frame: pd.DataFrame, y: np.ndarray, predict: Any, **more: Any) -> dict[str, Interval]:
    return measure_importance("regression", "mae", y, frame, list(frame), predict, **more)


def test_importance_is_the_loss_of_the_metric_and_names_the_columns_that_the_model_uses():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"누적 결제액": rng.normal(size=800), "unused": rng.normal(size=800), "some": rng.normal(size=800)}
    )
    y = (3 * frame["누적 결제액"] + frame["some"]).to_numpy()

    def predict(rows: pd.DataFrame) -> np.ndarray:
        return (3 * rows["누적 결제액"] + rows["some"]).to_numpy()

    found = importance_of(frame, y, predict)
    assert list(found) == ["누적 결제액", "some", "unused"]
    assert found["unused"] == Interval(0.0, 0.0, 0.0)
    order = np.random.default_rng(0).permutation(len(y))
    expected = np.abs(3 * frame["누적 결제액"].to_numpy()[order] - 3 * frame["누적 결제액"]).mean()
    assert found["누적 결제액"].value == pytest.approx(expected)
    assert found["some"].low is not None and 0 < found["some"].low < found["some"].value < (found["some"].high or 0)
    assert found == importance_of(frame, y, predict)


def test_importance_of_many_rows_and_columns_is_bounded():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(5000, 60)), columns=[f"c{place}" for place in range(60)])
    weights, sizes = np.arange(60.0), set()

    def predict(rows: pd.DataFrame) -> np.ndarray:
        sizes.add(len(rows))
        return rows.to_numpy() @ weights

    found = importance_of(frame, predict(frame), predict, resamples=20)
    assert sizes == {5000, IMPORTANCE_ROWS}
    assert len(found) == 50 and "c59" in found and not {f"c{place}" for place in range(5)} & set(found)
