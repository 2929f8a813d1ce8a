"""What a run shows in Prefect's UI: Markdown, tables, pictures and links; text of the data in Markdown is escaped."""

import base64
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ondol_serving.printable import printable

TABLE_ROWS = 100  # the UI shows a part; the store has all


def publish_markdown(key: str, text: str) -> None:
    """Show Markdown under `key` in the current run; its first line can be read in the list of artifacts."""
    first, _, rest = text.partition("\n")
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(rest.strip(), key=_key(key), description=first)


def publish_table(key: str, rows: list[dict[str, Any]]) -> None:
    """Show the first rows of a table under `key`; Prefect's UI reads Markdown in the cells, so texts are escaped."""
    from prefect.artifacts import create_table_artifact

    shown = [
        {name: plain(value) if isinstance(value, str) else value for name, value in row.items()}
        for row in rows[:TABLE_ROWS]
    ]
    create_table_artifact(shown, key=_key(key), description=f"{len(rows):,} rows")


def publish_image(key: str, png: bytes, description: str) -> None:
    """Show a picture under `key`; it travels within the artifact, so no file server is needed.

    As Markdown: of an artifact for images Prefect also shows the address, which here would be the whole picture.
    """
    from prefect.artifacts import create_markdown_artifact

    address = "data:image/png;base64," + base64.b64encode(png).decode()
    create_markdown_artifact(f"![{description}]({address})", key=_key(key), description=description)


def publish_link(key: str, address: str, text: str) -> None:
    """Show a link under `key`."""
    from prefect.artifacts import create_link_artifact

    create_link_artifact(link=address, link_text=text, key=_key(key), description=text)


def _key(words: str) -> str:
    """Return `words` in the characters that Prefect allows in a key."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


_SPECIAL = re.compile(
    r"[\\`*\[|~]"  # code, emphasis, links, pictures, cells
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it is no emphasis
    r"|(?<=:)//|(?<=www)\."  # what looks like an address becomes a link
    r"|^[#>+-]"
)
_BARE_PIPE = re.compile(r"(?<!\\)((?:\\\\)*)\|")  # with no backslash, or an even number
_ENTITY = re.compile(r"&(?=#?\w+;)")


def plain(text: str) -> str:
    """Return text as Markdown that shows it: one line, with no emphasis, link, picture, HTML or end of a cell."""
    words = printable(" ".join(text.split()))
    safe = _SPECIAL.sub(lambda found: "\\" + found[0], words)
    return _ENTITY.sub("&amp;", safe).replace("<", "&lt;")


def code(text: str) -> str:
    """Return text as a span of code: its fence is longer than any run of backticks in it."""
    shown = printable(text, one_line=True) or " "
    if "\\|" in shown:  # renderers differ in what that is within a table
        return f"<code>{plain(text)}</code>"
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if shown.strip() and (shown[0] in " `" or shown[-1] in " `") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], show: Callable[[str], str] = plain) -> Iterator[str]:
    """Yield the lines of a table; `show` makes Markdown of a cell, which cannot end the cell or the row."""
    heads = tuple(head)
    yield _row(map(show, heads))
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield _row(map(show, row))


def _row(cells: Iterable[str]) -> str:
    r"""Return a row. A `|` in a cell, also in a span of code, gets a backslash, which the table takes away again."""
    safe = (_BARE_PIPE.sub(r"\1\\|", " ".join(cell.splitlines())) for cell in cells)
    return f"| {' | '.join(safe)} |"
