"""`ml simulate`: plays weeks of traffic with a shift half-way, and shows what the loop made of it."""

from flows.commands.console import console, open_project
from flows.errors import UserError
from flows.simulation.play import Play
from flows.simulation.sandbox import make_sandbox
from flows.simulation.timeline import conclude, draw, tabulate


def simulate(weeks: int, rows: int, shifts: bool, keep: bool) -> None:
    """Play the weeks in a copy of the project and print the timeline.

    Args:
        weeks: How many; the customers move after the first half.
        rows: Customers in a week.
        shifts: Whether they move at all.
        keep: Whether the copy's servers stay up afterwards, to be looked at.

    Raises:
        UserError: the loop did not close, or retrained where nothing moved.
    """
    settings = open_project()
    sandbox = make_sandbox(settings)
    with console.status("starting") as status:
        play = Play(sandbox, rows, lambda text: status.update(text))
        try:
            play.begin()
            played = [play.play_week(number, shifts and number > weeks // 2) for number in range(1, weeks + 1)]
        finally:
            if not keep:
                status.update("stopping the servers")
                sandbox.ml("down", check=False)
    console.print(tabulate(played))
    draw(played, sandbox.root / "timeline.png")
    closed, told = conclude(played, shifts)
    if not closed:
        raise UserError(f"{told} The simulation's project is {settings.show(sandbox.root)}.")
    console.print(told)
    console.print(f"[dim]The picture: {settings.show(sandbox.root / 'timeline.png')}.[/]")
    if keep:
        console.print(f"Its servers run: `cd {settings.show(sandbox.root)}`, then `ml status` and `ml down`.")
