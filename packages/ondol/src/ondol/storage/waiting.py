"""Retries of reads from remote places; each pause is logged, which the Prefect UI and the console show."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from ondol.errors import UserError
from ondol.storage.faults import explain_fault, lacks_bucket, refuse

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")
PAUSE_SECONDS = 1.0  # before the second attempt; twice as long before each further one
LONGEST_PAUSE_SECONDS = 60.0
log = logging.getLogger(__name__)  # one of `ondol.orchestration.environment.LOGGERS`


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


def with_retries(uri: str, ask: Callable[[], T], retries: int, doing: str = "read", missing: bool = False) -> T:
    """Return what `ask` returns, asking again after a growing pause where it failed for a passing reason.

    Raises:
        UserError: it goes on failing; says what could not be done, `doing`.
        FileNotFoundError: with `missing`, where a bucket is there and the file is not.
    """
    attempts = Retrying(
        stop=stop_after_attempt(retries + 1),
        wait=wait_random_exponential(multiplier=PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        retry=retry_if_exception(lambda error: explain_fault(error).passing),
        before_sleep=before_sleep(lambda error: f'"{uri}" cannot be {doing}, {explain_fault(error).brief}'),
        reraise=True,
    )
    try:
        return attempts(ask)
    except UserError:
        raise
    except Exception as error:  # of whichever library: they share no base
        if missing and isinstance(error, FileNotFoundError) and not lacks_bucket(error):
            raise
        raise refuse(uri, error, doing) from None
