"""Finds the delimiter of a text table from its first records."""

import csv
import io
from typing import IO

from flows.errors import UserError
from flows.sources import Columns

DELIMITERS = (",", ";", "\t", "|", "^", "~", "\x01", ":")
RECORDS = 200
csv.field_size_limit(1 << 24)


def read_records(head: bytes, delimiter: str, most: int) -> list[list[str]]:
    """Return the first `most` records of `head` that are not empty."""
    text = head.decode("utf-8-sig", errors="ignore")
    records: list[list[str]] = []
    try:
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if record:
                records.append(record)
            if len(records) == most:
                break
    except csv.Error:  # a carriage return or a field without end: the real reader will say
        pass
    return records


def sniff_delimiter(head: bytes, uri: str, columns: Columns) -> str:
    """Return the character that splits most records into as many fields as the header has.

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
    raise UserError(
        f'"{uri}" is no table: its first line is not split by a comma, semicolon, tab or bar; '
        "name a CSV, Parquet or JSON Lines file."
    )


def _score(head: bytes, delimiter: str) -> tuple[bool, float]:
    """Rate a delimiter: whether it holds throughout, then how many fields it makes."""
    records = read_records(head, delimiter, RECORDS + 1)
    if not records or len(records[0]) < 2:
        return False, 0.0
    rows = records[1:-1] if len(records) > 2 else records[1:]
    width = len(records[0])
    share = sum(len(row) == width for row in rows) / len(rows) if rows else 1.0
    return share > 0.9, width * (share + 0.01)


def find_line(stream: IO[bytes], delimiter: str, width: int) -> int:
    """Return the number of the line that ends the first record with more or fewer fields than `width`."""
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
    reader = csv.reader(lines, delimiter=delimiter)
    return next((reader.line_num for record in reader if record and len(record) != width), reader.line_num)
