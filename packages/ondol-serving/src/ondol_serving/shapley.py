"""Shapley values of a model's columns: how much each column adds to one prediction, compared with a background.

The value of a set of columns is the mean prediction over the background rows, with these columns taken from the row
that is explained ("interventional" Shapley values; Lundberg et al., Nature Machine Intelligence 2, 2020). They add up
to the prediction minus its mean over the background.

- Tree ensembles: exact, by tables that are built at deployment (`ondol.deployment.explanation`). A leaf's value counts
  if all its conditions hold, so only the set of columns whose conditions hold matters, and a leaf with d columns has
  2^d of them (Laberge and Pequignot, arXiv 2209.08354; Yang, arXiv 2109.09847).
- Linear models: in closed form.
- All others: an approximation by sampled orders of the columns, each with its reverse.

Tensors and matrices have one line for each row. K is the number of explained outputs: 1, or the number of classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = dict[str, Array]
Run = Callable[[Tensors], Array]  # from the model's input tensors to a matrix [N, …]

AT_ONCE = 20_000  # numbers in one array: more do not fit into a processor's cache
SEED = 0


class Column(Protocol):
    """A column of the contract, in the engine or in the service."""

    @property
    def inputs(self) -> Sequence[tuple[str, str, Any]]:
        """The model's inputs of this column: the second entry of each is its name in the model."""
        ...


class Explainer(Protocol):
    """Explains predictions of one model."""

    baseline: Array  # [K]: the mean prediction of the background

    def explain(self, tensors: Tensors) -> Array:
        """Return the contributions [N, columns, K]; with the baseline, they add up to the prediction."""
        ...


