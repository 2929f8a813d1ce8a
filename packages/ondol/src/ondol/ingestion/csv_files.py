"""CSV files of any dialect, read in the contract's types; a column with a value of another type is read as text.

The value of a cell depends only on the cell, its column's kind and the settings.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import IO, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from ondol.config import Dialect
from ondol.contract.checking import normalize_texts
from ondol.errors import UserError
from ondol.ingestion.columns import LADDERS, TEXT, cast_texts, find_fitting, is_finite, survives_float
from ondol.ingestion.files import (
    FileSource,
    NoRows,
    RawFile,
    check_names,
    explain_encoding,
    explain_read_errors,
    has_open_quote,
)
from ondol.ingestion.sources import Columns, Retyped
from ondol_serving.grammar import normalize

NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "#N/A")
NUMERIC = ("number", "integer")
NO_NUMBER = "'"  # spreadsheets mark a text that looks like a number in this way
PLAIN = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"
SPACES = " \u00a0\u2009\u202f"
ALIKE = {" ": f"[{SPACES}]", "'": "['’]", "’": "['’]"}


def converts(dialect: Dialect, kind: str, name: str) -> bool:
    """Return True if a column's cells may need a conversion before the contract can read them."""
    if dialect.trim or name_markers(dialect, kind, name):
        return True
    return kind in NUMERIC and (dialect.decimal, dialect.thousands) != (".", "")


def name_markers(dialect: Dialect, kind: str, name: str) -> tuple[str, ...]:
    """Return the markers of missing values for the column `name` of `kind`."""
    if isinstance(dialect.missing, dict):
        return dialect.missing.get(name, ())
    return () if kind == "text" else dialect.missing


def read_cells(values: pa.Array, dialect: Dialect, kind: str, name: str) -> pa.Array:
    """Convert a text column: markers of missing values to null, and numbers to the form `1234.5`.

    A text that looks like a number, but is not one in the table's notation, gets a leading apostrophe, so that it is
    not read as a number.

    Args:
        values: The text in the file; null if missing.
        dialect: The dialect of the file.
        kind: The contract's kind of the column.
        name: Its name.
    """
    if dialect.trim:
        values = _trim(values)
    if markers := name_markers(dialect, kind, name):
        texts = normalize_texts(pa.chunked_array([pc.utf8_trim_whitespace(values)])).combine_chunks()
        found = pc.is_in(texts, value_set=pa.array(markers, values.type))
        values = pc.if_else(found, None, values) if pc.any(found).as_py() else values
    if kind in NUMERIC and (dialect.decimal, dialect.thousands) != (".", ""):
        values = read_numbers(values, dialect.decimal, dialect.thousands)
    return values


def trim_text(text: str) -> str:
    """Return a text without surrounding spaces, and without quotes inside these."""
    bare = text.strip()
    return bare[1:-1] if len(bare) > 1 and bare[0] == bare[-1] == '"' and '"' not in bare[1:-1] else bare


def _trim(values: pa.Array) -> pa.Array:
    """Remove the spaces around texts, and quotes that were not read as quotes because of a space before them."""
    raw, values = values, pc.utf8_trim_whitespace(values)
    quoted = pc.match_substring_regex(values, '^"[^"]*"$')
    if pc.any(quoted).as_py():
        values = pc.if_else(quoted, pc.utf8_slice_codeunits(values, 1, -1), values)
    empty = pc.and_(pc.is_in(values, value_set=pa.array(NULLS, values.type)), pc.not_equal(values, raw))
    return pc.if_else(empty, None, values) if pc.any(empty).as_py() else values


def read_numbers(values: pa.Array, decimal: str, thousands: str) -> pa.Array:
    """Convert texts that are numbers in a notation to the form `1234.5`; see `read_cells` for other texts."""
    fits = pc.match_substring_regex(values, number_pattern(decimal, thousands))
    plain = pc.utf8_trim(values, characters=SPACES + "\t") if thousands == " " else pc.utf8_trim_whitespace(values)
    if thousands:
        plain = pc.replace_substring_regex(plain, ALIKE.get(thousands, re.escape(thousands)), "")
    if decimal != ".":
        plain = pc.replace_substring(plain, decimal, ".")
    if pc.all(fits).as_py() is not False:
        return plain
    feigned = pc.match_substring_regex(values, PLAIN)
    others = pc.if_else(feigned, pc.binary_join_element_wise(NO_NUMBER, values, ""), values)
    return pc.if_else(fits, plain, others)


