"""Late labels, joined to predictions by request id and row, or by the id that callers sent."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from ondol.config import Dialect, Settings
from ondol.contract import Contract
from ondol.contract.checking import clean, typed
from ondol.contract.schema import Column, Kind, require_columns
from ondol.errors import UserError
from ondol.ingestion.sources import Reading, Source, open_source, read_through
from ondol.monitoring.drift import plain_text
from ondol_serving.grammar import normalize

if TYPE_CHECKING:
    import pyarrow as pa

REQUEST, ROW = "request_id", "row"


@dataclass(frozen=True)
class Labels:
    """The true targets by key; `by` are the columns that form the keys."""

    by: tuple[str, ...]
    values: "pd.Series[Any]"

    def join(self, sample: pd.DataFrame) -> pd.DataFrame:
        """Return the sampled rows that have a label, with the column `label`."""
        keys = pd.Series(keys_of(sample, self.by), dtype=object)
        known = keys.isin(self.values.index).to_numpy()
        return sample[known].assign(label=self.values.loc[keys[known]].to_numpy())


def read_labels(settings: Settings, contract: Contract, samples: list[pd.DataFrame]) -> Labels:
    """Return the labels in `[monitor] labels` for the sampled rows; if a row has several, the last one counts.

    Args:
        settings: The settings, which name the source.
        contract: The contract of the model in production.
        samples: The samples of the windows, with the columns `request_id`, `row` and `id`.

    Raises:
        UserError: there is no such source, or it lacks the target or a key.
    """
    keys: dict[str, Kind] = {REQUEST: "text", ROW: "integer"}
    kinds = contract.kinds | {name: kind for name, kind in keys.items() if name != contract.target}
    source = _open_labels(settings, kinds, contract.target)
    by = join_columns(source.schema.names, contract, source.uri)
    wanted = {key for sample in samples for key in keys_of(sample, by)} - {""}

    def gather(batches: "Iterator[pa.RecordBatch]") -> "pd.Series[Any]":
        parts = [_labels_of(batch, contract, by, wanted) for batch in batches]
        return pd.concat(parts) if parts else pd.Series(dtype=object)

    found = read_through(source, gather)
    return Labels(by, found[~found.index.duplicated(keep="last")])


def _open_labels(settings: Settings, kinds: dict[str, str], target: str) -> Source:
    """Open the labels; they may have a header even if the training table has none."""
    dialect, uri = settings.data.dialect, settings.monitor.labels or ""
    if dialect.header is not True or dialect.skip_lines:
        headed = Dialect(**(dialect.model_dump(exclude_unset=True) | {"header": True, "skip_lines": 0}))
        with suppress(UserError):
            source = open_source(uri, Reading(kinds, settings.root, settings.fetch, dialect=headed))
            if target in source.schema.names:
                return source
    return open_source(uri, Reading(kinds, settings.root, settings.fetch, dialect=dialect))


def join_columns(present: list[str], contract: Contract, uri: str) -> tuple[str, ...]:
    """Return the key columns of the labels.

    Raises:
        UserError: there are none, or the target is missing.
    """
    if contract.target not in present:
        raise UserError(f'The labels "{uri}" have no column "{contract.target}", which is predicted.')
    present = [name for name in present if name != contract.target]  # its name may be that of a key
    if REQUEST in present:
        return (REQUEST, ROW) if ROW in present else (REQUEST,)
    identity = contract.role("id")
    if identity is not None and identity.name in present:
        return (identity.name,)
    named = f' or "{identity.name}"' if identity else ""
    raise UserError(
        f'The labels "{uri}" cannot be joined to the log: give them a column "{REQUEST}" (with "{ROW}"){named}.'
    )


def keys_of(sample: pd.DataFrame, by: tuple[str, ...]) -> list[str]:
    """Return the key of each sampled row: request and row (0 if labels have no rows), or the id that was sent."""
    if by[0] == REQUEST:
        return [f"{request} {row}" for request, row in zip(sample[REQUEST], sample[ROW], strict=True)]
    return [normalize(value) if isinstance(value, str) else "" for value in sample["id"]]


def _labels_of(batch: "pa.RecordBatch", contract: Contract, by: tuple[str, ...], wanted: set[str]) -> "pd.Series[Any]":
    """Return the needed labels of one batch, by key."""
    import pyarrow as pa

    columns = [_key_column(contract, name) for name in by]
    target = contract.target_column.model_copy(update={"nullable": False})
    table = pa.Table.from_batches([batch])
    require_columns(table.schema.names, (*columns, target))
    frame, _ = clean(table, (*columns, target))
    frame = frame.dropna()
    parts: list[Any] = [frame[name].map(plain_text) for name in by]
    keys = parts[0]
    if by[0] == REQUEST:
        keys = keys + " " + (parts[1] if len(parts) > 1 else "0")
    chosen = keys.isin(wanted).to_numpy()
    labels = typed(frame[chosen], (target,))[target.name]
    return pd.Series(labels.to_numpy(), index=keys[chosen])


def _key_column(contract: Contract, name: str) -> Column:
    if name in (REQUEST, ROW):
        return Column(name=name, kind="text" if name == REQUEST else "integer")
    return contract.column(name)
