"""Where the nodes of a module stand in its text, and how that is replaced."""

import ast
import io
import tokenize


class Uneditable(Exception):
    """What stands there cannot be edited by rule: says why."""


def replace(text: str, node: ast.expr | ast.keyword, new: str) -> str:
    """Return the text with what stands at `node` replaced."""
    start, end = span(text, node)
    return text[:start] + new + text[end:]


def span(text: str, node: ast.expr | ast.keyword | ast.stmt) -> tuple[int, int]:
    """Return where a node begins and ends in the text; `ast` counts columns in bytes."""
    lines = text.split("\n")

    def place(row: int, column: int) -> int:
        return sum(len(line) + 1 for line in lines[: row - 1]) + len(lines[row - 1].encode()[:column].decode())

    return place(node.lineno, node.col_offset), place(node.end_lineno or 0, node.end_col_offset or 0)


def segment(text: str, node: ast.expr | ast.keyword | ast.stmt) -> str:
    """Return the text of a node."""
    start, end = span(text, node)
    return text[start:end]


def insert_lines(text: str, row: int, new: str) -> str:
    """Return the text with lines put below the row."""
    lines = text.split("\n")
    return "\n".join([*lines[:row], *new.removesuffix("\n").split("\n"), *lines[row:]])


def has_comment(text: str, first: int, last: int) -> bool:
    """Tell whether a comment stands in these rows."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return any(token.type == tokenize.COMMENT and first <= token.start[0] <= last for token in tokens)
