"""One difference between the contract and a table."""

from dataclasses import dataclass
from typing import Literal

from ondol.contract.columns import Kind, Label
from ondol.setup.writing import Field

What = Literal["new", "missing", "renamed", "retyped", "category", "range", "mark", "gaps"]


@dataclass(frozen=True)
class Change:
    """One difference between the contract and a table.

    Attributes:
        what: Its kind.
        column: The column's name, after any renaming.
        said: The sentence a person reads.
        role: What the column is for.
        field: A new column as `ml init` would write it.
        before: The name that a renamed column has in the contract.
        kind: What a retyped column, or one with gaps, holds.
        nullable: Whether a retyped column may have gaps by the contract.
        fits: Whether a retyped column's limits still mean something.
        categories: The values that are new, or those of a target that was retyped; None where a set is opened.
        bounds: The keyword of each bound that does not hold, and the least or greatest value seen.
    """

    what: What
    column: str
    said: str
    role: str = "feature"
    field: Field | None = None
    before: str = ""
    kind: Kind = "text"
    nullable: bool = False
    fits: bool = True
    categories: tuple[Label, ...] | None = None
    bounds: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        """The line that is printed."""
        return f"{self.what}: {self.said}."
