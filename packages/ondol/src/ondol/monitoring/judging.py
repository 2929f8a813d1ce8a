"""From figures to a verdict on the window: pure functions."""

from ondol.monitoring.drift import ColumnDrift, Comparison
from ondol.monitoring.performance import Performance
from ondol.monitoring.windows import Verdict, Window

MOST_NAMED = 3


def judge(
    features: tuple[ColumnDrift, ...], prediction: ColumnDrift, performance: Performance | None, drift_share: float
) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict and its reasons in words.

    A window got worse where labels say so; else it drifted where enough features, or the predictions, moved.
    """
    reasons = []
    drifted = [column for column in features if column.drifted]
    if performance is not None and performance.lost:
        reasons.append(f"performance lost: {performance.sentence}")
    if features and len(drifted) / len(features) >= drift_share:
        names = ", ".join(c.name for c in by_distance(drifted)[:MOST_NAMED])
        more = ", …" if len(drifted) > MOST_NAMED else ""
        reasons.append(f"{len(drifted)} of {len(features)} columns drifted ({names}{more})")
    if prediction.drifted:
        reasons.append(f"the predictions drifted ({'; '.join(prediction.why)})")
    worse = performance is not None and performance.lost
    return ("worse" if worse else "drift" if reasons else "ok"), tuple(reasons)


def by_distance(columns: "tuple[ColumnDrift, ...] | list[ColumnDrift]") -> list[ColumnDrift]:
    """Return columns, the farthest beyond its limit first; those without a distance, where marked, before all."""

    def far(column: ColumnDrift) -> float:
        if column.score is None or column.limit is None:
            return float("inf") if column.drifted else -1.0
        return column.score / column.limit

    return sorted(columns, key=far, reverse=True)


def judged(window: Window, comparison: Comparison, drift_share: float) -> Window:
    """Return the window with what the comparison found."""
    verdict, reasons = judge(comparison.features, comparison.prediction, None, drift_share)
    found = {"columns": comparison.features, "prediction": comparison.prediction, "drift_share": comparison.share}
    return window.model_copy(update=found | {"verdict": verdict, "reasons": reasons})


def measured(window: Window, performance: Performance | None, drift_share: float) -> Window:
    """Return the window with what labels say, judged anew; without labels it stays as it was."""
    if performance is None or window.prediction is None:
        return window
    verdict, reasons = judge(window.columns, window.prediction, performance, drift_share)
    return window.model_copy(update={"performance": performance, "verdict": verdict, "reasons": reasons})
