"""Artifact locations that follow the project: MLflow stores them as absolute URIs, which a copy or a move makes wrong.

A copied project has a copy of the database too. Unless its URIs are rewritten, its runs write into the original.
"""

import re
import shutil
import sqlite3
import urllib.parse
import urllib.request
from contextlib import closing, suppress
from pathlib import Path

from ondol.config.settings import FILE_NAME
from ondol.storage.files import scratch

PLACES = ("/.ml/mlflow/artifacts", "/mlruns")  # below a project: where `connection` puts artifacts, MLflow's default
LOCAL = re.compile(
    rf"(?P<root>(?:file:|/).*)(?P<place>{'|'.join(map(re.escape, PLACES))})(?P<rest>(?:/.*)?)", re.DOTALL
)
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
WAIT_SECONDS = 30.0


def relocate_artifacts(database: Path, artifacts: Path) -> int:
    """Rewrite the artifact URIs of `database` that name another project's folder, in one transaction.

    Artifacts that an earlier version of this template left in that folder are copied to `artifacts`. URIs of other
    places, such as a bucket, stay.

    Args:
        database: MLflow's SQLite database; nothing is done where there is none.
        artifacts: The project's folder of artifacts.

    Returns:
        How many URIs were rewritten.

    Raises:
        sqlite3.Error: the database cannot be read or written.
    """
    if not database.is_file():
        return 0
    here = artifacts.as_uri()
    with closing(sqlite3.connect(database, timeout=WAIT_SECONDS, isolation_level=None)) as connection:
        if not _foreign(connection, here):  # nothing is locked where nothing is to be done
            return 0
        connection.execute("begin immediate")
        found = _foreign(connection, here)
        for table, column, row, old in found:
            _, rest = _split(old)
            connection.execute(f'update "{table}" set "{column}" = ? where rowid = ?', (here + rest, row))
        for table, _, _, old in found:
            if table in ("runs", "logged_models"):
                _bring(old, artifacts)
        connection.execute("commit")
    return len(found)


def _split(uri: str) -> tuple[str, str]:
    """Return the project that a URI is in, as it is written there, and what follows its folder of artifacts."""
    found = LOCAL.fullmatch(uri)
    assert found is not None
    return found["root"], found["rest"]


def _foreign(connection: sqlite3.Connection, here: str) -> list[tuple[str, str, int, str]]:
    """Return table, column, row id and value of each URI below the artifacts of another folder.

    Any folder may be called `mlruns`: it counts only in a project whose folder of artifacts the database names too.
    """
    columns = {
        (table, name)
        for table in {table for table, _ in COLUMNS}
        for (name,) in connection.execute("select name from pragma_table_info(?)", (table,))
    }
    found = []
    for table, column in COLUMNS:
        if (table, column) in columns:
            query = (
                f'select rowid, "{column}" from "{table}" where (instr("{column}", ?) or instr("{column}", ?)) '
                f'and "{column}" <> ? and substr("{column}", 1, ?) <> ?'
            )
            values = (*PLACES, here, len(here) + 1, f"{here}/")
            rows = connection.execute(query, values)
            found += [(table, column, row, value, at) for row, value in rows if (at := LOCAL.fullmatch(value))]
    projects = {local_path(at["root"]) for *_, at in found if at["place"] == PLACES[0]}
    projects.add(local_path(here.removesuffix(PLACES[0])))
    return [
        (table, column, row, value)
        for table, column, row, value, at in found
        if at["place"] == PLACES[0] or local_path(at["root"]) in projects
    ]


def _bring(old: str, artifacts: Path) -> None:
    """Copy what is at the URI `old` and missing here; the source is left as it is.

    Where the other folder is still a project, it may have changed its artifacts since: only what is missing as a whole
    comes. A folder that is no project any more holds what was written there after this project was moved away.
    """
    root, rest = _split(old)
    source, project = local_path(old), local_path(root)
    target = artifacts / rest.lstrip("/")
    if not source.is_dir() or (target.is_dir() and (project / FILE_NAME).is_file()):
        return
    for file in [path for path in sorted(source.rglob("*")) if path.is_file()]:
        place = target / file.relative_to(source)
        if not place.exists():
            with scratch(place) as made, suppress(FileNotFoundError):
                shutil.copy2(file, made)
                made.replace(place)


def local_path(uri: str) -> Path:
    """Return the path of a `file:` URI, or of what is a path already."""
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path) if uri.startswith("file:") else uri)