class Trees:
    """Exact values of an ensemble of trees, looked up in tables."""

    def __init__(self, arrays: Mapping[str, Array], columns: int, encode: Run) -> None:
        """Prepare the tables.

        Args:
            arrays: As `ondol.deployment.explanation.build_tables` returns them. A leaf has conditions, from
                `first_condition` on: `feature` is from `least` to `most`, or missing if `missing` is set. `bit` is the
                condition's column in the leaf's sets of columns; `full` is the set of all of them. From `offset` on,
                `inside` and `outside` have the sums of each set; see `sum_sets` there. `always` is the share of
                background rows that fulfil all conditions. `column_leaf` has the column `column` at `column_bit`, and
                `weight_leaf` adds `weight` to the output `weight_output`. Leaves with more columns come first, so that
                each offset is a multiple of the size of its leaf's table.
            columns: The number of the contract's features.
            encode: From the model's inputs to the matrix that the trees read.
        """
        self.baseline = arrays["baseline"]
        self._encode = encode
        self._shape = (columns, len(self.baseline))
        self._conditions = {name: arrays[name] for name in ("least", "most", "missing")}
        self._conditions |= {name: arrays[name].astype(np.intp) for name in ("feature", "bit", "first_condition")}
        offset, full = arrays["offset"].astype(np.intp), arrays["full"].astype(np.intp)
        self._top = offset + full
        self._inside, self._outside = arrays["inside"], -arrays["outside"]
        absent = np.repeat(self._top, full + 1) - np.arange(len(self._inside))
        share = np.repeat(arrays["always"], full + 1) / np.maximum(np.bitwise_count(absent), 1)
        self._without = self._inside - self._outside - share
        # One entry for each weight of a leaf and each of the leaf's columns, in the order of what it adds to.
        sizes = np.bincount(arrays["column_leaf"], minlength=len(offset))
        repeats = sizes[arrays["weight_leaf"]]
        first = np.repeat((np.cumsum(sizes) - sizes)[arrays["weight_leaf"]], repeats)
        pair = first + np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        target = arrays["column"][pair] * len(self.baseline) + np.repeat(arrays["weight_output"], repeats)
        order = np.argsort(target, kind="stable")
        self._leaf = arrays["column_leaf"].astype(np.intp)[pair][order]
        self._leaf_bit = arrays["column_bit"].astype(np.intp)[pair][order]
        self._weight = np.repeat(arrays["weight"], repeats)[order]
        self._target, self._start = np.unique(target[order], return_index=True)

    def explain(self, tensors: Tensors) -> Array:
        """Return the contributions [N, columns, K]."""
        return self.explain_matrix(self._encode(tensors))

    def explain_matrix(self, matrix: Array) -> Array:
        """Return the contributions [N, columns, K] for rows of the matrix that the trees read."""
        made = np.zeros((len(matrix), self._shape[0] * self._shape[1]))
        step = max(1, AT_ONCE // max(len(self._leaf), 1))
        for start in range(0, len(matrix) if len(self._leaf) else 0, step):
            values = self._find_values(matrix[start : start + step])
            made[start : start + step, self._target] = np.add.reduceat(values, self._start, axis=1)
        return made.reshape(len(matrix), *self._shape)

    def _find_values(self, matrix: Array) -> Array:
        """Return what each entry adds, [N, entries].

        Let x be the set of a leaf's columns whose conditions the row fulfils. The Shapley value of a column in x is the
        sum of all sets in x (`inside`) minus the sum of those without the column. That of another column is `outside`.
        """
        place = (self._top - find_unfulfilled(self._conditions, matrix)).take(self._leaf, axis=1)
        without = self._without.take(place ^ self._leaf_bit)
        values = np.where(place & self._leaf_bit, self._inside.take(place) - without, self._outside.take(place))
        return values * self._weight


def find_unfulfilled(conditions: Mapping[str, Array], matrix: Array) -> Array:
    """Return for each row and leaf the set of columns of which a condition does not hold, as bits [N, leaves]."""
    values = matrix.take(conditions["feature"], axis=1)
    fails = (values < conditions["least"]) | (values > conditions["most"])
    if np.isnan(matrix).any():
        fails |= np.isnan(values) & ~conditions["missing"]
    return np.bitwise_or.reduceat(np.where(fails, conditions["bit"], 0), conditions["first_condition"], axis=1)


class Linear:
    """Values of a linear model in closed form: each number's coefficient times its distance from the mean."""

    def __init__(self, arrays: Mapping[str, Array], columns: int, encode: Run) -> None:
        """Store `coefficients` [K, numbers], the background's `mean`, and the `column` of each number."""
        self.baseline = arrays["baseline"]
        self._encode, self._columns = encode, columns
        self._coefficients, self._mean, self._column = arrays["coefficients"], arrays["mean"], arrays["column"]

    def explain(self, tensors: Tensors) -> Array:
        """Return the contributions [N, columns, K]."""
        moved = self._encode(tensors).astype(np.float64) - self._mean
        parts = [sum_by(moved * one, self._column, self._columns) for one in self._coefficients]
        return np.stack(parts, axis=-1)


class Sampling:
    """An approximation: columns of the row replace those of a background row one by one, in random orders.

    Each background row is the start of one order and of its reverse. So the contributions add up exactly.
    """

    def __init__(self, arrays: Mapping[str, Array], inputs: Sequence[tuple[str, int]], columns: int, run: Run) -> None:
        """Draw the orders, the same for every row.

        Args:
            arrays: The background: each input tensor of the model by its name, [rows, 1].
            inputs: Each input's name and column.
            columns: The number of the contract's features.
            run: The model: from its inputs to its outputs [N, K].
        """
        self._inputs, self._run, self._columns = inputs, run, columns
        rows = len(next(iter(arrays.values())))
        drawn = np.random.default_rng(SEED).permuted(np.tile(np.arange(columns), (rows, 1)), axis=1)
        self._orders = np.concatenate([drawn, drawn[:, ::-1]])  # [2 rows, columns]
        ranks = np.argsort(self._orders, axis=1)
        # Of each order, the steps between the background row and the explained row: [2 rows, columns - 1, columns].
        replaced = ranks[:, None, :] < np.arange(1, columns)[None, :, None]
        self._replaced = replaced.reshape(-1, columns)
        start = np.tile(np.repeat(np.arange(rows), max(columns - 1, 0)), 2)
        texts = {name for name, _ in inputs if arrays[name].dtype.kind == "U"}
        whole = {name: arrays[name].astype(object) if name in texts else arrays[name] for name, _ in inputs}
        self._background = {name: tensor[start] for name, tensor in whole.items()}
        self._first = run(whole)  # [rows, K]
        self.baseline = self._first.mean(axis=0)

    def explain(self, tensors: Tensors) -> Array:
        """Return the contributions [N, columns, K]."""
        last = self._run({name: tensors[name] for name, _ in self._inputs})
        return np.stack([self._explain_row(tensors, number, one) for number, one in enumerate(last)])

    def _explain_row(self, tensors: Tensors, number: int, last: Array) -> Array:
        mixed = {
            name: np.where(self._replaced[:, column, None], tensors[name][number], self._background[name])
            for name, column in self._inputs
        }
        orders, outputs = len(self._orders), len(last)
        between = self._run(mixed).reshape(orders, self._columns - 1, outputs) if self._columns > 1 else None
        ends = (np.tile(self._first, (2, 1))[:, None], np.broadcast_to(last, (orders, 1, outputs)))
        path = np.concatenate([ends[0], *([] if between is None else [between]), ends[1]], axis=1)
        made = np.zeros((orders, self._columns, outputs))
        np.put_along_axis(made, self._orders[:, :, None], np.diff(path, axis=1), axis=1)
        return made.mean(axis=0)


def make_explainer(
    method: str, arrays: Mapping[str, Array], features: Sequence[Column], encode: Run | None, run: Run
) -> Explainer:
    """Return what explains the predictions of a model.

    Args:
        method: "exact" for trees, "linear", or "approximate".
        arrays: As built at deployment.
        features: The contract's features.
        encode: From the model's input tensors to the matrix of its trees or coefficients; None for "approximate".
        run: From the model's input tensors to what is explained, [N, K]; see `select_outputs`.
    """
    if encode is None:
        return Sampling(arrays, list_inputs(features), len(features), run)
    return (Trees if method == "exact" else Linear)(arrays, len(features), encode)


def list_inputs(features: Sequence[Column]) -> list[tuple[str, int]]:
    """Return each input of the model with the place of its column: the parts of a date have that of the date."""
    return [(name, place) for place, column in enumerate(features) for _, name, _ in column.inputs]


def select_outputs(problem: str, outputs: Array) -> Array:
    """Return what is explained of a model's values or probabilities, [N, K]: of two classes, only the second."""
    found = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
    return found[:, 1:] if problem == "binary" else found


def sum_by(values: Array, targets: Array, size: int) -> Array:
    """Return the sums [N, size] of the numbers in each row of `values` that have the same target."""
    flat = targets + np.arange(len(values))[:, None] * size
    return np.bincount(flat.ravel(), values.ravel(), len(values) * size).reshape(len(values), size)
