"""Ingest: the source becomes a snapshot."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import publish_markdown
from flows.contract import Contract, load_contract, require_columns, require_known_markers
from flows.growing import grow
from flows.markdown import code
from flows.mending import mend_snapshot
from flows.naming import SHORT, name_run
from flows.progress import say, track
from flows.secrets import show_uri, unseen
from flows.settings import Settings, load_settings
from flows.sources import Reading, Source, open_source, read_through
from flows.sources.abilities import Stream
from flows.stage import stage
from flows.store.snapshots import Snapshot, Snapshots
from flows.store.validations import Latest


@stage(timeout_hours=3)
def ingest(full: bool = False) -> str:
    """Copy the source that `config.toml` names into a snapshot; return its digest.

    Args:
        full: Read all of a source that is otherwise read on from where the last ingest ended.
    """
    snapshot = take_snapshot(full)
    name_run("ingest", data=snapshot.digest)
    said = f"{snapshot.rows:,} rows × {len(snapshot.columns)} columns from {show_uri(snapshot.source)}"
    say(f"{said}: snapshot {snapshot.digest[:SHORT]}, taken {snapshot.created}.")
    publish_markdown("snapshot", _summary(snapshot))
    return snapshot.digest


@task(name="snapshot", cache_policy=NO_CACHE)
@unseen()
def take_snapshot(full: bool = False) -> Snapshot:
    """Write the source's rows as a snapshot, or find the one it gave before."""
    settings = load_settings()
    contract = load_contract(settings)
    snapshot = snapshot_source(settings, contract, full)
    snapshot = mend_snapshot(Snapshots(settings.store_path), snapshot, contract.by_name)
    Latest(settings.store_path).set("ingest", snapshot.digest)
    return snapshot


def snapshot_source(settings: Settings, contract: Contract, full: bool = False) -> Snapshot:
    """Return the snapshot of the source's rows, read only where its bytes changed since the last time.

    With a watermark, and from a stream, only what is new is read and appended to what was read before.

    Raises:
        UserError: the source is missing, is no table, or lacks a column of the contract.
    """
    source = open_project_source(settings, contract)
    snapshots = Snapshots(settings.store_path)
    if settings.data.watermark is not None or isinstance(source, Stream):
        return grow(settings, contract, source, full)
    fingerprint = source.fingerprint()
    known = None if full else snapshots.by_fingerprint(fingerprint)
    if known is not None:
        return known
    require_columns(source.schema.names, contract.used)
    return read_through(source, lambda batches: snapshots.write(track(batches, "rows read"), source.uri, fingerprint))


def open_project_source(settings: Settings, contract: Contract) -> Source:
    """Open the source that `config.toml` names, its columns typed as the contract says.

    Raises:
        UserError: there is none, or `[data] missing` names a column that the contract lacks.
    """
    require_known_markers(settings.data, contract.kinds)
    required = [column.name for column in contract.used]
    return open_source(
        settings.data.source,
        Reading(contract.kinds, settings.root, settings.fetch, required, dialect=settings.data.dialect),
    )


def _summary(snapshot: Snapshot) -> str:
    return (
        f"**{snapshot.rows:,} rows × {len(snapshot.columns)} columns** from {code(snapshot.source)}\n\n"
        f"Snapshot `{snapshot.digest}`, taken {snapshot.created}."
    )
