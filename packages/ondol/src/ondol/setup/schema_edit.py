"""Edits `model/schema.py` for the changes of a table, and keeps all other text."""

import ast
import io
import itertools
import tokenize
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from ondol.setup.evolution import ContractChange
from ondol.setup.schema_file import (
    ANNOTATIONS,
    NULLABLE,
    WIDTH,
    allow_long,
    display_width,
    literal,
    make_attributes,
    quote,
    write_field,
)
from ondol_serving.grammar import normalize


class Uneditable(Exception):
    """The code there cannot be edited automatically; the message is the reason."""


def replace(text: str, node: ast.expr | ast.keyword, new: str) -> str:
    """Return the text with the code at `node` replaced."""
    start, end = span(text, node)
    return text[:start] + new + text[end:]


def span(text: str, node: ast.expr | ast.keyword | ast.stmt) -> tuple[int, int]:
    """Return the start and the end of a node in the text; `ast` counts columns in bytes."""
    lines = text.split("\n")

    def place(row: int, column: int) -> int:
        return sum(len(line) + 1 for line in lines[: row - 1]) + len(lines[row - 1].encode()[:column].decode())

    return place(node.lineno, node.col_offset), place(node.end_lineno or 0, node.end_col_offset or 0)


def segment(text: str, node: ast.expr | ast.keyword | ast.stmt) -> str:
    """Return the text of a node."""
    start, end = span(text, node)
    return text[start:end]


def insert_lines(text: str, row: int, new: str) -> str:
    """Return the text with lines inserted below a row."""
    lines = text.split("\n")
    return "\n".join([*lines[:row], *new.removesuffix("\n").split("\n"), *lines[row:]])


def has_comment(text: str, first: int, last: int) -> bool:
    """Return True if there is a comment in these rows."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return any(token.type == tokenize.COMMENT and first <= token.start[0] <= last for token in tokens)


ORDER = ("alias", "nullable", "unique", "ge", "gt", "le", "lt", "isin", "metadata")


def find_class(text: str) -> ast.ClassDef:
    """Return the class `Schema`."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name == "Schema":
            return node
    raise Uneditable("the class Schema is not in model/schema.py itself")


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
    """Return the arguments of the call of `pa.Field`, by keyword."""
    call = node.value
    named = isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "Field" and not call.args
    if not named or any(keyword.arg is None for keyword in call.keywords):  # type: ignore[union-attr]
        raise Uneditable("its field is not written as pa.Field(…) with plain arguments")
    return {str(keyword.arg): keyword for keyword in call.keywords}  # type: ignore[union-attr]


def edit_field(text: str, name: str, edit: Callable[[str], str], now: str = "") -> str:
    """Return the text with one field edited: its arguments are split into lines, edited, and joined again.

    Args:
        text: The module.
        name: The column.
        edit: A function that edits the module's text.
        now: The column's name after the edit, if that changes it.
    """
    node = find_field(text, name)
    flat = node.lineno == node.end_lineno
    edited = edit(_explode(text, name))
    return _join(edited, now or name) if flat else _break_lists(edited, now or name)


def set_argument(text: str, name: str, key: str, value: str, former: str = "") -> str:
    """Return the text with an argument set, in place of `former` if given; needs one line for each argument."""
    present = arguments(find_field(text, name))
    if (old := present.get(former or key)) is not None:
        return replace(text, old, f"{key}={value}")
    before = [k for arg, k in present.items() if arg in ORDER and ORDER.index(arg) < ORDER.index(key)]
    node = find_field(text, name)
    row = (before[-1].end_lineno if before else node.value.func.end_lineno) or 0  # type: ignore[union-attr]
    return insert_lines(text, row, allow_long(f"{' ' * (node.col_offset + 4)}{key}={value},"))


def drop_argument(text: str, name: str, key: str) -> str:
    """Return the text without an argument; needs one line for each argument."""
    old = arguments(find_field(text, name)).get(key)
    if old is None:
        return text
    rows = (old.lineno, old.end_lineno or 0)
    if has_comment(text, *rows):
        raise Uneditable(f"there is a comment beside its {key}")
    lines = text.split("\n")
    return "\n".join([*lines[: rows[0] - 1], *lines[rows[1] :]])


def extend_list(text: str, name: str, key: str, values: Sequence[str]) -> str:
    """Return the text with values appended to the list of an argument."""
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
        raise Uneditable("there are comments between its arguments")
    indent = " " * node.col_offset
    inside = "".join(f"{indent}    {part},\n" for part in parts)
    return replace(text, call, f"{segment(text, call.func)}(\n{inside}{indent})")


