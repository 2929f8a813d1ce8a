"""What a simulation showed: a table, a picture, and in words whether the loop closed by itself."""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ondol.demo.comeback import Comeback
from ondol.demo.play import Week


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


def conclude(weeks: Sequence[Week], shifts: bool, trainings: int, comeback: Comeback | None) -> tuple[bool, str]:
    """Return whether the loop did what it should, and what it did in words.

    Args:
        weeks: What they brought.
        shifts: Whether the customers were to move.
        trainings: How many trainings there were, in whichever week.
        comeback: What became of the metric after the swap, where there was one.
    """
    if not shifts:
        return _conclude_rest(weeks, trainings)
    trained = [week for week in weeks if week.training is not None]
    swapped = [week for week in weeks if week.after != week.version]
    moved = [week for week in weeks if week.moved]
    seen = [week for week in moved if week.window.bad]
    if not moved or not seen:
        return False, "The customers moved and no window saw it."
    if early := [week for week in trained if not week.moved]:
        return False, _numbers("Retrained before anything moved", early)
    if not swapped:
        return False, f"Drift was seen in week {seen[0].number}, and no new version came into service."
    if comeback is None:
        return False, f"Version {swapped[0].after} was swapped in, and no metric tells whether it is better."
    last = swapped[0]
    told = (
        f"The customers moved in week {moved[0].number}; the monitor saw it in week {seen[0].number}; the automation "
        f"retrained in week {last.number}, and version {last.after} passed its gates and was swapped in. "
    )
    word = "The metric recovered. " if comeback.complete else "The metric did not recover. "
    return comeback.complete, told + word + comeback.sentence


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


def _conclude_rest(weeks: Sequence[Week], trainings: int) -> tuple[bool, str]:
    if trained := [week for week in weeks if week.training is not None or week.after != week.version]:
        return False, _numbers("Retrained without need", trained)
    if trainings:
        return False, "Retrained without need, after the last week."
    return True, "Nothing moved, and nothing was retrained."


def _numbers(what: str, weeks: Sequence[Week]) -> str:
    return f"{what}: week {', '.join(str(week.number) for week in weeks)}."
