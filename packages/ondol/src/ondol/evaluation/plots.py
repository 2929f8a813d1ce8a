"""Plots for each problem type, as PNG: the candidate in blue, the champion dashed in orange.

Colours are Okabe and Ito's (2008), distinguishable by the colour-blind; line styles distinguish them in print.
Above 50,000 rows a seeded sample is drawn, and the title shows it.

Without a Korean font, "서울" is drawn as "seoul", so no letter appears as an empty box.
"""

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ondol.evaluation.metrics import Confusion, Decided, Interval, Ranking, labels_of, numbers_of, sample_rows
from ondol.evaluation.slices import Slice, name_error
from ondol_serving.decision import DecisionRule, sum_costs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
PLAIN = "DejaVu Sans"  # comes with matplotlib
KOREAN = (
    "Noto Sans KR",
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Source Han Sans KR",
    "Pretendard",
    "NanumGothic",
    "NanumBarunGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "UnDotum",
    "Baekmuk Gulim",
)
FIRST_SYLLABLE, LAST_SYLLABLE = 0xAC00, 0xD7A3
# Revised Romanization of Korean (2000), letter by letter, without the sound changes between syllables.
LETTERS = (
    "g kk n d tt r m b pp s ss - j jj ch k t p h",
    "a ae ya yae eo e yeo ye o wa wae oe yo u wo we wi yu eu ui i",
    "- k k k n n n t l k m l l l p l m p p t t ng t t k t p t",
)
INITIALS, MEDIALS, FINALS = (row.replace("-", "").split(" ") for row in LETTERS)


@cache
def find_fonts() -> tuple[str, ...]:
    """Return the font families for drawing: a Korean one first, if the machine has one."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return (*[name for name in KOREAN if name in installed][:1], PLAIN)


def letter(name: object, longest: int = 20) -> str:
    """Return `name` for drawing: letters of the fonts, no markup, at most `longest` letters."""
    text = "".join(c if _drawable(c) else romanize(c) for c in str(name))
    text = "".join(c if _drawable(c) else "?" for c in text if c.isprintable())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return text.replace("$", r"\$")  # matplotlib reads text between dollars as mathematics


def letter_all(names: Iterable[object], longest: int = 20) -> Sequence[str]:
    """Return names for drawing, all different: equal ones get a number."""
    drawn = [letter(name, longest) for name in names]
    return [f"{i}: {text}" if drawn.count(text) > 1 or not text else text for i, text in enumerate(drawn)]


def romanize(text: str) -> str:
    """Return `text` with each Hangul syllable in Latin letters; other characters stay."""
    return "".join(_romanize(c) for c in text)


def _romanize(character: str) -> str:
    if not FIRST_SYLLABLE <= ord(character) <= LAST_SYLLABLE:
        return character
    place = ord(character) - FIRST_SYLLABLE
    return INITIALS[place // 588] + MEDIALS[place % 588 // 28] + FINALS[place % 28]


@cache
def _drawable(character: str) -> bool:
    from matplotlib import font_manager

    paths = [font_manager.findfont(name) for name in find_fonts()]
    return any(font_manager.get_font(path).get_char_index(ord(character)) for path in paths)


BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#888888"
LINES: Mapping[str, dict[str, Any]] = {
    "candidate": {"color": BLUE, "linewidth": 1.8},
    "champion": {"color": ORANGE, "linewidth": 1.5, "linestyle": (0, (5, 2))},
}


@dataclass(frozen=True)
class Scene:
    """The data of all plots of one evaluation.

    Attributes:
        y: The true targets, [N]: indices of classes, or values.
        candidate: The candidate's probabilities [N, K] or values [N].
        champion: The champion's; None if there is none.
        labels: The labels of each model, [N], by its role; empty for values.
        rule: How the candidate decides labels; None for the most probable class.
        classes: The names of the classes for drawing.
        target: The name of the target for drawing.
        note: A note on the number of rows.
    """

    y: Array
    candidate: Array
    champion: Array | None
    labels: Mapping[str, Array]
    rule: DecisionRule | None
    classes: Sequence[str]
    target: str
    note: str

    @property
    def models(self) -> dict[str, Array]:
        """The predictions by the model's role."""
        both = {"candidate": self.candidate, "champion": self.champion}
        return {name: prediction for name, prediction in both.items() if prediction is not None}


Drawn = TypeVar("Drawn")
Chart = Callable[["Figure", Scene], None]


def make_axes(figure: "Figure", title: str, note: str) -> "Axes":
    """Return the axes of a plot, with its title and a small note on the number of rows."""
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=7, color="#666666")
    return axes


