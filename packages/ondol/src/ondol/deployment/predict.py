"""Batch prediction: rows of any source, scored by a bundle and written to one file."""

import codecs
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from ondol.config import Dialect
from ondol.contract import Contract, encode, require_columns, require_known_markers
from ondol.contract.schema import free_names
from ondol.errors import UserError, nearest
from ondol.evaluation.scoring import CHUNK, ERROR, Scorer, make_tensors, open_session, predict_table
from ondol.ingestion.csv_files import NUMERIC, write_numbers
from ondol.ingestion.sources import Reading, Source, open_source, read_through
from ondol.orchestration.reporting import code, publish_markdown, say
from ondol.project import Project
from ondol.redaction import redact_exceptions
from ondol.registry.bundles import Bundle, open_bundle, served_bundle
from ondol.registry.champion import require_champion
from ondol.storage.files import make_folder, publish, scratch
from ondol.storage.store import Store
from ondol_serving.shapley import Tensors, make_explainer, select_outputs

ColumnKinds = Mapping[str, str]  # the contract's kind of each column by its name


class Output(Protocol):
    """An output file to which tables of one schema are written."""

    def write_table(self, table: pa.Table) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def open_output(
    path: Path, schema: pa.Schema, dialect: Dialect | None = None, kinds: ColumnKinds | None = None
) -> Output:
    """Open a file for tables of `schema`, in the format that its suffix names; see `resolve_destination`.

    Args:
        path: The file.
        schema: Names and types; names must be unique.
        dialect: The format of a CSV file: its delimiter, its decimal sign, and a byte order mark if it has an encoding
            other than UTF-8.
        kinds: The kinds of the contract's columns.
    """
    return OPENERS[path.suffix.lower()](path, schema, dialect or Dialect(), kinds or {})


def resolve_destination(path: Path) -> Path:
    """Check that a file of a known format can be written to `path`, create its folder, and return `path`.

    Raises:
        UserError: the suffix names no format, or a folder or a file is in the way.
    """
    suffix = path.suffix.lower()
    suffixes = list(OPENERS)
    if suffix not in OPENERS:
        hint = nearest(suffix, suffixes) if suffix else ""
        raise UserError(f'"{path}" has no known format: end it in {", ".join(suffixes[:-1])} or {suffixes[-1]}.{hint}')
    if path.is_dir():
        raise UserError(f'"{path}" is a folder: name a file.')
    try:
        make_folder(path.parent)
    except OSError as error:
        raise UserError(f'The folder "{path.parent}" cannot be made ({error.strerror}): name another.') from None
    if not os.access(path.parent, os.W_OK):
        raise UserError(f'The folder "{path.parent}" may not be written to: name another.')
    return path


