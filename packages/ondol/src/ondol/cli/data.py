"""`ml data`: list snapshots, compare two, delete unused ones."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from ondol.cli.console import console, errors, start_command
from ondol.config import Settings
from ondol.errors import UserError
from ondol.project import Project
from ondol.redaction import redact, show_uri
from ondol.retention import (
    Garbage,
    Use,
    all_snapshots,
    bundled_uses,
    find_garbage,
    latest_use,
    needed,
    registered_uses,
    versions_of,
)
from ondol.snapshots.diff import MOST_ROWS, MOVED, ColumnDiff, Difference, compare_columns, compare_schemas
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.files import SHORT
from ondol.storage.store import only_one, open_store

NAMED = 3  # listed categories


def print_log() -> None:
    """Print the snapshots, the newest first."""
    settings = start_command()
    known = all_snapshots(Snapshots(open_store(settings)))
    if not known:
        console.print("There is no snapshot yet: `ml ingest` makes one.")
        return
    versions = versions_of(_uses(Project(settings)))
    table = _table("snapshots, newest first (UTC)", "digest", "parent", "rows", "when", "watermark", "versions")
    table.add_column("source", overflow="fold")
    for one in known:
        table.add_row(
            one.digest[:SHORT],
            one.parent[:SHORT] if one.parent else "–",
            f"{one.rows:,}",
            _when(one),
            escape("–" if one.watermark is None else _shown(one.watermark)),
            ", ".join(versions.get(one.digest, [])) or "–",
            escape(redact(show_uri(one.source))),
        )
    console.print(table)


def _uses(project: Project) -> list[Use]:
    """Return the known uses of snapshots; if MLflow is unavailable, only those of the bundles."""
    try:
        return [*registered_uses(project), *bundled_uses(project)]
    except UserError as error:
        errors.print(f"Only the versions of the bundles here are listed. {escape(str(error))}", soft_wrap=True)
        return bundled_uses(project)


def print_difference(one: str, other: str) -> None:
    """Print what changed from one snapshot to another.

    Raises:
        UserError: there is no such snapshot, or its files are missing or damaged.
    """
    settings = start_command()
    snapshots = Snapshots(open_store(settings))
    difference = compare_schemas(snapshots, one, other)
    _print_schema(difference)
    if not difference.shared:
        return
    table = _table("values, before → after", "column", "missing", "min", "median", "max", "distance")
    table.add_column("new (+) and removed (−)", overflow="fold")
    for column in compare_columns(snapshots, difference):
        table.add_row(*_cells(column))
    console.print(table)
    console.print(
        f"Distance: population stability index; {MOVED} or more is a large shift. It, medians and categories are "
        f"computed from every k-th row, at most {MOST_ROWS:,} of each snapshot.",
        style="dim",
        soft_wrap=True,
    )


def _print_schema(difference: Difference) -> None:
    before, after = difference.before, difference.after
    for snapshot in (before, after):
        source = escape(redact(show_uri(snapshot.source)))
        console.print(f"{snapshot.digest[:SHORT]}  {_when(snapshot)}  {snapshot.rows:,} rows  {source}", soft_wrap=True)
    console.print(f"Rows: {before.rows:,} → {after.rows:,} ({after.rows - before.rows:+,})")
    lines = [f"[green]+ {escape(name)}[/] {kind}" for name, kind in difference.added.items()]
    lines += [f"[red]− {escape(name)}[/] {kind}" for name, kind in difference.removed.items()]
    lines += [f"[yellow]~ {escape(name)}[/] {old} → {new}" for name, (old, new) in difference.retyped.items()]
    console.print("Columns:" if lines else "Columns: the same.")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)


def _cells(column: ColumnDiff) -> list[str]:
    before, after = column.before, column.after
    cells = [escape(column.name), f"{before.missing_share:.1%} → {after.missing_share:.1%}"]
    if column.ordered:
        pairs = [(before.least, after.least), (before.median, after.median), (before.most, after.most)]
        cells += [escape(f"{_shown(old)} → {_shown(new)}") for old, new in pairs]
    else:
        cells += ["", "", ""]
    if column.distance is None:
        return [*cells, "–", ""]
    style = "[bold yellow]" if column.distance >= MOVED else "[default]"
    names = [f"+ {_named(column.came)}"] if column.came else []
    names += [f"− {_named(column.went)}"] if column.went else []
    return [*cells, f"{style}{column.distance:.3f}[/]", escape("; ".join(names))]


def _named(values: tuple[str, ...]) -> str:
    more = len(values) - NAMED
    return ", ".join(values[:NAMED]) + (f" and {more} more" if more > 0 else "")


def collect(dry_run: bool) -> None:
    """Delete unused data, or only print it.

    Raises:
        UserError: MLflow does not answer, another run is in progress, or a record cannot be read; nothing is deleted.
    """
    settings = start_command()
    with only_one(settings, wait=False):
        garbage = _find(Project(settings))
        size = garbage.size
        if not dry_run:
            garbage.remove()
    _print_garbage(settings, garbage, size, dry_run)


def _find(project: Project) -> Garbage:
    try:
        uses = [*registered_uses(project), *bundled_uses(project), latest_use(project)]
        return find_garbage(project.store, *needed(project, uses))
    except UserError as error:
        raise UserError(f"Nothing was deleted: {error}") from None


def _print_garbage(settings: Settings, garbage: Garbage, size: int, dry_run: bool) -> None:
    verb = "would be deleted" if dry_run else "deleted"
    if not garbage.files:
        console.print("Nothing to delete: everything is in use, or less than a day old.")
        return
    if garbage.snapshots:
        table = _table("snapshots, newest first (UTC)", "digest", "rows", "when")
        for one in garbage.snapshots:
            table.add_row(one.digest[:SHORT], f"{one.rows:,}", _when(one))
        console.print(table)
    if dry_run:
        for path in garbage.files:
            console.print(settings.show(path), markup=False, soft_wrap=True)
    console.print(f"{len(garbage.snapshots)} snapshots, {len(garbage.files)} files, {size:,} bytes {verb}.")


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        short = name in ("digest", "parent", "rows", "distance")  # the others wrap in a narrow terminal
        table.add_column(
            name, no_wrap=short, overflow="fold", justify="right" if name in ("rows", "distance") else "left"
        )
    return table


def _when(snapshot: Snapshot) -> str:
    return snapshot.created[:16].replace("T", " ")


def _shown(value: Any) -> str:
    """Return a number in at most six digits, or a date without its zero parts."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).replace("T", " ").removesuffix(" 00:00:00")
