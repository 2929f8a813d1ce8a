"""Reporting of runs: log lines, the progress of long work, and artifacts in Prefect's UI.

Artifacts are Markdown, tables, pictures and links; text of the data in Markdown is escaped.
"""

import base64
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from ondol.redaction import redact
from ondol_serving.names import printable

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_ROWS = 100  # the UI shows a part; the store has all rows


def publish_markdown(key: str, text: str) -> None:
    """Publish Markdown as the artifact `key` of the current run; the list of artifacts shows its first line."""
    first, _, rest = text.partition("\n")
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(rest.strip(), key=_key(key), description=first)


def publish_table(key: str, rows: list[dict[str, Any]]) -> None:
    """Publish the first rows of a table as the artifact `key`; texts are escaped, since the UI reads Markdown."""
    from prefect.artifacts import create_table_artifact

    shown = [
        {name: plain(value) if isinstance(value, str) else value for name, value in row.items()}
        for row in rows[:TABLE_ROWS]
    ]
    create_table_artifact(shown, key=_key(key), description=f"{len(rows):,} rows")


def publish_image(key: str, png: bytes, description: str) -> None:
    """Publish a picture as the artifact `key`; the artifact contains it, so no file server is needed.

    It is a Markdown artifact: for image artifacts Prefect also shows the address, which would be the whole picture
    here.
    """
    from prefect.artifacts import create_markdown_artifact

    address = "data:image/png;base64," + base64.b64encode(png).decode()
    create_markdown_artifact(f"![{description}]({address})", key=_key(key), description=description)


def publish_link(key: str, address: str, text: str) -> None:
    """Publish a link as the artifact `key`."""
    from prefect.artifacts import create_link_artifact

    create_link_artifact(link=address, link_text=text, key=_key(key), description=text)


def _key(words: str) -> str:
    """Return `words` with only the characters that Prefect allows in a key."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


_SPECIAL = re.compile(
    r"[\\`*\[|~]"  # code, emphasis, links, pictures, cells
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it is not emphasis
    r"|(?<=:)//|(?<=www)\."  # text that looks like an address becomes a link
    r"|^[#>+-]"
)
_BARE_PIPE = re.compile(r"(?<!\\)((?:\\\\)*)\|")  # after no backslash, or an even number of them
_ENTITY = re.compile(r"&(?=#?\w+;)")


def plain(text: str) -> str:
    """Escape text for Markdown: one line, without emphasis, links, pictures, HTML or the end of a cell."""
    words = printable(" ".join(text.split()))
    safe = _SPECIAL.sub(lambda found: "\\" + found[0], words)
    return _ENTITY.sub("&amp;", safe).replace("<", "&lt;")


def code(text: str) -> str:
    """Format text as inline code, with a fence that is longer than any run of backticks in it."""
    shown = printable(text, one_line=True) or " "
    if "\\|" in shown:  # renderers treat it differently in a table
        return f"<code>{plain(text)}</code>"
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if shown.strip() and (shown[0] in " `" or shown[-1] in " `") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], show: Callable[[str], str] = plain) -> Iterator[str]:
    """Yield the lines of a table; `show` formats a cell as Markdown that cannot end the cell or the row."""
    heads = tuple(head)
    yield _row(map(show, heads))
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield _row(map(show, row))


def _row(cells: Iterable[str]) -> str:
    r"""Return a row. A `|` in a cell, also in inline code, gets a backslash, which the table removes again."""
    safe = (_BARE_PIPE.sub(r"\1\\|", " ".join(cell.splitlines())) for cell in cells)
    return f"| {' | '.join(safe)} |"


EVERY_SECONDS = 2.0
log = logging.getLogger(__name__)  # one of `ondol.orchestration.environment.LOGGERS`
log.setLevel(logging.INFO)
listeners: list[Callable[[str], None]] = []  # prints the sentence on a terminal
T = TypeVar("T", bound="pa.RecordBatch | pa.Table | Any")


def say(sentence: str, *, notice: bool = False) -> None:
    """Write a sentence to the log of the current run, which Prefect's UI shows.

    Args:
        sentence: The sentence; secrets are replaced by their names.
        notice: Whether to print it on the terminal of a command too.
    """
    log.log(logging.WARNING if notice else logging.INFO, "%s", redact(sentence))


class Ticker:
    """Logs the progress of rows or bytes; work that ends within `EVERY_SECONDS` logs nothing."""

    def __init__(self, what: str, total: int | None = None) -> None:
        """Count `what` ("rows read"), of `total` if that is known."""
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
        """Log the end, if any progress was logged."""
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
    """Yield `parts` and count their rows (`num_rows` or `rows`)."""
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
