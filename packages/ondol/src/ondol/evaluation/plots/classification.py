"""The pictures of classification."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ondol.evaluation.plots.scene import GREY, LINES, Chart, Scene, bin_means, start, thin
from ondol.evaluation.weighted import Confusion, Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MOST_CLASSES = 12  # in a confusion matrix; the rarest share one row
MOST_PAIRS = 4  # curves by class that are drawn for the champion too


def draw_roc(figure: "Figure", scene: Scene) -> None:
    """Draw the true positive rate against the false positive rate."""
    axes = start(figure, f"ROC curve, {_positive(scene)}", scene.note)
    for name, prediction in scene.models.items():
        _draw_roc_curve(axes, scene.y == 1, prediction[:, 1], name, LINES[name])
    _finish_roc(axes)


def draw_precision_recall(figure: "Figure", scene: Scene) -> None:
    """Draw precision against recall, with the share of positives as the level of a guess."""
    axes = start(figure, f"Precision and recall, {_positive(scene)}", scene.note)
    share = float(np.mean(scene.y == 1))
    axes.axhline(share, color=GREY, linewidth=1, linestyle=":", label=f"guess ({share:.3f})")
    for name, prediction in scene.models.items():
        ranking, weights = Ranking(scene.y == 1, prediction[:, 1]), np.ones(len(scene.y))
        true, false = ranking.count(weights)
        keep = thin(true)
        recall, precision = true[keep] / max(true[-1], 1), true[keep] / (true[keep] + false[keep])
        area = ranking.average_precision(weights)
        axes.step(recall, precision, where="pre", label=f"{name} (average precision {area:.3f})", **LINES[name])
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="best")


def draw_calibration(figure: "Figure", scene: Scene) -> None:
    """Draw how often the positive class came true against how probable it was, in tenths of the rows."""
    axes = start(figure, f"Calibration, {_positive(scene)}", scene.note)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect")
    for name, prediction in scene.models.items():
        said, came = bin_means(prediction[:, 1], (prediction[:, 1], scene.y == 1), bins=10)
        marker = "o" if name == "candidate" else "s"
        axes.plot(said, came, marker=marker, markersize=5, label=name, **LINES[name])
    axes.set(xlabel="predicted probability (mean of each tenth)", ylabel="share that came true")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")


def draw_confusion(figure: "Figure", scene: Scene) -> None:
    """Draw how often each class was called each class, one matrix per model."""
    models = scene.models
    figure.set_size_inches(*_confusion_size(len(scene.classes), len(models)))
    grid = np.atleast_1d(figure.subplots(1, len(models)))
    for axes, (name, prediction) in zip(grid, models.items(), strict=True):
        counts = Confusion(scene.y, prediction).count(np.ones(len(scene.y)))
        _draw_matrix(axes, *merge_rare(counts, scene.classes))
        axes.set_title(f"Confusion matrix, {name}")
        axes.set(xlabel=f"predicted {scene.target}\n({scene.note})", ylabel=f"true {scene.target}")


def draw_roc_by_class(figure: "Figure", scene: Scene) -> None:
    """Draw one curve per class against the rest, of the most frequent classes."""
    axes = start(figure, f"ROC curve of each {scene.target} against the rest", scene.note)
    sizes = np.bincount(scene.y, minlength=len(scene.classes))
    shown = [k for k in np.argsort(-sizes, kind="stable")[: len(PALETTE)] if 0 < sizes[k] < len(scene.y)]
    models = scene.models if len(shown) <= MOST_PAIRS else {"candidate": scene.candidate}
    for name, prediction in models.items():
        for colour, k in zip(PALETTE, shown, strict=False):
            label = f"{scene.classes[k]}, {name}" if len(models) > 1 else scene.classes[k]
            _draw_roc_curve(axes, scene.y == k, prediction[:, k], label, LINES[name] | {"color": colour})
    _finish_roc(axes)


def merge_rare(counts: Array, classes: Sequence[str]) -> tuple[Array, list[str]]:
    """Return a confusion matrix of at most `MOST_CLASSES` classes: the rarest true ones share the last."""
    if len(counts) <= MOST_CLASSES:
        return counts, list(classes)
    frequent = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[: MOST_CLASSES - 1])
    place = np.full(len(counts), MOST_CLASSES - 1)
    place[frequent] = np.arange(MOST_CLASSES - 1)
    merged = np.zeros((MOST_CLASSES, MOST_CLASSES))
    np.add.at(merged, (place[:, None], place[None, :]), counts)
    return merged, [*(classes[k] for k in frequent), f"{len(counts) - MOST_CLASSES + 1} others"]


def _draw_matrix(axes: "Axes", counts: Array, classes: Sequence[str]) -> None:
    """Draw counts, coloured by their share of the true class."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.grid(visible=False)
    size = 10 if len(classes) <= 4 else 8 if len(classes) <= 8 else 6
    for (row, column), share in np.ndenumerate(shares):
        text = f"{counts[row, column]:,.0f}" + (f"\n{share:.0%}" if len(classes) <= 8 else "")
        colour = "white" if share > 0.55 else "#222222"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    slanted: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, classes)) > 8 else {}
    axes.set_xticks(range(len(classes)), list(classes), **slanted)
    axes.set_yticks(range(len(classes)), list(classes))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_roc_curve(axes: "Axes", positive: Array, score: Array, name: str, line: dict[str, Any]) -> None:
    ranking, weights = Ranking(positive, score), np.ones(len(score))
    true, false = (np.append(0, counts) for counts in ranking.count(weights))
    keep = thin(true)
    area = ranking.roc_auc(weights)
    label = f"{name} (one class only)" if np.isnan(area) else f"{name} (area {area:.3f})"
    axes.plot(false[keep] / max(false[-1], 1), true[keep] / max(true[-1], 1), label=label, **line)


def _finish_roc(axes: "Axes") -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="guess")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1), ylim=(0, 1.01))
    axes.set_aspect("equal")
    axes.legend(loc="lower right")


def _positive(scene: Scene) -> str:
    return f"{scene.target} = {scene.classes[1]}"


def _confusion_size(classes: int, models: int) -> tuple[float, float]:
    """Return width and height in inches."""
    side = 3.6 + 0.32 * max(min(classes, MOST_CLASSES) - 3, 0)
    return 0.8 + side * models, 0.6 + side


BINARY: Mapping[str, Chart] = {
    "roc": draw_roc,
    "precision-recall": draw_precision_recall,
    "calibration": draw_calibration,
    "confusion-matrix": draw_confusion,
}
MULTICLASS: Mapping[str, Chart] = {"confusion-matrix": draw_confusion, "roc-by-class": draw_roc_by_class}
