"""The plots of each problem type, as PNG: the candidate in blue, the champion dashed in orange.

Colours are Okabe and Ito's (2008), distinguishable by the colour-blind; line styles distinguish them in print.
Above 50,000 rows a seeded sample is drawn, and the title says so.
"""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ondol.evaluation.figure import (
    BLUE,
    GREY,
    LINES,
    Chart,
    Scene,
    bin_means,
    find_fonts,
    letter,
    letter_all,
    mark_thousands,
    show_number,
    start,
    thin,
)
from ondol.evaluation.metrics import Confusion, Ranking, sample_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
STYLE: Any = {
    "axes.edgecolor": "#666666",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.unicode_minus": False,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.color": "#e6e6e6",
    "legend.framealpha": 0.9,
    "legend.fontsize": 8,
}
DPI = 100


def draw_plots(
    problem: str,
    y: Array,
    candidate: Array,
    champion: Array | None = None,
    classes: Sequence[object] = (),
    target: str = "target",
    seed: int = 0,
) -> dict[str, bytes]:
    """Return the pictures of one evaluation as PNG by name.

    Names: binary `roc`, `precision-recall`, `calibration`, `confusion-matrix`; multiclass `confusion-matrix`,
    `roc-by-class`; regression `predicted-vs-actual`, `residuals`, `residual-histogram`.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: The true targets, [N]; see `ondol.evaluation.metrics`.
        candidate: The candidate's predictions, [N, K] or [N].
        champion: The champion's; None where there is none.
        classes: The contract's classes, in order.
        target: The target's name.
        seed: Of the sample of rows.
    """
    import matplotlib

    # A font without a bold face is drawn in the nearest it has, which is no news to whoever looks at the terminal.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

    rows = sample_rows(len(y), seed)
    note = f"{len(y):,} holdout rows"
    if rows is not None:
        note = f"{len(rows):,} of {note}"
        y, candidate, champion = y[rows], candidate[rows], None if champion is None else champion[rows]
    scene = Scene(y, candidate, champion, letter_all(classes), letter(target, 30), note)
    charts = {"binary": BINARY, "multiclass": MULTICLASS, "regression": REGRESSION}[problem]
    with matplotlib.rc_context(STYLE | {"font.family": list(find_fonts())}):
        return {name: _render(scene, draw) for name, draw in charts.items()}


def _render(scene: Scene, draw: "Callable[[Figure, Scene], None]") -> bytes:
    """Return one picture; a `Figure` of its own needs no pyplot and no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.4), dpi=DPI, layout="constrained")
    draw(figure, scene)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


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
