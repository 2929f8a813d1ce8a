"""Edits one field of the class `Schema` as text, by the places that `ast` gives: all else stays byte for byte."""

import ast
import itertools
from collections.abc import Callable, Sequence

from ondol.setup.names import measure
from ondol.setup.spans import Uneditable, has_comment, insert_lines, replace, segment, span
from ondol.setup.writing import WIDTH, allow_long
from ondol_serving.grammar import normalize

ORDER = ("alias", "nullable", "unique", "ge", "gt", "le", "lt", "isin", "metadata")


def find_class(text: str) -> ast.ClassDef:
    """Return the class `Schema`."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name == "Schema":
            return node
    raise Uneditable("the class Schema does not stand in model/schema.py itself")


def fields_of(text: str) -> dict[str, ast.AnnAssign]:
    """Return the annotated lines of the class by their columns' real names, in order."""
    nodes = [node for node in find_class(text).body if isinstance(node, ast.AnnAssign)]
    return {_real_name(node): node for node in nodes}


def find_field(text: str, name: str) -> ast.AnnAssign:
    """Return the field of the column `name`."""
    node = fields_of(text).get(name)
    if node is None:
        raise Uneditable("no field of the class Schema spells its name")
    return node


def attribute(node: ast.AnnAssign) -> str:
    """Return the name that a field has in Python."""
    return node.target.id if isinstance(node.target, ast.Name) else ""


def arguments(node: ast.AnnAssign) -> dict[str, ast.keyword]:
    """Return what the call of `pa.Field` says, by keyword."""
    call = node.value
    named = isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "Field" and not call.args
    if not named or any(keyword.arg is None for keyword in call.keywords):  # type: ignore[union-attr]
        raise Uneditable("its field is not written as pa.Field(…) with plain arguments")
    return {str(keyword.arg): keyword for keyword in call.keywords}  # type: ignore[union-attr]


def edit_field(text: str, name: str, edit: Callable[[str], str], now: str = "") -> str:
    """Return the text with one field edited while its arguments stand on lines of their own, then joined as before.

    Args:
        text: The module.
        name: The column.
        edit: What is done to the module's text.
        now: The column's name after the edit, where that changes it.
    """
    node = find_field(text, name)
    flat = node.lineno == node.end_lineno
    edited = edit(_explode(text, name))
    return _join(edited, now or name) if flat else _break_lists(edited, now or name)


def set_argument(text: str, name: str, key: str, value: str, former: str = "") -> str:
    """Return the text with an argument set, in the place of `former` where that is named; needs its lines apart."""
    present = arguments(find_field(text, name))
    if (old := present.get(former or key)) is not None:
        return replace(text, old, f"{key}={value}")
    before = [k for arg, k in present.items() if arg in ORDER and ORDER.index(arg) < ORDER.index(key)]
    node = find_field(text, name)
    row = (before[-1].end_lineno if before else node.value.func.end_lineno) or 0  # type: ignore[union-attr]
    return insert_lines(text, row, allow_long(f"{' ' * (node.col_offset + 4)}{key}={value},"))


def drop_argument(text: str, name: str, key: str) -> str:
    """Return the text without an argument; needs its lines apart."""
    old = arguments(find_field(text, name)).get(key)
    if old is None:
        return text
    rows = (old.lineno, old.end_lineno or 0)
    if has_comment(text, *rows):
        raise Uneditable(f"a comment stands beside its {key}")
    lines = text.split("\n")
    return "\n".join([*lines[: rows[0] - 1], *lines[rows[1] :]])


