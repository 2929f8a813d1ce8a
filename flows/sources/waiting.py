"""Says that a source is tried again after a pause: in the run's log, as the Prefect UI shows it, and on the console."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenacity import RetryCallState

log = logging.getLogger("flows.sources")  # `flows.environment` tells Prefect of it


def tell_pause(what: str, seconds: float) -> None:
    """Say that what failed, `what` (without secrets), is tried again in `seconds`."""
    log.warning("%s: trying again in %s s", what, f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}")


def before_sleep(describe: Callable[[BaseException], str]) -> "Callable[[RetryCallState], None]":
    """Return what tenacity calls before each pause; `describe` says what failed."""

    def tell(state: "RetryCallState") -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None and state.next_action is not None:
            tell_pause(describe(error), state.next_action.sleep)

    return tell
