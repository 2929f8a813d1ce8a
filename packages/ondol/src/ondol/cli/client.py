"""`ml client`: writes the typed client of the service, and checks that it is up to date."""

from pathlib import Path

import typer

from ondol.cli.console import console, start_command
from ondol.contract import load_contract
from ondol.errors import UserError
from ondol.setup.client import MARK, name_client, write_client
from ondol.setup.schema_file import show_differences
from ondol.storage.files import write_bytes


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
