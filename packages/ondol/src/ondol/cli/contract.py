"""`ml contract`: what the data holds that `model/schema.py` does not say, and the edit that says it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ondol.config import Settings
    from ondol.setup.evolution import ContractChange

app = typer.Typer()
contract_app = typer.Typer(help="Hold model/schema.py against the data, and let it follow.", no_args_is_help=True)
app.add_typer(contract_app, name="contract")

Source = Annotated[
    str | None, typer.Argument(help="Any source that ingest reads; default: [data] source.", show_default=False)
]


@contract_app.command("diff")
def print_changes(source: Source = None) -> None:
    """Say how the source differs from model/schema.py; exit with 1 if it does."""
    from ondol.cli.console import console, open_project

    changes, first = _find(open_project(), source)
    for change in changes:
        console.print(str(change), markup=False, soft_wrap=True)
    if changes:
        raise typer.Exit(1)
    told = f" of its first {first:,} rows: they are" if first else ": the source is"
    console.print(f"Nothing changed{told} as model/schema.py says.", soft_wrap=True)


@contract_app.command("update")
def update(
    source: Source = None,
    apply: Annotated[bool, typer.Option("--apply", help="Write model/schema.py.")] = False,
) -> None:
    """Print the edit of model/schema.py that follows the source; write it only with --apply."""
    from ondol.cli.console import console, errors, open_project
    from ondol.setup.schema_edit import propose
    from ondol.setup.schema_file import SCHEMA_PATH, show_differences

    settings = open_project()
    before = (settings.root / SCHEMA_PATH).read_bytes()
    changes, _ = _find(settings, source)
    proposal = propose(before.decode("utf-8"), changes)
    for line in (*map(str, changes), *proposal.left):
        errors.print(line, markup=False, soft_wrap=True)
    diff = show_differences(settings.root, {SCHEMA_PATH: proposal.text})
    if not changes:
        console.print("Nothing changed: model/schema.py stays as it is.")
    if diff:
        console.print(diff, markup=False, soft_wrap=True)
    if diff and apply:
        replace_schema(settings.root / SCHEMA_PATH, before, proposal.text)
        console.print("Written: model/schema.py. `ml run` learns by it.")


def replace_schema(path: Path, before: bytes, text: str) -> None:
    """Write the schema, unless somebody has edited it since it was read.

    Raises:
        UserError: somebody has.
    """
    from ondol.errors import UserError
    from ondol.storage.files import write_bytes

    if path.read_bytes() != before:
        raise UserError(f"{path} was edited while the source was read: nothing is written; run the command again.")
    write_bytes(path, text.encode())


def _find(settings: "Settings", source: str | None) -> "tuple[list[ContractChange], int | None]":
    """Return what changed in the first million rows or so, and how many these are where there are more."""
    from ondol.contract import load_contract
    from ondol.ingestion.sources import Reading, open_source
    from ondol.redaction import may_be_address
    from ondol.setup.evolution import find_changes
    from ondol.setup.inference import TableFormat
    from ondol.setup.initialize import read_table

    uri = settings.data.source
    if source is not None:
        uri = source if may_be_address(source) else str(Path(source).expanduser().absolute())
    contract = load_contract(settings)
    opened = open_source(uri, Reading(root=settings.root, fetch=settings.fetch, dialect=settings.data.dialect))
    written = TableFormat(getattr(opened, "dialect", None), settings.data.date_formats)
    table, limited = read_table(opened)
    changes = find_changes(contract, table, bool(getattr(opened, "typed", True)), written)
    return changes, len(table) if limited else None