def _is_exploded(text: str, call: ast.Call) -> bool:
    """Return True if each argument is on separate lines, with a comma after the last."""
    rows = [(call.func.end_lineno, call.func.end_lineno), *((k.lineno, k.end_lineno) for k in call.keywords)]
    rows.append((call.end_lineno, call.end_lineno))
    separate = all((one[1] or 0) < (other[0] or 0) for one, other in itertools.pairwise(rows))
    return separate and (not call.keywords or text[span(text, call.keywords[-1])[1] :].lstrip().startswith(","))


def _join(text: str, name: str) -> str:
    """Return the text with a field on one line again, if it fits."""
    node = find_field(text, name)
    call = node.value
    assert isinstance(call, ast.Call)
    parts = [segment(text, keyword) for keyword in call.keywords]
    joined = replace(text, call, f"{segment(text, call.func)}({', '.join(parts)})")
    short = display_width(joined.split("\n")[node.lineno - 1]) <= WIDTH and not any("\n" in part for part in parts)
    return joined if short else _break_lists(text, name)


def _break_lists(text: str, name: str) -> str:
    """Return the text with a list that is too long for its line split into lines."""
    for keyword in arguments(find_field(text, name)).values():
        listed, line = keyword.value, text.split("\n")[keyword.lineno - 1]
        if not isinstance(listed, ast.List | ast.Tuple | ast.Set) or keyword.lineno != keyword.end_lineno:
            continue
        if display_width(line) > WIDTH and not has_comment(text, keyword.lineno, keyword.lineno):
            indent, whole = " " * keyword.col_offset, segment(text, listed)
            values = "".join(allow_long(f"{indent}    {segment(text, value)},") for value in listed.elts)
            return replace(text, listed, f"{whole[0]}\n{values}{indent}{whole[-1]}")
    return text


LIMITS = ("ge", "gt", "le", "lt", "in_range", "isin")
KNOWN = {*ANNOTATIONS.values(), *NULLABLE.values()}
PANDAS = "import pandas as pd"


@dataclass(frozen=True)
class Proposal:
    """The proposed text of `model/schema.py`, and a sentence for each change that is left to the owner."""

    text: str
    left: tuple[str, ...]


def propose(text: str, changes: Iterable[ContractChange]) -> Proposal:
    """Return the module's text with all changes that can be made automatically."""
    edited, windows = text, "\r\n" in text
    edited = edited.replace("\r\n", "\n")
    left: list[str] = []
    for change in changes:
        try:
            edited = EDITS[change.what](edited, change)
        except Uneditable as why:
            left.append(f'"{change.before or change.column}" ({change.what}) is left to you: {why}.')
    ast.parse(edited)
    return Proposal(edited.replace("\n", "\r\n") if windows else edited, tuple(left))


def _add(text: str, change: ContractChange) -> str:
    assert change.field is not None
    named = make_attributes([change.column], _bound(text))[change.column]
    edited = append_field(text, write_field(change.field, named).removesuffix("\n"))
    return _import_pandas(edited, change.column)


def _remove(text: str, change: ContractChange) -> str:
    if change.role == "target":
        raise Uneditable("it is the target, without which there is nothing to learn")
    _refuse_mentioned(text, change.column)
    if len(fields_of(text)) == 1:
        raise Uneditable("it is the only column")
    return drop_field(text, change.column)


def _rename(text: str, change: ContractChange) -> str:
    old, new = change.before, change.column
    _refuse_mentioned(text, old)
    node = find_field(text, old)
    others = _bound(text) - {attribute(node)}
    plain = "alias" not in arguments(node) and make_attributes([new], others)[new] == new
    if plain:
        return edit_field(text, old, lambda t: replace(t, find_field(t, old).target, new), new)
    return edit_field(text, old, lambda t: set_argument(t, old, "alias", quote(new)), new)


def _retype(text: str, change: ContractChange) -> str:
    name = change.column
    _refuse_ordered(text, name)
    if not change.fits:
        _refuse_mentioned(text, name)  # numeric checks fail completely on texts
    table = NULLABLE if change.nullable else {}

    def edit(now: str) -> str:
        now = _annotate(now, name, table.get(change.kind, ANNOTATIONS[change.kind]))
        for key in () if change.fits else LIMITS:
            now = drop_argument(now, name, key)
        if change.categories is not None:
            now = set_argument(now, name, "isin", f"[{', '.join(map(literal, change.categories))}]")
        return now

    return _import_pandas(edit_field(text, name, edit), name)


