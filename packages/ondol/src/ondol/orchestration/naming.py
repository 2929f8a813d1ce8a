"""Names of runs: which version and which data a run is about is known only once it has begun."""

from prefect.context import FlowRunContext, SyncClientContext

SHORT = 12


def name_run(what: str, *, version: str | None = None, data: str | None = None) -> None:
    """Name the run that is going on by its version and the digest of its data; do nothing outside of one."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    parts = [f"version {version}"] if version else []
    parts += [f"data {data[:SHORT]}"] if data else []
    with SyncClientContext.get_or_create() as made:
        made.client.update_flow_run(context.flow_run.id, name=f"{what} {', '.join(parts)}")