def thin(values: Array, most: int = 2_000) -> Array:
    """Return at most `most` evenly spaced positions of `values`, including the first and the last."""
    return np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(np.int64))


def bin_means(by: Array, columns: Sequence[Array], bins: int) -> list[Array]:
    """Return the means of `columns` in the groups of `group_evenly`."""
    group = group_evenly(by, bins)
    sizes = np.bincount(group)
    sums = [np.bincount(group, np.asarray(c, np.float64)) for c in columns]
    return [total / sizes for total in sums]


def group_evenly(by: Array, bins: int) -> NDArray[np.intp]:
    """Return the number of each row's group: `bins` groups of equally many rows, in the order of `by`.

    Rows with an equal `by` stay in one group, so there may be fewer groups.
    """
    edges = np.unique(np.quantile(by, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, by, side="right"), return_inverse=True)[1]


def mark_thousands(axes: "Axes") -> None:
    """Format large numbers on both axes as 1,200,000."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: show_number(value))
        axis.set_tick_params(labelsize=8)
    axes.locator_params(nbins=6)


def show_number(value: float) -> str:
    """Format a number for reading."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


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
    candidate: Decided | Array,
    champion: Decided | Array | None = None,
    classes: Sequence[object] = (),
    target: str = "target",
    rule: DecisionRule | None = None,
    seed: int = 0,
) -> dict[str, bytes]:
    """Draw the plots of one evaluation; return PNG images by name.

    Names: binary `roc`, `precision-recall`, `calibration`, `confusion-matrix`, and `threshold` where a rule has one;
    multiclass `confusion-matrix`, `roc-by-class`; regression `predicted-vs-actual`, `residuals`, `residual-histogram`.

    Args:
        problem: "binary", "multiclass" or "regression".
        y: The true targets, [N]; see `ondol.evaluation.metrics`.
        candidate: The candidate's predictions, [N, K] or [N].
        champion: The champion's; None if there is none.
        classes: The contract's classes, in order.
        target: The target's name.
        rule: How the candidate decides labels; None for the most probable class.
        seed: The seed of the sample of rows.
    """
    rows = sample_rows(len(y), seed)
    note = f"{len(y):,} holdout rows"
    if rows is not None:
        note = f"{len(rows):,} of {note}"
        y, candidate, champion = y[rows], candidate[rows], None if champion is None else champion[rows]
    models = {"candidate": candidate} | ({} if champion is None else {"champion": champion})
    labels = {} if problem == "regression" else {name: labels_of(one) for name, one in models.items()}
    ours, theirs = numbers_of(candidate), None if champion is None else numbers_of(champion)
    scene = Scene(y, ours, theirs, labels, rule, letter_all(classes), letter(target, 30), note)
    charts = {"binary": BINARY, "multiclass": MULTICLASS, "regression": REGRESSION}[problem]
    if rule is not None and rule.threshold is not None:
        charts = {**charts, "threshold": draw_threshold}
    return {name: _render(draw, scene) for name, draw in charts.items()}


def _render(draw: "Callable[[Figure, Drawn], None]", drawn: Drawn) -> bytes:
    """Return one plot; a separate `Figure` needs neither pyplot nor a display."""
    import matplotlib
    from matplotlib.figure import Figure

    # matplotlib warns of each font without a bold face; the user cannot change that.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(STYLE | {"font.family": list(find_fonts())}):
        figure = Figure(figsize=(5.6, 4.4), dpi=DPI, layout="constrained")
        draw(figure, drawn)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
        return stream.getvalue()


MOST_BARS = 20


@dataclass(frozen=True)
class Importance:
    """What the plot of importance shows: an interval for each column, most important first, on some rows."""

    intervals: Mapping[str, Interval]
    metric: str
    rows: int


def draw_importance(importance: Importance) -> bytes:
    """Return a plot of how much worse the metric gets without the values of each column, as a PNG image."""
    return _render(_draw_importance, importance)


def _draw_importance(figure: "Figure", importance: Importance) -> None:
    intervals = importance.intervals
    shown = list(intervals.values())[:MOST_BARS]
    left_out = f", {len(shown)} of {len(intervals)} columns" if len(shown) < len(intervals) else ""
    figure.set_size_inches(5.6, max(2.4, 1.3 + 0.25 * len(shown)))
    axes = figure.subplots()
    axes.set_title("Importance of each column", loc="left")
    for place, one in enumerate(shown):
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [place, place], color=BLUE, linewidth=1.8)
    axes.plot([one.value for one in shown], range(len(shown)), "o", color=BLUE, markersize=5)
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(shown)), letter_all(list(intervals)[: len(shown)]))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    note = f"{importance.rows:,} holdout rows{left_out}"
    axes.set_xlabel(f"loss of {importance.metric} with the column's values in random order\n({note})")
    axes.xaxis.set_major_formatter(lambda value, _: show_number(value))
    axes.locator_params(axis="x", nbins=6)


