"""CSV and its kin, in any dialect, read as the contract's kinds, and as text where values do not fit."""

import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO, Self

import pyarrow as pa
import pyarrow.csv as pa_csv

from ondol.config.data import Dialect
from ondol.errors import UserError
from ondol.ingestion.cells import NULLS, NUMERIC, converts, read_cells, trim_text
from ondol.ingestion.files import FileSource, NoRows, check_names
from ondol.ingestion.fitting import LADDERS, TEXT, cast_texts, find_fitting, is_finite, survives_float
from ondol.ingestion.raw import RawFile, explain_damage, explain_encoding, has_open_quote
from ondol.ingestion.sniffing import (
    RECORDS,
    find_layout,
    find_line,
    has_empty_tail,
    read_lines,
    skip_lines,
    sniff_delimiter,
    split_hint,
)
from ondol.ingestion.sources import Columns, Retyped
from ondol_serving.grammar import normalize

BLANKS = tuple(" " * width for width in range(1, 9))
BLOCK_BYTES = 4 << 20
HELD_BYTES = 64 << 20  # as much is read before the first batch is yielded, so that most surprises stay inside
TAIL = "\x00"  # the name of a column that is none: each line ends in a delimiter

OPEN_QUOTE = "opens a quote that is never closed: close it, or double it where it belongs to the text."


class Unparsed(Exception):
    """A value does not fit the type of this column."""

    def __init__(self, name: str) -> None:
        """Remember which column."""
        super().__init__(name)
        self.name = name


