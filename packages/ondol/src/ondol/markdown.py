"""Escapes text of the data in Markdown, for Prefect's and GitHub's pages."""

import re
from collections.abc import Callable, Iterable, Iterator

from ondol_serving.printable import printable

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
