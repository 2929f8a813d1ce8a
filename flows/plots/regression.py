"""The pictures of regression."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from flows.plots.scene import BLUE, GREY, LINES, Chart, Scene, bin_means, mark_thousands, show_number, start, thin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 3_000


def draw_predicted(figure: "Figure", scene: Scene) -> None:
    """Draw predictions against the truth."""
    axes = start(figure, f"Predicted against actual {scene.target}", scene.note)
    low, high = float(min(scene.y.min(), scene.candidate.min())), float(max(scene.y.max(), scene.candidate.max()))
    keep = thin(scene.y, MOST_POINTS)
    axes.scatter(scene.y[keep], scene.candidate[keep], s=9, alpha=0.3, color=BLUE, linewidths=0,
    label="candidate") axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle=":",
    label="perfect") if scene.champion is not None:
        actual, predicted = bin_means(scene.y, (scene.y, scene.champion), bins=20)
        axes.plot(actual, predicted, label="champion (mean of each twentieth)", **LINES["champion"])
    axes.set(xlabel=f"actual {scene.target}", ylabel=f"predicted {scene.target}")
    mark_thousands(axes)
    axes.legend(loc="upper left")


def draw_residuals(figure: "Figure", scene: Scene) -> None:
    """Draw predicted minus actual against predicted: a trend or a funnel shows what the model misses."""
    axes = start(figure, f"Residuals of {scene.target}", scene.note)
    keep = thin(scene.y, MOST_POINTS)
    axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
    residual = scene.candidate - scene.y
    axes.scatter(scene.candidate[keep], residual[keep], s=9, alpha=0.25, color=BLUE, linewidths=0)
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
        filled = {"alpha": 0.35, "color": BLUE, "histtype": "stepfilled"} if name == "candidate" else LINES[name]
        axes.hist(residual, bins=list(edges), label=label, **{"histtype": "step", **filled})
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set(xlabel="predicted minus actual", ylabel="rows")
    mark_thousands(axes)
    axes.legend(loc="best")


REGRESSION: Mapping[str, Chart] = {
    "predicted-vs-actual": draw_predicted,
    "residuals": draw_residuals,
    "residual-histogram": draw_residual_histogram,
}
