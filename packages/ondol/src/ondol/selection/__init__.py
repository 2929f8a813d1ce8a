"""Model selection: compares candidates by cross-validation on the training rows alone."""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.selection.comparison import choose
else:
    __getattr__ = export(__name__)

__all__ = ["choose"]
