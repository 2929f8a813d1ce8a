"""`ml status`: the version in production, background processes, pending runs and alerts, and the history."""

from rich.markup import escape
from rich.table import Table

from ondol.cli.console import console, open_project
from ondol.cli.loop import loop_lines
from ondol.cli.running import print_alerts, print_due, print_processes
from ondol.config import Settings
from ondol.evaluation.verdicts import Verdicts, show_interval
from ondol.registry.bundles import find_bundle
from ondol.registry.champion import Champion, read_champion, taken_out, version_of
from ondol.validation.results import read_latest

HISTORY_ROWS = 10


def print_status() -> None:
    """Print the state of the project: read from the store, and from Prefect where it answers at once."""
    settings = open_project()
    champion = read_champion(settings.store_path)
    if champion is None:
        console.print(
            f"[bold]{escape(settings.project.name)}[/]: no model is in service yet. `ml run` trains and deploys one."
        )
    else:
        _print_champion(settings, champion)
    _print_pending(settings, champion)
    for line in loop_lines(settings):
        console.print(line, markup=False, soft_wrap=True)
    print_processes(settings)
    print_due(settings)
    print_alerts(settings)
    if champion is not None:
        _print_history(champion)


def _print_champion(settings: Settings, champion: Champion) -> None:
    bundle = find_bundle(settings.store_path, champion.bundle)
    console.print(
        f"[bold]{escape(settings.project.name)}[/]: [bold green]version {champion.version}[/] serves "
        f"since {champion.since}"
    )
    if bundle is None:
        console.print(f"  [red]Its bundle {champion.bundle} is missing or was changed:[/] `ml run` makes it again.")
        return
    meta = bundle.meta
    table = Table.grid(padding=(0, 2))
    figures = ", ".join(f"{name} {show_interval(**figure)}" for name, figure in list(meta["metrics"].items())[:3])
    for label, value in (
        ("bundle", champion.bundle),
        ("source", meta.get("source", "")),
        ("data", meta["data_digest"][:12]),
        ("commit", meta["commit"]),
        ("metrics", figures),
    ):
        table.add_row(f"  {label}", escape(str(value)))
    console.print(table)


def _print_pending(settings: Settings, champion: Champion | None) -> None:
    candidate = read_latest(settings.store_path).get("train")
    if candidate is None or (champion and champion.version == candidate):
        return
    record = Verdicts(settings.store_path).find(candidate)
    if change := taken_out(champion, candidate):
        console.print(f"Version {candidate} was taken out of service by hand: {escape(change.why)}")
    elif record is None:
        console.print(f"Pending: version {candidate} is trained and not judged yet: `ml evaluate`.")
    elif record.verdict.passed:
        console.print(f"Version {candidate} passed its gates but does not serve: `ml deploy {candidate}`.")
    else:
        console.print(f"Version {candidate} was refused: {escape(record.refusal)}")


def _print_history(champion: Champion) -> None:
    table = Table(title="history, newest first (UTC)", title_justify="left")
    for name in ("when", "who", "action", "from", "to"):
        table.add_column(name, no_wrap=True)
    table.add_column("why")
    for change in reversed(champion.history[-HISTORY_ROWS:]):
        versions = [version_of(change.before) if change.before else "–", version_of(change.to)]
        table.add_row(
            change.at[:16].replace("T", " "), escape(change.who), change.action, *versions, escape(change.why)
        )
    console.print(table)