class JsonLines:
    """One JSON object for each row; missing values, and numbers that JSON lacks, are null."""

    def __init__(self, path: Path, schema: pa.Schema, dialect: Dialect, kinds: ColumnKinds) -> None:
        """Open the file; JSON objects need neither schema nor dialect."""
        self._file = path.open("wb")

    def write_table(self, table: pa.Table) -> None:
        """Write one line for each row."""
        names = table.column_names
        for row in zip(*map(_to_list, table.columns), strict=True):
            self._file.write(orjson.dumps(dict(zip(names, row, strict=True)), option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _to_list(values: pa.ChunkedArray) -> list[Any]:
    """Return a column's values in types of orjson; Arrow's own `to_pylist` is slow, because it converts one by one."""
    kind = values.type
    whole = (pa.types.is_integer(kind) or pa.types.is_boolean(kind)) and not values.null_count
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if whole or text or pa.types.is_floating(kind) or kind == pa.timestamp("us"):
        return values.to_numpy().tolist()  # a missing number is NaN, which becomes null
    found = values.to_pylist()
    if pa.types.is_temporal(kind):  # orjson would write zones only to the minute, and drop nanoseconds
        return [value.isoformat() if hasattr(value, "isoformat") else value for value in found]
    return found


class Csv:
    """Delimited text in UTF-8."""

    def __init__(self, path: Path, schema: pa.Schema, dialect: Dialect, kinds: ColumnKinds) -> None:
        """Open the file and write the header."""
        from pyarrow import csv

        self._decimal = dialect.decimal
        self._spelled = [field.name for field in schema if self._decimal != "." and _has_fractions(field, kinds)]
        self._schema = pa.schema([f.with_type(pa.string()) if f.name in self._spelled else f for f in schema])
        self._file = path.open("wb")
        if dialect.encoding != "utf-8":
            self._file.write(codecs.BOM_UTF8)
        options = csv.WriteOptions(delimiter=dialect.delimiter or ",")
        self._writer = csv.CSVWriter(self._file, self._schema, write_options=options)

    def write_table(self, table: pa.Table) -> None:
        """Write one line for each row."""
        for name in self._spelled:
            place, texts = self._schema.get_field_index(name), write_numbers(table.column(name), self._decimal)
            table = table.set_column(place, self._schema.field(place), texts)
        self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._file.close()


def _has_fractions(field: pa.Field, kinds: ColumnKinds) -> bool:
    """Return True if a column's cells may have a decimal sign; seconds of a duration always have a point."""
    kind = field.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return kinds.get(field.name, "number") in NUMERIC
    return pa.types.is_string(kind) and kinds.get(field.name) in NUMERIC


def _open_parquet(path: Path, schema: pa.Schema, dialect: Dialect, kinds: ColumnKinds) -> Output:
    from pyarrow import parquet

    return parquet.ParquetWriter(path, schema, compression="zstd")


OPENERS: dict[str, Callable[[Path, pa.Schema, Dialect, ColumnKinds], Output]] = {
    ".csv": Csv,
    ".parquet": _open_parquet,
    ".jsonl": JsonLines,
}


EXPLAINED = 2_000  # rows that are explained at once, to bound memory


@redact_exceptions()
def predict_rows(
    project: Project, bundle: Bundle, source: str, destination: Path, explain: bool = False
) -> dict[str, int]:
    """Predict every row of `source` into `destination`; return the number of rows and of refused rows.

    Args:
        project: The project.
        bundle: The bundle that predicts.
        source: The source of the rows.
        destination: The file.
        explain: Whether to add what each column contributed; see `Explanations`.

    Raises:
        UserError: the source lacks a column, or is the same file as the destination; or the bundle has no explanation.
    """
    settings = project.settings
    scorer = Scorer.open(bundle.path)
    explanations = Explanations(scorer, bundle) if explain else None
    rows = open_source(
        source, Reading(scorer.contract.kinds, settings.root, settings.fetch, dialect=settings.data.dialect)
    )
    refuse_same(settings.root, source, destination)
    require_known_markers(settings.data, {*scorer.contract.by_name, *rows.schema.names})
    require_places(rows, scorer.contract)
    require_columns(rows.schema.names, scorer.contract.features)
    with scratch(destination) as made:
        counts = read_through(
            rows, lambda batches: write_predictions(scorer, rows, batches, made, settings.data.dialect, explanations)
        )
        publish(made, destination)
    return counts


class Explanations:
    """What each column contributed to predictions, as columns of a table.

    Of two classes, the contributions are about the second; of several, about the predicted one. They add up with
    `baseline` to the prediction, on the scale that the bundle's explanation has.
    """

    def __init__(self, scorer: Scorer, bundle: Bundle) -> None:
        """Open the explanation of a bundle.

        Raises:
            UserError: the bundle is from a version without one.
        """
        about = bundle.meta.get("explanation")
        if about is None:
            raise UserError(
                f"Version {bundle.version} was deployed before models had explanations: leave out `--explain`, or "
                "predict with the next version that `ml run` deploys."
            )
        self._contract = scorer.contract
        self.columns = ("baseline", *(f"contribution {column.name}" for column in self._contract.features))
        encoder = None
        if about["method"] != "approximate":
            session = open_session((bundle.path / "explanation.onnx").read_bytes())
            inputs = [value.name for value in session.get_inputs()]

            def encoder(tensors: Tensors) -> np.ndarray:
                return np.asarray(session.run(None, {name: tensors[name] for name in inputs})[0])

        def run(tensors: Tensors) -> np.ndarray:
            return select_outputs(self._contract.problem, scorer.run_tensors(tensors)[-1])

        with np.load(bundle.path / "explanation.npz", allow_pickle=False) as arrays:
            self._explainer = make_explainer(about["method"], arrays, self._contract.features, encoder, run)
        say(f"Contributions are on the scale {about['scale']} ({about['method']}).")

    def explain(self, frame: pd.DataFrame, predicted: "pd.Series[Any]") -> pd.DataFrame:
        """Return `columns` for rows in the contract's dtypes, with the frame's index."""
        chosen = np.zeros(len(frame), np.intp)
        if self._contract.problem == "multiclass":
            chosen = pd.Index(self._contract.classes or ()).get_indexer(pd.Index(predicted))
        made = np.empty((len(frame), len(self.columns)))
        for start in range(0, len(frame), EXPLAINED):
            rows = slice(start, start + EXPLAINED)
            found = self._explainer.explain(make_tensors(self._contract, encode(self._contract, frame.iloc[rows])))
            made[rows, 0] = self._explainer.baseline[chosen[rows]]
            made[rows, 1:] = np.take_along_axis(found, chosen[rows, None, None], axis=2)[:, :, 0]
        return pd.DataFrame(made, index=frame.index, columns=list(self.columns))


def report_predictions(bundle: Bundle, counts: dict[str, int], destination: str) -> None:
    """Show in the log and in the Prefect UI how many rows were predicted."""
    rows, refused = counts["rows"], counts["refused"]
    predicted = rows - refused
    say(f"Version {bundle.version} predicted {predicted:,} of {rows:,} rows; {refused:,} broke the contract.")
    summary = f"**{predicted:,} of {rows:,} rows predicted by version {bundle.version}**, {refused:,} refused"
    publish_markdown("predictions", f"{summary}: {code(destination)}.")


def check_predictions(counts: dict[str, int], destination: str) -> None:
    """Check that at least one row was predicted.

    Raises:
        UserError: none was; the rows and their reasons are in the file.
    """
    rows = counts["rows"]
    if rows == counts["refused"]:
        raise UserError(
            f"None of the {rows:,} rows could be predicted, as each breaks the contract: correct what the column "
            f'`{ERROR}` of "{destination}" names.'
        )


def require_places(rows: Source, contract: Contract) -> None:
    """Check that columns without names, which are identified by position, are complete; a target may follow.

    Raises:
        UserError: one is missing, so the positions may be wrong.
    """
    dialect = getattr(rows, "dialect", None)
    names, known = rows.schema.names, [column.name for column in contract.columns]
    missing = set(known) - set(names)
    last = f"column_{len(known)}"
    if (
        dialect is not None
        and dialect.header is False
        and missing
        and (missing != {contract.target} or contract.target != last)
    ):
        raise UserError(
            f'"{rows.uri}" has {len(names)} columns, and the table without a header that was learned from has '
            f"{len(known)}: such columns are known by position, so write each, if need be without values."
        )


def choose_bundle(store: Store, version: str | None) -> Bundle:
    """Return the champion's bundle, or the last bundle of `version`.

    Raises:
        UserError: there is none.
    """
    if version is None:
        return open_bundle(store, require_champion(store).bundle)
    return served_bundle(store, version)


def refuse_same(root: Path, source: str, destination: Path) -> None:
    """Check that the destination would not replace the source's file.

    Raises:
        UserError: it would.
    """
    given = root / Path(source).expanduser()
    if given.exists() and destination.exists() and given.samefile(destination):
        raise UserError(f'"{destination}" is the source itself: write the predictions to another file.')


def write_predictions(
    scorer: Scorer,
    source: Source,
    batches: Iterator[pa.RecordBatch],
    path: Path,
    dialect: Dialect | None = None,
    explanations: Explanations | None = None,
) -> dict[str, int]:
    """Write every row to `path`, batch by batch to bound memory; return the counts.

    Args:
        scorer: The bundle.
        source: The source of the batches.
        batches: The rows.
        path: The file.
        dialect: See `open_output`.
        explanations: What adds the contributions of columns; None for predictions alone.

    Raises:
        UserError: there are no rows.
    """
    rows = refused = 0
    writer: Any = None
    added = (*scorer.columns, *(explanations.columns if explanations else ()), ERROR)
    names = free_names(added, source.schema.names)
    try:
        for table in _gather(batches):
            scored, bad = predict_table(scorer, table, explanations.explain if explanations else None)
            made = pa.table([*table.columns, *scored.columns], [*table.schema.names, *names])
            writer = writer or open_output(path, made.schema, dialect, scorer.contract.kinds)
            writer.write_table(made)
            rows, refused = rows + made.num_rows, refused + bad
    finally:
        if writer is not None:
            writer.close()
    if not rows:
        raise UserError(f'"{source.uri}" has no rows: there is nothing to predict.')
    return {"rows": rows, "refused": refused}


def _gather(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield tables of about `CHUNK` rows."""
    pending: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        for start in range(0, batch.num_rows, CHUNK):
            pending.append(batch.slice(start, CHUNK))
            count += pending[-1].num_rows
            if count >= CHUNK:
                yield pa.Table.from_batches(pending)
                pending, count = [], 0
    if count:
        yield pa.Table.from_batches(pending)
