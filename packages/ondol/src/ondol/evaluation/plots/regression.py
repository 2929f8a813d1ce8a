"""The pictures of regression."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ondol.evaluation.plots.scene import (
    BLUE,
    GREY,
    LINES,
    Chart,
    Scene,
    bin_means,
    mark_thousands,
    show_number,
    start,
    thin,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 3_000
DOTS: dict[str, Any] = {"s": 11, "alpha": 0.45, "color": "#9CC9E3", "linewidths": 0}


def draw_predicted(figure: "Figure", scene: Scene) -> None:
    """Draw predictions against the truth."""
    axes = start(figure, f"Predicted against actual {scene.target}", scene.note)
    both = np.concatenate([scene.y, scene.candidate])
    ends, keep = [float(both.min()), float(both.max())], thin(scene.y, MOST_POINTS)
    axes.scatter(scene.y[keep], scene.candidate[keep], label="candidate", **DOTS)
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=":", label="perfect")
    for name, prediction in scene.models.items():
        actual, predicted = bin_means(scene.y, (scene.y, prediction), bins=20)
        axes.plot(actual, predicted, label=f"{name} (mean of each twentieth)", **LINES[name])
    axes.set(xlabel=f"actual {scene.target}", ylabel=f"predicted {scene.target}")
    mark_thousands(axes)
    axes.legend(loc="upper left")


def draw_residuals(figure: "Figure", scene: Scene) -> None:
    """Draw predicted minus actual against predicted: a trend or a funnel shows what the model misses."""
    axes = start(figure, f"Residuals of {scene.target}", scene.note)
    keep = thin(scene.y, MOST_POINTS)
    axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
    residual = scene.candidate - scene.y
    axes.scatter(scene.candidate[keep], residual[keep], label="candidate", **DOTS)
    for name, prediction in scene.models.items():
        at, mean = bin_means(prediction, (prediction, prediction - scene.y), bins=20)
        axes.plot(at, mean, label=f"{name} (mean of each twentieth)", **LINES[name])
    axes.set(xlabel=f"predicted {scene.target}", ylabel="predicted minus actual")
    mark_thousands(axes)
    axes.legend(loc="best")


def draw_residual_histogram(figure: "Figure", scene: Scene) -> None:
    """Draw how often residuals of each size occur, without the outermost hundredth."""
    axes = start(figure, f"How far off predictions of {scene.target} are", scene.note)
    residuals = {name: prediction - scene.y for name, prediction in scene.models.items()}
    low, high = np.quantile(np.concatenate(list(residuals.values())), [0.005, 0.995])
    edges = np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, low + 0.5, 41)
    for name, residual in residuals.items():
        label = f"{name} (median error {show_number(float(np.median(np.abs(residual))))})"
        filled: dict[str, Any] = {"histtype": "stepfilled", "alpha": 0.35, "color": BLUE}
        style = filled if name == "candidate" else {"histtype": "step", **LINES[name]}
        axes.hist(residual, bins=list(edges), label=label, **style)
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set(xlabel="predicted minus actual", ylabel="rows")
    mark_thousands(axes)
    axes.legend(loc="best")


REGRESSION: Mapping[str, Chart] = {
    "predicted-vs-actual": draw_predicted,
    "residuals": draw_residuals,
    "residual-histogram": draw_residual_histogram,
}
