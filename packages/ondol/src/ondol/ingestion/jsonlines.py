"""JSON Lines, one object per line, and arrays of objects. Every value is looked at: no type surprises late."""

import io
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from itertools import islice

import pyarrow as pa

from ondol.errors import UserError
from ondol.ingestion.files import FileSource, NoRows, check_names
from ondol.ingestion.json_array import is_array, read_elements
from ondol.ingestion.json_columns import JsonReader
from ondol.ingestion.json_text import parse
from ondol.ingestion.raw import explain_damage, explain_encoding
from ondol.ingestion.records import BATCH_ROWS, Kinds, Row, flatten

LONGEST_LINE = 16 << 20  # characters


class JsonLinesSource(FileSource):
    """One file of JSON objects, one on each line or in one array; a key that an object lacks is missing there."""

    _unit = "Line"

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types, from all lines."""
        kinds = Kinds()
        for lines in self._parts():
            kinds.add(self._reader.columns(list(lines.values()), partial(self._flatten, lines)))
        if not kinds.names():
            raise NoRows(f'"{self.uri}" has no rows: it needs one JSON object on each line.')
        schema = kinds.schema(self.columns)
        check_names(schema.names, self.uri)
        self.vacant = kinds.vacant()
        self.renamed = frozenset(self._reader.renamed)
        return schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`."""
        schema = self.schema
        for lines in self._parts():
            yield self._reader.batch(list(lines.values()), schema, self.uri, partial(self._flatten, lines))

    @cached_property
    def _reader(self) -> JsonReader:
        return JsonReader()

    def _parts(self) -> Iterator[dict[int, str]]:
        """Yield some lines after the other, by their numbers."""
        lines = self._lines()
        while part := dict(islice(lines, BATCH_ROWS)):
            yield part

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Yield each line that is not blank, or each element of the array, with its number."""
        one_array = is_array(self.file.read_head())
        with explain_damage(self.uri), self.file.open() as stream:
            lines = io.TextIOWrapper(stream, encoding="utf-8-sig")
            try:
                if one_array:
                    self._unit = "Element"
                    yield from enumerate(read_elements(lines, self.uri), start=1)
                    return
                for number, line in enumerate(iter(partial(lines.readline, LONGEST_LINE), ""), start=1):
                    if len(line) == LONGEST_LINE:
                        raise UserError(
                            f'Line {number} of "{self.uri}" is too long: write one JSON object on each line.'
                        )
                    if not line.isspace():
                        yield number, line
            except UnicodeDecodeError:
                raise explain_encoding(self.file) from None

    def _flatten(self, lines: Mapping[int, str]) -> list[Row]:
        return [self._parse(number, line) for number, line in lines.items()]

    def _parse(self, number: int, line: str) -> Row:
        try:
            record = parse(line, self.uri)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UserError(
                f'{self._unit} {number} of "{self.uri}" is no JSON object: JSON Lines has one object, '
                'as in {"a": 1}, on each line.'
            )
        return flatten(record, self.uri, f"{self._unit} {number}")
