"""How this project's flows are made and run."""

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, flow
from prefect.settings import temporary_settings

from flows.alerting import alert_failed_run
from flows.exclusive import exclusive

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


def run_watched(stage: Flow[..., R], parameters: Mapping[str, Any]) -> R:
    """Run a flow in this process, on a terminal that somebody watches."""
    # Prefect waits up to a second for each flow's heartbeat thread, six times in a pipeline; nothing
    # watches the heartbeats of such a run.
    with temporary_settings({"flows.heartbeat_frequency": None}):
        return stage(**parameters)
