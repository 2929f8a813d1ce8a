"""Ingest: the source becomes a snapshot."""

from ondol.ingestion import read_source, report_snapshot
from ondol.orchestration import name_run, stage, task
from ondol.project import open_project
from ondol.validation import apply_corrections


@stage(timeout_hours=3)
def ingest(full: bool = False) -> str:
    """Copy the source that `config.toml` names into a snapshot; return its digest.

    Args:
        full: Read everything, even if the source supports incremental reads.
    """
    project = open_project()
    snapshot = task(read_source)(project, full)
    snapshot = task(apply_corrections)(project, snapshot)
    project.latest.set("ingest", snapshot.digest)
    name_run("ingest", data=snapshot.digest)
    report_snapshot(snapshot)
    return snapshot.digest
