"""A window in words and tables, for the Prefect UI and the terminal."""

from typing import Any

from ondol.evaluation.resampling import Interval
from ondol.evaluation.verdict import show_interval
from ondol.markdown import code, plain, table
from ondol.monitoring.decision import Decision
from ondol.monitoring.drift import ColumnDrift
from ondol.monitoring.judging import by_distance
from ondol.monitoring.windows import Window

WORDS = {
    "ok": "as the model knows it",
    "drift": "drifted",
    "worse": "performance lost",
    "too small": "too small to judge",
}


def headline(window: Window) -> str:
    """Return a window in one line."""
    span = f"{window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC"
    return f"version {window.version}, {window.rows:,} rows from {span}: {WORDS[window.verdict]}"


def as_markdown(window: Window, decision: Decision, open_request: str, report: str) -> str:
    """Return what is shown of a window: verdict, reasons, figures, and whether training is wanted.

    Args:
        window: The window.
        decision: What follows from it and those before.
        open_request: What is still to be done of a request, or nothing.
        report: Where the report is.
    """
    first = headline(window)
    parts = [
        f"**{first[0].upper()}{first[1:]}.**",
        *(f"- {plain(reason)}" for reason in (*window.reasons, *window.notes)),
    ]
    if window.judged:
        parts += ["", *table(("figure", "value"), figures(window).items())]
        parts.append(f"\nThe whole report: {code(report)}.")
    word = "Training again is wanted" if decision.wanted else "Training again is not asked for"
    return "\n".join([*parts, f"\n{word}: {plain(decision.why)}.", open_request])


def figures(window: Window) -> dict[str, str]:
    """Return the figures of a window as they are shown, by name."""
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
    if window.others:
        shown["requests of other versions"] = f"{window.others:,}"
    if window.unreadable:
        shown["lines that are no records"] = f"{window.unreadable:,}"
    return shown


def column_rows(window: Window) -> list[dict[str, Any]]:
    """Return one line for each column, the farthest beyond its limit first; the prediction heads them."""
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
