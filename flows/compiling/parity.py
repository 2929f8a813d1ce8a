"""The proof that a compiled model says what scikit-learn says, on every row of the holdout and on rows made worse."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from flows.compiling.prepare import final_estimator
from flows.compiling.refuse import BY_SKLEARN
from flows.contract import Column, Contract, encode
from flows.errors import UserError
from flows.scoring import CHUNK, Scorer

PROBES = 1000  # rows that are compared once more with missing and unknown values put in
UNKNOWN = "never seen ☃"
LIKELIEST = ("HistGradientBoostingClassifier", "GradientBoostingClassifier", "LogisticRegression", *(
    "RandomForestClassifier", "ExtraTreesClassifier"))  # fmt: skip


class Parity(BaseModel):
    """How far a compiled model is from scikit-learn.

    Attributes:
        rows: Rows compared.
        probes: Rows among them that were compared with missing and unknown values put in.
        largest: The largest difference: of a probability, or of a value as a share of it.
        row: The index of the row with the largest difference.
        labels_differ: Rows that were given another label, ties within the tolerance aside.
        tolerance: What is let through.
    """

    rows: int = 0
    probes: int = 0
    largest: float = 0.0
    row: str | None = None
    labels_differ: int = 0
    tolerance: float

    @property
    def proved(self) -> bool:
        """Whether both say the same."""
        return self.labels_differ == 0 and self.largest <= self.tolerance


def check_parity(
    model: bytes,
    pipeline: Any,
    contract: Contract,
    frame: pd.DataFrame,
    tolerance: float,
    predicted: np.ndarray | None = None,
) -> Parity:
    """Compare a compiled model with the pipeline on all rows of `frame`, in the contract's dtypes.

    Args:
        model: Serialized ONNX.
        pipeline: What it was compiled from.
        contract: With encodings.
        frame: The rows.
        tolerance: The largest difference that is let through.
        predicted: The pipeline's probabilities or values for `frame`, where they are known already.

    Raises:
        UserError: they differ by more than `tolerance`, or scikit-learn refuses what the contract allows.
    """
    scorer = Scorer.from_onnx(model, contract)
    parity = Parity(tolerance=tolerance)
    probes = make_probes(contract, frame)
    try:
        for start in range(0, len(frame), CHUNK):
            rows = slice(start, start + CHUNK)
            parity = _add(parity, scorer, pipeline, frame.iloc[rows], None if predicted is None else predicted[rows])
        _require(parity, "the held-out rows")
        parity = _add(parity, scorer, pipeline, probes)
    except ValueError as error:
        raise UserError(_refusing(error)) from error
    _require(parity, f"held-out rows with missing values and texts that training never saw, such as {UNKNOWN!r}")
    return parity.model_copy(update={"rows": len(frame), "probes": len(probes)})


def make_probes(contract: Contract, frame: pd.DataFrame) -> pd.DataFrame:
    """Return some rows of `frame`, each with a value missing or unknown, wherever the contract allows that."""
    changes = [change for column in contract.features for change in _changes(column)]
    if not changes or frame.empty:
        return frame.iloc[:0]
    count = max(min(PROBES, len(frame)), len(changes))
    rows = frame.iloc[np.linspace(0, len(frame) - 1, count).astype(int)].reset_index(drop=True)
    turn = np.arange(count) % len(changes)
    for i, (name, value) in enumerate(changes):
        rows[name] = rows[name].mask(turn == i, value)
    return rows


def _changes(column: Column) -> Iterator[tuple[str, Any]]:
    if column.nullable:
        yield column.name, None
    if column.kind == "text" and column.categories is None:
        yield column.name, UNKNOWN


def _add(
    parity: Parity, scorer: Scorer, pipeline: Any, frame: pd.DataFrame, predicted: np.ndarray | None = None
) -> Parity:
    """Return `parity` with the rows of `frame` compared too."""
    if frame.empty:
        return parity
    encoded = encode(scorer.contract, frame)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found unknown categories", UserWarning)  # which an open set has
        expected = _expected(pipeline, scorer.contract, encoded, predicted)
    try:
        outputs = scorer.run(encoded)
    except Exception as error:  # onnxruntime's own exceptions share no base
        said = str(error).splitlines()[0][:300]
        raise UserError(f"The compiled model fails where scikit-learn does not ({said}): {BY_SKLEARN}.") from error
    gaps, differ = _compare(expected, outputs, parity.tolerance)
    worst = int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps)))
    largest = float(gaps[worst]) if np.isfinite(gaps[worst]) else float("inf")
    found = {"labels_differ": parity.labels_differ + differ}
    further = {"largest": largest, "row": str(frame.index[worst])} if largest >= parity.largest else {}
    return parity.model_copy(update=found | further)


def _expected(
    pipeline: Any, contract: Contract, encoded: pd.DataFrame, predicted: np.ndarray | None
) -> list[np.ndarray]:
    """Return scikit-learn's [labels, probabilities] or [values], without predicting twice where that is the same."""
    if contract.classes is None:
        return [np.asarray(pipeline.predict(encoded) if predicted is None else predicted, np.float64).ravel()]
    probabilities = pipeline.predict_proba(encoded) if predicted is None else predicted
    likeliest = type(final_estimator(pipeline)).__name__ in LIKELIEST
    return [probabilities.argmax(axis=1) if likeliest else pipeline.predict(encoded), probabilities]


def _compare(expected: list[np.ndarray], given: list[np.ndarray], tolerance: float) -> tuple[np.ndarray, int]:
    """Return each row's difference [N], and the number of rows labelled otherwise."""
    if len(expected) == 1:
        values = expected[0]
        unit = np.maximum(np.abs(values), max(float(np.abs(values).mean()), np.finfo(float).tiny))
        return np.abs(given[0].ravel() - values) / unit, 0
    ranked = np.sort(expected[1], axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > 2 * tolerance
    differ = (given[0].ravel() != expected[0]) & clear
    return np.abs(given[1] - expected[1]).max(axis=1), int(differ.sum())


def _require(parity: Parity, where: str) -> None:
    if parity.proved:
        return
    raise UserError(
        f"The compiled model differs from scikit-learn on {where}: by up to {parity.largest:.2g} (row {parity.row}; "
        f"{parity.tolerance:.2g} is let through), with another label for {parity.labels_differ:,}. Nothing was "
        f"deployed: simplify model/features.py, or {BY_SKLEARN}."
    )


def _refusing(error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0][:300].rstrip(".")
    return (
        "The model fails on a missing value or on a text that training never saw, which model/schema.py allows "
        f'({said}): give its encoder handle_unknown="use_encoded_value" (OrdinalEncoder) or "ignore" (OneHotEncoder), '
        "or close the set by isin=[…] in model/schema.py."
    )
