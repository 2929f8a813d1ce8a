"""CSV and its kin: any delimiter, read as the contract's kinds, and as text where values do not fit."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import pyarrow as pa
import pyarrow.csv as pa_csv

from flows.errors import UserError
from flows.sources import Columns, Retyped
from flows.sources.files import FileSource, NoRows, check_names
from flows.sources.fitting import DATE_FORMATS, LADDERS, TEXT, find_fitting, survives_float
from flows.sources.raw import RawFile, explain_damage, explain_encoding, has_open_quote
from flows.sources.sniffing import find_line, read_records, sniff_delimiter

NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "#N/A")
BLANKS = tuple(" " * width for width in range(1, 9))
BLOCK_BYTES = 4 << 20
HELD_BYTES = 64 << 20  # as much is read before the first batch is yielded, so that most surprises stay inside

OPEN_QUOTE = "opens a quote that is never closed: close it, or double it where it belongs to the text."


class Unparsed(Exception):
    """A value does not fit the type of this column."""

    def __init__(self, name: str) -> None:
        """Remember which column."""
        super().__init__(name)
        self.name = name


class DelimitedSource(FileSource):
    """One file of delimited text, in UTF-8, with a header.

    Attributes:
        types: What each column is read as; `settle` changes it where a value does not fit.
    """

    typed = False

    def __init__(self, file: RawFile, columns: Columns, head: bytes, quoted: bool = False) -> None:
        """Find the delimiter and the names; with `quoted`, what stands in quotes is never missing.

        Raises:
            UserError: there is only a header, or the names are no good.
        """
        super().__init__(file, columns)
        self._delimiter = sniff_delimiter(head, file.uri, columns)
        records = read_records(head, self._delimiter, 2)
        self._names = records[0]
        check_names(self._names, file.uri)
        if len(records) < 2:
            raise NoRows(f'"{file.uri}" has a header but no rows: name a file with rows.')
        self.types = self._first_types()
        self._wrong: pa_csv.InvalidRow | None = None
        self._quoted = quoted

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
        """Yield the rows; see `flows.sources.Source`. A column where a value does not fit is text, whole."""
        return retype(lambda: self.read(self.types), lambda name: settle([self], name), self.uri)

    def kind(self, name: str) -> str:
        """Return the contract's kind of a column."""
        return (self.columns or {}).get(name, "text")

    def read(self, types: dict[str, pa.DataType], only: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """Yield the rows as `types`, just the columns `only` where any are named.

        Raises:
            Unparsed: a value does not fit.
        """
        convert = pa_csv.ConvertOptions(
            column_types=types,
            default_column_type=TEXT,
            null_values=NULLS if self.columns is None else NULLS + BLANKS,
            strings_can_be_null=True,
            quoted_strings_can_be_null=not self._quoted,
            include_columns=only or None,
            timestamp_parsers=[pa_csv.ISO8601, *DATE_FORMATS],
        )
        parse = pa_csv.ParseOptions(
            delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=self._refuse_row
        )
        with explain_damage(self.uri), self.file.open() as stream:
            try:
                batch = None
                for batch in pa_csv.open_csv(stream, pa_csv.ReadOptions(block_size=BLOCK_BYTES), parse, convert):
                    yield batch
                if batch is not None and ends_in_line_break(batch) and has_open_quote(self.file):
                    raise UserError(f'"{self.uri}" {OPEN_QUOTE}')
            except pa.ArrowInvalid as error:
                raise self._explain(str(error)) from None

    def _first_types(self) -> dict[str, pa.DataType]:
        return {name: LADDERS[self.kind(name)][0] for name in self._names}

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
                line = find_line(stream, self._delimiter, len(self._names))
            return UserError(
                f'Line {line} of "{self.uri}" has {row.actual_columns} fields where the header has '
                f"{row.expected_columns}: mend it, or quote fields that hold the delimiter."
            )
        return UserError(f'"{self.uri}" cannot be read as CSV: {message.splitlines()[0]}.')


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
