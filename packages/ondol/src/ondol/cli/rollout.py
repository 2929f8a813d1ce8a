"""`ml rollout`: a version that is tried beside the champion."""

from collections.abc import Iterator

from rich.markup import escape

from ondol.cli.console import console, print_plain, start_command
from ondol.cli.deployment import copy_alias_to_mlflow
from ondol.cli.pipeline import run_stage
from ondol.config import load_settings
from ondol.errors import UserError
from ondol.orchestration.reporting import plain, table
from ondol.project import Project
from ondol.registry.champion import alert_new_champion, read_champion, version_of
from ondol.registry.rollout import (
    Rollout,
    describe_step,
    read_rollout,
    require_rollout,
    running_rollout,
    show_share,
    take_step,
    withdraw_challenger,
)
from ondol.rollout.assessment import describe_outcome, last_assessment
from ondol.rollout.report import as_markdown
from ondol.storage.store import open_store


def start(version: str, strategy: str | None, why: str) -> None:
    """Start a rollout of a version.

    Raises:
        UserError: no model is in production, or the version cannot be deployed.
    """
    champion = read_champion(open_store(start_command()))
    if champion is not None and champion.version == version:
        raise UserError(f"Version {version} is in production: name another one, which is tried beside it.")
    configured = load_settings().rollout.strategy
    chosen = strategy or ("canary" if configured == "direct" else configured)
    run_stage("deploy", version=version, why=why, strategy=chosen)
    print_rollout()


def step(why: str) -> None:
    """Take the next step of the rollout that runs.

    Raises:
        UserError: none runs.
    """
    settings = start_command()
    store = open_store(settings)
    rollout = take_step(store, require_rollout(store), why)
    if rollout.outcome == "promoted":
        console.print(f"[green]✓[/] [bold]version {rollout.version}[/] is in production ({escape(why)})")
        copy_alias_to_mlflow(settings)
        alert_new_champion(Project(settings))
    else:
        console.print(f"[green]✓[/] version {rollout.version}: {describe_step(rollout)}, from {rollout.step.at} on")


def abort(why: str) -> None:
    """End the rollout that runs.

    Raises:
        UserError: none runs.
    """
    settings = start_command()
    store = open_store(settings)
    rollout = withdraw_challenger(store, require_rollout(store), why)
    version = version_of(rollout.champion)
    console.print(
        f"[green]✓[/] version {rollout.version} is withdrawn, version {version} answers all requests ({escape(why)})",
        soft_wrap=True,
    )
    alert_new_champion(Project(settings))


def print_rollout() -> None:
    """Print the rollout that runs, or the last one, and how its versions compared at the last look."""
    project = Project(start_command())
    print_plain("\n".join(rollout_lines(project, read_rollout(project.store))))


def rollout_lines(project: Project, rollout: Rollout | None) -> Iterator[str]:
    """Yield the lines that describe a rollout."""
    if rollout is None:
        yield "There was no rollout yet: `ml rollout start VERSION` starts one."
        return
    beside = f"Version {rollout.version} beside version {version_of(rollout.champion)}"
    if running_rollout(project.store) is not None:
        yield f"{beside}: {describe_step(rollout)}, step {len(rollout.steps)} of {len(rollout.plan)}."
    else:
        yield f"{beside}: {rollout.outcome or 'ended by a change of the champion'}. {plain(rollout.why)}".rstrip()
    rows = [(one.at[:19], show_share(one.share), plain(one.who), plain(one.why)) for one in rollout.steps]
    yield from ("", *table(("from", "share", "who", "why"), rows, show=str))
    if running_rollout(project.store) is None:
        return
    if (last := last_assessment(project)) is None:
        yield from ("", "Both were not compared yet: the flow `rollout` does so every five minutes, on a worker.")
        return
    outcome = describe_outcome(last, last.rollout)
    yield from ("", as_markdown(last.rollout, last.evidence, last.checks, outcome, last.decision.why))
