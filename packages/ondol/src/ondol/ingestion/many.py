"""Many files as one table: those of a folder, or those that a pattern such as `data/2024-*.csv` matches."""

import glob
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from ondol.config import Dialect
from ondol.errors import UserError
from ondol.ingestion.columns import TEXT
from ondol.ingestion.csv_files import DelimitedSource, agree_types, retype
from ondol.ingestion.files import FileSource, NoRows, RawFile, open_table, sign
from ondol.ingestion.sources import Reading
from ondol.snapshots.snapshots import cast_values, unify
from ondol.storage.remote_files import WILD, choose


class ManySource:
    """Files of any formats that are read one after another.

    Attributes:
        uri: The address that the user wrote.
        typed: Whether all formats have types.
    """

    def __init__(self, uri: str, parts: Mapping[str, FileSource], reading: Reading) -> None:
        """Read `parts` (by name) in this order."""
        self.uri = uri
        self.typed = all(part.typed for part in parts.values())
        self.renamed = frozenset[str]().union(*(part.renamed for part in parts.values()))
        self._names = parts
        self._parts = list(parts.values())
        self._reading = reading

    @property
    def schema(self) -> pa.Schema:
        """All columns of all files: integers and floats become floats, other mixtures text.

        Raises:
            UserError: a file lacks a required column that others have.
        """
        schemas = [part.schema for part in self._parts]
        self._require_alike(schemas)
        every = unify(reversed(schemas))
        known = unify(
            pa.schema([field for field in schema if field.name not in part.vacant])
            for part, schema in zip(self._parts, schemas, strict=True)
        )
        types = {name: known.field(name).type if name in known.names else TEXT for name in every.names}
        kinds = self._reading.columns or {}
        for name, kind in types.items():
            # As float64, an integer of one file would be rounded because another file has fractions.
            whole = kinds.get(name) == "integer" and kind == pa.float64()
            if whole and any(name in schema.names and schema.field(name).type == pa.int64() for schema in schemas):
                types[name] = TEXT
        for part in self._texts:  # as text, a value is read unchanged
            part.types |= {name: TEXT for name in part.types if types[name] == TEXT}
        metadata = {field.name: field.metadata for schema in reversed(schemas) for field in schema}
        return pa.schema([pa.field(name, kind, metadata=metadata[name]) for name, kind in types.items()])

    def fingerprint(self) -> str:
        """Return the SHA-256 of the files' names, order and bytes, and of the settings for reading them."""
        return sign([list(item) for item in self._digests.items()], self._reading.columns, self._reading.dialect)

    def files(self) -> dict[str, str]:
        """Return a SHA-256 of each file's bytes and settings; see `sources.MultiFileSource`."""
        reading = self._reading
        return {name: sign(digest, reading.columns, reading.dialect) for name, digest in self._digests.items()}

    def without(self, names: Collection[str]) -> "ManySource":
        """Return the source of the other files."""
        rest = {name: part.reset_copy() for name, part in self._names.items() if name not in names}
        return ManySource(self.uri, rest, self._reading)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`."""
        return retype(self._read, lambda name: agree_types(self._texts, name), self.uri)

    @property
    def dialect(self) -> Dialect | None:
        """The dialect of the files of delimited text, equal except for the delimiter; None if there are none.

        Raises:
            UserError: two dialects differ in more than the delimiter.
        """
        texts = self._texts
        if not texts:
            return None
        trim = any(part.dialect.trim for part in texts)
        ways = [part.dialect.model_copy(update={"trim": trim}) for part in texts]
        if any(way.delimiter != ways[0].delimiter for way in ways):
            ways = [way.model_copy(update={"delimiter": None}) for way in ways]
        for part, way in zip(texts, ways, strict=True):
            for name in Dialect.model_fields:
                here, there = getattr(ways[0], name), getattr(way, name)
                if here != there:
                    raise UserError(
                        f'"{texts[0].uri}" and "{part.uri}" have different formats ({name}: {here!r} and {there!r}): '
                        "one table needs one format; save them alike, or leave one out."
                    )
        return ways[0]

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {name: part.file.digest() for name, part in self._names.items()}

    @property
    def _texts(self) -> list[DelimitedSource]:
        return [part for part in self._parts if isinstance(part, DelimitedSource)]

    def _read(self) -> Iterator[pa.RecordBatch]:
        schema = self.schema
        for part in self._parts:
            rows = part.read(part.types) if isinstance(part, DelimitedSource) else part.batches()
            for batch in rows:
                yield _conform(batch, schema)

    def _require_alike(self, schemas: list[pa.Schema]) -> None:
        required = self._reading.columns if self._reading.required is None else self._reading.required
        for name in required or ():
            lacking = [part for part, schema in zip(self._parts, schemas, strict=True) if name not in schema.names]
            if 0 < len(lacking) < len(schemas):
                raise UserError(
                    f'"{lacking[0].uri}" has no column "{name}", which other files of "{self.uri}" have: '
                    "add it, or leave the file out."
                )


def open_many(uri: str, given: Path, reading: Reading) -> ManySource:
    """Open the files in the folder `given`, or those that match it as a pattern.

    Raises:
        UserError: there is none, or one is not a table.
    """
    fixed, pattern = split_pattern(reading.root, given)
    base = reading.root / fixed
    found = base.rglob("*") if not pattern else (base / name for name in _match(base, pattern))
    names = choose(path.relative_to(base).as_posix() for path in found if path.is_file())
    shown = fixed if pattern else Path(uri)
    files = {name: RawFile((shown / name).as_posix(), base / name, reading.fetch.max_ratio) for name in names}
    return open_parts(uri, files, reading)


def open_parts(uri: str, files: Mapping[str, RawFile], reading: Reading) -> ManySource:
    """Open files (by name) as one table; files without rows are left out.

    Raises:
        NoRows: no file has rows.
        UserError: there is none, or one is not a table.
    """
    if not files:
        raise UserError(f'"{uri}" names no file: check the path, or the pattern (a ** matches any folders).')
    parts = {}
    for name, file in files.items():
        try:
            parts[name] = open_table(file, reading)
        except NoRows:  # a job that writes each day writes an empty file on a quiet one
            continue
    if not parts:
        raise NoRows(f'None of the {len(files):,} files of "{uri}" has rows: name files with rows.')
    return ManySource(uri, parts, reading)


def split_pattern(root: Path, given: Path) -> tuple[Path, str]:
    """Return the folder above the first part with a wildcard (unless a file has that name), and the rest."""
    fixed = Path()
    for place, part in enumerate(given.parts):
        if WILD.search(part) and not (root / fixed / part).exists():
            return fixed, "/".join(given.parts[place:])
        fixed /= part
    return fixed, ""


def _match(base: Path, pattern: str) -> Iterator[str]:
    return glob.iglob(pattern, root_dir=base, recursive=True)  # noqa: PTH207 - pathlib refuses a** and skips files


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the rows in the columns and types of `schema`; a column that they lack has only missing values."""
    if batch.schema.equals(schema):
        return batch
    arrays = [
        cast_values(batch.column(field.name), field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
