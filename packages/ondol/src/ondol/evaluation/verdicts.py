"""Verdicts: what the gates said of a candidate against the champion of the time."""

from pathlib import Path

from pydantic import BaseModel

from ondol.evaluation.verdict import Verdict
from ondol.storage.files import read_record, write_bytes


class Record(BaseModel):
    """A verdict that is kept.

    Attributes:
        key: Digest of everything that it depends on; an equal key gives the same verdict.
        version: The candidate.
        run_id: The run that made it.
        champion: The bundle in service when it was judged, None where there was none.
        verdict: The figures of all, and every gate.
        refusal: Why it was refused, in one sentence; empty for a pass.
        notes: What a reader should know, in sentences.
    """

    key: str
    version: str
    run_id: str
    champion: str | None
    verdict: Verdict
    refusal: str = ""
    notes: list[str] = []


class Verdicts:
    """The verdicts of one store, the last one of each version."""

    def __init__(self, store: Path) -> None:
        """Look into the store at `store`; nothing is made."""
        self.folder = store / "verdicts"

    def find(self, version: str) -> Record | None:
        """Return the last verdict on a version, or None."""
        return read_record(self.folder / f"{version}.json", Record)

    def write(self, record: Record) -> None:
        """Keep a verdict in place of the version's last."""
        write_bytes(self.folder / f"{record.version}.json", record.model_dump_json(indent=1).encode())
