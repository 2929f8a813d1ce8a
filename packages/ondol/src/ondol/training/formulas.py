"""A scikit-learn transformer that computes columns from formulas; `ondol.deployment.onnx` compiles it."""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from ondol.contract.encoding import AFFINE

Floats = NDArray[np.float32]
# Each operation is exact here and in ONNX Runtime: a formula has the same result, to the last bit, in both.
OPERATORS: Mapping[type[ast.AST], tuple[str, Callable[..., Any]]] = {
    ast.Add: ("Add", np.add),
    ast.Sub: ("Sub", np.subtract),
    ast.Mult: ("Mul", np.multiply),
    ast.Div: ("Div", np.divide),
    ast.USub: ("Neg", np.negative),
    ast.Gt: ("Greater", np.greater),
    ast.GtE: ("GreaterOrEqual", np.greater_equal),
    ast.Lt: ("Less", np.less),
    ast.LtE: ("LessOrEqual", np.less_equal),
    ast.Eq: ("Equal", np.equal),
}
FUNCTIONS: Mapping[str, tuple[str, Callable[..., Any], int]] = {
    "abs": ("Abs", np.abs, 1),
    "sqrt": ("Sqrt", np.sqrt, 1),
    "min": ("Min", np.minimum, 2),
    "max": ("Max", np.maximum, 2),
}
COMPARISONS = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"))
Value = Any  # the value of a part of a formula: an array here, the name of a node in ONNX


class Formulas(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Passes its columns on, and appends columns computed from them.

    A formula may contain numbers, columns (`column["a name"]` if a name is not an identifier), `+ - * /`, comparisons
    (1 or 0), `abs`, `sqrt`, `min` and `max`. It is computed in float64 from the columns' real values (dates: days since
    1970). Comparisons use float32, so that 0.1 equals a column's 0.1. Results that are not finite, such as a division
    by 0, are missing, and so are results from a missing value. A comparison with a missing value is 0.

    Example:
        `("ratios", Formulas({"fee_share": "monthly_fee / total_paid"}), ["monthly_fee", "total_paid"])`
    """

    def __init__(self, formulas: Mapping[str, str]) -> None:
        """Store `formulas`, by the names of the new columns."""
        self.formulas = formulas

    def fit(self, frame: Any, y: Any = None) -> Self:
        """Store the columns and their encodings.

        Raises:
            ValueError: a formula cannot be parsed or names a column that is absent or not numeric; or the columns are
            not as `ondol.contract.encode` returns them.
        """
        if (known := getattr(frame, "attrs", {}).get(AFFINE)) is None:
            raise ValueError("Formulas must be the first step for their columns: another one in front changes them")
        self.columns_ = [str(name) for name in frame.columns]
        self.n_features_in_ = len(self.columns_)
        self.encodings_ = [[*known.get(name, (0.0, 1.0))] for name in self.columns_]  # offset and scale
        self.transform(frame.head(1))
        for (name, text), tree in zip(self.formulas.items(), self.trees(), strict=True):
            if not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {*self.columns_, "column"}:
                raise ValueError(f'the formula "{name}" names no column: {text}')
        return self

    def transform(self, frame: Any) -> Floats:
        """Return the columns, then the computed ones, [N, columns + formulas]."""
        try:
            given = np.asarray(frame, np.float32)
        except ValueError:
            raise ValueError(f"Formulas take numbers, and one of {', '.join(self.columns_)} is not a number") from None
        with np.errstate(all="ignore"):
            columns = [
                given[:, i].astype(np.float64) * scale + offset for i, (offset, scale) in enumerate(self.encodings_)
            ]
            made = [
                evaluate_formula(tree, self.columns_, columns, _compute).astype(np.float32) for tree in self.trees()
            ]
        return np.column_stack([given, *(np.where(np.isfinite(one), one, np.float32(np.nan)) for one in made)])

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> NDArray[Any]:
        """Return the columns' names, then the formulas'."""
        return np.array([*self.columns_, *self.formulas], dtype=object)

    def trees(self) -> Iterator[ast.expr]:
        """Yield the formulas as syntax trees."""
        for name, text in self.formulas.items():
            try:
                yield ast.parse(text, mode="eval").body
            except SyntaxError:
                raise ValueError(f'the formula "{name}" cannot be read: {text}') from None


def evaluate_formula(
    tree: ast.AST, names: Sequence[str], columns: Sequence[Value], compute: Callable[[str, Sequence[Value]], Value]
) -> Value:
    """Return the value of a formula.

    Args:
        tree: Its syntax tree.
        names: The names of the columns.
        columns: The values of the columns.
        compute: Returns the value of an ONNX operator; for "Constant", that of a number.

    Raises:
        ValueError: the formula contains another construct.
    """

    def walk(node: ast.AST) -> Value:
        match node:
            case ast.Constant(value=bool() | int() | float() as number):
                return compute("Constant", [float(number)])
            case ast.Name(id=name) | ast.Subscript(value=ast.Name(id="column"), slice=ast.Constant(value=str(name))):
                if name not in names:
                    raise ValueError(
                        f'the formula "{ast.unparse(tree)}" names "{name}", which is not one of its columns'
                    )
                return columns[list(names).index(name)]
            case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]) if (
                type(op) in OPERATORS
            ):
                return compute(OPERATORS[type(op)][0], [walk(left), walk(right)])
            case ast.UnaryOp(op=ast.USub() as op, operand=operand):
                return compute(OPERATORS[type(op)][0], [walk(operand)])
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if (
                name in FUNCTIONS and len(args) == FUNCTIONS[name][2]
            ):
                return compute(FUNCTIONS[name][0], [walk(one) for one in args])
        raise ValueError(f'the formula "{ast.unparse(tree)}" has "{ast.unparse(node)}" in it, which is not supported')

    return walk(tree)


NUMPY = dict(OPERATORS.values())
NUMPY |= {name: function for name, function, _ in FUNCTIONS.values()}


def _compute(operator: str, values: Sequence[Value]) -> Value:
    if operator == "Constant":
        return np.float64(values[0])
    if operator in COMPARISONS:
        values = [np.asarray(value, np.float32) for value in values]
    return np.asarray(NUMPY[operator](*values), np.float64)
