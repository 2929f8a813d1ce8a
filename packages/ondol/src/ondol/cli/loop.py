"""`ml monitor` and `ml loop`: from drift to retraining, and how to pause it."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ondol.config import Settings

app = typer.Typer()
loop_app = typer.Typer(help="Pause, resume or show the loop from drift to training again.", no_args_is_help=True)
app.add_typer(loop_app, name="loop")

SHOWN_WINDOWS = 5
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the history.")]


@app.command()
def monitor() -> None:
    """Compare the prediction log since the last window with the reference; drift asks to train again."""
    from ondol.cli.console import console, open_project
    from ondol.cli.pipeline import run_stage

    settings = open_project()
    run_stage("monitor")
    for line in (*window_lines(settings, 1), *loop_lines(settings)):
        console.print(line, markup=False, soft_wrap=True)


@loop_app.command("pause")
def pause_loop(why: Why) -> None:
    """Let nothing be trained by the loop until `ml loop resume`; windows go on."""
    from ondol.cli.console import console, open_project
    from ondol.monitoring.retraining import pause

    pause(open_project().store_path, why)
    console.print("The loop is paused: the monitor goes on, and nothing trains by itself. `ml loop resume` ends that.")


@loop_app.command("resume")
def resume_loop(why: Why = "resumed") -> None:
    """End a pause: the next `ml monitor` decides again."""
    from ondol.cli.console import console, open_project
    from ondol.errors import UserError
    from ondol.monitoring.retraining import read_loop, resume

    settings = open_project()
    if read_loop(settings.store_path).paused is None:
        raise UserError("The loop is not paused: see `ml loop show`.")
    resume(settings.store_path, why)
    console.print("The loop continues: the next `ml monitor` decides.")


@loop_app.command("show")
def show_loop() -> None:
    """Show the last windows, and the decision on retraining."""
    from ondol.cli.console import console, open_project
    from ondol.monitoring.retraining import read_loop

    settings = open_project()
    for line in (*window_lines(settings, SHOWN_WINDOWS), *loop_lines(settings)):
        console.print(line, markup=False, soft_wrap=True)
    for change in reversed(read_loop(settings.store_path).history[-SHOWN_WINDOWS:]):
        console.print(f"  {change.at} {change.who}: {change.what} ({change.why})", markup=False, soft_wrap=True)


def window_lines(settings: "Settings", most: int) -> list[str]:
    """Return the champion's last windows in lines, the newest first: verdict, live metric, reasons and notes."""
    from ondol.monitoring.report import headline
    from ondol.monitoring.windows import Windows
    from ondol.registry.champion import read_champion

    champion = read_champion(settings.store_path)
    if champion is None:
        return []
    lines = []
    for window in reversed(Windows(settings.store_path).of(champion)[-most:]):
        live = window.performance
        # Where performance is lost, the reason says the metric already.
        metric = [f"live {live.sentence}"] if live is not None and not live.lost else []
        lines += [headline(window), *(f"  {said}" for said in (*metric, *window.reasons, *window.notes))]
    return lines


def loop_lines(settings: "Settings") -> list[str]:
    """Return the state of the loop, in lines; `ml status` shows them too. Neither Prefect nor MLflow is imported."""
    from ondol.monitoring.retraining import decide_now, open_request, read_loop
    from ondol.registry.champion import read_champion

    loop, champion = read_loop(settings.store_path), read_champion(settings.store_path)
    lines = []
    if loop.paused is not None:
        lines.append(f"The loop is paused since {loop.paused.at} by {loop.paused.who}: {loop.paused.why}")
    if champion is None:
        return lines
    if (wanted := open_request(loop, champion)) is not None:
        since = f"Retraining is requested since {wanted.requested_at}, and Prefect has not received the event"
        return [*lines, f"{since}: the next `ml monitor` beside `ml up` sends it, `ml run` trains now."]
    decision = decide_now(settings, champion)
    asked = "The next `ml monitor` requests retraining" if decision.wanted else "No retraining"
    return [*lines, f"{asked}: {decision.why}."]
