"""What a simulation showed: a table, a picture, and in words whether the loop closed by itself."""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from flows.simulation.play import Week


def tabulate(weeks: Sequence[Week]) -> Table:
    """Return the weeks as a table."""
    metric = next((w.window.performance.metric for w in weeks if w.window.performance), "metric")
    table = Table(title="timeline")
    for heading in ("week", "customers", "answered by", "drifted columns", metric, "verdict", "what followed"):
        table.add_column(heading, overflow="fold")
    for week in weeks:
        share = week.window.drift_share
        table.add_row(
            str(week.number),
            "moved" if week.moved else "as ever",
            f"version {week.version}",
            "–" if share is None else f"{share:.0%}",
            _figure(week),
            week.window.verdict,
            _consequence(week),
        )
    return table


def conclude(weeks: Sequence[Week], shifts: bool) -> tuple[bool, str]:
    """Return whether the loop did what it should, and what it did in words."""
    trained = [week for week in weeks if week.training is not None]
    swapped = [week for week in weeks if week.after != week.version]
    if not shifts:
        quiet = not trained
        return quiet, "Nothing moved, and nothing was retrained." if quiet else _numbers(
            "Retrained without need", trained
        )
    moved = [week for week in weeks if week.moved]
    seen = [week for week in moved if week.window.bad]
    if not moved or not seen:
        return False, "The customers moved and no window saw it."
    early = [week for week in trained if not week.moved]
    if early:
        return False, _numbers("Retrained before anything moved", early)
    if not swapped:
        return False, f"Drift was seen in week {seen[0].number}, and no new version came into service."
    last = swapped[0]
    told = (
        f"The customers moved in week {moved[0].number}; the monitor saw it in week {seen[0].number}; the automation "
        f"retrained in week {last.number}, and version {last.after} passed its gates and was swapped in."
    )
    return True, told + _comeback(weeks, last)


def draw(weeks: Sequence[Week], path: Path) -> None:
    """Write the picture of the timeline as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    top = figure.subplots()
    numbers = [week.number for week in weeks]
    top.bar(
        numbers, [week.window.drift_share or 0.0 for week in weeks], color="#bbbbbb", label="share of drifted columns"
    )
    top.set(xlabel="week", ylabel="share of drifted columns", ylim=(0, 1), xticks=numbers)
    measured = [(w.number, w.window.performance) for w in weeks if w.window.performance]
    side = top.twinx()
    if measured:
        values = [performance.figure.value for _, performance in measured]
        side.plot([n for n, _ in measured], values, color="#0072b2", marker="o", label=measured[0][1].metric)
        side.set_ylabel(measured[0][1].metric)
    for week in weeks:
        if week.after != week.version:
            top.axvline(week.number + 0.5, color="#d55e00", linestyle="--", label=f"version {week.after} swapped in")
    handles = [*top.get_legend_handles_labels()[0], *side.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
    made = io.BytesIO()
    figure.savefig(made, format="png", dpi=110)
    path.write_bytes(made.getvalue())


def _figure(week: Week) -> str:
    performance = week.window.performance
    return "–" if performance is None else f"{performance.figure.value:.3f}"


def _consequence(week: Week) -> str:
    if week.training is None:
        return ""
    if week.after != week.version:
        return f"retrained: version {week.after} serves"
    return f"retrained ({week.training}): version {week.version} stays"


def _comeback(weeks: Sequence[Week], swapped: Week) -> str:
    """Say what became of the metric."""
    later = [w for w in weeks if w.number > swapped.number and w.window.performance]
    first = next((w for w in weeks if w.window.performance), None)
    if not later or first is None or swapped.window.performance is None:
        return ""
    name = swapped.window.performance.metric
    return f" {name}: {_figure(first)} in week {first.number}, {_figure(swapped)} in week {swapped.number}, " + (
        f"{_figure(later[0])} in week {later[0].number}."
    )


def _numbers(what: str, weeks: Sequence[Week]) -> str:
    return f"{what}: week {', '.join(str(week.number) for week in weeks)}."
