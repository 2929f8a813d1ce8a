"""The proof that a compiled model says what scikit-learn says, on every row of the holdout."""

from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from flows.contract import Contract, encode
from flows.errors import UserError
from flows.scoring import CHUNK, Scorer


class Parity(BaseModel):
    """How far a compiled model is from scikit-learn.

    Attributes:
        rows: Rows compared.
        largest: The largest difference: of a probability, or of a value as a share of it.
        labels_differ: Rows that were given another label, ties within the tolerance aside.
        tolerance: What is let through.
    """

    rows: int
    largest: float
    labels_differ: int
    tolerance: float

    @property
    def proved(self) -> bool:
        """Whether both say the same."""
        return self.labels_differ == 0 and self.largest <= self.tolerance


def check_parity(model: bytes, pipeline: Any, contract: Contract, frame: pd.DataFrame, tolerance: float) -> Parity:
    """Compare a compiled model with the pipeline on all rows of `frame`, in the contract's dtypes.

    Raises:
        UserError: they differ by more than `tolerance`.
    """
    scorer = Scorer.from_onnx(model, contract)
    largest, differ = 0.0, 0
    for start in range(0, len(frame), CHUNK):
        encoded = encode(contract, frame.iloc[start : start + CHUNK])
        gap, labels = _compare(scorer, pipeline, contract, encoded, tolerance)
        largest, differ = max(largest, gap), differ + labels
    parity = Parity(rows=len(frame), largest=largest, labels_differ=differ, tolerance=tolerance)
    if not parity.proved:
        raise UserError(
            f"The compiled model differs from scikit-learn by {largest:.2g} (at most {tolerance:.2g} is let through), with "
            f"{differ:,} other labels in {len(frame):,} rows; nothing was deployed: simplify model/features.py, or set "
            'runtime = "sklearn" under [deploy] in config.toml.'
        )
    return parity


def _compare(scorer: Scorer, pipeline: Any, contract: Contract, encoded: pd.DataFrame, tolerance: float) -> tuple[float, int]:
    """Return the largest difference and the number of rows labelled otherwise."""
    if contract.classes is None:
        expected = pipeline.predict(encoded).astype(np.float64)
        unit = np.maximum(np.abs(expected), np.abs(expected).mean())
        gaps = np.abs(scorer.run(encoded)[0].ravel() - expected) / np.maximum(unit, np.finfo(float).tiny)
        return float(gaps.max()), 0
    labels, probabilities = scorer.run(encoded)
    expected = pipeline.predict_proba(encoded)
    ranked = np.sort(expected, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > 2 * tolerance
    differ = (labels.ravel() != pipeline.predict(encoded)) & clear
    return float(np.abs(probabilities - expected).max()), int(differ.sum())
