"""`ml contract` and `ml client`: `model/schema.py` compared with the data, and what is written from it."""

from pathlib import Path

import typer

from ondol.cli.console import absolute_source, console, errors, start_command
from ondol.config import Settings
from ondol.contract import load_contract
from ondol.errors import UserError
from ondol.ingestion.sources import Reading, open_source
from ondol.setup.client import MARK, name_client, write_client
from ondol.setup.evolution import ContractChange, find_changes
from ondol.setup.inference import TableFormat
from ondol.setup.initialize import read_table
from ondol.setup.schema_edit import propose
from ondol.setup.schema_file import SCHEMA_PATH, show_differences
from ondol.storage.files import write_bytes


def print_changes(source: str | None) -> None:
    """Print how a source (default: the project's) differs from model/schema.py.

    Raises:
        typer.Exit: with 1, if it differs.
        UserError: the source cannot be read.
    """
    changes, first = _find(start_command(), source)
    for change in changes:
        console.print(str(change), markup=False, soft_wrap=True)
    if changes:
        raise typer.Exit(1)
    read = f"The first {first:,} rows of the source match" if first else "The source matches"
    console.print(f"Nothing changed. {read} model/schema.py.", soft_wrap=True)


def update(source: str | None, apply: bool) -> None:
    """Print the edit that makes model/schema.py match a source (default: the project's); write it if `apply`.

    Raises:
        UserError: the source cannot be read, or the schema was edited in the meantime.
    """
    settings = start_command()
    before = (settings.root / SCHEMA_PATH).read_bytes()
    changes, _ = _find(settings, source)
    proposal = propose(before.decode("utf-8"), changes)
    for line in (*map(str, changes), *proposal.left):
        errors.print(line, markup=False, soft_wrap=True)
    diff = show_differences(settings.root, {SCHEMA_PATH: proposal.text})
    if not changes:
        console.print("Nothing changed: model/schema.py is unchanged.")
    if diff:
        console.print(diff, markup=False, soft_wrap=True)
    if diff and apply:
        replace_schema(settings.root / SCHEMA_PATH, before, proposal.text)
        console.print("Wrote model/schema.py. The next `ml run` uses it.")


def replace_schema(path: Path, before: bytes, text: str) -> None:
    """Write the schema, unless it was edited since it was read.

    Raises:
        UserError: it was edited.
    """
    if path.read_bytes() != before:
        raise UserError(f"{path} was edited while the source was read: nothing was written; run the command again.")
    write_bytes(path, text.encode())


def make_client(path: Path | None, check: bool) -> None:
    """Write the client of the project's contract to `path`; with `check`, only compare it with the file there.

    Raises:
        typer.Exit: with 1, if the file is not up to date.
        UserError: there is another file, or none to check.
    """
    settings = start_command()
    path = (path or settings.root / name_client(settings.project.name)).absolute()
    text = write_client(load_contract(settings), settings.project.name)
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if check:
        if before is None:
            raise UserError(f"There is no {path}: `ml client` writes it.")
        if before != text:
            console.print(show_differences(path.parent, {Path(path.name): text}), markup=False, soft_wrap=True)
            console.print(f"{path.name} is not up to date with model/schema.py: run `ml client`.", soft_wrap=True)
            raise typer.Exit(1)
        console.print(f"{path.name} is up to date with model/schema.py.", soft_wrap=True)
        return
    if before is not None and MARK not in before:
        raise UserError(f"{path} was not written by `ml client`: move it away, or name another file by --out.")
    write_bytes(path, text.encode())
    console.print(f"Wrote {path}.", markup=False, soft_wrap=True)


def _find(settings: Settings, source: str | None) -> tuple[list[ContractChange], int | None]:
    """Return the changes in about the first million rows, and the number of rows read if there are more."""
    uri = settings.data.source if source is None else absolute_source(source)
    contract = load_contract(settings)
    opened = open_source(uri, Reading(root=settings.root, fetch=settings.fetch, dialect=settings.data.dialect))
    written = TableFormat(getattr(opened, "dialect", None), settings.data.date_formats)
    table, limited = read_table(opened)
    changes = find_changes(contract, table, bool(getattr(opened, "typed", True)), written)
    return changes, len(table) if limited else None