def draw_slices(slices: Sequence[Slice], problem: str) -> bytes:
    """Return a plot of the error in parts of the rows beside that in the other rows, as a PNG image."""
    return _render(_draw_slices, (slices, problem))


def _draw_slices(figure: "Figure", drawn: tuple[Sequence[Slice], str]) -> None:
    slices, problem = drawn
    shown = slices[:MOST_BARS]
    left_out = f" ({len(shown)} of {len(slices)})" if len(shown) < len(slices) else ""
    figure.set_size_inches(6.4, max(2.4, 1.3 + 0.25 * len(shown)))
    axes = figure.subplots()
    axes.set_title(f"Error in slices{left_out}", loc="left")
    for place, one in enumerate(shown):
        axes.plot([one.rest + one.low, one.rest + one.high], [place, place], color=BLUE, linewidth=1.8)
    axes.plot([one.error for one in shown], range(len(shown)), "o", color=BLUE, markersize=5, label="in the slice")
    axes.plot(
        [one.rest for one in shown], range(len(shown)), "|", color=ORANGE, markersize=9, label="in the other rows"
    )
    names = letter_all([f"{one.name}{' (weak)' * (one.kind == 'weak')}" for one in shown], longest=40)
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel(name_error(problem))
    axes.locator_params(axis="x", nbins=6)


@dataclass(frozen=True)
class SearchHistory:
    """What the plot of a search shows.

    Attributes:
        metric: The metric.
        values: The value of each trial by its number, [N], that of a pruned one compared with the best one on the same
            folds; NaN for a trial that failed.
        kinds: The kind of each trial's estimator, [N].
        pruned: Whether the trial ended after the first folds, [N].
        best: The best value so far, [N]; NaN before the first complete trial.
        importance: The share of each parameter in the variance of the values; the most important one first.
        of: The kind whose parameters these are.
    """

    metric: str
    values: Sequence[float]
    kinds: Sequence[str]
    pruned: Sequence[bool]
    best: Sequence[float]
    importance: Mapping[str, float]
    of: str


def draw_search(history: SearchHistory) -> bytes:
    """Return a plot of a search: the value of each trial, and the importance of the parameters, as a PNG image."""
    return _render(_draw_search, history)


def _draw_search(figure: "Figure", history: SearchHistory) -> None:
    figure.set_size_inches(10.5 if history.importance else 6.6, 4.4)
    panels = figure.subplots(1, 2, width_ratios=(2, 1)) if history.importance else [figure.subplots()]
    axes, values, pruned = panels[0], np.array(history.values, float), np.array(history.pruned)
    axes.set_title(f"{history.metric} of {len(values):,} trials", loc="left")
    names = sorted(set(history.kinds), key=list(history.kinds).index)
    for place, (kind, name) in enumerate(zip(names, letter_all(names), strict=True)):
        mine = np.array(history.kinds) == kind
        colour = PALETTE[place % len(PALETTE)]
        axes.scatter(np.flatnonzero(mine & ~pruned), values[mine & ~pruned], s=16, color=colour, label=name)
        faint: dict[str, Any] = {"s": 12, "facecolors": "none", "edgecolors": colour, "linewidths": 0.7, "alpha": 0.6}
        axes.scatter(np.flatnonzero(mine & pruned), values[mine & pruned], **faint)
    axes.step(range(len(values)), history.best, where="post", color=GREY, linewidth=1.4, label="best so far")
    known = values[np.isfinite(values)]
    if len(known) > 4:  # a few bad trials would hide the differences among the good ones
        low, high = np.quantile(known, [0.1, 0.9])
        room = 0.15 * max(high - low, 1e-12)
        ends = np.nanmin([low, *history.best]), np.nanmax([high, *history.best])
        axes.set_ylim(ends[0] - room, ends[1] + room)
    axes.set(xlabel="trial (hollow: pruned, compared with the best one on the first folds)", ylabel=history.metric)
    axes.legend(loc="best", fontsize=8)
    if history.importance:
        shown = list(history.importance)[:MOST_BARS][::-1]
        bars = panels[1]
        bars.barh(range(len(shown)), [history.importance[name] for name in shown], color=BLUE)
        bars.set_yticks(range(len(shown)), letter_all(shown, longest=28))
        bars.set_title(f"Importance of parameters, {letter(history.of)}", loc="left")
        bars.set(xlabel="share of the variance", xlim=(0, 1))
        bars.grid(visible=False, axis="y")


