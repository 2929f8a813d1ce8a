"""`ml status`, `ml monitor`, `ml replay` and `ml loop`: the version in production, processes, work, retraining."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from ondol.cli.console import console, print_plain, start_command
from ondol.cli.pipeline import run_stage
from ondol.config import Settings
from ondol.errors import UserError
from ondol.evaluation.gates import show_interval
from ondol.monitoring.report import headline
from ondol.monitoring.retraining import by_distance, decide_now, find_unsent_request, pause, read_loop, resume
from ondol.monitoring.windows import Windows
from ondol.orchestration.alerts import refused, send_alerts, waiting
from ondol.orchestration.processes import (
    ProcessRecord,
    family,
    is_foreign,
    log_path,
    read_process_record,
    restarts_path,
    running,
    supervisor_of,
    was_elsewhere,
)
from ondol.orchestration.recovery import RunningFlow, flows_of_commands, flows_of_workers
from ondol.orchestration.reporting import plain, table
from ondol.orchestration.server import call_prefect, in_pool, post_prefect, refusal_of
from ondol.project import Project, open_project
from ondol.redaction import show_uri
from ondol.registry.bundles import find_bundle
from ondol.registry.champion import Champion, rolled_back, version_of
from ondol.registry.rollout import describe_rollout, running_rollout
from ondol.services import NAMES, is_ours, is_well, prefect_address
from ondol.storage.files import read_json
from ondol.storage.store import open_store

if TYPE_CHECKING:
    from ondol.monitoring.replay import Replay

ANSWER_SECONDS = 2.0
SHOWN_WINDOWS = 5
SHOWN_COLUMNS = 20
DUE_RUNS = 200  # the most that Prefect returns at once
HISTORY_ROWS = 10
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def print_processes(settings: Settings) -> None:
    """Print each process of `ml up`: start time, address, and whether it is healthy or has stopped."""
    known = [record for name in NAMES if (record := read_process_record(settings, name))]
    found = [record for record in known if not is_foreign(settings, record)]
    if not found:
        console.print(
            "[dim]Nothing runs in the background: `ml up` starts Prefect, MLflow, the service and a worker.[/]"
        )
        return
    table = Table.grid(padding=(0, 2))
    for record in found:
        table.add_row(f"  {record.name}", *_state(settings, record))
    console.print(table)
    if lost := [r.name for r in found if running(settings, r.name) and not supervisor_of(r)]:
        console.print(f"[yellow]No supervisor restarts {', '.join(lost)} on failure: run `ml up`.[/]")


def _state(settings: Settings, record: ProcessRecord) -> tuple[str, str, str]:
    """Return the state of a process, its address, and details."""
    log = escape(settings.show(log_path(settings, record.name)))
    if was_elsewhere(settings, record) and (supervisor_of(record) or family(record)):
        return "[red]runs in the former folder of the project[/]", "", "`ml up` starts it here, `ml down` stops it"
    if running(settings, record.name) is None:
        return "[red]has stopped[/]", "", f"`ml up` starts it again; [dim]see {log}[/]"
    if is_well(record, settings, prefect_address(settings) or "", ANSWER_SECONDS):
        return "[green]runs[/]", record.address or "", f"[dim]since {record.since}{_restarts(settings, record)}[/]"
    again = "it is restarted when it stops" + _restarts(settings, record)
    return "[red]is not healthy[/]", record.address or "", f"{again}; [dim]see {log}[/]"


def print_running(flows: list[RunningFlow], who: str) -> None:
    """Print the running flows of `who`."""
    for one in flows:
        step = f", now {one.step}" if one.step else ""
        console.print(f"In progress: {one.flow} by {who} since {one.since}{step}", markup=False, soft_wrap=True)


def print_due(settings: Settings) -> None:
    """Print the runs of the workers, and the next run of each deployment, or why that is unknown."""
    prefect = prefect_address(settings)
    if prefect is None:
        return
    pool = in_pool(settings.project.name)
    answer = call_prefect("POST", f"{prefect}/deployments/filter", ANSWER_SECONDS, json=pool)
    if answer is None or not answer.is_success:
        silent = f"No Prefect server answers at {show_uri(prefect)}: scheduled runs are not known."
        console.print(f"[yellow]{escape(refusal_of(answer, prefect) or silent)}[/]", soft_wrap=True)
        return
    print_running(flows_of_workers(settings, prefect, ANSWER_SECONDS), "a worker")
    names = {deployment["id"]: deployment["entrypoint"].rpartition(":")[2] for deployment in answer.json()}
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC"}
    runs = post_prefect(f"{prefect}/flow_runs/filter", pool | scheduled | {"limit": DUE_RUNS}, ANSWER_SECONDS)
    first: dict[str, str] = {}
    for run in runs or []:
        first.setdefault(names.get(run["deployment_id"], run["name"]), run["expected_start_time"])
    if first:
        console.print(
            "Next runs: " + ", ".join(f"{escape(name)} {_when(at)}" for name, at in first.items()), soft_wrap=True
        )


def print_last(settings: Settings) -> None:
    """Print how the last pipeline and the last monitor ended, if Prefect answers quickly."""
    prefect = prefect_address(settings)
    if prefect is None:
        return
    ended: dict[str, Any] = {"state": {"type": {"any_": ENDED}}}
    # On a server that others share, the runs of this project are those of its pool.
    ours = {} if is_ours("prefect", settings) else in_pool(settings.project.name)
    for flow in ("pipeline", "monitor"):
        body = ours | {"flows": {"name": {"any_": [flow]}}, "flow_runs": ended, "sort": "END_TIME_DESC", "limit": 1}
        runs = post_prefect(f"{prefect}/flow_runs/filter", body, ANSWER_SECONDS)
        if runs is None:  # `print_due` says why
            return
        for run in runs:
            state = run["state"]
            at = datetime.fromisoformat(state["timestamp"]).isoformat("T", "seconds")
            good = state["type"] == "COMPLETED"
            colour, why = ("green", "") if good else ("red", f": {_first_line(state['message'])}")
            console.print(f"Last {flow}: [{colour}]{state['type'].lower()}[/] at {at}{escape(why)}", soft_wrap=True)


def _first_line(text: str | None) -> str:
    return next(iter((text or "").strip().splitlines()), "no reason is known")


def print_alerts(settings: Settings) -> None:
    """Send the waiting alerts; print how many still wait, and how many the receiver rejected."""
    if settings.alerts.webhook is None:
        if count := len(waiting(settings)):
            console.print(f"[dim]Alerts not sent: {count:,}. Set `ML_ALERTS__WEBHOOK` to their receiver.[/]")
        return
    done = send_alerts(settings)
    if done.waiting:
        console.print(f"[yellow]Alerts waiting to be sent: {done.waiting:,} ({done.problem}).[/]")
    if count := len(list(refused(settings).glob("*.json"))):
        folder = escape(settings.show(refused(settings)))
        console.print(
            f"[yellow]Alerts that the receiver rejected: {count:,}, in {folder}.[/] Move them into "
            "`outbox` beside it to send them again, or delete them.",
            soft_wrap=True,
        )


def _restarts(settings: Settings, record: ProcessRecord) -> str:
    """Return a phrase on how often a process was restarted."""
    known = read_json(restarts_path(settings, record.name))
    if known is None:
        return ""
    times = "once" if known["count"] == 1 else f"{known['count']:,} times"
    return f", restarted {times}, last at {known['last']}"


def _when(at: str) -> str:
    """Return a time as a duration from now."""
    seconds = (datetime.fromisoformat(at) - datetime.now(UTC)).total_seconds()
    if seconds <= 0:
        return "now"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"in {seconds / length:.0f} {unit}"
    return f"in {seconds:.0f} s"


def print_status() -> None:
    """Print the state of the project from the store, and from Prefect if it answers quickly."""
    settings = start_command()
    project = Project(settings)
    champion = project.champion
    if champion is None:
        console.print(
            f"[bold]{escape(settings.project.name)}[/]: no model is in production yet. `ml run` trains and deploys one."
        )
    else:
        _print_champion(project, champion)
    if rollout := running_rollout(project.store):
        console.print(f"{describe_rollout(rollout)} `ml rollout status` shows how they compare.", markup=False)
    _print_pending(project, champion)
    for line in loop_lines(project):
        console.print(line, markup=False, soft_wrap=True)
    print_processes(settings)
    print_running(flows_of_commands(settings), "a command")
    print_last(settings)
    print_due(settings)
    print_alerts(settings)
    if champion is not None:
        _print_history(champion)


def _print_champion(project: Project, champion: Champion) -> None:
    bundle = find_bundle(project.store, champion.bundle)
    console.print(
        f"[bold]{escape(project.settings.project.name)}[/]: [bold green]version {champion.version}[/] is in production "
        f"since {champion.since}"
    )
    if bundle is None:
        console.print(f"  [red]Its bundle {champion.bundle} is missing or was changed:[/] `ml run` builds it again.")
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


def _print_pending(project: Project, champion: Champion | None) -> None:
    candidate = project.latest.find("train")
    rollout = running_rollout(project.store)
    if candidate is None or candidate in {one.version for one in (champion, rollout) if one}:
        return
    record = project.verdicts.find(candidate)
    if change := rolled_back(champion, candidate):
        removed = "withdrawn from its rollout" if change.action == "withdraw" else "taken out of production by hand"
        console.print(f"Version {candidate} was {removed}: {escape(change.why)}")
    elif record is None:
        console.print(f"Pending: version {candidate} is trained and not evaluated yet: `ml evaluate`.")
    elif record.verdict.passed:
        console.print(f"Version {candidate} passed its gates but is not in production: `ml deploy {candidate}`.")
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


def run_monitor() -> None:
    """Run the monitor flow, and print the last window and whether training is requested."""
    run_stage("monitor")
    project = open_project()
    for line in (*window_lines(project, 1), *loop_lines(project)):
        console.print(line, markup=False, soft_wrap=True)


def pause_loop(why: str) -> None:
    """Pause automatic retraining."""
    pause(open_store(start_command()), why)
    console.print(
        "Automatic retraining is paused: monitoring continues, and drift starts no training until `ml loop resume`.",
        soft_wrap=True,
    )


def resume_loop(why: str) -> None:
    """Resume automatic retraining.

    Raises:
        UserError: it is not paused.
    """
    store = open_store(start_command())
    if read_loop(store).paused is None:
        raise UserError("Automatic retraining is not paused: `ml loop show` prints its state.")
    resume(store, why)
    console.print("Automatic retraining is resumed: the next `ml monitor` decides.")


def show_loop() -> None:
    """Print the last windows, whether training is requested, and the last pauses and requests."""
    project = Project(start_command())
    for line in (*window_lines(project, SHOWN_WINDOWS), *loop_lines(project)):
        console.print(line, markup=False, soft_wrap=True)
    for change in reversed(read_loop(project.store).history[-SHOWN_WINDOWS:]):
        console.print(f"  {change.at} {change.who}: {change.what} ({change.why})", markup=False, soft_wrap=True)


def window_lines(project: Project, most: int) -> list[str]:
    """Return lines on the champion's last windows, newest first: verdict, live metric, reasons, drifted columns."""
    champion = project.champion
    if champion is None:
        return []
    lines = list[str]()
    windows = Windows(project.store)
    for window in reversed(windows.of(champion)[-most:]):
        live = window.performance
        # If performance is lost, the reason already contains the metric.
        metric = [f"live {live.sentence}"] if live is not None and not live.lost else []
        metric += [window.estimate.sentence] if live is None and window.estimate is not None else []
        drifted = [column.name for column in by_distance(window.columns) if column.drifted]
        more = f" and {len(drifted) - SHOWN_COLUMNS:,} more" if len(drifted) > SHOWN_COLUMNS else ""
        named = [f"drifted columns: {', '.join(drifted[:SHOWN_COLUMNS])}{more}"] if drifted else []
        path = windows.path(window.id, "html")
        report = [f"report: {project.settings.show(path)}"] if path.exists() else []
        details = (*metric, *window.reasons, *named, *window.notes, *report)
        lines += [headline(window), *(f"  {line}" for line in details)]
    return lines


