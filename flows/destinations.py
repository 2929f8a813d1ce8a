"""Where batch predictions go: CSV, Parquet or JSON Lines, by the file's suffix."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flows.errors import UserError, nearest

Write = Callable[[pa.Table], Any]
Opener = Callable[[Path, pa.Schema], tuple[Any, Write]]  # of something to close, and what writes a table


def choose_writer(destination: Path) -> Opener:
    """Return what opens a file of the format that the suffix names.

    Raises:
        UserError: there is no such format, or a folder is in the way.
    """
    writers = {".csv": _open_csv, ".parquet": _open_parquet, ".jsonl": _open_jsonl}
    suffix = destination.suffix.lower()
    if suffix not in writers:
        raise UserError(
            f'"{destination}" names no format: end it in {", ".join(writers)}.{nearest(suffix, writers) if suffix else ""}'
        )
    if destination.is_dir():
        raise UserError(f'"{destination}" is a folder: name a file.')
    return writers[suffix]


def _open_csv(path: Path, schema: pa.Schema) -> tuple[Any, Write]:
    from pyarrow import csv

    flat = pa.schema([pa.field(f.name, pa.string() if pa.types.is_nested(f.type) else f.type) for f in schema])
    writer = csv.CSVWriter(str(path), flat)
    return writer, lambda table: writer.write_table(_flatten(table, flat))


def _flatten(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return `table` with lists and structures as JSON texts, which CSV has no place for."""
    columns = [
        pa.array([None if v is None else _json(v) for v in column.to_pylist()], pa.string())
        if pa.types.is_nested(column.type)
        else column
        for column in table.columns
    ]
    return pa.table(columns, schema=schema)


def _open_parquet(path: Path, schema: pa.Schema) -> tuple[Any, Write]:
    import pyarrow.parquet as pq

    writer = pq.ParquetWriter(path, schema, compression="zstd")
    return writer, writer.write_table


def _open_jsonl(path: Path, schema: pa.Schema) -> tuple[Any, Write]:
    file = path.open("wb")

    def write(table: pa.Table) -> None:
        lines = (_json({k: _finite(v) for k, v in row.items()}) for row in table.to_pylist())
        file.write("".join(f"{line}\n" for line in lines).encode())

    return file, write


def _finite(value: Any) -> Any:
    """Return None for NaN and infinity, which JSON lacks."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda v: v.isoformat() if hasattr(v, "isoformat") else str(v))
