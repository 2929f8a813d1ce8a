"""Addresses of SQL databases: a SQLAlchemy URL, then `#` and a table or a query."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from ondol.errors import UserError, nearest
from ondol.ingestion.sources import Reading
from ondol.storage.remote_files import install_command, resolve

DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
PACKAGES = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "duckdb": "duckdb-engine",
}
FILES = ("sqlite", "duckdb")
ELSEWHERE = (":memory:", "file:", "md:", "motherduck:")  # databases that are not files
SHOWN = 100  # characters of a long query that are shown
COMMENT = r"--[^\n]*(?:\n|$)|/\*.*?\*/"
QUERY = re.compile(rf"(?is)(?:\s|\(|{COMMENT})*(?:select|with)[\s*(\"'`]")
QUOTED = re.compile(rf"(?s)'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|{COMMENT}")


@dataclass(frozen=True)
class DatabaseAddress:
    """The address of a table or a query.

    Attributes:
        shown: The address for display: secrets by name, on one line, a long query shortened.
        url: The URL of the connection, with secrets.
        table: The table's name, with an optional schema before a dot; None if the address has a query or neither.
        query: The SELECT; None if the address has a table or neither.
    """

    shown: str
    url: URL = field(repr=False)
    table: str | None = None
    query: str | None = None


def parse_address(uri: str) -> DatabaseAddress:
    """Split `uri` and fill in its secrets.

    Raises:
        UserError: a secret is not set, or the address is invalid.
    """
    head, _, rest = uri.partition("#")
    shown = _shorten(head, rest)
    filled = resolve(head)
    if "#" in filled:
        raise UserError(f'"{shown}" has a "#" inside its secret: write %23 there, and the table outside of it.')
    try:
        url = make_url(filled)
    except (sa.exc.ArgumentError, ValueError):
        raise UserError(
            "The source's address is not a SQLAlchemy URL: write scheme://user:${PASSWORD}@host:port/database#table."
        ) from None
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.get_backend_name() in FILES and url.database:  # unchanged: SQLAlchemy 2.1 decodes it, 2.0 did not
        url = url.set(database=filled.partition("://")[2].partition("/")[2].partition("?")[0])
    text = resolve(rest).strip().rstrip(";").rstrip()
    if not QUERY.match(text):
        return DatabaseAddress(shown, url, table=text or None)
    if ";" in QUOTED.sub("", text):
        raise UserError(f'"{shown}" holds more than one statement: name one SELECT.')
    return DatabaseAddress(shown, url, query=text)


def make_engine(address: DatabaseAddress, reading: Reading) -> sa.Engine:
    """Return a read-only engine for `address`, without a pool of connections.

    Raises:
        UserError: the driver is not installed, or the database's file does not exist.
    """
    url = address.url
    try:
        dialect = url.get_dialect()
        if dialect.is_async:
            plain = url.get_backend_name()
            raise UserError(f'"{address.shown}" names an async driver: write {plain}:// in its place.')
        if url.get_backend_name() in FILES:
            url = _place_file(address, reading.root)
        elif url.get_backend_name() in ("mysql", "mariadb") and not url.database:
            raise UserError(f'"{address.shown}" names no database: write it after the host, as in host/shop.')
        options = _options(url, reading.fetch.timeout_seconds)
        return sa.create_engine(url, poolclass=sa.NullPool, connect_args=options)
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        module = getattr(error, "name", None) or url.get_backend_name()
        package = PACKAGES.get(module, module)
        raise UserError(
            f'"{address.shown}" is read by {package}, which is not installed: run `{install_command(package)}`.'
        ) from None


def _shorten(head: str, rest: str) -> str:
    text = " ".join(rest.split())
    return head + (f"#{text[:SHOWN]}…" if len(text) > SHOWN else f"#{text}" if text else "")


def _options(url: URL, seconds: float) -> dict[str, object]:
    """Return the driver's settings; those in the address take precedence."""
    whole = max(2, math.ceil(seconds))
    known: dict[str, dict[str, object]] = {
        "psycopg": {"connect_timeout": whole},
        "psycopg2": {"connect_timeout": whole},
        "pymysql": {"connect_timeout": whole, "read_timeout": seconds, "write_timeout": seconds},
        "pysqlite": {"timeout": seconds},
        "duckdb_engine": {} if url.database in (None, "", ":memory:") else {"read_only": True},
    }
    return {key: value for key, value in known.get(url.get_driver_name(), {}).items() if key not in url.query}


def _place_file(address: DatabaseAddress, root: Path) -> URL:
    """Return the address with the path of the database's file relative to `root`.

    Raises:
        UserError: there is no such file.
    """
    url, name = address.url, address.url.database or ""
    if not name and url.get_backend_name() == "sqlite":
        raise UserError(f'"{address.shown}" names no file: write sqlite:///path/to/file.db#table.')
    if not name or name.startswith(ELSEWHERE):
        return url
    path = root / Path(name).expanduser()
    if not path.exists():
        path = root / Path(unquote(name)).expanduser()  # also after a secret was filled in
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f'"{address.shown}" names no database file that exists: check the path.{near}')
    if url.get_backend_name() == "duckdb":
        return url.set(database=str(path))
    return url.set(database=f"file:{quote(str(path))}").update_query_dict({"mode": "ro", "uri": "true"})
