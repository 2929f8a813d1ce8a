"""`ml quarantine`: list validations, show and write invalid rows, validate corrected ones.

Values of sensitive columns are not printed.
"""

from collections.abc import Set
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer
from rich.markup import escape
from rich.table import Table

from ondol.cli.console import console, start_command
from ondol.deployment.predict import open_output, resolve_destination
from ondol.errors import UserError
from ondol.project import Project
from ondol.snapshots.snapshots import ROW
from ondol.storage.files import publish, scratch
from ondol.storage.store import only_one, open_store
from ondol.validation.corrections import accept_corrected_rows, revalidate
from ondol.validation.results import REASONS, Validation, Validations
from ondol.validation.validate import CHECKED

EXAMPLES = 5
VALIDATIONS = 20
OVER_TIME = 5


def print_validations() -> None:
    """Print the validations, the newest first, and the counts of each reason over time."""
    recent = Validations(open_store(start_command())).recent()
    if not recent:
        console.print("Nothing was validated yet: `ml validate`, or `ml run` for the whole pipeline.")
        return
    table = Table(title="validations, newest first (UTC)", title_justify="left")
    for name in ("validation", "when", "snapshot", "rows", "bad", "share"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("rows", "bad", "share") else "left")
    table.add_column("most often")
    for when, one in recent[:VALIDATIONS]:
        counts = (f"{one.rows:,}", f"{one.bad:,}", f"{one.bad_share:.2%}")
        table.add_row(one.id, f"{when:%m-%d %H:%M}", one.snapshot[:8], *counts, escape("; ".join([*one.reasons][:2])))
    console.print(table)
    _print_reasons_over_time([(f"{when:%m-%d %H:%M}", one) for when, one in recent[:OVER_TIME][::-1]])


def _print_reasons_over_time(oldest_first: list[tuple[str, Validation]]) -> None:
    newest = oldest_first[-1][1].reasons
    reasons = dict.fromkeys([*newest, *(reason for _, one in oldest_first for reason in one.reasons)])
    if not reasons:
        return
    table = Table(title="cells that failed, by validation", title_justify="left")
    table.add_column("reason")
    for when, _ in oldest_first:
        table.add_column(when, justify="right")
    for reason in reasons:
        table.add_row(escape(reason), *(f"{one.reasons.get(reason, 0):,}" for _, one in oldest_first))
    console.print(table)


def print_quarantine(name: str | None, out: Path | None) -> None:
    """Print the reasons of a validation and a few rows, and write all of them to `out`.

    Raises:
        UserError: there is no such validation, or the file cannot be written.
    """
    project = Project(start_command())
    validation = _find(project, name)
    console.print(
        f"[bold]{validation.id}[/]: {validation.bad:,} of {validation.labelled:,} rows ({validation.bad_share:.2%}) "
        f"of snapshot {validation.snapshot[:8]} break the contract."
    )
    if validation.unlabelled:
        console.print(f"{validation.unlabelled:,} others have no label: they are left out and not counted as invalid.")
    if validation.bad:
        _print_reasons(validation.reasons)
        _print_examples(project, validation)
    if out is not None:
        write_quarantine(project, validation, out)
        console.print(f"[green]✓[/] {validation.bad:,} rows in {escape(str(out))}", soft_wrap=True)


def _print_reasons(reasons: dict[str, int]) -> None:
    table = Table()
    for name in ("column", "check", "cells"):
        table.add_column(name, justify="right" if name == "cells" else "left")
    for reason, count in reasons.items():
        column, _, check = reason.partition(": ")
        table.add_row(escape(column), escape(check), f"{count:,}")
    console.print(table)


def _print_examples(project: Project, validation: Validation) -> None:
    hidden = {c.name for c in project.contract.columns if c.role == "sensitive"}
    with pq.ParquetFile(project.validations.rows_path(validation.id)) as file:
        rows = next(file.iter_batches(EXAMPLES, columns=[ROW, REASONS])).to_pylist()
    for row in rows:
        reasons = "; ".join(_hide(reason, hidden) for reason in row[REASONS])
        console.print(f"  row {row[ROW]:,}: {reasons}", markup=False, soft_wrap=True)


def _hide(reason: str, hidden: Set[str]) -> str:
    """Return a reason, `column = value: check`, without the value of a sensitive column."""
    column = next((name for name in hidden if reason.startswith(f"{name} = ")), None)
    return reason if column is None else f"{column}: {reason.rpartition(': ')[2]}"


def write_quarantine(project: Project, validation: Validation, out: Path) -> None:
    """Write the quarantined rows, their numbers and reasons to a file; a CSV has the dialect of the project's data."""
    resolve_destination(out)
    with pq.ParquetFile(project.validations.rows_path(validation.id)) as file, scratch(out) as made:
        place = file.schema_arrow.get_field_index(REASONS)
        schema = file.schema_arrow.set(place, pa.field(REASONS, pa.string()))
        output = open_output(made, schema, project.settings.data.dialect, project.contract.kinds)
        for batch in file.iter_batches():
            table = pa.Table.from_batches([batch])
            joined = pc.binary_join(table.column(REASONS), "; ")
            table = table.set_column(place, schema.field(REASONS), joined).cast(schema)
            output.write_table(_spell_infinite(table) if out.suffix.lower() == ".jsonl" else table)
        output.close()
        publish(made, out)


def _spell_infinite(table: pa.Table) -> pa.Table:
    """Return the table with number columns as text if they contain infinity, which JSON would write as null."""
    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type) and pc.any(pc.is_inf(table.column(place))).as_py():
            table = table.set_column(place, field.name, table.column(place).cast(pa.string()))
    return table


def replay_quarantine(name: str | None, source: Path | None) -> None:
    """Validate the rows of a validation again and print the result.

    Raises:
        UserError: there is no such validation, nothing was corrected, or the file is unusable.
    """
    project = Project(start_command())
    validation = _find(project, name)
    with only_one(project.settings, wait=False):
        if source is None:
            _replay_contract(project, validation)
        else:
            _replay_rows(project, validation, source)


def _replay_contract(project: Project, validation: Validation) -> None:
    again = revalidate(project, validation)
    text = f"{again.good:,} of {validation.bad:,} rows are valid now, {again.still:,} are not"
    more = f", and {again.new:,} others became invalid" if again.new else ""
    console.print(f"{text}{more}: validation {again.validation.id}. The next `ml run` uses it.", soft_wrap=True)
    if again.validation.reasons:
        _print_reasons(again.validation.reasons)


def _replay_rows(project: Project, validation: Validation, source: Path) -> None:
    taken = accept_corrected_rows(project, validation, str(source))
    if taken.snapshot is not None:
        console.print(
            f"[green]✓[/] {taken.rows:,} rows joined snapshot {taken.snapshot.digest[:8]}. The next `ml run` uses it."
        )
    if taken.refused:
        console.print(f"{len(taken.refused):,} rows were refused:")
        _print_reasons(taken.reasons)
        for number, reasons in list(taken.refused.items())[:EXAMPLES]:
            console.print(f"  row {number:,}: {'; '.join(reasons)}", markup=False, soft_wrap=True)
    if taken.snapshot is None:
        raise typer.Exit(1)


def _find(project: Project, name: str | None) -> Validation:
    """Return the validation `name`; by default the one used last, else the newest."""
    validations = project.validations
    if name is not None:
        return validations.get(name)
    last = project.latest.find(CHECKED)
    if last is not None and (found := validations.find(last)):
        return found
    recent = validations.recent()
    if not recent:
        raise UserError("Nothing was validated yet: run `ml validate`, or `ml run` for the whole pipeline.")
    return recent[0][1]
