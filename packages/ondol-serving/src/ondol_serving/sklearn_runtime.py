"""Runs a scikit-learn pipeline, saved as skops, for a model that cannot be compiled to ONNX.

Imported only for a bundle of this kind. It loads only the types in the bundle's trust list, and the list may contain
only types of scikit-learn, numpy, scipy and libraries of boosting: the service does not contain the project's code.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skops.io import get_untrusted_types, load

from ondol_serving.bundle import BundleError
from ondol_serving.contract import Contract
from ondol_serving.decision import decide
from ondol_serving.runtime import Tensors

LIBRARIES = ("catboost", "lightgbm", "xgboost")
TRUSTWORTHY = ("sklearn.", "numpy.", "scipy.", "collections.OrderedDict", *(f"{name}." for name in LIBRARIES))


class SklearnRuntime:
    """A fitted pipeline over the encoded frame."""

    slow = True

    def __init__(self, model: Path, contract: Contract, trusted: list[str]) -> None:
        """Load `model`, which was trained with `contract`, trusting exactly `trusted`.

        Raises:
            BundleError: the trust list or the file contains a type that is not trustworthy, or one of a library
                that is not installed.
            skops's errors: the file contains a type that is not in the trust list.
        """
        named = {*trusted, *get_untrusted_types(file=model)}
        if foreign := sorted(name for name in named if not name.startswith(TRUSTWORTHY)):
            raise BundleError(
                f"its model needs {', '.join(foreign)}, and the service has classes of scikit-learn, numpy and scipy "
                'only: set runtime = "onnx" under [deploy] in config.toml, with a converter in model/converters.py for '
                "a class of your own"
            )
        for library in sorted({name.partition(".")[0] for name in named} & {*LIBRARIES}):
            if find_spec(library) is None:
                raise BundleError(
                    f"its model needs {library}, which is not installed here: type uv add --group service-sklearn "
                    f"{library} in the project, and build the service's image again"
                )
        self._pipeline = load(model, trusted=trusted)
        self._contract = contract

    def run(self, tensors: Tensors) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return labels [N] and probabilities [N, K], or values [N] and None."""
        frame = pd.DataFrame({name: self._series(tensors[key], text) for name, key, text in self._contract.inputs})
        classes, rule = self._contract.classes, self._contract.decision
        if classes is None:
            return np.asarray(self._pipeline.predict(frame), dtype=np.float64), None
        probabilities = np.zeros((len(frame), len(classes)))
        probabilities[:, np.asarray(self._pipeline.classes_, dtype=int)] = self._pipeline.predict_proba(frame)
        if rule is not None:
            return decide(rule, probabilities), probabilities
        return np.ravel(self._pipeline.predict(frame)).astype(np.int64), probabilities

    def _series(self, tensor: NDArray[Any], text: bool) -> "pd.Series[Any]":
        return pd.Series(tensor[:, 0], dtype="str") if text else pd.Series(tensor[:, 0])
