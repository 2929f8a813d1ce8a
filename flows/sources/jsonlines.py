"""JSON Lines: one object per line. Every value is looked at, so a column's type never surprises late."""

import io
import json
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import Any

import pyarrow as pa

from flows.errors import UserError
from flows.sources.files import FileSource, check_names
from flows.sources.raw import explain_damage, explain_encoding, open_stream

BATCH_ROWS = 16_384
PLAIN = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
LONGEST = 2**63


class JsonLinesSource(FileSource):
    """One file of JSON objects, one on each line; a key that a line lacks is missing there."""

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types, from all lines."""
        seen: dict[str, set[type]] = {}
        rows = 0
        for number, row in self._rows():
            rows += 1
            for name, value in row.items():
                kinds = seen.setdefault(name, set())
                if value is not None:
                    kinds.add(self._kind_of(name, value, number))
        if not rows or not seen:
            raise UserError(f'"{self.uri}" has no rows: it needs one JSON object on each line.')
        check_names(list(seen), self.uri)
        return pa.schema([(name, self._choose(name, kinds)) for name, kinds in seen.items()])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `flows.sources.Source`."""
        schema, rows = self.schema, (row for _, row in self._rows())
        while part := list(islice(rows, BATCH_ROWS)):
            arrays = [pa.array([_convert(row.get(f.name), f.type) for row in part], f.type) for f in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _choose(self, name: str, kinds: set[type]) -> pa.DataType:
        """Return the one type that holds all values of a column; text where they are mixed."""
        if (self.columns or {}).get(name) == "text":
            return pa.string()
        if len(kinds) == 1:
            return PLAIN[next(iter(kinds))]
        return pa.float64() if kinds == {int, float} else pa.string()

    def _kind_of(self, name: str, value: Any, number: int) -> type:
        if type(value) not in PLAIN:
            raise UserError(
                f'Line {number} of "{self.uri}" has {"a list" if isinstance(value, list) else "an object"} '
                f'in "{name}": write it as plain values, or leave it out.'
            )
        return float if type(value) is int and abs(value) >= LONGEST else type(value)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each line's number and object."""
        with explain_damage(self.uri), open_stream(self.path) as stream:
            lines = io.TextIOWrapper(stream, encoding="utf-8-sig")
            try:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield number, self._parse(number, line)
            except UnicodeDecodeError:
                raise explain_encoding(self.path, self.uri) from None

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        try:
            row = json.loads(line, object_pairs_hook=self._build)
        except (json.JSONDecodeError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f'Line {number} of "{self.uri}" is no JSON object: JSON Lines has one object, '
                'as in {"a": 1}, on each line.'
            )
        return row

    def _build(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            check_names([name for name, _ in pairs], self.uri)
        return row


def _convert(value: Any, kind: pa.DataType) -> Any:
    """Return a value as its column's type takes it; `""` and NaN stay what validation makes of them."""
    if value is None or not pa.types.is_string(kind):
        return value
    return value if isinstance(value, str) else json.dumps(value)
