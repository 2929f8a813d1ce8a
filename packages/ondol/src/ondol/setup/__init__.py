"""`ml init`, `ml contract` and `ml tidy`: the contract from a table, its changes, and files that updates left behind.

`initialize` is the command `ml init`: `inference` guesses roles and types, `schema_file` writes `model/schema.py`.
`evolution` finds changes of the table, `schema_edit` makes them in the file.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.setup.evolution import ContractChange, find_changes
    from ondol.setup.initialize import InitReport
    from ondol.setup.leftovers import find_leftovers
else:
    __getattr__ = export(__name__)

__all__ = [
    "ContractChange",
    "InitReport",
    "find_changes",
    "find_leftovers",
]
