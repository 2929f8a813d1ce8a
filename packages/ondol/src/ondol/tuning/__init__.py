"""Tuning: a search for parameters by Optuna, on the training rows alone, by local processes or a Dask cluster.

Optuna and Dask are extras. One process asks for parameters and records the trials; the workers only fit.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.tuning.report import log_search
    from ondol.tuning.search import Search, open_search
    from ondol.tuning.workers import open_workers
else:
    __getattr__ = export(__name__)

__all__ = ["Search", "log_search", "open_search", "open_workers"]
