"""Files as sources: CSV of any delimiter, JSON Lines (both plain or compressed) and Parquet."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flows.errors import UserError, nearest
from flows.sources import Columns, Source
from flows.sources.raw import read_head, refuse_encoding, refuse_foreign

READER = 1  # raised whenever the same bytes would be read as other values
PARQUET = b"PAR1"
JSON_START = re.compile(rb"(\xef\xbb\xbf)?\s*(\{\s*[\"}]|\[\s*\{)")


class FileSource:
    """What all files have in common: where they are, and the digest of what they hold.

    Attributes:
        typed: Whether the format has types, so that text in it is text.
    """

    typed = True

    def __init__(self, uri: str, path: Path, columns: Columns) -> None:
        """Remember what is read and as what."""
        self.uri = uri
        self.path = path
        self.columns = columns

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file's bytes and of how they are read."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        kinds = None if self.columns is None else sorted(self.columns.items())
        digest.update(json.dumps([READER, kinds], ensure_ascii=False).encode())
        return digest.hexdigest()


def open_file(uri: str, columns: Columns, root: Path) -> Source:
    """Open the file at the path `uri`, relative to `root`; its content tells its format.

    Raises:
        UserError: it is missing, a folder, empty, or no table.
    """
    path = (root / Path(uri).expanduser()).resolve()
    _check_exists(path, uri)
    head = read_head(path, uri)
    if head.startswith(PARQUET):
        from flows.sources.parquet import ParquetSource

        return ParquetSource(uri, path, columns)
    refuse_foreign(head, uri)
    refuse_encoding(head, path, uri)
    if not head.strip().removeprefix(b"\xef\xbb\xbf"):
        raise UserError(f'"{uri}" is empty: it needs a header and rows.')
    if JSON_START.match(head):
        from flows.sources.jsonlines import JsonLinesSource

        return JsonLinesSource(uri, path, columns)
    from flows.sources.delimited import DelimitedSource

    return DelimitedSource(uri, path, columns, head)


def check_names(names: Sequence[str], uri: str) -> None:
    """Refuse a table whose columns cannot be told apart by name.

    Raises:
        UserError: a name is there twice, or is empty.
    """
    for place, name in enumerate(names, start=1):
        if not name.strip():
            raise UserError(
                f'Column {place} of "{uri}" has no name: name every column in the header '
                "(pandas writes such a column unless told index=False)."
            )
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise UserError(f'"{uri}" has {times} columns named "{name}": give each a name of its own.')


def _check_exists(path: Path, uri: str) -> None:
    if path.is_dir():
        raise UserError(f'"{uri}" is a folder: name one file in it.')
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f'"{uri}" does not exist (looked for {path}): check the path.{near}')
    if not path.is_file():
        raise UserError(f'"{uri}" is no regular file: name a CSV, Parquet or JSON Lines file.')
    if path.stat().st_size == 0:
        raise UserError(f'"{uri}" is empty: it needs a header and rows.')
