"""What `ml status` says of the processes of `ml up`, of the runs that are due, and of alerts that wait."""

from datetime import UTC, datetime

from rich.markup import escape
from rich.table import Table

from flows.alerting import deliver, waiting
from flows.background import NAMES, is_well, prefect_address
from flows.commands.console import console
from flows.health import ask
from flows.processes import running
from flows.settings import Settings

PATIENCE_SECONDS = 2.0
DUE_RUNS = 100


def print_processes(settings: Settings) -> None:
    """Print which of the processes of `ml up` run, since when, where, and whether they are well."""
    found = [record for name in NAMES if (record := running(settings, name))]
    if not found:
        console.print(
            "[dim]Nothing runs in the background: `ml up` starts Prefect, MLflow, the service and a worker.[/]"
        )
        return
    table = Table.grid(padding=(0, 2))
    for record in found:
        well = is_well(record, settings, prefect_address(settings) or "")
        mark = "[green]runs[/]" if well else "[red]does not answer[/]"
        table.add_row(f"  {record.name}", mark, record.address or "", f"[dim]since {record.since}[/]")
    console.print(table)


def print_due(settings: Settings) -> None:
    """Print when each deployment runs next, if Prefect answers at once."""
    prefect = prefect_address(settings)
    if prefect is None:
        return
    pool = {"work_pools": {"name": {"any_": [settings.project.name]}}}
    deployments = ask(f"{prefect}/deployments/filter", pool, PATIENCE_SECONDS)
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC"}
    runs = deployments and ask(f"{prefect}/flow_runs/filter", pool | scheduled | {"limit": DUE_RUNS}, PATIENCE_SECONDS)
    names = {deployment["id"]: deployment["entrypoint"].rpartition(":")[2] for deployment in deployments or []}
    first: dict[str, str] = {}
    for run in runs or []:
        first.setdefault(names.get(run["deployment_id"], run["name"]), run["expected_start_time"])
    if first:
        console.print("Due: " + ", ".join(f"{escape(name)} {_when(at)}" for name, at in first.items()), soft_wrap=True)


def print_alerts(settings: Settings) -> None:
    """Send the alerts that wait, and print how many still do."""
    if settings.alerts.webhook is None or not waiting(settings):
        return
    done = deliver(settings)
    if done.waiting:
        console.print(f"[yellow]{done.waiting:,} alerts wait for their receiver ({done.problem}).[/]")


def _when(at: str) -> str:
    """Return a time for people: in how long."""
    seconds = (datetime.fromisoformat(at) - datetime.now(UTC)).total_seconds()
    if seconds <= 0:
        return "now"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"in {seconds / length:.0f} {unit}"
    return f"in {seconds:.0f} s"
