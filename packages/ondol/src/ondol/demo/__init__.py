"""`ml simulate`: traffic, drift and recovery, played in a copy of the project (`sandbox`) with the sample data."""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.demo.sandbox import Sandbox, make_sandbox
    from ondol.demo.simulation import Play
else:
    __getattr__ = export(__name__)

__all__ = [
    "Play",
    "Sandbox",
    "make_sandbox",
]
