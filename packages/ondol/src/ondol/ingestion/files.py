"""Files as sources: CSV of any delimiter, JSON Lines (both plain or compressed) and Parquet; see also `many`."""

import codecs
import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ondol.config.data import Dialect
from ondol.errors import UserError, nearest
from ondol.ingestion.encodings import find_file_encoding
from ondol.ingestion.json_array import is_json
from ondol.ingestion.raw import UTF_8, RawFile, refuse_encoding, refuse_foreign
from ondol.ingestion.sources import Columns, Reading, Source
from ondol.storage.addresses import resolve
from ondol.storage.places import WILD
from ondol_serving.grammar import normalize

if TYPE_CHECKING:
    import pyarrow as pa

READER = 2  # raised whenever the same bytes would be read as other values
PARQUET = b"PAR1"


class NoRows(UserError):
    """A file is fine but for having no rows: alone it is refused, among others it adds none."""


class FileSource(ABC):
    """What all files have in common: where they are, and the digest of what they hold.

    Attributes:
        typed: Whether the format has types, so that text in it is text.
        vacant: Columns without any value, which are of no type.
        schema: Names and types; the names are in Unicode's normal form C.
        renamed: Those that are written in another form.
        dialect: How delimited text is written; None for other formats.
    """

    typed = True
    dialect: Dialect | None = None
    vacant: frozenset[str] = frozenset()
    renamed: frozenset[str] = frozenset()
    schema: "pa.Schema | Any"

    def __init__(self, file: RawFile, columns: Columns) -> None:
        """Remember what is read and as what."""
        self.uri = file.uri
        self.file = file
        self.columns = columns

    def fingerprint(self) -> str:
        """Return the SHA-256 of the file's bytes and of how they are read."""
        return sign(self.file.digest(), self.columns, self.dialect)

    def anew(self) -> Self:
        """Return the same file, without what was learned of its types from reading it."""
        return copy.copy(self)

    @abstractmethod
    def batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield the rows; see `ondol.ingestion.sources.Source`."""


def sign(content: Any, columns: Columns, dialect: Dialect | None = None) -> str:
    """Return the SHA-256 of what files hold, given as a JSON-able value, and of how they are read."""
    kinds = None if columns is None else sorted(columns.items())
    told = [READER, kinds, content]
    if dialect is not None and dialect != Dialect():
        told.append(dialect.model_dump(mode="json"))
    return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()


def open_file(uri: str, reading: Reading) -> Source:
    """Open the file, or the files of the folder or the pattern, at the path `uri`; their content tells their formats.

    Raises:
        UserError: there is none, or one is no table.
    """
    given = Path(resolve(uri)).expanduser()
    path = (reading.root / given).resolve()
    if path.is_dir() or (not path.exists() and WILD.search(str(given))):
        from ondol.ingestion.many import open_many

        return open_many(uri, given, reading)
    _check_exists(path, uri)
    return open_table(RawFile(uri, path, reading.fetch.max_ratio), reading)


def open_table(file: RawFile, reading: Reading) -> FileSource:
    """Open one file, which exists.

    Raises:
        NoRows: it has none.
        UserError: it is no table.
    """
    head, columns, dialect = file.read_head(), reading.columns, reading.dialect
    if head.startswith(PARQUET):
        from ondol.ingestion.parquet import ParquetSource

        return ParquetSource(file, columns)
    of_json = is_json(head)
    if reading.expected is not None and "encoding" not in dialect.model_fields_set and not of_json:
        found = find_file_encoding(file, head)
        dialect = Dialect(**(dialect.model_dump(exclude_unset=True) | ({} if found in UTF_8 else {"encoding": found})))
    file = replace(file, encoding="utf-8" if of_json or head.startswith(codecs.BOM_UTF8) else dialect.encoding)
    refuse_foreign(head, file.uri, file.encoding)
    refuse_encoding(head, file)
    if file.encoding not in UTF_8:
        head = head.decode(file.encoding, errors="ignore").encode()
    if not head.strip().removeprefix(codecs.BOM_UTF8):
        raise NoRows(f'"{file.uri}" is empty: it needs a header and rows.')
    if of_json:
        from ondol.ingestion.jsonlines import JsonLinesSource

        return JsonLinesSource(file, columns)
    from ondol.ingestion.delimited import DelimitedSource

    return DelimitedSource(file, columns, head, reading.quoted, dialect, reading.expected)


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
    normal, alike = Counter(map(normalize, names)).most_common(1)[0]
    if alike > times:
        raise UserError(
            f'"{uri}" has {alike} columns named "{normal}", which differ only in how Unicode writes their letters '
            "(NFC or NFD): rename one."
        )
    if times > 1:
        raise UserError(f'"{uri}" has {times} columns named "{name}": give each a name of its own.')


def _check_exists(path: Path, uri: str) -> None:
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f'"{uri}" does not exist (looked for {path}): check the path.{near}')
    if not path.is_file():
        raise UserError(f'"{uri}" is no regular file: name a CSV, Parquet or JSON Lines file.')