class DelimitedSource(FileSource):
    """One file of delimited text.

    Attributes:
        types: What each column is read as; `settle` changes it where a value does not fit.
        dialect: How it is written.
    """

    typed = False
    dialect: Dialect

    def __init__(
        self,
        file: RawFile,
        columns: Columns,
        head: bytes,
        quoted: bool = False,
        dialect: Dialect | None = None,
        expected: Collection[str] | None = None,
    ) -> None:
        """Find what the dialect leaves open, and the names.

        Args:
            file: The file.
            columns: What its columns are read as; see `Reading`.
            head: The first of its text, in UTF-8.
            quoted: Whether what stands in quotes is never missing.
            dialect: How it is written.
            expected: Names in the header, where the dialect is to be found; see `Reading`.

        Raises:
            UserError: there is only a header, or the names are no good.
        """
        super().__init__(file, columns)
        dialect, delimiter = dialect or Dialect(), None
        hint, text = split_hint(head)
        if expected is not None:
            given = (
                dialect if hint is None else Dialect(**({"delimiter": hint} | dialect.model_dump(exclude_unset=True)))
            )
            dialect, delimiter = find_layout(_normalize_head(text), file.uri, given, expected)
        self.dialect = dialect
        self._above = dialect.skip_lines + (hint is not None)
        text = skip_lines(text, dialect.skip_lines)
        wanted = columns if isinstance(dialect.header, bool) else dict.fromkeys(dialect.header, "text")
        self._delimiter = (
            delimiter or dialect.delimiter or hint or sniff_delimiter(_normalize_head(text), file.uri, wanted)
        )
        lines = read_lines(text, self._delimiter, RECORDS)
        if not lines:
            raise NoRows(f'"{file.uri}" is empty below its first {self._above} lines: it needs a header and rows.')
        records = [record for _, record in lines]
        self._has_tail = dialect.header is True and has_empty_tail(records)
        if self._has_tail:
            records[0] = records[0][: len(records[1]) - 1]
        self._raw_names = self._name_columns(records[0])
        self._names = [trim_text(name) for name in self._raw_names] if dialect.trim else self._raw_names
        check_names(self._names, file.uri)
        written, self._names = self._names, [normalize(name) for name in self._names]
        self.renamed = frozenset(self._names).difference(written)
        self._require_known(columns)
        if dialect.header is True and len(records) < 2:
            raise NoRows(f'"{file.uri}" has a header but no rows: name a file with rows.')
        self._header_lines = lines[1][0] if dialect.header is True and len(lines) > 1 else 0
        self.types = self._first_types()
        self._wrong: pa_csv.InvalidRow | None = None
        self._quoted = quoted
        self._has_hex = False  # where there is any, integers are read as text first

    def _require_known(self, columns: Columns) -> None:
        """Check that a table that is read by settings of its own has any of the columns that are asked for.

        Raises:
            UserError: it has none, as one that is written in another way.
        """
        told = self.dialect.model_dump(exclude_defaults=True, mode="json")
        if columns and told and not set(columns) & set(self._names):
            said = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in told.items())
            raise UserError(
                f'"{self.uri}" has no column that is asked for when it is read as [data] in config.toml says ({said}); '
                f"its first is {self._names[0]!r}: save it as these settings say, or as Parquet."
            )

    def _name_columns(self, first: list[str]) -> list[str]:
        """Return the columns' names, by the first record."""
        header = self.dialect.header
        if header is True:
            return first
        names = [f"column_{place}" for place in range(1, len(first) + 1)] if header is False else list(header)
        if len(names) != len(first):
            raise UserError(
                f'"{self.uri}" has {len(first)} columns, and header under [data] in config.toml names {len(names)}: '
                "name each."
            )
        return names

    @property
    def schema(self) -> pa.Schema:
        """Names and types, as far as they are known now."""
        return pa.schema(list(self.types.items()))

    def anew(self) -> Self:
        """Return the same file; see `FileSource`."""
        made = super().anew()
        made.types = self._first_types()
        return made

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`. A column where a value does not fit is text, whole."""
        return retype(lambda: self.read(self.types), lambda name: settle([self], name), self.uri)

    def kind(self, name: str) -> str:
        """Return the contract's kind of a column."""
        return (self.columns or {}).get(name, "text")

    def read(self, types: dict[str, pa.DataType], only: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """Yield the rows as `types`, just the columns `only` where any are named.

        Raises:
            Unparsed: a value does not fit.
        """
        raw = dict(zip(self._names, self._raw_names, strict=True))
        whole = [name for name, kind in types.items() if kind == pa.int64()]
        spelled = {name for name in types if self._converts(name) or (self._has_hex and name in whole)}
        convert = pa_csv.ConvertOptions(
            column_types={raw[name]: TEXT if name in spelled else kind for name, kind in types.items()},
            default_column_type=TEXT,
            null_values=NULLS if self.columns is None else NULLS + BLANKS,
            strings_can_be_null=True,
            quoted_strings_can_be_null=not self._quoted,
            include_columns=[raw[name] for name in only] or None,
            timestamp_parsers=[pa_csv.ISO8601],  # its strptime reads 05/01/20 as a day of the year 5
        )
        parse = pa_csv.ParseOptions(
            delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=self._refuse_row
        )
        options = pa_csv.ReadOptions(block_size=BLOCK_BYTES, skip_rows=self._above)
        if self._has_tail:
            options.skip_rows, options.column_names = self._above + self._header_lines, [*self._raw_names, TAIL]
        elif self.dialect.header is not True:
            options.column_names = self._raw_names
        with explain_damage(self.uri), self.file.open() as stream:
            watched = _HexWatch(stream) if whole and not self._has_hex else stream
            try:
                batch = None
                for batch in pa_csv.open_csv(watched, options, parse, convert):
                    if isinstance(watched, _HexWatch) and watched.found:
                        self._has_hex = True
                        raise Unparsed(whole[0])
                    yield self._spell(batch, types, spelled, only or self._names)
                if batch is not None and ends_in_line_break(batch) and has_open_quote(self.file):
                    raise UserError(f'"{self.uri}" {OPEN_QUOTE}')
            except UnicodeDecodeError:
                raise explain_encoding(self.file) from None
            except pa.ArrowInvalid as error:
                raise self._explain(str(error)) from None

    def _converts(self, name: str) -> bool:
        """Return True if a column's cells are changed first, see `ondol.ingestion.cells`; without kinds none are."""
        return self.columns is not None and converts(self.dialect, self.kind(name), name)

    def _spell(
        self, batch: pa.RecordBatch, types: dict[str, pa.DataType], spelled: set[str], names: Sequence[str]
    ) -> pa.RecordBatch:
        """Return the rows under their names, those columns that are spelled in the dialect as `types`.

        Raises:
            Unparsed: a value does not fit.
        """
        arrays = list(batch.columns)
        if len(arrays) > len(names) and (tail := arrays.pop()).null_count < len(tail):
            raise UserError(
                f'"{self.uri}" has a value behind the last column, where the first rows have none: give that column '
                "a name."
            )
        for place, name in enumerate(names):
            if name not in spelled:
                if not is_finite(arrays[place]):
                    raise Unparsed(name)
                continue
            values = read_cells(arrays[place], self.dialect, self.kind(name), name)
            try:
                arrays[place] = cast_texts(values, types[name]) if types[name] != TEXT else values
            except pa.ArrowInvalid:
                raise Unparsed(name) from None
        return pa.RecordBatch.from_arrays(arrays, names=list(names))

    def _first_types(self) -> dict[str, pa.DataType]:
        firsts = {name: LADDERS[self.kind(name)][0] for name in self._names}
        # Dates and the like that must be changed first stay text: the contract reads them.
        return {
            name: TEXT if self.kind(name) not in NUMERIC and self._converts(name) else first
            for name, first in firsts.items()
        }

    def _refuse_row(self, row: pa_csv.InvalidRow) -> str:
        self._wrong = row
        return "error"

    def _explain(self, message: str) -> Exception:
        """Return what an Arrow error means: a value that does not fit, or a sentence for the user."""
        if "straddl" in message:
            return UserError(f'"{self.uri}" {OPEN_QUOTE}')
        if "invalid UTF8" in message:
            return explain_encoding(self.file)
        if found := re.search(r"In CSV column #(\d+): ", message):
            return Unparsed(self._names[int(found[1])])
        if (row := self._wrong) is not None:
            with self.file.open() as stream:
                line = find_line(stream, self._delimiter, len(self._names), self._above)
            first = "header" if self.dialect.header is True else "first line"
            sign = re.escape(self._delimiter)
            spaced = re.compile(rf'(^|{sign}) +"(?:[^"]|"")*{sign}')
            remedy = "correct it, or quote fields that hold the delimiter"
            if any(map(spaced.search, (row.text, self._delimiter.join(self._raw_names)))):
                remedy = "a quote opens a field only where no space is before it, so take that space out"
            return UserError(
                f'Line {line} of "{self.uri}" has {row.actual_columns} fields where the {first} has '
                f"{row.expected_columns}: {remedy}."
            )
        return UserError(f'"{self.uri}" cannot be read as CSV: {message.splitlines()[0]}.')


def _normalize_head(head: bytes) -> bytes:
    """Return the beginning of a file with the names in it as they are asked for."""
    return head if head.isascii() else normalize(head.decode("utf-8", "ignore")).encode()


class _HexWatch(io.RawIOBase):
    """A stream that notes where it has `0x`, behind which Arrow's reader takes digits for a hexadecimal integer."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Watch what is read from `stream`."""
        super().__init__()
        self._stream, self._last = stream, b""
        self.found = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        block = self._stream.read(size)
        if not self.found and (b"x" in block or b"X" in block):  # which is quicker to say than where
            near = self._last + block
            self.found = b"0x" in near or b"0X" in near
        self._last = block[-1:]
        return block


def settle(sources: Sequence[DelimitedSource], name: str) -> None:
    """Read all columns that are no text yet as text, once, and give each the first type that fits it in all `sources`.

    Args:
        sources: Files that are one table: a column has the same type in all.
        name: The column where a value did not fit.
    """
    types = {n: kind for source in sources for n, kind in source.types.items() if kind != TEXT}
    before = types[name]
    long = set()  # columns with integers that a later float64 would round
    for source in sources:
        here = [n for n in source.types if n in types]
        for batch in source.read(dict.fromkeys(here, TEXT), only=here) if here else ():
            for column in here:
                values = batch.column(column)
                types[column] = find_fitting(values, source.kind(column), types[column])
                if types[column] == pa.int64() and not survives_float(values):
                    long.add(column)
    types |= {column: TEXT for column in long if types[column] != pa.int64()}
    if types[name] == before:  # the two parsers disagree: text always holds
        types[name] = TEXT
    for source in sources:
        source.types |= {n: types[n] for n in source.types if n in types}


def retype(
    read: Callable[[], Iterator[pa.RecordBatch]], mend: Callable[[str], None], uri: str
) -> Iterator[pa.RecordBatch]:
    """Yield what `read` yields; where a value does not fit, have the column's type mended and begin again.

    Raises:
        Retyped: rows were yielded before.
    """
    yielded = False
    while True:
        try:
            for batch in hold_back(read(), HELD_BYTES):
                yielded = True
                yield batch
            return
        except Unparsed as error:
            mend(error.name)
        if yielded:
            raise Retyped(uri)


def ends_in_line_break(batch: pa.RecordBatch) -> bool:
    """Tell whether a text of the last row holds a line break, as when a quote swallows the rest of a file."""
    last = batch.slice(batch.num_rows - 1)
    return any("\n" in (text[0].as_py() or "") for text in last.columns if text.type == TEXT)


def hold_back(batches: Iterator[pa.RecordBatch], most: int) -> Iterator[pa.RecordBatch]:
    """Yield `batches`, the first only when more than `most` bytes have been read, or all."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size > most:
            yield from held
            break
    else:
        yield from held
        return
    yield from batches
