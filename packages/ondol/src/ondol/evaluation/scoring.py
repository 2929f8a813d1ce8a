"""Batch predictions: by a bundle, in any runtime, with the same figures as the service; and by the dummy model."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ondol.contract import Column, Contract, check_rows, encode
from ondol.errors import UserError
from ondol_serving.decision import DecisionRule, decide
from ondol_serving.names import label_key

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CHUNK = 50_000  # rows that are encoded and scored at once, to bound memory
PREDICTION, ERROR = "prediction", "error"
TOO_LARGE = "too large for the model"
LARGEST = 3.4028234e38  # the limit of float32, and of the service's request type
ARROW: dict[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
ABSOLUTE = ("mae", "median_absolute_error", "mape")
SILENT = 4  # level of ONNX Runtime's log: errors are raised as well

ModelFunction = Callable[[pd.DataFrame], list[np.ndarray]]  # encoded rows to [labels, probabilities] or [values]


class Scorer:
    """A model with the contract that encodes its inputs."""

    def __init__(self, contract: Contract, run: ModelFunction) -> None:
        """Score with `run`."""
        self.contract = contract
        self.run = run

    @classmethod
    def open(cls, bundle: Path) -> "Scorer":
        """Open the model of the bundle in a folder.

        Raises:
            UserError: the folder is not a bundle.
        """
        try:
            contract = Contract.model_validate_json((bundle / "contract.json").read_bytes())
            if (bundle / "model.onnx").exists():
                return cls.from_onnx((bundle / "model.onnx").read_bytes(), contract)
            meta = json.loads((bundle / "meta.json").read_text(encoding="utf-8"))
            return cls(contract, _skops_runtime(bundle / "model.skops", meta["trusted"], contract))
        except FileNotFoundError as error:
            raise UserError(f"{bundle} is not a bundle: it has no {Path(error.filename).name}.") from None

    @classmethod
    def from_onnx(cls, model: bytes, contract: Contract) -> "Scorer":
        """Score with a serialized ONNX model, on all cores."""
        return cls(contract, _onnx_runtime(model, contract))

    @classmethod
    def from_pipeline(cls, pipeline: Any, contract: Contract) -> "Scorer":
        """Score with a fitted pipeline of scikit-learn."""
        return cls(contract, _pipeline_runtime(pipeline, contract))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that `score` returns: `prediction` and, for classes, one `probability <class>` each."""
        return (PREDICTION, *(f"probability {label_key(label)}" for label in self.contract.classes or ()))

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """Return class probabilities [N, K] or values [N], float64, for rows in the contract's dtypes."""
        classes = self.contract.classes
        made = np.empty((len(frame), *(() if classes is None else (len(classes),))))
        for rows, outputs in self._chunks(frame):
            made[rows] = outputs[-1] if classes is not None else outputs[0].ravel()
        return made

    def score(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return `columns` for rows in the contract's dtypes, with the frame's index.

        The prediction is a label as in the data, or a value.
        """
        classes = self.contract.classes
        if classes is None:
            return pd.DataFrame({PREDICTION: self.predict(frame)}, index=frame.index)
        labels = np.empty(len(frame), np.int64)
        probabilities = np.empty((len(frame), len(classes)))
        for rows, outputs in self._chunks(frame):
            labels[rows], probabilities[rows] = outputs[0].ravel(), outputs[1]
        shown: dict[str, Any] = {PREDICTION: pd.Series(list(classes)).take(labels).to_numpy()}
        shown |= dict(zip(self.columns[1:], probabilities.T, strict=True))
        return pd.DataFrame(shown, index=frame.index)

    def run_tensors(self, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return the model's outputs for input tensors as `make_tensors` returns them."""
        return self.run(pd.DataFrame({made.name: tensors[made.key].ravel() for made in self.contract.inputs}))

    def _chunks(self, frame: pd.DataFrame) -> Iterator[tuple[slice, list[np.ndarray]]]:
        for start in range(0, len(frame), CHUNK):
            rows = slice(start, start + CHUNK)
            yield rows, self.run(encode(self.contract, frame.iloc[rows]))


def predict_table(
    scorer: Scorer, table: pa.Table, explain: "Callable[[pd.DataFrame, pd.Series[Any]], pd.DataFrame] | None" = None
) -> tuple[pa.Table, int]:
    """Return the scorer's columns and `error` for each row of `table`, and the number of refused rows.

    Args:
        scorer: The model.
        table: The rows.
        explain: Returns more columns of numbers for valid rows and their predictions.

    Raises:
        UserError: a column is missing.
    """
    checked = check_rows(table, scorer.contract.features)
    good = checked.valid()
    large = _too_large(scorer.contract.features, good)
    good = good.drop(index=large.index) if len(large) else good
    scored = scorer.score(good)
    if explain is not None:
        scored = pd.concat([scored, explain(good, scored[PREDICTION])], axis=1)
    places = np.full(table.num_rows, -1)
    places[scored.index] = np.arange(len(scored))
    taken = pa.array(places, mask=places < 0)
    columns = {name: _to_arrow(scored[name], name, scorer.contract).take(taken) for name in scored.columns}
    broken = pd.Series(pc.binary_join(checked.sentences(), "; ").to_numpy(zero_copy_only=False), checked.bad, object)
    errors = pd.concat([broken, large]).reindex(range(table.num_rows))
    columns[ERROR] = pa.array(errors, pa.string(), from_pandas=True)
    return pa.table(columns), int((places < 0).sum())


def _too_large(features: Sequence[Column], good: pd.DataFrame) -> "pd.Series[Any]":
    """Return a reason for each row with a number that is too large for float32; the service refuses it too."""
    reasons: dict[Any, str] = {}
    for column in features:
        rule = column.encoding
        if column.kind not in ("number", "integer") or rule is None:
            continue
        numbers = good[column.name].to_numpy(dtype=np.float64, na_value=np.nan)
        for place in np.flatnonzero(np.abs(numbers - rule.offset) > LARGEST * rule.scale):
            reason = f"{column.name} = {numbers[place]:g}: {TOO_LARGE}"
            row = good.index[int(place)]
            reasons[row] = f"{reasons[row]}; {reason}" if row in reasons else reason
    return pd.Series(list(reasons.values()), index=list(reasons), dtype=object)


def _to_arrow(values: "pd.Series[Any]", name: str, contract: Contract) -> pa.Array:
    """Return predictions as Arrow values, with the same type for any rows."""
    if name != PREDICTION or contract.classes is None:
        return pa.array(values, pa.float64())
    return pa.array(values.to_numpy(dtype=object), ARROW[type(contract.classes[0])])


def predict_dummy(
    problem: str,
    metric: str,
    baseline: Sequence[float] | NDArray[Any],
    rows: int,
    rule: DecisionRule | None = None,
    seed: int = 0,
) -> NDArray[Any]:
    """Return the predictions of the dummy model for `rows` rows: probabilities [rows, K], or values [rows].

    In regression it predicts the mean; for absolute errors, the last of `baseline`. In classification it predicts each
    class's share, except for metrics for which that is too easy to beat: for `f1` and `precision` it always predicts
    the positive class, for `cost` the cheapest class, and for `f1_macro` it draws classes by their shares (no guess is
    better on average).

    Args:
        problem: "binary", "multiclass" or "regression".
        metric: The deciding metric.
        baseline: Of the training rows: each class's share, [K]; or the mean, or mean and median.
        rows: The number of predictions.
        rule: How the candidate's labels are decided; None for the most probable class.
        seed: The seed of the draws.
    """
    figures = np.asarray(baseline, np.float64)
    if problem == "regression":
        return np.full(rows, figures[-1] if metric in ABSOLUTE else figures[0])
    if metric == "f1" or (metric == "precision" and rule is not None):
        return np.tile([0.0, 1.0], (rows, 1))
    if metric == "cost" and rule is not None and rule.costs is not None:
        return np.tile(np.eye(len(figures))[(figures @ np.array(rule.costs)).argmin()], (rows, 1))
    if metric == "f1_macro":
        drawn = np.random.default_rng(seed).choice(len(figures), rows, p=figures / figures.sum())
        return np.asarray(np.eye(len(figures))[drawn])
    return np.tile(figures, (rows, 1))


def open_session(model: bytes) -> "InferenceSession":
    """Open a serialized ONNX model on all cores; errors are raised and not printed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    # Spinning threads take the cores from other work, and gain little with chunks of this size.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _onnx_runtime(model: bytes, contract: Contract) -> ModelFunction:
    import onnxruntime

    session = open_session(model)
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = SILENT
    wanted = {value.name for value in session.get_inputs()}  # a column that the features drop is not an input
    inputs = {made.name: made.key for made in contract.inputs if made.key in wanted}
    outputs = ["value"] if contract.classes is None else ["label", "probabilities"]

    def run(encoded: pd.DataFrame) -> list[np.ndarray]:
        feeds = {key: _tensor(encoded[name]) for name, key in inputs.items()}
        return [np.asarray(output) for output in session.run(outputs, feeds, quiet)]

    return run


def _skops_runtime(path: Path, trusted: list[str], contract: Contract) -> ModelFunction:
    import skops.io

    model = skops.io.load(path, trusted=[name for name in trusted if not name.startswith("builtins.")])
    return _pipeline_runtime(model, contract)


def _pipeline_runtime(model: Any, contract: Contract) -> ModelFunction:
    def run(encoded: pd.DataFrame) -> list[np.ndarray]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found unknown categories", UserWarning)  # expected for open sets
            if contract.classes is None:
                return [np.asarray(model.predict(encoded))]
            probabilities, rule = np.asarray(model.predict_proba(encoded)), contract.decision
            return [decide(rule, probabilities) if rule else np.ravel(model.predict(encoded)), probabilities]

    return run


def make_tensors(contract: Contract, encoded: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the model's input tensors [N, 1] of encoded rows."""
    return {made.key: _tensor(encoded[made.name]) for made in contract.inputs}


def _tensor(values: "pd.Series[Any]") -> np.ndarray:
    """Return an encoded column as a tensor [N, 1]; texts as objects, the fastest form for the runtime."""
    array = values.to_numpy() if values.dtype == np.float32 else values.to_numpy(dtype=object)
    return array.reshape(-1, 1)
