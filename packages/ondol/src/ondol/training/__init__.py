"""Training: fits a pipeline on the validated rows of the training side, and registers it as the challenger.

The steps of the flow are in `train`. `dataset` decides which rows are held out; `provenance` records the other inputs
of a model.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.training.formulas import Formulas
    from ondol.training.train import (
        Fitted,
        cache_key,
        check_leakage,
        find_version,
        fit,
        is_trained,
        load_rows,
        register,
    )
else:
    __getattr__ = export(__name__)

__all__ = [
    "Fitted",
    "Formulas",
    "cache_key",
    "check_leakage",
    "find_version",
    "fit",
    "is_trained",
    "load_rows",
    "register",
]