def _extend(text: str, change: ContractChange) -> str:
    name = change.column
    if "isin" not in arguments(find_field(text, name)):
        raise Uneditable("its set is not the isin of its field")
    if change.categories is None:
        _refuse_ordered(text, name)
        return edit_field(text, name, lambda t: drop_argument(t, name, "isin"))
    values = [literal(value) for value in change.categories]
    return edit_field(text, name, lambda t: extend_list(t, name, "isin", values))


def _refuse_ordered(text: str, name: str) -> None:
    metadata = arguments(find_field(text, name)).get("metadata")
    if metadata is not None and "ordered" in ast.unparse(metadata.value):
        raise Uneditable("it is ordered, which only its isin can say")


def _widen(text: str, change: ContractChange) -> str:
    name = change.column
    for key, seen in change.bounds:
        bound = arguments(find_field(text, name)).get(key)
        if bound is None or not _is_number(bound.value):
            raise Uneditable(f"its {key} is not a number in its field")
        wider = {"gt": "ge", "lt": "le"}.get(key, key)
        value = repr(int(seen) if seen == int(seen) else seen)
        text = edit_field(text, name, partial(set_argument, name=name, key=wider, value=value, former=key))
    return text


def _leave_marks(text: str, change: ContractChange) -> str:
    raise Uneditable(
        "its bounds stay, since a mark within them would be learned as a value; leave these cells empty, or name the "
        "mark in config.toml, [data] missing; if it is a value, widen the bound by hand"
    )


def _allow_gaps(text: str, change: ContractChange) -> str:
    name = change.column

    def edit(now: str) -> str:
        if change.kind in NULLABLE:
            now = _annotate(now, name, NULLABLE[change.kind])
        return set_argument(now, name, "nullable", "True")

    return _import_pandas(edit_field(text, name, edit), name)


def _annotate(text: str, name: str, annotation: str) -> str:
    node = find_field(text, name)
    if ast.unparse(node.annotation) not in KNOWN:
        raise Uneditable(f"its annotation {ast.unparse(node.annotation)} is not one that `ml init` writes")
    return replace(text, node.annotation, annotation)


def _import_pandas(text: str, name: str) -> str:
    """Return the text with pandas imported if the field of `name` needs it: above pandera, as linters require."""
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    there = any(alias.asname == "pd" for node in imports for alias in node.names)
    if there or not ast.unparse(find_field(text, name).annotation).startswith("pd."):
        return text
    for node in imports:
        if isinstance(node, ast.Import) and node.names[0].name.startswith("pandera"):
            lines = text.split("\n")
            return "\n".join([*lines[: node.lineno - 1], PANDAS, *lines[node.lineno - 1 :]])
    raise Uneditable(f"it needs `{PANDAS}`, whose place is not clear")


def _is_number(node: ast.expr) -> bool:
    try:
        return isinstance(ast.literal_eval(node), int | float)
    except ValueError:
        return False


def _bound(text: str) -> set[str]:
    """Return every name that the class defines."""
    body = find_class(text).body
    made = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return made | {attribute(node) for node in body if isinstance(node, ast.AnnAssign)}


def _refuse_mentioned(text: str, name: str) -> None:
    """Refuse a change to the name of a column that other code mentions."""
    schema, named = find_class(text), attribute(find_field(text, name))
    others = [node for node in ast.parse(text).body if not isinstance(node, ast.ClassDef) or node.name != "Schema"]
    rest = [node for node in schema.body if not isinstance(node, ast.AnnAssign)]
    for node in (inner for outer in [*others, *rest, *schema.decorator_list] for inner in ast.walk(outer)):
        spelled = isinstance(node, ast.Constant) and node.value in (name, named)
        spelled |= isinstance(node, ast.Name) and node.id == named
        spelled |= isinstance(node, ast.Attribute) and node.attr == named
        if spelled:
            raise Uneditable(f"line {getattr(node, 'lineno', 0)} mentions it")


EDITS = {
    "new": _add,
    "missing": _remove,
    "renamed": _rename,
    "retyped": _retype,
    "category": _extend,
    "range": _widen,
    "mark": _leave_marks,
    "gaps": _allow_gaps,
}
