"""Finds how a text table is written from its first records: delimiter, lines above the header, header, spaces."""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import IO

from ondol.config.data import Dialect
from ondol.errors import UserError
from ondol.ingestion.cells import PLAIN, number_pattern
from ondol.ingestion.sources import Columns

DELIMITERS = (",", ";", "\t", "|", "^", "~", "\x01", ":")
RECORDS = 200
MOST_TITLES = 30
HINT = re.compile(rb"(?:\xef\xbb\xbf)?sep=([^\r\n\"])(?:\r\n|\n|\r)", re.IGNORECASE)  # Excel's own
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
    """Return the first `most` records that are not empty, each behind the number of lines above it."""
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
    except csv.Error:  # a carriage return or a field without end: the real reader will say
        pass
    return records


def split_hint(head: bytes) -> tuple[str | None, bytes]:
    """Return the delimiter that Excel wrote in a first line such as `sep=;`, if any, and the rest."""
    found = HINT.match(head)
    return (found[1].decode(), head[found.end() :]) if found else (None, head)


def skip_lines(head: bytes, count: int) -> bytes:
    """Return `head` without its first lines."""
    return b"".join(head.splitlines(keepends=True)[count:]) if count else head


def sniff_delimiter(head: bytes, uri: str, columns: Columns) -> str:
    """Return the character that splits most records into as many fields as the first one.

    Raises:
        UserError: none does, and the one column is not one that is asked for.
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
    """Rate a delimiter: whether it holds throughout, then how many fields it makes."""
    records = read_records(head, delimiter, RECORDS + 1)
    if not records or len(records[0]) < 2:
        return False, 0.0
    rows = records[1:-1] if len(records) > 2 else records[1:]
    width = len(records[0])
    share = sum(len(row) == width for row in rows) / len(rows) if rows else 1.0
    return share > 0.9, width * (share + 0.01)


def _refuse(uri: str) -> UserError:
    return UserError(
        f'"{uri}" is no table: its first line is not split by a comma, semicolon, tab or bar; '
        "name a CSV, Parquet or JSON Lines file."
    )


@dataclass(frozen=True)
class _Layout:
    """Records as a delimiter splits them: those from the header, or the first row, on."""

    delimiter: str
    above: int
    records: list[list[str]]
    share: float

    @property
    def rank(self) -> tuple[bool, int, float]:
        return self.share > 0.9, -self.above, len(self.records[0]) * (self.share + 0.01)


def find_layout(head: bytes, uri: str, given: Dialect, expected: Collection[str]) -> tuple[Dialect, str]:
    """Return the dialect, without a comma as its delimiter, and the delimiter of a table.

    Nothing is known of it but what `given` sets.

    Args:
        head: The first of its text, in UTF-8, without Excel's hint.
        uri: What it is called.
        given: What is set is taken as it is.
        expected: Names that the header has, if there is one; or such as column_1 if there is none.

    Raises:
        UserError: it is no table.
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
        ways["trim"] = False  # two names that differ in spaces alone would be one
    differing = {name: value for name, value in ways.items() if value != Dialect.model_fields[name].default}
    return Dialect.model_validate(differing | given.model_dump(exclude_unset=True)), best.delimiter


def _lay_out(head: bytes, delimiter: str, expected: Collection[str] | None) -> _Layout | None:
    """Return how a delimiter divides the text; None where it does not.

    Args:
        head: The first of the text.
        delimiter: The character.
        expected: Names that a header has; None where no title or comment may stand above it.
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
    """Return the place of the header, or of the first row: what stands above it is a title or a comment."""
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
    """Return True if a line that begins as a comment has the names of the row below it."""
    if any(name.strip() in expected for name in comment):
        return True
    return len(after) == len(comment) and any(
        TYPED.fullmatch(cell) and not TYPED.fullmatch(name) for name, cell in zip(comment, after, strict=True)
    )


def _is_padded(cell: str) -> bool:
    return cell != cell.strip() and bool(cell.strip())


def has_header(records: Sequence[Sequence[str]], expected: Collection[str] = ()) -> bool:
    """Return True if the first record looks like names rather than like the records below it.

    Args:
        records: The first of a table, of one width but for a few.
        expected: Names that the header has, if there is one; or such as column_1 if there is none.
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
    """Return True if all rows, below a header, end in a delimiter with nothing behind it, the header too or not."""
    first, rows = records[0], records[1:]
    width = len(rows[0]) if rows else 0
    named = len(first) == width - 1 or (len(first) == width and not first[-1].strip())
    return width > 1 and named and all(map(str.strip, first[: width - 1])) and not any(row[-1].strip() for row in rows)


def find_line(stream: IO[bytes], delimiter: str, width: int, above: int = 0) -> int:
    """Return the number of the line that ends the first record with more or fewer fields than `width`.

    Args:
        stream: The text, in UTF-8.
        delimiter: Between two fields.
        width: How many fields there should be.
        above: How many lines are passed over.
    """
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
    for _ in range(above):
        lines.readline()
    reader = csv.reader(lines, delimiter=delimiter)
    return above + next((reader.line_num for record in reader if record and len(record) != width), reader.line_num)