MOST_PANELS = 5


def draw_versions(
    scores: Mapping[str, Mapping[str, Interval]], metric: str, rows: int, positive: Array, curves: Mapping[str, Array]
) -> bytes:
    """Return a plot of versions side by side, as a PNG image.

    Args:
        scores: The metrics of each version, with intervals.
        metric: The deciding metric, which comes first.
        rows: The number of rows.
        positive: Whether each row is of the positive class, [N].
        curves: The probability of the positive class by each version, [N]; empty for other problems.
    """
    return _render(_draw_versions, (scores, metric, rows, positive, curves))


def _draw_versions(figure: "Figure", drawn: tuple[Any, str, int, Array, Mapping[str, Array]]) -> None:
    scores, metric, rows, positive, curves = drawn
    names = [metric, *(name for name in next(iter(scores.values())) if name != metric)][:MOST_PANELS]
    shape: Any = figure.subfigures(1, 2, width_ratios=(1.1, 1)) if curves else [figure]
    figure.set_size_inches(10.5 if curves else 6.4, max(4.6, 0.6 + len(names) * (0.55 + 0.22 * len(scores))))
    colours = [PALETTE[place % len(PALETTE)] for place in range(len(scores))]
    panels = shape[0].subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(name, loc="left")
        for place, (colour, found) in enumerate(zip(colours, scores.values(), strict=True)):
            if (one := found.get(name)) is None:
                continue
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [place, place], color=colour, linewidth=1.8)
            axes.plot([one.value], [place], "o", color=colour, markersize=5)
        axes.set_yticks(range(len(scores)), letter_all([f"version {version}" for version in scores]))
        axes.set_ylim(len(scores) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=5)
    panels[-1].set_xlabel(f"with intervals, {rows:,} rows that none was trained on")
    if curves:
        axes = shape[1].subplots()
        axes.set_title("ROC curve", loc="left")
        for colour, (version, score) in zip(colours, curves.items(), strict=True):
            _draw_roc_curve(axes, positive, score, f"version {version}", {"color": colour, "linewidth": 1.5})
        _finish_roc(axes)


PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MOST_CLASSES = 12  # in a confusion matrix; the rarest classes share one row
MOST_PAIRS = 4  # largest number of classes with curves for the champion too


def draw_roc(figure: "Figure", scene: Scene) -> None:
    """Draw the true positive rate against the false positive rate."""
    axes = make_axes(figure, f"ROC curve, {_positive(scene)}", scene.note)
    for name, prediction in scene.models.items():
        _draw_roc_curve(axes, scene.y == 1, prediction[:, 1], name, LINES[name])
        if scene.rule is not None:
            said = scene.labels[name] == 1
            _mark(axes, float(said[scene.y != 1].mean()), float(said[scene.y == 1].mean()), name)
    _finish_roc(axes)


def draw_precision_recall(figure: "Figure", scene: Scene) -> None:
    """Draw precision against recall, with the share of positives as the baseline."""
    axes = make_axes(figure, f"Precision and recall, {_positive(scene)}", scene.note)
    share = float(np.mean(scene.y == 1))
    axes.axhline(share, color=GREY, linewidth=1, linestyle=":", label=f"guess ({share:.3f})")
    for name, prediction in scene.models.items():
        ranking, weights = Ranking(scene.y == 1, prediction[:, 1]), np.ones(len(scene.y))
        true, false = ranking.count(weights)
        keep = thin(true)
        recall, precision = true[keep] / max(true[-1], 1), true[keep] / (true[keep] + false[keep])
        area = ranking.average_precision(weights)
        axes.step(recall, precision, where="pre", label=f"{name} (average precision {area:.3f})", **LINES[name])
        if scene.rule is not None and (said := scene.labels[name] == 1).any():
            _mark(axes, float(said[scene.y == 1].mean()), float((scene.y[said] == 1).mean()), name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="best")


def draw_calibration(figure: "Figure", scene: Scene) -> None:
    """Draw the observed share of positives against the predicted probability, in tenths of the rows."""
    axes = make_axes(figure, f"Calibration, {_positive(scene)}", scene.note)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="perfect")
    for name, prediction in scene.models.items():
        predicted, observed = bin_means(prediction[:, 1], (prediction[:, 1], scene.y == 1), bins=10)
        marker = "o" if name == "candidate" else "s"
        axes.plot(predicted, observed, marker=marker, markersize=5, label=name, **LINES[name])
    axes.set(xlabel="predicted probability (mean of each tenth)", ylabel="observed share")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")


