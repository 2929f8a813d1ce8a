"""Sources in databases, read in one read-only transaction through SQLAlchemy."""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.ingestion.sql.source import open_sql
else:
    __getattr__ = export(__name__)

__all__ = [
    "open_sql",
]
