"""`ml simulate`: simulates weeks of traffic with drift half-way, and prints how monitoring and retraining react."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape

from ondol.cli.console import console, start_command
from ondol.config import Settings
from ondol.demo.sandbox import Sandbox, make_sandbox
from ondol.demo.simulation import MetricRecovery, Play, Week, conclude, draw, measure_champions, tabulate
from ondol.errors import UserError
from ondol.registry.bundles import served_bundle
from ondol.storage.files import sole
from ondol.storage.store import open_store


def simulate(weeks: int, rows: int, shifts: bool, keep: bool) -> None:
    """Simulate the weeks in a copy of the project and print the timeline.

    Args:
        weeks: How many; the drift begins half-way, or earlier if more weeks are needed to request retraining.
        rows: Customers in a week.
        shifts: Whether the data drifts at all.
        keep: Whether to leave the servers of the copy running.

    Raises:
        UserError: the drift led to no recovery, or a model was trained without drift.
    """
    settings = start_command(stored=False)
    calm = count_calm_weeks(weeks, settings.retrain.windows) if shifts else weeks
    complaint = "Another `ml simulate` is running here: wait until it ends."
    with sole(settings.home / "simulation.lock", complaint):
        sandbox = make_sandbox(settings)
        with console.status("starting") as status, _stopped_at_end(sandbox, keep, status.update):
            play = Play(sandbox, rows, status.update)
            play.begin()
            played = [play.play_week(number, number > calm) for number in range(1, weeks + 1)]
            trainings = play.trainings()
        _show(settings, sandbox, played, conclude(played, shifts, trainings, _recovery(sandbox, played, rows)))
    if keep:
        console.print(
            f"Its servers are running: `cd {escape(settings.show(sandbox.root))}`, then `ml status` and `ml down`."
        )


def count_calm_weeks(weeks: int, windows: int) -> int:
    """Return the number of weeks before the drift, such that a week is left for the new version.

    Args:
        weeks: How many are simulated.
        windows: How many drifted windows are needed to request retraining.

    Raises:
        UserError: there are too few weeks.
    """
    calm = min(weeks // 2, weeks - windows - 1)
    if calm < 1:
        raise UserError(
            f"--weeks {weeks} leaves no week after the promotion: give at least {windows + 2}, since [retrain] windows "
            f"= {windows}, or --no-shift to simulate without drift."
        )
    return calm


@contextmanager
def _stopped_at_end(sandbox: Sandbox, keep: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Stop the sandbox's servers at the end; an error while stopping does not hide an earlier error.

    Raises:
        UserError: a server does not stop.
    """
    try:
        yield
    except BaseException:
        if not keep:
            sandbox.ml("down", check=False)
        raise
    if not keep:
        say("stopping the servers")
        sandbox.ml("down")


def _recovery(sandbox: Sandbox, played: list[Week], rows: int) -> MetricRecovery | None:
    """Return how the metric recovered after the promotion."""
    old = served_bundle(open_store(sandbox.settings), played[0].version)
    return measure_champions(played, rows, sandbox.answers, old, sandbox.settings.gates)


def _show(settings: Settings, sandbox: Sandbox, played: list[Week], verdict: tuple[bool, str]) -> None:
    """Print the timeline, write its plot, and print the conclusion.

    Raises:
        UserError: it did not.
    """
    closed, conclusion = verdict
    console.print(tabulate(played))
    draw(played, sandbox.root / "timeline.png")
    if not closed:
        raise UserError(f"{conclusion} The simulation's project is {settings.show(sandbox.root)}.")
    console.print(conclusion, markup=False)
    console.print(f"[dim]The picture: {escape(settings.show(sandbox.root / 'timeline.png'))}.[/]")
