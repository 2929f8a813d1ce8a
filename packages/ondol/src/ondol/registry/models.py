"""Saved pipelines: skops files, read with an explicit list of trusted types."""

from pathlib import Path
from typing import Any

from ondol.config import Settings
from ondol.errors import UserError

FILE = "model.skops"
TRUSTED = (  # classes of scikit-learn, numpy and the engine that skops does not list
    "numpy.dtype",
    "ondol.training.formulas.Formulas",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.model_selection._split.KFold",
    "sklearn.tree._tree.Tree",
)


def trusted_types(settings: Settings) -> tuple[str, ...]:
    """Return the types that skops may read: ours, and those that the owner named."""
    return (*TRUSTED, *settings.train.trusted_types)


def load_pipeline(path: Path, trusted: tuple[str, ...]) -> Any:
    """Return the scikit-learn pipeline in a file.

    Raises:
        UserError: it holds a type outside the trust list.
    """
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    # Not MLflow's own loader: that takes format and trust list from the model's files.
    try:
        return skops.io.load(path, trusted=list(trusted))
    except (TypeError, UntrustedTypesFoundException) as error:
        raise UserError(explain_untrusted(error)) from error


def explain_untrusted(error: Exception) -> str:
    """Say what to do about what skops said of a type."""
    text = " ".join(str(error).split())
    return (
        "The model holds a type that skops does not trust, so it was not registered: add its full name to [train] "
        f"trusted_types in config.toml if it is your own or well known. skops says: {text[:400]}"
    )
