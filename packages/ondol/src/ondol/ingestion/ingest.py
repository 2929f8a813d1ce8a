"""Steps of the ingest flow: the source's rows become a snapshot."""

from ondol.config import Settings
from ondol.contract import Contract, require_columns, require_known_markers
from ondol.extensions import SOURCE, read_extension
from ondol.ingestion.incremental import grow
from ondol.ingestion.python import change_rows
from ondol.ingestion.sources import Reading, Source, StreamingSource, open_source, read_through
from ondol.orchestration.artifacts import code, publish_markdown
from ondol.orchestration.progress import say, track
from ondol.project import Project
from ondol.redaction import redact_exceptions, show_uri
from ondol.snapshots.snapshots import Snapshot, Snapshots
from ondol.storage.files import SHORT
from ondol.storage.store import open_store


@redact_exceptions()
def read_source(project: Project, full: bool = False) -> Snapshot:
    """Return the snapshot of the source that `config.toml` names; see `snapshot_source`."""
    return snapshot_source(project.settings, project.contract, full)


def snapshot_source(settings: Settings, contract: Contract, full: bool = False) -> Snapshot:
    """Return the snapshot of the source's rows, read only where its bytes changed since the last time.

    With a watermark, and from a stream, only what is new is read and appended to what was read before.

    Raises:
        UserError: the source is missing, is no table, or lacks a column of the contract.
    """
    source = open_project_source(settings, contract)
    snapshots = Snapshots(open_store(settings))
    if settings.data.watermark is not None or isinstance(source, StreamingSource):
        return grow(settings, contract, source, full)
    fingerprint = source.fingerprint()
    known = None if full else snapshots.by_fingerprint(fingerprint)
    if known is not None:
        return known
    require_columns(source.schema.names, contract.used)
    return read_through(source, lambda batches: snapshots.write(track(batches, "rows read"), source.uri, fingerprint))


def open_project_source(settings: Settings, contract: Contract) -> Source:
    """Open the source that `config.toml` names, its columns typed as the contract says.

    Its rows are those that `prepare` in `model/source.py` makes of them, where there is such a function.

    Raises:
        UserError: there is none, or `[data] missing` names a column that the contract lacks.
    """
    require_known_markers(settings.data, contract.kinds)
    required = [column.name for column in contract.used]
    reading = Reading(contract.kinds, settings.root, settings.fetch, required, dialect=settings.data.dialect)
    source = open_source(settings.data.source, reading)
    prepare = read_extension(SOURCE, "prepare")
    return source if prepare is None else change_rows(source, prepare, reading)


def report_snapshot(snapshot: Snapshot) -> None:
    """Show the snapshot in the log and in the Prefect UI."""
    said = f"{snapshot.rows:,} rows × {len(snapshot.columns)} columns"
    say(f"{said} from {show_uri(snapshot.source)}: snapshot {snapshot.digest[:SHORT]}, taken {snapshot.created}.")
    publish_markdown(
        "snapshot",
        f"**{said}** from {code(snapshot.source)}\n\nSnapshot `{snapshot.digest}`, taken {snapshot.created}.",
    )
