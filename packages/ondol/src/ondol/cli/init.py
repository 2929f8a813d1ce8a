"""Prints what `ml init` decided, what it was unsure of, and what to type next."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ondol.cli.console import console as terminal
from ondol.setup.initialize import InitReport
from ondol.setup.schema_file import SCHEMA_PATH, Field

COLOURS = {"+": "green", "-": "red", "@": "cyan"}
MOST_LISTED = 40


def print_report(report: InitReport, console: Console | None = None) -> None:
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
        _say(console, "Please look at these:", "bold")
        for doubt in report.doubts:
            _say(console, f"  • {doubt}", "yellow")
    _print_end(report, console)


def _print_end(report: InitReport, console: Console) -> None:
    if report.status == "unchanged":
        _say(console, f"{SCHEMA_PATH} and config.toml say this already: nothing to change.")
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
    said = []
    if field.categories is not None:
        shown = ", ".join(str(value) for value in field.categories[:6])
        said.append(shown + (f", … ({len(field.categories)})" if len(field.categories) > 6 else ""))
    if field.minimum is not None:
        said.append(f"≥ {field.minimum}")
    return "; ".join(said + (["may be missing"] if field.nullable else []))


def _say(console: Console, sentence: str, style: str = "") -> None:
    console.print(sentence, style=style or None, markup=False, soft_wrap=True)