def write_numbers(values: pa.ChunkedArray, decimal: str) -> pa.ChunkedArray:
    """Write a column as text, from which `read_cells` reads the same numbers and texts."""
    texts = values.cast(pa.string())
    if decimal == ".":
        return texts
    own = pc.replace_substring(texts, ".", decimal)
    texts = pc.if_else(pc.match_substring_regex(texts, PLAIN), own, texts)
    feigned = pc.match_substring_regex(texts, PLAIN.replace("^", f"^{NO_NUMBER}", 1))
    return pc.if_else(feigned, pc.utf8_slice_codeunits(texts, len(NO_NUMBER)), texts)


@lru_cache
def number_pattern(decimal: str, thousands: str) -> str:
    """Return the pattern of a number with these signs, with or without groups of digits (also Indian ones)."""
    point, mark = re.escape(decimal), ALIKE.get(thousands, re.escape(thousands))
    fraction = rf"({point}[0-9]*)?"
    forms = [rf"[0-9]+{fraction}", rf"{point}[0-9]+"]
    if thousands:
        forms.append(rf"[1-9][0-9]{{0,2}}({mark}[0-9]{{3}})+{fraction}")
        forms.append(rf"[1-9][0-9]?({mark}[0-9]{{2}})+{mark}[0-9]{{3}}{fraction}")
    return rf"^\s*[+-]?({'|'.join(forms)})([eE][+-]?[0-9]+)?\s*$"


DELIMITERS = (",", ";", "\t", "|", "^", "~", "\x01", ":")
RECORDS = 200
MOST_TITLES = 30
HINT = re.compile(rb"(?:\xef\xbb\xbf)?sep=([^\r\n\"])(?:\r\n|\n|\r)", re.IGNORECASE)  # written by Excel
COMMENT = ("#", "%", "//")
NAMED = re.compile(r"column_[1-9]\d*")
TYPED = re.compile(
    "|".join(f"(?:{pattern})" for pattern in (PLAIN, number_pattern(",", "."), number_pattern(".", ",")))
    + r"|^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?$|^\s*\d{1,2}:\d{2}(:\d{2}.*)?$|^\s*\d{4}년.*$"
)
MARKER = re.compile(r"\W*|n/?a|nan|none|null|unknown|missing", re.IGNORECASE)
csv.field_size_limit(1 << 24)


def read_records(head: bytes, delimiter: str, most: int) -> list[list[str]]:
    """Return the first `most` records of `head`, in UTF-8, that are not empty."""
    return [record for _, record in read_lines(head, delimiter, most)]


def read_lines(head: bytes, delimiter: str, most: int) -> list[tuple[int, list[str]]]:
    """Return the first `most` non-empty records, each with the number of lines above it."""
    text = head.decode("utf-8-sig", errors="ignore")
    records: list[tuple[int, list[str]]] = []
    above = 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        for record in reader:
            if record:
                records.append((above, record))
            above = reader.line_num
            if len(records) == most:
                break
    except csv.Error:  # a carriage return or a field that never ends: the real reader reports it
        pass
    return records


def split_hint(head: bytes) -> tuple[str | None, bytes]:
    """Return Excel's delimiter from a first line such as `sep=;`, if any, and the rest."""
    found = HINT.match(head)
    return (found[1].decode(), head[found.end() :]) if found else (None, head)


def skip_lines(head: bytes, count: int) -> bytes:
    """Return `head` without its first lines."""
    return b"".join(head.splitlines(keepends=True)[count:]) if count else head


def sniff_delimiter(head: bytes, uri: str, columns: Columns) -> str:
    """Return the delimiter that splits most records into as many fields as the first one.

    Raises:
        UserError: there is none, and the only column is not a required one.
    """
    scores = {delimiter: _score(head, delimiter) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: scores[delimiter])
    if scores[best][1] > 0:
        return best
    header = read_records(head, "\x02", 1)
    if columns and header and header[0][0] in columns:
        return ","
    raise _refuse(uri)


def _score(head: bytes, delimiter: str) -> tuple[bool, float]:
    """Rate a delimiter: first by its consistency, then by the number of fields."""
    records = read_records(head, delimiter, RECORDS + 1)
    if not records or len(records[0]) < 2:
        return False, 0.0
    rows = records[1:-1] if len(records) > 2 else records[1:]
    width = len(records[0])
    share = sum(len(row) == width for row in rows) / len(rows) if rows else 1.0
    return share > 0.9, width * (share + 0.01)


