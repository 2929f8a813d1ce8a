"""From validated rows to the model's input tensors, by the encoding table of the contract."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol_serving.contract import Column

DAY = timedelta(days=1)
PARTS: dict[str, Callable[[datetime], float]] = {
    "month": lambda date: date.month,
    "weekday": datetime.weekday,
    "hour": lambda date: date.hour,
}
Rows = Sequence[Sequence[Any]]


class Encoder:
    """Turns rows into tensors `c0…cn` of shape [N, 1], float32 or text.

    All numbers go through one float64 matrix [columns, N] and all texts through one object matrix, so that a
    request of one row costs a handful of numpy calls for any number of columns.
    """

    def __init__(self, features: Sequence[Column]) -> None:
        """Prepare the tables for `features`, in the order of a row's values."""
        places = range(len(features))
        self._numbers = [i for i in places if features[i].encoding["tensor"] == "float32"]
        self._texts = [i for i in places if features[i].encoding["tensor"] == "string"]
        self._readers = {i: reader for i in self._numbers if (reader := _reader(features[i])) is not None}
        self._parts = [(i, PARTS[p], f"{c.input}_{p}") for i, c in enumerate(features) for p in _parts(c)]
        self._inputs = [str(c.input) for c in features]
        self._missing = [c.encoding.get("missing") or "<missing>" for c in features]
        rules = [features[i].encoding for i in self._numbers]
        self._offsets = np.array([[r.get("offset") or 0.0] for r in rules], dtype=np.float64)
        self._scales = np.array([[r.get("scale") or 1.0] for r in rules], dtype=np.float64)
        self._shifted = bool((self._offsets != 0).any() or (self._scales != 1).any())

    def encode(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the tensor of every input. The request type has made sure that numbers fit into float32."""
        columns = list(zip(*rows, strict=False))
        tensors: dict[str, NDArray[Any]] = {}
        for i, part, name in self._parts:
            tensors[name] = np.array([[None if v is None else part(v)] for v in columns[i]], dtype=np.float32)
        if self._numbers:
            for i, tensor in zip(self._numbers, self._encode_numbers(columns), strict=True):
                tensors[self._inputs[i]] = tensor[:, None]
        if self._texts:
            texts = [[v or self._missing[i] for v in columns[i]] for i in self._texts]
            for i, tensor in zip(self._texts, np.array(texts, dtype=object), strict=True):
                tensors[self._inputs[i]] = tensor[:, None]
        return tensors

    def _encode_numbers(self, columns: list[tuple[Any, ...]]) -> NDArray[np.float32]:
        """Return float32 [columns, N]; None becomes NaN."""
        for i, read in self._readers.items():
            columns[i] = tuple(None if v is None else read(v) for v in columns[i])
        matrix = np.array([columns[i] for i in self._numbers], dtype=np.float64)
        if self._shifted:
            matrix = (matrix - self._offsets) / self._scales
        return matrix.astype(np.float32)


def _reader(column: Column) -> Callable[[Any], float | None] | None:
    """Return what makes a number of a value that is none: a date's days, an ordered text's rank."""
    if column.kind == "date":
        origin = datetime.fromisoformat(column.encoding["origin"])
        return lambda date: (date - origin) / DAY
    order = column.encoding.get("order")
    return {text: float(rank) for rank, text in enumerate(order)}.get if order else None


def _parts(column: Column) -> Sequence[str]:
    return tuple(column.encoding.get("parts") or ())
