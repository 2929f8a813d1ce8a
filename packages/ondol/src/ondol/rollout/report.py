"""The page of a rollout: both versions side by side, and a picture of the checks over time."""

import io
import logging
import math
from datetime import datetime
from typing import TYPE_CHECKING

from ondol.evaluation.plots import BLUE, DPI, GREY, ORANGE, STYLE, find_fonts, letter
from ondol.orchestration.reporting import plain, table
from ondol.registry.rollout import Rollout, show_share
from ondol.rollout.evidence import CHALLENGER, CHAMPION, Evidence, Point
from ondol.rollout.judge import Check
from ondol.rollout.sequences import Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "errors": "Failed requests: higher by",
    "latency": "Latency: times the champion's",
    "shift": "Mean prediction: difference",
    "disagreement": "Answered differently",
    "loss": "Metric of the gates: worse by",
}


def as_markdown(rollout: Rollout, evidence: Evidence, checks: list[Check], outcome: str, why: str) -> str:
    """Return a rollout as Markdown: the decision, and both versions side by side.

    Args:
        rollout: The rollout before the decision.
        evidence: What is known of it.
        checks: The checks that have data.
        outcome: What was done.
        why: Why.
    """
    champion, _, _ = rollout.champion.rpartition("-")
    share = f"{show_share(rollout.step.share)} since {rollout.since:%Y-%m-%d %H:%M} UTC"
    step = f"step {len(rollout.steps)} of {len(rollout.plan)}, {share}"
    counts = [evidence.failures.get(version, Share()).n for version in (CHAMPION, CHALLENGER)]
    head = ("", f"version {champion} (champion)", f"version {rollout.version} (challenger)", "worse by", "limit", "")
    rows = [("requests", *(f"{count:,}" for count in counts), "", "", "")]
    rows += [_row(check) for check in checks]
    return "\n".join(
        [
            f"**{plain(outcome)}.** {plain(why)}.",
            "",
            f"Strategy {rollout.strategy}, {step}.",
            "",
            *table(head, rows),
        ]
    )


def _row(check: Check) -> tuple[str, str, str, str, str, str]:
    span = "too few requests"
    if check.bounds is not None:
        span = f"{check.show_bound(check.bounds.low)} to {check.show_bound(check.bounds.high)}"
    verdict = "worse" if check.worse else "within" if check.within else "open"
    champion = "" if check.champion is None else check.show(check.champion)
    what = f"{check.what.rstrip(':')} ({check.requests:,} requests)"
    return what, champion, check.show(check.challenger), span, check.show_bound(check.limit), verdict


def draw_checks(points: list[Point], checks: list[Check], rollout: Rollout) -> bytes:
    """Draw the confidence sequence of each check over time, with its limit and the steps, as PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    # matplotlib warns of each font without a bold face; the user cannot change that.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    drawn = [check for check in checks if any(check.name in point.bounds for point in points)] or checks
    with matplotlib.rc_context(STYLE | {"font.family": list(find_fonts())}):
        height = -(-len(drawn) // 2)
        figure = Figure(figsize=(8.4, 0.5 + 2.2 * height), dpi=DPI, layout="constrained")
        figure.suptitle(
            f"Version {rollout.version} beside the champion: what is not excluded (band), and the limit (dashed)",
            fontsize=9,
            x=0.01,
            ha="left",
        )
        grid = figure.subplots(height, 2, squeeze=False).ravel()
        for axes, check in zip(grid, drawn, strict=False):
            _draw(axes, points, check, rollout)
            if len(points) > 1:
                axes.set_xlim(0, _hours(points[-1].at, rollout))
        for axes in grid[len(drawn) :]:
            axes.set_axis_off()
        return _save(figure)


def _save(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw(axes: "Axes", points: list[Point], check: Check, rollout: Rollout) -> None:
    """Draw one check; the axis ends at a multiple of the limit, as the first bounds are very wide."""
    kept = [point for point in points if check.name in point.bounds]
    hours = [_hours(point.at, rollout) for point in kept]
    show = math.exp if check.name == "latency" else float
    low, high = ([show(point.bounds[check.name][side]) for point in kept] for side in (0, 1))
    limit, none = show(check.limit), show(0.0)
    colour = ORANGE if check.worse else BLUE
    axes.fill_between(hours, low, high, color=colour, alpha=0.3, linewidth=0)
    for line in (low, high):
        axes.plot(hours, line, color=colour, linewidth=1)
    axes.axhline(limit, color="black", linestyle="--", linewidth=1)
    axes.axhline(none, color=GREY, linewidth=0.8)
    for step in rollout.steps[1:]:
        axes.axvline(_hours(datetime.fromisoformat(step.at), rollout), color=GREY, linestyle=":", linewidth=0.8)
    apart = max(limit - none, (low[-1] if low else limit) - none)
    axes.set_ylim(none - 2 * apart if min(low, default=none) < none else none, none + 3 * apart)
    title = f"{TITLES[check.name]} ({letter(check.what, 24)})" if check.name == "loss" else TITLES[check.name]
    axes.set_title(title, loc="left")
    axes.set_xlabel("hours")
    if check.name in ("errors", "disagreement"):
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.3g}" if share == 0 else f"{100 * share:.3g}%")


def _hours(at: datetime, rollout: Rollout) -> float:
    return (at - rollout.started).total_seconds() / 3600
