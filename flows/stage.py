"""The decorator of this project's flows."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import Flow, flow

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
