"""Snapshots: immutable tables, named by the digest of their content, which the steps after `ingestion` start from.

A snapshot shares its unchanged parts with earlier ones (`snapshots`); rows with a newer version replace the older ones
(`upsert`); `diff` compares two snapshots.
"""

from typing import TYPE_CHECKING

from ondol.exports import export

if TYPE_CHECKING:
    from ondol.snapshots.snapshots import Snapshot, Snapshots
else:
    __getattr__ = export(__name__)

__all__ = [
    "Snapshot",
    "Snapshots",
]
