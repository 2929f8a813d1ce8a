"""`ml init`: prints what was inferred from the data, what is uncertain, and the next command."""

from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ondol.cli.console import absolute_source, note_leftovers
from ondol.cli.console import console as terminal
from ondol.config import find_root
from ondol.redaction import may_be_address
from ondol.setup.initialize import InitReport, initialize
from ondol.setup.schema_file import SCHEMA_PATH, Field

COLOURS = {"+": "green", "-": "red", "@": "cyan"}
MOST_LISTED = 40


def initialize_project(source: str, target: str, problem: str | None, force: bool) -> None:
    """Write the schema and the data section of the settings for a source, and print the report.

    Args:
        source: The rows: a file, a folder or an address.
        target: The column to predict.
        problem: binary, multiclass or regression; None to infer it.
        force: Whether to overwrite an existing schema.

    Raises:
        typer.Exit: with 1, if different files exist and `force` was not given.
        UserError: the source cannot be read, or there is no project here.
    """
    root = find_root()
    note_leftovers(root)
    report = initialize(root, source_from_root(source, root), target, problem, force)
    print_init_report(report)
    if report.status == "differs":
        raise typer.Exit(1)


def source_from_root(source: str, root: Path) -> str:
    """Return a path on the command line as it is written to `config.toml`: relative, if it is inside the project."""
    if may_be_address(source):
        return source
    path = Path(absolute_source(source))
    path = path.parent.resolve() / path.name  # as `root`; the file itself may be a link to another place
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def print_init_report(report: InitReport, console: Console | None = None) -> None:
    """Print the report in plain sentences."""
    console = console or terminal
    read = f"the first {report.rows:,}" if report.limited else f"{report.rows:,}"
    _say(console, f"Read {read} rows and {len(report.fields)} columns of {report.source}.")
    if report.notes:
        _say(console, "How it is read:")
    for note in report.notes:
        _say(console, f"  • {note}")
    _say(console, f'Target "{report.target}": {report.problem} ({report.reason}).')
    console.print(_tabulate(report.fields))
    if report.doubts:
        _say(console, "Please check:", "bold")
        for doubt in report.doubts:
            _say(console, f"  • {doubt}", "yellow")
    _print_end(report, console)


def _print_end(report: InitReport, console: Console) -> None:
    if report.status == "unchanged":
        _say(console, f"{SCHEMA_PATH} and config.toml already hold this: nothing to change.")
    elif report.status == "differs":
        for line in report.diff.splitlines():
            _say(console, line, COLOURS.get(line[:1], ""))
        _say(
            console,
            "Nothing was written, to keep what you have: add --force to overwrite it with this.",
            "bold",
        )
    else:
        _say(console, f"Wrote {SCHEMA_PATH} (read it: it is a draft, and yours) and config.toml.", "bold")
        _say(console, "Next: uv run ml run")


def _tabulate(fields: tuple[Field, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("column", "kind", "role", "allowed"):
        table.add_column(heading, overflow="fold")
    for field in fields[:MOST_LISTED]:
        role = "" if field.role == "feature" else field.role
        table.add_row(*map(escape, (field.name, field.kind, role, _allowed(field))))
    if len(fields) > MOST_LISTED:
        table.add_row(f"… and {len(fields) - MOST_LISTED} more", "", "", "")
    return table


def _allowed(field: Field) -> str:
    parts = []
    if field.categories is not None:
        shown = ", ".join(str(value) for value in field.categories[:6])
        parts.append(shown + (f", … ({len(field.categories)})" if len(field.categories) > 6 else ""))
    if field.minimum is not None:
        parts.append(f"≥ {field.minimum}")
    return "; ".join(parts + (["may be missing"] if field.nullable else []))


def _say(console: Console, sentence: str, style: str = "") -> None:
    console.print(sentence, style=style or None, markup=False, soft_wrap=True)