def extend_list(text: str, name: str, key: str, values: Sequence[str]) -> str:
    """Return the text with values added behind those that an argument lists."""
    listed = arguments(find_field(text, name))[key].value
    if not isinstance(listed, ast.List | ast.Tuple | ast.Set) or not listed.elts or not _is_plain(listed):
        raise Uneditable(f"its {key} is computed, not listed")
    last, lines = listed.elts[-1], text.split("\n")
    end = span(text, last)[1]
    if last.end_lineno == listed.end_lineno:
        return text[:end] + "".join(f", {value}" for value in values) + text[end:]
    row = last.end_lineno or 0
    if not text[end:].lstrip().startswith(","):
        text = f"{text[:end]},{text[end:]}"
    indent = " " * (len(lines[row - 1]) - len(lines[row - 1].lstrip()))
    return insert_lines(text, row, "".join(allow_long(f"{indent}{value},") for value in values))


def drop_field(text: str, name: str) -> str:
    """Return the text without a field."""
    node, lines = find_field(text, name), text.split("\n")
    return "\n".join([*lines[: node.lineno - 1], *lines[node.end_lineno or 0 :]])


def append_field(text: str, lines: str) -> str:
    """Return the text with the lines of a field below the last one."""
    return insert_lines(text, list(fields_of(text).values())[-1].end_lineno or 0, lines)


def _real_name(node: ast.AnnAssign) -> str:
    for keyword in node.value.keywords if isinstance(node.value, ast.Call) else []:
        if keyword.arg == "alias":
            return normalize(str(keyword.value.value)) if isinstance(keyword.value, ast.Constant) else ""
    return attribute(node)


def _is_plain(listed: ast.List | ast.Tuple | ast.Set) -> bool:
    try:
        ast.literal_eval(listed)
    except ValueError:
        return False
    return True


def _explode(text: str, name: str) -> str:
    node = find_field(text, name)
    parts = [segment(text, keyword) for keyword in arguments(node).values()]
    call = node.value
    assert isinstance(call, ast.Call)
    if _is_exploded(text, call):
        return text
    if has_comment(text, node.lineno, (node.end_lineno or 0) - 1):
        raise Uneditable("comments stand between its arguments")
    indent = " " * node.col_offset
    inside = "".join(f"{indent}    {part},\n" for part in parts)
    return replace(text, call, f"{segment(text, call.func)}(\n{inside}{indent})")


def _is_exploded(text: str, call: ast.Call) -> bool:
    """Tell whether each argument begins and ends on lines of its own, with a comma behind the last."""
    rows = [(call.func.end_lineno, call.func.end_lineno), *((k.lineno, k.end_lineno) for k in call.keywords)]
    rows.append((call.end_lineno, call.end_lineno))
    apart = all((one[1] or 0) < (other[0] or 0) for one, other in itertools.pairwise(rows))
    return apart and (not call.keywords or text[span(text, call.keywords[-1])[1] :].lstrip().startswith(","))


def _join(text: str, name: str) -> str:
    """Return the text with a field on one line again, if it fits."""
    node = find_field(text, name)
    call = node.value
    assert isinstance(call, ast.Call)
    parts = [segment(text, keyword) for keyword in call.keywords]
    joined = replace(text, call, f"{segment(text, call.func)}({', '.join(parts)})")
    short = measure(joined.split("\n")[node.lineno - 1]) <= WIDTH and not any("\n" in part for part in parts)
    return joined if short else _break_lists(text, name)


def _break_lists(text: str, name: str) -> str:
    """Return the text with a list that is too long for its line on lines of its own."""
    for keyword in arguments(find_field(text, name)).values():
        listed, line = keyword.value, text.split("\n")[keyword.lineno - 1]
        if not isinstance(listed, ast.List | ast.Tuple | ast.Set) or keyword.lineno != keyword.end_lineno:
            continue
        if measure(line) > WIDTH and not has_comment(text, keyword.lineno, keyword.lineno):
            indent, whole = " " * keyword.col_offset, segment(text, listed)
            values = "".join(allow_long(f"{indent}    {segment(text, value)},") for value in listed.elts)
            return replace(text, listed, f"{whole[0]}\n{values}{indent}{whole[-1]}")
    return text