def _refuse(uri: str) -> UserError:
    return UserError(
        f'"{uri}" is not a table: its first line is not split by a comma, semicolon, tab or bar; '
        "name a CSV, Parquet or JSON Lines file."
    )


@dataclass(frozen=True)
class _Layout:
    """Records split by a delimiter, beginning with the header or the first row."""

    delimiter: str
    above: int
    records: list[list[str]]
    share: float

    @property
    def rank(self) -> tuple[bool, int, float]:
        return self.share > 0.9, -self.above, len(self.records[0]) * (self.share + 0.01)


def find_layout(head: bytes, uri: str, given: Dialect, expected: Collection[str]) -> tuple[Dialect, str]:
    """Return the dialect, without a comma as its delimiter, and the delimiter of a table.

    Only the settings in `given` are known.

    Args:
        head: The beginning of its text, in UTF-8, without Excel's hint.
        uri: Its name in messages.
        given: The settings that are kept.
        expected: Names in the header, if there is one; names such as column_1 if there is none.

    Raises:
        UserError: it is not a table.
    """
    known = given.model_fields_set
    start = skip_lines(head, given.skip_lines)
    delimiters = DELIMITERS if given.delimiter is None else (given.delimiter,)
    names = None if "skip_lines" in known else expected
    layouts = [found for d in delimiters if (found := _lay_out(start, d, names))]
    if layouts:
        best = max(layouts, key=lambda layout: layout.rank)
    else:
        records = read_records(start, "\x02", RECORDS)
        if not records or records[0][0].strip() not in expected:
            raise _refuse(uri)
        best = _Layout(",", 0, records, 1.0)
    delimiter = best.delimiter if best.delimiter != "," else None
    ways: dict[str, object] = {"delimiter": delimiter, "skip_lines": given.skip_lines + best.above}
    ways["header"] = has_header(best.records, expected)
    ways["trim"] = any(map(_is_padded, best.records[0])) or any(
        _is_padded(cell) and not TYPED.fullmatch(cell) for record in best.records for cell in record
    )
    if len({name.strip() for name in best.records[0]}) < len(set(best.records[0])):
        ways["trim"] = False  # two names that differ only in spaces would become equal
    differing = {name: value for name, value in ways.items() if value != Dialect.model_fields[name].default}
    return Dialect.model_validate(differing | given.model_dump(exclude_unset=True)), best.delimiter


def _lay_out(head: bytes, delimiter: str, expected: Collection[str] | None) -> _Layout | None:
    """Return the records as a delimiter splits them; None if it does not split them.

    Args:
        head: The beginning of the text.
        delimiter: The character.
        expected: Names that a header has; None if no title or comment may be above it.
    """
    records = read_lines(head, delimiter, RECORDS + MOST_TITLES)
    records = records[:-1] if len(records) > 2 else records  # the last may be cut
    if not records:
        return None
    width, _ = Counter(len(record) for _, record in records).most_common(1)[0]
    first = 0 if expected is None else _find_first([record for _, record in records], width, expected)
    width = len(records[first][1])
    if width < 2:
        return None
    rows = [record for _, record in records[first:]]
    share = sum(len(row) == width for row in rows) / len(rows)
    return _Layout(delimiter, records[first][0] if first else 0, rows, share)


