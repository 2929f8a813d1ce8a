"""Progress of long work, on the terminal and as an artifact in the Prefect UI."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from ondol.redaction import redact

if TYPE_CHECKING:
    import pyarrow as pa

EVERY_SECONDS = 2.0
log = logging.getLogger(__name__)  # one of `ondol.orchestration.environment.LOGGERS`
log.setLevel(logging.INFO)
listeners: list[Callable[[str], None]] = []  # a terminal that shows the words
T = TypeVar("T", bound="pa.RecordBatch | pa.Table | Any")


def say(sentence: str, *, notice: bool = False) -> None:
    """Write a sentence to the log of the run that is going on, where Prefect's page shows it.

    Args:
        sentence: Secrets are shown by their names.
        notice: Print it on the terminal of a command too.
    """
    log.log(logging.WARNING if notice else logging.INFO, "%s", redact(sentence))


class Ticker:
    """Counts rows, or bytes; work that ends sooner than `EVERY_SECONDS` says nothing."""

    def __init__(self, what: str, total: int | None = None) -> None:
        """Count `what` ("rows read"), of `total` where that is known."""
        self.what = what
        self.total = total
        self.rows = 0
        self._told = time.monotonic()
        self._artifact: UUID | None = None

    def add(self, rows: int) -> None:
        """Count `rows` more."""
        self.rows += rows
        if time.monotonic() - self._told >= EVERY_SECONDS:
            self._told = time.monotonic()
            self._tell()

    def close(self) -> None:
        """Report the end, if any progress was reported."""
        if self._artifact is not None:
            _update(self._artifact, 100.0, f"{self.rows:,} {self.what}")

    def _tell(self) -> None:
        words = f"{self.rows:,}{f' of {self.total:,}' if self.total else ''} {self.what}"
        for listen in listeners:
            listen(words)
        share = min(100.0 * self.rows / self.total, 99.0) if self.total else 0.0
        if self._artifact is None:
            self._artifact = _create(self.what, share, words)
        else:
            _update(self._artifact, share, words)


def track(parts: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `parts`, each with `num_rows` or `rows`, counting their rows."""
    ticker = Ticker(what, total)
    for part in parts:
        yield part
        ticker.add(part.num_rows if hasattr(part, "num_rows") else part.rows)
    ticker.close()


def _create(what: str, share: float, words: str) -> UUID | None:
    from prefect.artifacts import create_progress_artifact
    from prefect.context import get_run_context
    from prefect.exceptions import MissingContextError

    try:
        get_run_context()
    except MissingContextError:  # called outside a run, as in a test
        return None
    made = create_progress_artifact(progress=share, key=what.replace(" ", "-"), description=words)
    return made if isinstance(made, UUID) else None


def _update(artifact: UUID, share: float, words: str) -> None:
    from prefect.artifacts import update_progress_artifact

    update_progress_artifact(artifact_id=artifact, progress=share, description=words)