def draw_confusion(figure: "Figure", scene: Scene) -> None:
    """Draw one confusion matrix per model."""
    models = scene.models
    figure.set_size_inches(*_confusion_size(len(scene.classes), len(models)))
    grid = np.atleast_1d(figure.subplots(1, len(models)))
    for axes, (name, prediction) in zip(grid, models.items(), strict=True):
        counts = Confusion(scene.y, Decided(prediction, scene.labels[name])).count(np.ones(len(scene.y)))
        _draw_matrix(axes, *merge_rare(counts, scene.classes))
        axes.set_title(f"Confusion matrix, {name}")
        axes.set(xlabel=f"predicted {scene.target}\n({scene.note})", ylabel=f"true {scene.target}")


def draw_threshold(figure: "Figure", scene: Scene) -> None:
    """Draw the mean cost, or precision and recall, of the candidate against the threshold."""
    assert scene.rule is not None and scene.rule.threshold is not None
    chosen, costs = scene.rule.threshold, scene.rule.costs
    axes = make_axes(figure, f"Threshold of the probability, {_positive(scene)}", scene.note)
    ranking = Ranking(scene.y == 1, scene.candidate[:, 1])
    true, false = (np.append(0, counts) for counts in ranking.count(np.ones(len(scene.y))))
    thresholds = np.append(1.0, ranking.score[ranking.order][ranking.ends])
    keep, lines = thin(thresholds), {}
    if costs is None:
        lines["precision"] = true / np.maximum(true + false, 1)
        lines["recall"] = true / max(true[-1], 1)
    else:
        lines["mean cost"] = sum_costs(costs, true, false, true[-1], false[-1]) / len(scene.y)
    for (name, line), style in zip(lines.items(), LINES.values(), strict=False):
        axes.step(thresholds[keep], line[keep], where="post", label=name, **style)
        # A row has the label from the threshold on: the lowest probability at or above it.
        place = int(np.searchsorted(-thresholds, -chosen, side="right")) - 1
        axes.plot(chosen, line[max(place, 0)], "o", color=style["color"], markersize=6)
    axes.axvline(chosen, color="black", linewidth=1.2, label=f"chosen on the training rows ({chosen:.3g})")
    end = min(max(10 * chosen, 0.01), 1.0)  # that of a rare class would be at the edge
    if end > 0.5:
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":", label="0.5")
    axes.set(xlabel=f"threshold: {_positive(scene)} from this probability on", ylabel=" and ".join(lines))
    axes.set_xlim(0, end)
    axes.set_ylim(0, None)
    axes.legend(loc="best")


def _mark(axes: "Axes", x: float, y: float, name: str) -> None:
    """Mark the point of a curve at which a model decides its labels."""
    axes.plot(x, y, "o", color=LINES[name]["color"], markersize=6, label=f"labels of the {name}", zorder=3)


def draw_roc_by_class(figure: "Figure", scene: Scene) -> None:
    """Draw one curve per class against the rest, of the most frequent classes."""
    axes = make_axes(figure, f"ROC curve of each {scene.target} against the rest", scene.note)
    sizes = np.bincount(scene.y, minlength=len(scene.classes))
    shown = [k for k in np.argsort(-sizes, kind="stable")[: len(PALETTE)] if 0 < sizes[k] < len(scene.y)]
    models = scene.models if len(shown) <= MOST_PAIRS else {"candidate": scene.candidate}
    for name, prediction in models.items():
        for colour, k in zip(PALETTE, shown, strict=False):
            label = f"{scene.classes[k]}, {name}" if len(models) > 1 else scene.classes[k]
            _draw_roc_curve(axes, scene.y == k, prediction[:, k], label, LINES[name] | {"color": colour})
    _finish_roc(axes)


def merge_rare(counts: Array, classes: Sequence[str]) -> tuple[Array, list[str]]:
    """Return a confusion matrix of at most `MOST_CLASSES` classes: the rarest true classes are merged into the last."""
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
    """Draw predictions against true values."""
    axes = make_axes(figure, f"Predicted against actual {scene.target}", scene.note)
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
    axes = make_axes(figure, f"Residuals of {scene.target}", scene.note)
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
    """Draw a histogram of the residuals, without the outermost 1%."""
    axes = make_axes(figure, f"How far off predictions of {scene.target} are", scene.note)
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
