"""The exception: a bundle whose estimator cannot be compiled carries a scikit-learn pipeline as skops.

Imported only for such a bundle. It loads the types that the bundle's trust list names and no others, and the
list may name scikit-learn's, numpy's and scipy's own only: a custom class needs an ONNX converter.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skops.io import get_untrusted_types, load

from ondol_serving.runtime import Tensors

Inputs = Sequence[tuple[str, str, bool]]  # see `ondol_serving.contract.Contract.inputs`
TRUSTWORTHY = ("sklearn.", "numpy.", "scipy.")


class SklearnRuntime:
    """A fitted pipeline over the encoded frame."""

    slow = True

    def __init__(self, model: Path, inputs: Inputs, classes: int | None, trusted: list[str]) -> None:
        """Load `model`, trusting exactly `trusted`.

        Raises:
            ValueError: the trust list or the file names a type that is not scikit-learn's own.
        """
        foreign = [name for name in trusted if not name.startswith(TRUSTWORTHY)]
        foreign += sorted(set(get_untrusted_types(file=model)) - set(trusted))
        if foreign:
            raise ValueError(f"{', '.join(foreign)} not trusted: a custom class needs an ONNX converter")
        self._pipeline = load(model, trusted=trusted)
        self._inputs = inputs
        self._classes = classes

    def run(self, tensors: Tensors) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return labels [N] and probabilities [N, K], or values [N] and None."""
        frame = pd.DataFrame({name: self._series(tensors[key], text) for name, key, text in self._inputs})
        if self._classes is None:
            return np.asarray(self._pipeline.predict(frame), dtype=np.float64), None
        probabilities = np.zeros((len(frame), self._classes))
        probabilities[:, np.asarray(self._pipeline.classes_, dtype=int)] = self._pipeline.predict_proba(frame)
        return np.asarray(self._pipeline.predict(frame), dtype=np.int64), probabilities

    def _series(self, tensor: NDArray[Any], text: bool) -> "pd.Series[Any]":
        return pd.Series(tensor[:, 0], dtype="str") if text else pd.Series(tensor[:, 0])
