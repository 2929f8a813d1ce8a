"""URLs of SQLite files, and what is wrong with a database that cannot be opened."""

import os
import re
import shlex
import sqlite3
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from ondol.errors import UserError

HEADER = b"SQLite format 3\0"
OTHER_SCHEMA = re.compile(
    r"out-of-date database schema \(found version (?!None)(\w+)"
)  # what MLflow says, also of a later one
WAIT_SECONDS = 10.0


def sqlite_url(path: Path, driver: str = "pysqlite") -> str:
    """Return the SQLAlchemy URL of a SQLite file.

    SQLAlchemy decodes the path from 2.1 on. Before, it took a path as it was, and one with a `?`, which begins the
    URL's query, only as a URI of SQLite.
    """
    name = str(path)
    # MLflow makes the folder of what follows "sqlite:///" without decoding it; with a driver in the URL it makes none.
    if is_plain(name):
        return f"sqlite:///{name}" if driver == "pysqlite" else f"sqlite+{driver}:///{name}"
    major, minor = map(int, version("sqlalchemy").split(".")[:2])
    if (major, minor) >= (2, 1):
        return f"sqlite+{driver}:///{name.replace('%', '%25').replace('?', '%3F')}"
    return f"sqlite+{driver}:///file:{quote(name)}?uri=true"


def is_plain(path: str) -> bool:
    """Return True if SQLAlchemy accepts the path in a URL unchanged."""
    return not {"%", "?"} & set(path)


def explain_schema(message: str, uri: str, variable: str) -> str:
    """Return in a sentence what to do about a database of another MLflow version; empty where it is another error.

    Args:
        message: The error of MLflow.
        uri: The database.
        variable: Which variable of the environment holds an address that may hold a password.
    """
    found = OTHER_SCHEMA.search(message)
    if found is None:
        return ""
    local = uri.startswith("sqlite")
    place = shlex.quote(uri) if local else f"at {variable}"
    spec = find_spec("mlflow")
    folders = (spec.submodule_search_locations if spec else None) or ()
    if not any(list(Path(folder).glob(f"store/db_migrations/versions/{found[1]}_*.py")) for folder in folders):
        return (
            f"The MLflow database {place} was made by a later version than MLflow {version('mlflow')}: install that "
            "version again, or bring the database back from a backup."
        )
    command = f"mlflow db upgrade {shlex.quote(uri)}" if local else f'mlflow db upgrade "${variable}"'
    return (
        f"The MLflow database {place} was made by an earlier version than MLflow {version('mlflow')}: stop what uses it"
        f"{' (`ml down`)' if local else ''}, make a backup, and run `uv run {command}`."
    )


def check_database(path: Path, remedy: str, *, thorough: bool = False) -> None:
    """Check that a SQLite file, where there is one, can be read and written.

    Args:
        path: The file.
        remedy: What to do about one that is damaged, for the message.
        thorough: Read all pages; else header and size alone, which takes no time.

    Raises:
        UserError: it is no database, was cut, is damaged, or cannot be written.
    """
    try:
        if not os.path.lexists(path):
            return
        size = path.stat().st_size
        if size:
            with path.open("rb") as file:
                if file.read(len(HEADER)) != HEADER:
                    raise UserError(f"{path} is not a SQLite database any more: {remedy}.")
            _read(path, size, remedy, thorough)
        if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
            raise UserError(f"{path} cannot be written: make it and its folder writable for this user.")
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror or error}): {remedy}.") from None


def _read(path: Path, size: int, remedy: str, thorough: bool) -> None:
    # What a killed process has left half-written is undone by who opens the file next, if it may write.
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    try:
        url = f"file:{quote(str(path))}?mode={mode}"
        with closing(sqlite3.connect(url, uri=True, timeout=WAIT_SECONDS)) as connection:
            connection.execute("begin")
            connection.execute("select count(*) from sqlite_master").fetchone()  # no other process writes now
            pages, length = (connection.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size"))
            cut = not path.with_name(f"{path.name}-wal").exists() and path.stat().st_size < pages * length
            found = [("cut",)] if cut else connection.execute("pragma quick_check(1)").fetchall() if thorough else []
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UserError(f"{path} is locked by another process: wait until that ends, or end it.") from None
        raise UserError(f"{path} cannot be opened ({error}): {remedy}.") from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}.") from None
    if found and found[0][0] != "ok":
        raise UserError(f"{path} is damaged ({found[0][0]}): {remedy}.")
