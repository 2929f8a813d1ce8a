"""Decides from the last windows whether to ask for training again: pure functions."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel

from ondol.config.operate import Retrain
from ondol.monitoring.loop import Loop
from ondol.monitoring.windows import Window
from ondol.registry.champion import Champion


class Decision(BaseModel):
    """Whether training is wanted, why or why not, and the windows that speak for it."""

    wanted: bool
    why: str
    windows: tuple[str, ...] = ()


def decide(windows: Sequence[Window], champion: Champion, rules: Retrain, loop: Loop, now: datetime) -> Decision:
    """Decide on the champion's windows, oldest first: bad in N of the last M and in the latest.

    Args:
        windows: The champion's; those that were too small do not count.
        champion: What serves.
        rules: How many windows, and the cooldown.
        loop: Whether it is paused, and what was asked last.
        now: The time, UTC.
    """
    last = [window for window in windows if window.judged][-rules.of :]
    bad = [window for window in last if window.bad]
    names = tuple(window.id for window in bad)
    if not last:
        return Decision(wanted=False, why="no window has had rows enough yet")
    if not last[-1].bad:
        return Decision(wanted=False, why="the latest window is as the model knows it")
    if len(bad) < rules.windows:
        counted = f"{len(bad)} of the last {rules.of} windows drifted or got worse"
        return Decision(wanted=False, why=f"{counted}, {rules.windows} are needed", windows=names)
    if loop.paused is not None:
        who = f"since {loop.paused.at} by {loop.paused.who} ({loop.paused.why})"
        return Decision(wanted=False, why=f"the loop is paused {who}: `ml loop resume` ends that", windows=names)
    if loop.wanted is not None and loop.wanted.window == last[-1].id:
        return Decision(wanted=False, why=f"training was asked for at {loop.wanted.requested_at}", windows=names)
    until = cooldown_end(champion, rules, loop)
    if now < until:
        shown = f"{until:%Y-%m-%d %H:%M} UTC"
        return Decision(wanted=False, why=f"cooling down until {shown} ([retrain] cooldown_hours)", windows=names)
    return Decision(wanted=True, why=reason_of(bad), windows=names)


def cooldown_end(champion: Champion, rules: Retrain, loop: Loop) -> datetime:
    """Return from when on training may be asked for: after the last request and after a new champion."""
    times = [champion.since] + ([loop.wanted.requested_at] if loop.wanted else [])
    return max(map(datetime.fromisoformat, times)) + timedelta(hours=rules.cooldown_hours)


def reason_of(bad: Sequence[Window]) -> str:
    """Return in words what speaks for training again."""
    told = "; ".join(bad[-1].reasons)
    return f"{len(bad)} of the last windows drifted or got worse; the latest: {told}"