def _find_first(records: list[list[str]], width: int, expected: Collection[str]) -> int:
    """Return the position of the header, or of the first row; titles and comments may be above it."""
    for place, record in enumerate(records[: MOST_TITLES + 1]):
        after = records[place + 1] if place + 1 < len(records) else record
        if record[0].lstrip().startswith(COMMENT):
            above = len(record) != width or not _is_header_of(record, after, expected)
        elif len(record) == width:
            above = _is_title(record) or len(after) != width
        else:
            above = sum(bool(cell.strip()) for cell in record) <= max(1, (width - 1) // 2)
        if not above:
            return place
    return 0


def _is_title(record: Sequence[str]) -> bool:
    """Return True for a title that a spreadsheet padded with empty cells, and for a line of empty cells."""
    filled = [bool(cell.strip()) for cell in record]
    return not any(filled) or (len(record) > 2 and filled[0] and not any(filled[1:]))


def _is_header_of(comment: Sequence[str], after: Sequence[str], expected: Collection[str]) -> bool:
    """Return True if a line that starts like a comment is the header of the row below it."""
    if any(name.strip() in expected for name in comment):
        return True
    return len(after) == len(comment) and any(
        TYPED.fullmatch(cell) and not TYPED.fullmatch(name) for name, cell in zip(comment, after, strict=True)
    )


def _is_padded(cell: str) -> bool:
    return cell != cell.strip() and bool(cell.strip())


def has_header(records: Sequence[Sequence[str]], expected: Collection[str] = ()) -> bool:
    """Return True if the first record looks like names, unlike the records below it.

    Args:
        records: The first records of a table, nearly all of the same width.
        expected: Names in the header, if there is one; names such as column_1 if there is none.
    """
    first = [cell.strip() for cell in records[0]]
    if any(name.strip() in first for name in expected):
        return True
    if any(NAMED.fullmatch(name) for name in expected):
        return False
    rows = [[cell.strip() for cell in row] for row in records[1:] if len(row) == len(first)]
    rows = [row for row in rows if row != first]
    numbers: list[str] = []
    named = repeated = 0
    for name, cells in zip(first, zip(*rows, strict=True), strict=False):
        filled = [cell for cell in cells if not MARKER.fullmatch(cell)]
        if not filled or MARKER.fullmatch(name):
            continue
        if sum(bool(TYPED.fullmatch(cell)) for cell in filled) > 0.8 * len(filled):
            if not TYPED.fullmatch(name):
                return True
            numbers.append(name)
        elif name in filled:
            repeated += 1
        elif len(set(filled)) <= len(filled) / 2:
            named += 1
    if not numbers:
        return named > 0 or repeated == 0
    return named > repeated or _is_progression(numbers)


def _is_progression(names: Sequence[str]) -> bool:
    """Return True for names such as 0, 1, 2 or 2019, 2020, 2021."""
    if len(names) < 3 or not all(name.isdecimal() for name in names):
        return False
    steps = {int(after) - int(before) for before, after in pairwise(names)}
    return len(steps) == 1 and min(steps) > 0


def has_empty_tail(records: Sequence[Sequence[str]]) -> bool:
    """Return True if all rows below the header (and maybe the header) end with a delimiter."""
    first, rows = records[0], records[1:]
    width = len(rows[0]) if rows else 0
    named = len(first) == width - 1 or (len(first) == width and not first[-1].strip())
    return width > 1 and named and all(map(str.strip, first[: width - 1])) and not any(row[-1].strip() for row in rows)


def find_line(stream: IO[bytes], delimiter: str, width: int, above: int = 0) -> int:
    """Return the line number of the end of the first record whose number of fields is not `width`.

    Args:
        stream: The text, in UTF-8.
        delimiter: Between two fields.
        width: The expected number of fields.
        above: The number of lines to skip.
    """
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
    for _ in range(above):
        lines.readline()
    reader = csv.reader(lines, delimiter=delimiter)
    return above + next((reader.line_num for record in reader if record and len(record) != width), reader.line_num)


BLANKS = tuple(" " * width for width in range(1, 9))
BLOCK_BYTES = 4 << 20
HELD_BYTES = 64 << 20  # bytes read before the first batch is yielded, so that most types need no change after it
TAIL = "\x00"  # the name of the empty column if each line ends with a delimiter

OPEN_QUOTE = "opens a quote that is never closed: close it, or double it where it belongs to the text."


class Unparsed(Exception):
    """A value does not fit the type of this column."""

    def __init__(self, name: str) -> None:
        """Store the column's name."""
        super().__init__(name)
        self.name = name


class DelimitedSource(FileSource):
    """One file of delimited text.

    Attributes:
        types: The type of each column; `agree_types` changes it if a value does not fit.
        dialect: Its dialect.
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
        """Detect settings that the dialect leaves open, and the names.

        Args:
            file: The file.
            columns: The kinds of its columns; see `Reading`.
            head: The first of its text, in UTF-8.
            quoted: Whether a quoted field never counts as missing.
            dialect: Its dialect.
            expected: Names in the header, if the dialect must be detected; see `Reading`.

        Raises:
            UserError: there is only a header, or the names are not usable.
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
        self._has_hex = False  # if there is any, integers are read as text first

    def _require_known(self, columns: Columns) -> None:
        """Check that a table with configured settings has at least one of the required columns.

        Raises:
            UserError: it has none, probably because it is written in another dialect.
        """
        settings = self.dialect.model_dump(exclude_defaults=True, mode="json")
        if columns and settings and not set(columns) & set(self._names):
            listed = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items())
            raise UserError(
                f'"{self.uri}" has none of the required columns when it is read with [data] of config.toml ({listed}); '
                f"its first is {self._names[0]!r}: save it in the format of these settings, or as Parquet."
            )

    def _name_columns(self, first: list[str]) -> list[str]:
        """Return the names of the columns, from the first record or the settings."""
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

    def reset_copy(self) -> Self:
        """Return a copy without inferred types; see `FileSource`."""
        made = super().reset_copy()
        made.types = self._first_types()
        return made

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`. A column becomes text if a value does not fit."""
        return retype(lambda: self.read(self.types), lambda name: agree_types([self], name), self.uri)

    def kind(self, name: str) -> str:
        """Return the contract's kind of a column."""
        return (self.columns or {}).get(name, "text")

    def read(self, types: dict[str, pa.DataType], only: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """Yield the rows with `types`; only the columns `only`, if given.

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
            timestamp_parsers=[pa_csv.ISO8601],  # Arrow's strptime reads 05/01/20 as a day of the year 5
        )
        parse = pa_csv.ParseOptions(
            delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=self._refuse_row
        )
        options = pa_csv.ReadOptions(block_size=BLOCK_BYTES, skip_rows=self._above)
        if self._has_tail:
            options.skip_rows, options.column_names = self._above + self._header_lines, [*self._raw_names, TAIL]
        elif self.dialect.header is not True:
            options.column_names = self._raw_names
        with explain_read_errors(self.uri), self.file.open() as stream:
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
        """Return True if a column's cells are converted before they are read; never without kinds."""
        return self.columns is not None and converts(self.dialect, self.kind(name), name)

    def _spell(
        self, batch: pa.RecordBatch, types: dict[str, pa.DataType], spelled: set[str], names: Sequence[str]
    ) -> pa.RecordBatch:
        """Return the rows with their names, and columns that were converted from the dialect in `types`.

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
        # Dates, durations and booleans that must be converted first stay text: the contract reads them.
        return {
            name: TEXT if self.kind(name) not in NUMERIC and self._converts(name) else first
            for name, first in firsts.items()
        }

    def _refuse_row(self, row: pa_csv.InvalidRow) -> str:
        self._wrong = row
        return "error"

    def _explain(self, message: str) -> Exception:
        """Translate an Arrow error: a value that does not fit, or an error for the user."""
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
    """Return the beginning of a file with the names in normal form."""
    return head if head.isascii() else normalize(head.decode("utf-8", "ignore")).encode()


class _HexWatch(io.RawIOBase):
    """A stream that records whether it contains `0x`, which Arrow's reader takes for a hexadecimal integer."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Record what is read from `stream`."""
        super().__init__()
        self._stream, self._last = stream, b""
        self.found = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        block = self._stream.read(size)
        if not self.found and (b"x" in block or b"X" in block):  # faster than finding the position
            near = self._last + block
            self.found = b"0x" in near or b"0X" in near
        self._last = block[-1:]
        return block


def agree_types(sources: Sequence[DelimitedSource], name: str) -> None:
    """Read all columns that are not yet text as text once, and set the first type that fits in all `sources`.

    Args:
        sources: The files of one table: a column has the same type in all.
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
    if types[name] == before:  # the two parsers disagree: text always fits
        types[name] = TEXT
    for source in sources:
        source.types |= {n: types[n] for n in source.types if n in types}


def retype(
    read: Callable[[], Iterator[pa.RecordBatch]], widen: Callable[[str], None], uri: str
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of `read`; if a value does not fit, widen the column's type and start again.

    Raises:
        Retyped: rows were already yielded.
    """
    yielded = False
    while True:
        try:
            for batch in hold_back(read(), HELD_BYTES):
                yielded = True
                yield batch
            return
        except Unparsed as error:
            widen(error.name)
        if yielded:
            raise Retyped(uri)


def ends_in_line_break(batch: pa.RecordBatch) -> bool:
    """Return True if a text in the last row has a line break, as if a quote is never closed."""
    last = batch.slice(batch.num_rows - 1)
    return any("\n" in (text[0].as_py() or "") for text in last.columns if text.type == TEXT)


def hold_back(batches: Iterator[pa.RecordBatch], most: int) -> Iterator[pa.RecordBatch]:
    """Yield `batches`; read more than `most` bytes, or all, before the first one."""
    first: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        first.append(batch)
        size += batch.nbytes
        if size > most:
            yield from first
            break
    else:
        yield from first
        return
    yield from batches
