"""Validation: quarantines rows of a snapshot that break the contract, and searches for leaks.

The steps of the flow are in `validate`, its records in `results`. `corrections` adds corrected rows to later snapshots.
`leakage` searches the training rows; a new search is a function of it.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.validation.corrections import apply_corrections
    from ondol.validation.validate import check_bad_share, report_validation, validate_rows
else:
    __getattr__ = export(__name__)

__all__ = [
    "apply_corrections",
    "check_bad_share",
    "report_validation",
    "validate_rows",
]
