"""How this project's flows and their tasks are made and run."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, Task, flow
from prefect.cache_policies import NO_CACHE
from prefect.settings import temporary_settings
from prefect.transactions import Transaction

from ondol.orchestration.alerting import alert_failed_run
from ondol.storage.locks import exclusive

P = ParamSpec("P")
R = TypeVar("R")


def stage(*, timeout_hours: float, alone: bool = True) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function a Prefect flow of its own name that raises an alert where a run fails or crashes.

    Args:
        timeout_hours: A run that takes longer fails.
        alone: Hold the project's lock during a run, so that no other such run changes the store or the champion.
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
    """Make a function a Prefect task of its own name; arguments are not hashed, and results stay in the process.

    Args:
        function: A step of a flow.
        undo: Takes the step back, by its result, where a later step of the same Prefect transaction fails.
    """
    if undo is None:
        return Task(function, name=function.__name__, cache_policy=NO_CACHE)
    results: list[R] = []

    @wraps(function)
    def keep_result(*args: P.args, **kwargs: P.kwargs) -> R:
        results.append(function(*args, **kwargs))
        return results[-1]

    def roll_back(_: Transaction) -> None:
        while results:
            undo(results.pop())

    return Task(keep_result, name=function.__name__, cache_policy=NO_CACHE, on_rollback=[roll_back])


def run_watched(stage: Flow[..., R], parameters: Mapping[str, Any]) -> R:
    """Run a flow in this process, on a terminal that somebody watches."""
    # Prefect waits up to a second for each flow's heartbeat thread, six times in a pipeline; nothing
    # watches the heartbeats of such a run.
    with temporary_settings({"flows.heartbeat_frequency": None}):
        return stage(**parameters)
