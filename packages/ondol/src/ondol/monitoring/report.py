"""Plots and tables of a window."""

import io
import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ondol.evaluation.gates import show_interval
from ondol.evaluation.metrics import Interval
from ondol.evaluation.page import Block, Pictures, Rows
from ondol.evaluation.plots import BLUE, DPI, GREY, ORANGE, STYLE, find_fonts, letter, letter_all, mark_thousands
from ondol.monitoring.drift import ColumnDrift, DriftComparison, Sides
from ondol.monitoring.retraining import Decision, by_distance
from ondol.monitoring.windows import Window
from ondol.orchestration.reporting import code, plain, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 30
MOST_COLUMNS = 6
BINS = 30
MOST_CATEGORIES = 10


def draw_drift(comparison: DriftComparison, sides: Sides, note: str) -> dict[str, bytes]:
    """Draw the plots as PNG by name: `drift-by-column` and `reference-and-window`.

    Args:
        comparison: The result of Evidently.
        sides: The compared data.
        note: A note on the number of rows, for the corner.
    """
    import matplotlib

    # matplotlib warns of each font without a bold face; the user cannot change that.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    columns = [c for c in (comparison.prediction, *by_distance(comparison.features)) if c.score is not None]
    with matplotlib.rc_context(STYLE | {"font.family": list(find_fonts())}):
        bars = _render(_draw_bars, (7.2, 1.2 + 0.26 * min(len(columns), MOST_BARS)), columns[:MOST_BARS], note)
        worst = columns[:MOST_COLUMNS]
        grid = _render(_draw_grid, (8.4, 0.4 + 2.4 * -(-max(len(worst), 1) // 2)), worst, note, sides)
    return {"drift-by-column": bars, "reference-and-window": grid}


def _render(draw: Any, size: tuple[float, float], *arguments: Any) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    draw(figure, *arguments)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw_bars(figure: "Figure", columns: list[ColumnDrift], note: str) -> None:
    """Draw each column's distance as a bar and its limit as a mark, the prediction on top."""
    axes = figure.subplots()
    axes.set_title("Distance to the reference", loc="left")
    places = np.arange(len(columns))
    colours = [ORANGE if column.drifted else BLUE for column in columns]
    axes.barh(places, [column.score or 0 for column in columns], color=colours, height=0.7)
    axes.scatter([c.limit or 0 for c in columns], places, marker="|", s=160, color="black", label="limit", zorder=3)
    axes.set_yticks(places, letter_all(column.name for column in columns))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"distance (orange: drifted)\n{note}")
    axes.legend(loc="lower right")


def _draw_grid(figure: "Figure", columns: list[ColumnDrift], note: str, sides: Sides) -> None:
    """Draw the distributions of both sides, one column in each pair of axes."""
    figure.suptitle(f"Reference (blue) and window (orange), {note}", fontsize=9, x=0.01, ha="left")
    grid = np.atleast_1d(figure.subplots(-(-max(len(columns), 1) // 2), 2)).ravel()
    for axes in grid[len(columns) :]:
        axes.set_axis_off()
    for axes, column in zip(grid, columns, strict=False):
        ours, theirs = sides.reference[column.name].dropna(), sides.window[column.name].dropna()
        axes.set_title(letter(column.name, 30), loc="left", color=ORANGE if column.drifted else "black")
        draw = _draw_numbers if sides.kinds[column.name] == "number" else _draw_categories
        draw(axes, ours, theirs)
        if column.name in sides.dates:
            axes.xaxis.set_major_formatter(lambda days, _: str(np.datetime64(int(days), "D"))[:7])
        axes.tick_params(labelsize=7)


def _draw_numbers(axes: "Axes", ours: "pd.Series[Any]", theirs: "pd.Series[Any]") -> None:
    edges = _edges(pd.concat([ours, theirs]).to_numpy())
    for side, colour in ((ours, BLUE), (theirs, ORANGE)):
        weights = np.full(len(side), 1 / len(side))
        axes.hist(side, bins=edges.tolist(), weights=weights, color=colour, alpha=0.45)
        axes.hist(side, bins=edges.tolist(), weights=weights, color=colour, histtype="step", linewidth=1.2)
    mark_thousands(axes)
    axes.set_ylabel("share", fontsize=7)


def _edges(values: np.ndarray) -> np.ndarray:
    """Return the edges of the bins, without the farthest values; whole numbers are in the middle of their bins."""
    low, high = np.quantile(values, (0.005, 0.995))
    if np.array_equal(values, np.floor(values)):
        step = max(np.ceil((high - low) / BINS), 1.0)
        return np.arange(np.floor(low) - 0.5, high + step, step)
    return np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, high + 0.5])


def _draw_categories(axes: "Axes", ours: "pd.Series[Any]", theirs: "pd.Series[Any]") -> None:
    shares = pd.DataFrame({"ours": ours.value_counts(normalize=True), "theirs": theirs.value_counts(normalize=True)})
    shares = shares.fillna(0.0).sort_values("ours", ascending=False)[:MOST_CATEGORIES]
    places = np.arange(len(shares))
    axes.bar(places - 0.2, shares["ours"], width=0.4, color=BLUE)
    axes.bar(places + 0.2, shares["theirs"], width=0.4, color=ORANGE)
    axes.set_xticks(
        places, [letter(name, 14) for name in shares.index], rotation=30, ha="right", rotation_mode="anchor"
    )
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("share", fontsize=7, color=GREY)


WORDS = {
    "ok": "ok",
    "drift": "drifted",
    "worse": "performance lost",
    "too small": "too small to evaluate",
}


def headline(window: Window) -> str:
    """Return a window in one line."""
    span = f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC"
    return f"version {window.version}, {window.rows:,} rows from {span}: {WORDS[window.verdict]}"


def as_markdown(window: Window, decision: Decision, open_request: str, report: str) -> str:
    """Return a window as Markdown: verdict, reasons, figures, and the decision on retraining.

    Args:
        window: The window.
        decision: The decision after this window.
        open_request: A sentence on a request that was not sent yet, or an empty string.
        report: The location of the report.
    """
    first, estimated = headline(window), [window.estimate.sentence] if window.estimate else []
    parts = [
        f"**{first[0].upper()}{first[1:]}.**",
        *(f"- {plain(reason)}" for reason in (*window.reasons, *estimated, *window.notes)),
    ]
    if window.evaluated:
        parts += ["", *table(("figure", "value"), figures(window).items())]
        parts.append(f"\nThe whole report: {code(report)}.")
    word = "Retraining is requested" if decision.wanted else "No retraining"
    return "\n".join([*parts, f"\n{word}: {plain(decision.why)}.", open_request])


def figures(window: Window) -> dict[str, str]:
    """Return the formatted figures of a window by name."""
    shown = {
        "requests": f"{window.requests:,}",
        "rows": f"{window.rows:,} ({window.sampled:,} compared)",
        "rows per hour": f"{window.rows_per_hour:,.1f}",
        "latency p50": f"{window.latency.get('p50', 0):.2f} ms",
        "latency p99": f"{window.latency.get('p99', 0):.2f} ms",
        "columns drifted": f"{sum(c.drifted for c in window.columns)} of {len(window.columns)}",
    }
    if window.prediction is not None:
        shown["prediction drift"] = f"{_number(window.prediction.score)} (limit {_number(window.prediction.limit)})"
    if window.performance is not None:
        found = window.performance
        shown["labelled rows"] = f"{found.rows:,}"
        shown[found.metric] = _interval(found.figure)
        shown[f"{found.metric} on the holdout"] = _interval(found.before)
        if found.estimated is not None:
            word = "within the estimate" if found.as_estimated else "outside the estimate"
            shown[f"{found.metric} by the labels"] = f"{word} of {_interval(found.estimated)} for the same rows"
    if window.estimate is not None:
        word = ", unreliable" if window.estimate.doubts else ""
        figures = {name: f"{_interval(one)}{word}" for name, one in window.estimate.figures.items()}
        shown |= {f"{name}, estimated without labels": figure for name, figure in figures.items()}
    if window.others:
        shown["requests of other versions"] = f"{window.others:,}"
    if window.unreadable:
        shown["invalid lines"] = f"{window.unreadable:,}"
    return shown


MOST_WINDOWS = 30


def describe_windows(windows: Sequence[Window], deployed: bool) -> list[Block]:
    """Return what the windows of a version say about it since its deployment, for its model card.

    Args:
        windows: The windows, oldest first.
        deployed: Whether the version ever was in production.
    """
    seen = [window for window in windows if window.evaluated]
    if not deployed:
        return ["This version never was in production, so no drift was measured."]
    if not seen:
        return [
            "No window of its requests was evaluated yet, so nothing is known of drift: `ml monitor` compares them."
        ]
    shown = seen[-MOST_WINDOWS:]
    bad = sum(window.bad for window in seen)
    columns = Counter(column.name for window in seen for column in window.columns if column.drifted)
    often = ", ".join(f"{name} ({count:,})" for name, count in columns.most_common(MOST_BARS))
    rows = []
    for window in reversed(shown):
        share = "–" if window.drift_share is None else f"{window.drift_share:.0%}"
        live = "no labels" if window.performance is None else window.performance.sentence
        span = f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M}"
        rows.append((span, f"{window.rows:,}", WORDS[window.verdict], share, live))
    found = f"In {bad:,} of {len(seen):,} windows of its requests the data had drifted or the performance was lost."
    return [
        f"{found} Columns that drifted, with the number of windows: {often or 'none'}.",
        Rows(("window (UTC)", "rows", "verdict", "drifted columns", "metric by labels"), rows),
        Pictures({"drifted columns and the metric, by window": draw_windows(shown)}),
    ]


def draw_windows(windows: Sequence[Window]) -> bytes:
    """Return a plot of the share of drifted columns, and of the metric where labels came, by window, as PNG."""
    import matplotlib

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(STYLE | {"font.family": list(find_fonts())}):
        return _render(_draw_windows, (7.2, 4.2), windows)


def _draw_windows(figure: "Figure", windows: Sequence[Window]) -> None:
    labelled = [window for window in windows if window.performance is not None]
    above, *below = figure.subplots(2 if labelled else 1, 1, sharex=True, squeeze=False).ravel()
    ends = [window.end for window in windows]
    above.set_title("Drifted columns by window", loc="left")
    above.plot(ends, [window.drift_share or 0 for window in windows], color=GREY, linewidth=1)
    colours = [ORANGE if window.bad else BLUE for window in windows]
    above.scatter(ends, [window.drift_share or 0 for window in windows], color=colours, s=28, zorder=3)
    above.set(ylim=(-0.05, 1.05), ylabel="share (orange: bad)")
    for axes in below:
        found = [one for window in labelled if (one := window.performance)]
        axes.set_title(f"{letter(found[0].metric, 30)} by labels", loc="left")
        axes.plot([window.end for window in labelled], [one.figure.value for one in found], "o-", color=BLUE)
        if found[0].before is not None:
            axes.axhline(found[0].before.value, color=GREY, linestyle=":", label="on the holdout")
            axes.legend(loc="best")
    figure.autofmt_xdate(rotation=25)


def column_rows(window: Window) -> list[dict[str, Any]]:
    """Return one row for each column, the farthest beyond its limit first, after the prediction."""
    columns = [*([window.prediction] if window.prediction else []), *by_distance(window.columns)]
    return [_row(column) for column in columns]


def _row(column: ColumnDrift) -> dict[str, Any]:
    return {
        "column": column.name,
        "drifted": "yes" if column.drifted else "no",
        "distance": _number(column.score),
        "limit": _number(column.limit),
        "missing": f"{column.missing:.1%} (was {column.missing_before:.1%})",
        "unseen": "–" if column.unseen is None else f"{column.unseen:.1%}",
        "method": column.method,
        "why": "; ".join(column.why),
    }


def _interval(figure: Interval | None) -> str:
    return "unknown" if figure is None else show_interval(figure.value, figure.low, figure.high)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