def loop_lines(project: Project) -> list[str]:
    """Return lines on the state of automatic retraining; `ml status` shows them too."""
    loop, champion = read_loop(project.store), project.champion
    lines = []
    if loop.paused is not None:
        lines.append(f"Automatic retraining is paused since {loop.paused.at} by {loop.paused.who}: {loop.paused.why}")
    if champion is None:
        return lines
    if (wanted := find_unsent_request(loop, champion)) is not None:
        since = f"Retraining is requested since {wanted.requested_at}, and Prefect has not received the event"
        return [*lines, f"{since}: the next `ml monitor` while `ml up` runs sends it, `ml run` trains now."]
    decision = decide_now(project, champion)
    if loop.wanted is not None and loop.wanted.emitted_at and loop.wanted.window in decision.windows[-1:]:
        return [*lines, f"Retraining was requested at {loop.wanted.requested_at}, and Prefect received the event."]
    asked = "The next `ml monitor` requests retraining" if decision.wanted else "No retraining is requested"
    return [*lines, f"{asked}: {decision.why}."]


def print_replay(version: str, days: float | None) -> None:
    """Replay the log through a version, print how its answers differ, and decide the gate if that is asked for.

    Raises:
        Refused: the gate refuses the version.
    """
    # They need pandas and pyarrow, which `ml status` does not.
    from ondol.monitoring.replay import check_replay, record_replay, replay_log

    project = Project(start_command())
    gate_days = project.settings.gates.replay_days
    if days is None and gate_days:
        if found := record_replay(project, version):
            print_plain("\n".join(replay_lines(found)))
        if gate := check_replay(project, version):
            return print_plain(f"The gate passed: {plain(gate.sentence)}.")
    print_plain("\n".join(replay_lines(replay_log(project, version, days or gate_days or 7))))


