"""Ingestion: the source that `config.toml` names becomes a snapshot.

The steps of the flow are in `ingest`. A new kind of source needs a new module and one line in `sources`; a project's
own source needs neither, see `python`.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.ingestion.ingest import read_source, report_snapshot
    from ondol.ingestion.sources import Reading, open_source, read_through
else:
    __getattr__ = export(__name__)

__all__ = [
    "Reading",
    "open_source",
    "read_source",
    "read_through",
    "report_snapshot",
]
