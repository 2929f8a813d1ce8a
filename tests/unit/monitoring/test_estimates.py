"""Estimates without labels: right within their interval, blind where they say so, and no reason to train."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ondol.config import Gates, Monitor, Settings
from ondol.contract import Column, Contract, Encoding
from ondol.evaluation.metrics import Interval, score_metrics
from ondol.evaluation.targets import Reference, make_reference, read_reference
from ondol.monitoring.drift import ColumnDrift, DriftComparison, pair_sides
from ondol.monitoring.estimation import Estimate, Estimator, estimate_window
from ondol.monitoring.exporter import _of_window
from ondol.monitoring.monitor import _estimate
from ondol.monitoring.performance import Performance, measure
from ondol.monitoring.report import as_markdown
from ondol.monitoring.retraining import Decision
from ondol.monitoring.windows import Window, window_metrics

CLASSES = {"binary": ("아니오", "예"), "multiclass": ("가", "나", "다")}
GATES = Gates(resamples=20)


def contract(problem: str = "binary") -> Contract:
    known = Encoding(tensor="string", known=("a", "b"))
    columns = (
        Column(name="크기", kind="number"),
        Column(name="w", kind="text", encoding=known),
        Column(name="y", kind="text", role="target"),
    )
    return Contract(problem=problem, target="y", columns=columns, classes=CLASSES.get(problem))  # type: ignore[arg-type]


def make(rows: int, problem: str = "binary", seed: int = 0, shift: float = 0.0, concept: bool = False) -> pd.DataFrame:
    """Return rows with probabilities that are too sure: twice the true log-odds."""
    rng, classes = np.random.default_rng(seed), CLASSES[problem]
    size = rng.normal(size=rows) * 0.8 + shift
    odds = np.outer(size, np.linspace(-1, 1, len(classes)))
    true = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    places = (rng.random((rows, 1)) > true.cumsum(axis=1)[:, :-1]).sum(axis=1)
    places = len(classes) - 1 - places if concept else places
    said = np.exp(2 * odds) / np.exp(2 * odds).sum(axis=1, keepdims=True)
    frame = pd.DataFrame({"크기": size, "w": rng.choice(["a", "b"], rows), "y": np.take(list(classes), places)})
    labels = np.take(list(classes), said.argmax(axis=1))
    return frame.assign(prediction=labels, **{f"p{place}": column for place, column in enumerate(said.T)})


def reference(problem: str = "binary", rows: int = 1_500, **known: Any) -> Reference:
    binary = problem == "binary"
    names = () if binary else tuple(f"p{place}" for place in range(3))
    options = {"probability": "p1" if binary else None, "by_class": names} | known
    return Reference(make(rows, problem, seed=99), contract(problem), "prediction", **options)


def chances(frame: pd.DataFrame) -> Any:
    return frame[[name for name in frame if name in ("p0", "p1", "p2")]].to_numpy()


def compared(known: Reference, frame: pd.DataFrame) -> Any:
    """Return the rest of the arguments of `estimate_window`, without Evidently."""
    sides = pair_sides(known, frame)
    quiet = [ColumnDrift(name=n, method="", score=0.0, limit=1.0, missing=0, missing_before=0) for n in sides.kinds]
    return sides, DriftComparison(tuple(quiet[:-1]), quiet[-1], None), None, Monitor()


def truth(frame: pd.DataFrame, problem: str) -> Any:
    return frame["y"].map({label: place for place, label in enumerate(CLASSES[problem])}).to_numpy()


@pytest.mark.parametrize(("problem", "metric"), [("binary", "roc_auc"), ("binary", "f1"), ("multiclass", "log_loss")])
def test_the_truth_is_within_the_interval_at_random_and_with_covariate_shift(problem, metric):
    estimator, hits = Estimator.fit(reference(problem)), []
    for seed in range(30):
        window = make(300, problem, seed, shift=(seed % 3) / 2)
        found = estimator.estimate(chances(window), [metric])[metric]
        real = score_metrics(problem, truth(window, problem), chances(window))[metric]
        assert found.low is not None and found.high is not None
        hits.append(found.low <= real <= found.high)
    assert np.mean(hits) >= 0.9


def test_probabilities_that_are_too_sure_are_calibrated_on_the_reference():
    window = make(3_000, seed=5)
    real = score_metrics("binary", truth(window, "binary"), chances(window))["log_loss"]
    right = Estimator.fit(reference()).estimate(chances(window))["log_loss"].value
    raw = Estimator("binary", ()).estimate(chances(window))["log_loss"].value
    assert 4 * abs(right - real) < abs(raw - real)


def test_a_bundle_without_the_probabilities_of_classes_is_estimated_and_says_so():
    old, window = reference("multiclass", by_class=()), make(300, "multiclass")
    found = estimate_window(old, chances(window), *compared(old, window))
    assert found is not None and not found.calibrated and set(found.figures) >= {"f1_macro", "accuracy", "roc_auc_ovr"}


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({}, None),
        ({"크기": 9.0}, "100% of the rows have values outside those of the reference"),
        ({"크기": np.nan}, "100% of the rows have values outside"),
        ({"w": "새것"}, "100% of the values of w were never seen in training"),
    ],
)
def test_an_estimate_is_unreliable_where_the_rows_are_unlike_the_reference(change, doubt):
    known, window = reference(), make(300, seed=3).assign(**change)
    found = estimate_window(known, chances(window), *compared(known, window))
    assert found is not None and (any(doubt in one for one in found.doubts) if doubt else not found.doubts)
    assert ("unreliable" in found.sentence) == bool(doubt)


def test_labels_show_later_how_far_an_estimate_was_right():
    known, sentences = reference(), []
    for concept in (False, True):
        window = make(400, seed=7, concept=concept)
        rows = pd.DataFrame({"prediction": list(chances(window)), "label": window["y"]})
        holdout = {"roc_auc": {"value": 0.7, "low": 0.65, "high": 0.75}}
        found = measure(known.contract, holdout, rows, GATES, Monitor(), Estimator.fit(known))
        assert found is not None and found.as_estimated == (not concept)  # a change of the rule cannot be seen
        sentences.append(found.sentence)
    assert ", as estimated without labels (" in sentences[0] and ", not as estimated without" in sentences[1]


def window(**more: Any) -> Window:
    span = {"start": "2024-01-01T00:00:00Z", "end": "2024-01-02T00:00:00Z", "version": "1", "bundle": "1-b"}
    return Window.model_validate({"id": "w", "verdict": "ok", "rows": 300} | span | more)


def test_an_estimate_is_shown_exported_and_no_reason_to_train():
    poor = Estimate(
        metric="roc_auc",
        rows=300,
        figures={"roc_auc": Interval(0.51, 0.45, 0.57), "f1": Interval(0.2, 0.1, 0.3)},
        calibrated=True,
        doubts=("9% of the rows have values outside those of the reference",),
    )
    shown = window(estimate=poor)
    assert not shown.bad and window_metrics(shown)["estimated/f1"] == 0.2
    page = as_markdown(shown, Decision(wanted=False, why="ok"), "", "report.html")
    assert "roc_auc, estimated without labels | 0.5100 \\[0.4500, 0.5700], unreliable" in page
    assert "estimated without labels, unreliable: 9% of the rows" in page
    gauges = {(s.name, *s.labels.values()): s.value for family in _of_window(shown) for s in family.samples}
    assert gauges["ml_estimated_metric", "roc_auc", "low"] == 0.45 and gauges["ml_estimate_reliable",] == 0
    assert Window.model_validate_json(shown.model_dump_json()) == shown


def test_a_window_of_labels_shows_the_estimate_beside_them():
    figure, was = Interval(0.6, 0.55, 0.65), Interval(0.7, 0.66, 0.74)
    live = Performance(metric="roc_auc", rows=300, figure=figure, before=None, metrics={}, lost=False, estimated=was)
    page = as_markdown(window(performance=live), Decision(wanted=False, why="ok"), "", "report.html")
    assert "outside the estimate of 0.7000 \\[0.6600, 0.7400] for the same rows" in page


def test_a_record_of_an_earlier_release_is_read_and_a_regression_is_not_estimated(tmp_path):
    assert window().estimate is None and "estimated" not in as_markdown(
        window(), Decision(wanted=False, why=""), "", ""
    )
    values = Contract(problem="regression", target="y", columns=(Column(name="y", kind="number", role="target"),))
    sides, comparison, *_ = compared(reference(), make(50))
    known = Reference(make(50), values, "prediction", None)
    settings = Settings.model_validate({"root": tmp_path})
    assert _estimate(settings, known, [], sides, comparison) is None


def test_an_estimate_is_unreliable_where_the_predictions_drifted():
    known, window = reference(), make(300, seed=3)
    sides, quiet, *rest = compared(known, window)
    moved = quiet.prediction.model_copy(update={"why": ("its distribution moved",)})
    found = estimate_window(known, chances(window), sides, DriftComparison(quiet.features, moved, None), *rest)
    assert found is not None and found.doubts == ("the predictions drifted",)


def test_the_reference_of_several_classes_keeps_their_probabilities(tmp_path):
    rows = make(200, "multiclass")
    candidate: Any = SimpleNamespace(
        contract=contract("multiclass"), held_out=rows[["크기", "w", "y"]], predictions=chances(rows)
    )
    content, about = make_reference(candidate)
    (tmp_path / "reference.parquet").write_bytes(content)
    bundle: Any = SimpleNamespace(path=tmp_path, meta={"reference": about}, contract=candidate.contract, version="1")
    found = read_reference(bundle)
    assert found.by_class == ("probability 가", "probability 나", "probability 다")
    assert np.array_equal(found.probabilities, chances(rows))