def replay_lines(found: "Replay") -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"## Version {plain(found.version)} on the requests that version {plain(found.champion)} answered"
    yield ""
    others = f"; {found.others:,} requests that other versions answered are left out" if found.others else ""
    yield (
        f"{found.rows:,} rows of {found.requests:,} requests since {found.start:%Y-%m-%d %H:%M} UTC, predicted in "
        f"{found.seconds:.1f} s{others}."
    )
    if found.refused:
        yield f"**{found.refused:,} rows would be refused** ({found.refused / found.rows:.1%}):"
        yield from (f"- {plain(reason)}" for reason in found.reasons)
    if not found.compared:
        return
    share = found.differing / found.compared
    yield f"**{found.differing:,} of {found.compared:,} rows would be answered otherwise** ({share:.1%})."
    yield ""
    names = {0.5: "median", 0.9: "90%", 0.99: "99%", 1.0: "largest"}
    yield from table(("distance", *names.values()), [("", *(f"{found.distances[q]:.4g}" for q in names))])
    if found.slices:
        yield from ("", "The slices in which most is answered otherwise:", "")
        rows = [(plain(one.column), plain(one.value), f"{one.rows:,}", f"{one.share:.1%}") for one in found.slices]
        yield from table(("column", "value", "rows", "answered otherwise"), rows)
