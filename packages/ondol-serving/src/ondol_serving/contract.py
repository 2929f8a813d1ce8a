"""The bundle's contract as the service sees it, and the encoding of validated rows into the model's input tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol_serving.decision import DecisionRule, read_rule

FEATURES = ("feature", "sensitive")
DAY = timedelta(days=1)
PARTS: dict[str, Callable[[datetime], float]] = {
    "month": lambda date: date.month,
    "weekday": datetime.weekday,
    "hour": lambda date: date.hour,
}
Rows = Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `contract.json`; see `ondol.contract.Column` for the entries."""

    name: str
    kind: str
    role: str
    nullable: bool
    bounds: dict[str, float]
    categories: tuple[Any, ...] | None
    input: str | None
    encoding: dict[str, Any]
    formats: tuple[str, ...] | None = None

    @property
    def inputs(self) -> tuple[tuple[str, str, bool], ...]:
        """The model inputs of this column: feature name, name in ONNX, and whether it is text."""
        parts = (self.encoding.get("parts") or {}).items()
        own = (self.name, str(self.input), self.encoding["tensor"] == "string")
        return (own, *((name, f"{self.input}_{part}", False) for part, name in parts))


@dataclass(frozen=True, slots=True)
class Contract:
    """The columns of the data, the problem, the classes in the order of the model's outputs, and the rule of labels."""

    problem: str
    target: str
    classes: tuple[Any, ...] | None
    columns: tuple[Column, ...]
    decision: DecisionRule | None = None

    @property
    def features(self) -> tuple[Column, ...]:
        """The columns a model sees, in the order of its inputs."""
        return tuple(c for c in self.columns if c.role in FEATURES)

    @property
    def ids(self) -> tuple[Column, ...]:
        """The columns that identify a row: they are optional in a request, and logged."""
        return tuple(c for c in self.columns if c.role == "id")

    @property
    def unread(self) -> tuple[Column, ...]:
        """The columns that are optional in a request, and neither read nor logged."""
        return tuple(c for c in self.columns if c.role not in (*FEATURES, "id"))

    @property
    def inputs(self) -> tuple[tuple[str, str, bool], ...]:
        """The inputs of the model, in order: all columns, then the parts of all dates; see `Column.inputs`."""
        made = [column.inputs for column in self.features]
        return tuple([one for inputs in made for one in inputs[:1]] + [one for inputs in made for one in inputs[1:]])


def read_contract(document: dict[str, Any]) -> Contract:
    """Build the contract from the parsed `contract.json`.

    Raises:
        KeyError: an entry is missing.
        ValueError: a feature has no input name or encoding.
    """
    columns = tuple(_read_column(column) for column in document["columns"])
    unfit = [c.name for c in columns if c.role in FEATURES and not (c.input and c.encoding)]
    if unfit:
        raise ValueError(f"features without an encoding: {', '.join(unfit)}")
    classes = document.get("classes")
    return Contract(
        document["problem"],
        document["target"],
        None if classes is None else tuple(classes),
        columns,
        read_rule(document.get("decision")),
    )


def _read_column(entry: dict[str, Any]) -> Column:
    names = {"ge": "minimum", "le": "maximum", "gt": "exclusive_minimum", "lt": "exclusive_maximum"}
    categories = entry.get("categories")
    return Column(
        name=entry["name"],
        kind=entry["kind"],
        role=entry["role"],
        nullable=bool(entry.get("nullable")),
        bounds={short: entry[name] for short, name in names.items() if entry.get(name) is not None},
        categories=None if categories is None else tuple(categories),
        input=entry.get("input"),
        encoding=entry.get("encoding") or {},
        formats=None if entry.get("formats") is None else tuple(entry["formats"]),
    )


class Encoder:
    """Turns rows into tensors `c0…cn` of shape [N, 1], float32 or text.

    All numbers go through one float64 matrix [columns, N] and all texts through one object matrix. So a request of one
    row needs only a few numpy calls for any number of columns.
    """

    def __init__(self, features: Sequence[Column]) -> None:
        """Prepare the tables for `features`, in the order of a row's values."""
        places = range(len(features))
        self.numbers = [i for i in places if features[i].encoding["tensor"] == "float32"]
        self._texts = [i for i in places if features[i].encoding["tensor"] == "string"]
        self._readers = {i: reader for i in self.numbers if (reader := _reader(features[i])) is not None}
        self._parts = [(i, PARTS[p], f"{c.input}_{p}") for i, c in enumerate(features) for p in _parts(c)]
        self._inputs = [str(c.input) for c in features]
        self._missing = [c.encoding.get("missing") or "<missing>" for c in features]
        rules = [features[i].encoding for i in self.numbers]
        self._offsets = np.array([[r.get("offset") or 0.0] for r in rules], dtype=np.float64)
        self._scales = np.array([[r.get("scale") or 1.0] for r in rules], dtype=np.float64)
        self._shifted = bool((self._offsets != 0).any() or (self._scales != 1).any())

    def encode(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return the tensor of every input. The request type has already checked that numbers fit into float32."""
        columns = list(zip(*rows, strict=False))
        tensors: dict[str, NDArray[Any]] = {}
        for i, part, name in self._parts:
            tensors[name] = np.array([[None if v is None else part(v)] for v in columns[i]], dtype=np.float32)
        for i, read in self._readers.items():
            columns[i] = tuple(None if v is None else read(v) for v in columns[i])
        tensors |= self.scale(np.array([columns[i] for i in self.numbers], dtype=np.float64))
        if self._texts:
            texts = [[v or self._missing[i] for v in columns[i]] for i in self._texts]
            for i, tensor in zip(self._texts, np.array(texts, dtype=object), strict=True):
                tensors[self._inputs[i]] = tensor[:, None]
        return tensors

    def scale(self, matrix: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
        """Return the tensors of the columns `numbers`, whose values are `matrix` [columns, N]."""
        if self._shifted:
            matrix = (matrix - self._offsets) / self._scales
        return {
            self._inputs[i]: tensor[:, None] for i, tensor in zip(self.numbers, matrix.astype(np.float32), strict=True)
        }


def _reader(column: Column) -> Callable[[Any], float | None] | None:
    """Return the function that converts a date to days or an ordered text to its rank; None for numbers."""
    if column.kind == "date":
        origin = datetime.fromisoformat(column.encoding["origin"])
        return lambda date: (date - origin) / DAY
    order = column.encoding.get("order")
    return {text: float(rank) for rank, text in enumerate(order)}.get if order else None


def _parts(column: Column) -> Sequence[str]:
    return tuple(column.encoding.get("parts") or ())
