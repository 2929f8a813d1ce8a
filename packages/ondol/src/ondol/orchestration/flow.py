"""`@stage` turns a function into a flow, `task` into a task of a flow; `name_run` names the current run."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, Task, flow
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import RunType
from prefect.context import FlowRunContext, SyncClientContext
from prefect.settings import temporary_settings
from prefect.transactions import Transaction

from ondol.orchestration.alerts import alert_failed_run
from ondol.storage.files import SHORT
from ondol.storage.store import exclusive

P = ParamSpec("P")
R = TypeVar("R")


def stage(*, timeout_hours: float, alone: bool = True) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Turn a function into a Prefect flow of the same name, which sends an alert if a run fails or crashes.

    Args:
        timeout_hours: A run that takes longer fails.
        alone: Hold the project's lock during a run, so that no other run with the lock changes store or champion.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        return flow(
            name=function.__name__,
            flow_run_name=function.__name__,
            timeout_seconds=timeout_hours * 3600,
            on_failure=[alert_failed_run],
            on_crashed=[alert_failed_run],
        )(exclusive(function) if alone else function)

    return decorate


def task(function: Callable[P, R], *, undo: Callable[[R], None] | None = None) -> Callable[P, R]:
    """Turn a function into a Prefect task of the same name; arguments are not hashed, and results are not stored.

    Args:
        function: A step of a flow.
        undo: Called with the result to undo the step, if a later step of the same Prefect transaction fails.
    """
    if undo is None:
        return Step(function, name=function.__name__, cache_policy=NO_CACHE)
    results: list[R] = []

    @wraps(function)
    def keep_result(*args: P.args, **kwargs: P.kwargs) -> R:
        results.append(function(*args, **kwargs))
        return results[-1]

    def roll_back(_: Transaction) -> None:
        while results:
            undo(results.pop())

    return Step(keep_result, name=function.__name__, cache_policy=NO_CACHE, on_rollback=[roll_back])


class Step(Task[P, R]):
    """A task that does not record flow runs as inputs of its runs.

    Prefect would record an argument that a subflow returned as such an input. Prefect's UI (3.9.1) cannot read it
    ("Invalid TaskInputResponse") and then shows no tasks of the flow run.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:  # type: ignore[override]
        """Run the task."""
        context = FlowRunContext.get()
        results = context.run_results if context else {}
        hidden = {key: entry for key, entry in results.items() if entry[1] is RunType.FLOW_RUN}
        for key in hidden:
            del results[key]
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[return-value]
        finally:
            results.update(hidden)


def run_watched(stage: Flow[..., R], parameters: Mapping[str, Any]) -> R:
    """Run a flow in this process, for a user who watches it."""
    # Prefect waits up to a second for each flow's heartbeat thread, six times in a pipeline; nothing
    # watches the heartbeats of such a run.
    with temporary_settings({"flows.heartbeat_frequency": None}):
        return stage(**parameters)


def name_run(what: str, *, version: str | None = None, data: str | None = None) -> None:
    """Name the current run after its version and the digest of its data; do nothing outside of a run."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    parts = [f"version {version}"] if version else []
    parts += [f"data {data[:SHORT]}"] if data else []
    with SyncClientContext.get_or_create() as made:
        made.client.update_flow_run(context.flow_run.id, name=f"{what} {', '.join(parts)}")
