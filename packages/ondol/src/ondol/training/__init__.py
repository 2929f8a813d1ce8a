"""Training: a pipeline is fitted on the validated rows of the training side, and registered as the challenger.

The steps of the flow are in `train`. Which rows are held out is decided in `dataset`; what decides a model besides its
rows is read in `provenance`.
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
