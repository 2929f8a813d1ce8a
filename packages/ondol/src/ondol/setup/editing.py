"""Proposes the edit of `model/schema.py`, change by change; what a person wrote stays as it is."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from ondol.setup.change import Change
from ondol.setup.fields import (
    append_field,
    arguments,
    attribute,
    drop_argument,
    drop_field,
    edit_field,
    extend_list,
    fields_of,
    find_class,
    find_field,
    set_argument,
)
from ondol.setup.names import literal, make_attributes, quote
from ondol.setup.spans import Uneditable, replace
from ondol.setup.writing import ANNOTATIONS, NULLABLE, write_field

LIMITS = ("ge", "gt", "le", "lt", "in_range", "isin")
KNOWN = {*ANNOTATIONS.values(), *NULLABLE.values()}
PANDAS = "import pandas as pd"


@dataclass(frozen=True)
class Proposal:
    """The text of `model/schema.py` as it would be, and a sentence for each change that is left to a person."""

    text: str
    left: tuple[str, ...]


def propose(text: str, changes: Iterable[Change]) -> Proposal:
    """Return the module's text with every change made that can be made by rule."""
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


def _add(text: str, change: Change) -> str:
    assert change.field is not None
    named = make_attributes([change.column], _bound(text))[change.column]
    edited = append_field(text, write_field(change.field, named).removesuffix("\n"))
    return _import_pandas(edited, change.column)


def _remove(text: str, change: Change) -> str:
    if change.role == "target":
        raise Uneditable("it is the target, without which there is nothing to learn")
    _refuse_mentioned(text, change.column)
    if len(fields_of(text)) == 1:
        raise Uneditable("it is the only column")
    return drop_field(text, change.column)


def _rename(text: str, change: Change) -> str:
    old, new = change.before, change.column
    _refuse_mentioned(text, old)
    node = find_field(text, old)
    others = _bound(text) - {attribute(node)}
    plain = "alias" not in arguments(node) and make_attributes([new], others)[new] == new
    if plain:
        return edit_field(text, old, lambda t: replace(t, find_field(t, old).target, new), new)
    return edit_field(text, old, lambda t: set_argument(t, old, "alias", quote(new)), new)


def _retype(text: str, change: Change) -> str:
    name = change.column
    _refuse_ordered(text, name)
    if not change.fits:
        _refuse_mentioned(text, name)  # a check of numbers fails as a whole on texts
    table = NULLABLE if change.nullable else {}

    def edit(now: str) -> str:
        now = _annotate(now, name, table.get(change.kind, ANNOTATIONS[change.kind]))
        for key in () if change.fits else LIMITS:
            now = drop_argument(now, name, key)
        if change.categories is not None:
            now = set_argument(now, name, "isin", f"[{', '.join(map(literal, change.categories))}]")
        return now

    return _import_pandas(edit_field(text, name, edit), name)


def _extend(text: str, change: Change) -> str:
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


def _widen(text: str, change: Change) -> str:
    name = change.column
    for key, seen in change.bounds:
        bound = arguments(find_field(text, name)).get(key)
        if bound is None or not _is_number(bound.value):
            raise Uneditable(f"its {key} is not a number in its field")
        wider = {"gt": "ge", "lt": "le"}.get(key, key)
        value = repr(int(seen) if seen == int(seen) else seen)
        text = edit_field(text, name, partial(set_argument, name=name, key=wider, value=value, former=key))
    return text


def _leave_marks(text: str, change: Change) -> str:
    raise Uneditable(
        "its bounds stay, since a mark within them would be learned as a value; leave these cells empty, or name the "
        "mark in config.toml, [data] missing; if it is a value, widen the bound by hand"
    )


def _allow_gaps(text: str, change: Change) -> str:
    name = change.column

    def edit(now: str) -> str:
        if change.kind in NULLABLE:
            now = _annotate(now, name, NULLABLE[change.kind])
        return set_argument(now, name, "nullable", "True")

    return _import_pandas(edit_field(text, name, edit), name)


def _annotate(text: str, name: str, annotation: str) -> str:
    node = find_field(text, name)
    if ast.unparse(node.annotation) not in KNOWN:
        raise Uneditable(f"its annotation {ast.unparse(node.annotation)} is none that `ml init` writes")
    return replace(text, node.annotation, annotation)


def _import_pandas(text: str, name: str) -> str:
    """Return the text with pandas imported if the field of `name` needs it: above pandera, where linters want it."""
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
    """Refuse to touch the name of a column that code beside its field speaks of."""
    schema, named = find_class(text), attribute(find_field(text, name))
    others = [node for node in ast.parse(text).body if not isinstance(node, ast.ClassDef) or node.name != "Schema"]
    rest = [node for node in schema.body if not isinstance(node, ast.AnnAssign)]
    for node in (inner for outer in [*others, *rest, *schema.decorator_list] for inner in ast.walk(outer)):
        spelled = isinstance(node, ast.Constant) and node.value in (name, named)
        spelled |= isinstance(node, ast.Name) and node.id == named
        spelled |= isinstance(node, ast.Attribute) and node.attr == named
        if spelled:
            raise Uneditable(f"line {getattr(node, 'lineno', 0)} speaks of it")


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
