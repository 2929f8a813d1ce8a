"""Writes the typed client of a contract, one file of Python: `ml client`."""

import json
import re
from collections.abc import Iterable, Iterator
from keyword import iskeyword
from pathlib import Path
from typing import Any

from ondol.contract import Column, Contract

CODE = Path(__file__).with_name("client_code.py")
BEGIN, TYPES, END = "# begin of the file\n", "# begin of the types\n", "# end of the types\n"
MARK = "`ml client` writes it from model/schema.py"
WIDTH = 60  # of the values of a `Literal` in one line
LONGEST = 120  # of a project's lines
KINDS = {
    "number": "float",
    "integer": "int",
    "boolean": "bool",
    "text": "str",
    "date": "str | date",
    "duration": "str | float | timedelta",
}
PREDICTION = '''

@dataclass(frozen=True)
class Prediction:
    """The prediction of one row; a number that overflowed is None."""

'''


def name_client(project: str) -> str:
    """Return the name of the file that `ml client` writes, which can be imported."""
    return f"{re.sub('[.-]', '_', project)}_client.py"


def write_client(contract: Contract, project: str) -> str:
    """Return the code of the client.

    Args:
        contract: The columns; encodings and classes are not needed.
        project: The name of the project, for the docstring.
    """
    head, _, rest = CODE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(TYPES)
    types = "\n".join(_write_types(contract))
    names = ["Any", *(name for name in ("Literal", "NotRequired") if f"{name}[" in types), "TypedDict"]
    head = head.replace("from typing import Any, NotRequired, TypedDict", f"from typing import {', '.join(names)}")
    code = f'''"""A typed client of the prediction service of {project}; {MARK}."""

{head}# fmt: off
{types}# fmt: on
{rest.partition(END)[2]}'''
    named = all(column.name.isidentifier() and not iskeyword(column.name) for column in contract.columns)
    # A field of a class may not be called as a type of another field, such as `date`.
    skipped = ["E501"] * any(len(line) > LONGEST for line in code.splitlines()) + ["UP013"] * named
    return f"# ruff: noqa: {', '.join(skipped)}\n{code}" if skipped else code


def _write_types(contract: Contract) -> Iterator[str]:
    """Yield the lines of the types `Row`, `Label` and `Prediction`."""
    yield 'Row = TypedDict("Row", {'
    for column in contract.columns:
        kind, note = _write_type(column)
        yield f"    {quote(column.name)}: {kind},{f'  # {note}' if note else ''}"
    yield "})"
    if contract.problem == "regression":
        yield f"{PREDICTION}    value: float | None\n\n"
        return
    target = contract.target_column
    listed = contract.classes or target.categories
    yield f"Label = {KINDS[target.kind] if listed is None else _write_literal(listed, target.kind)}"
    yield f"{PREDICTION}    label: Label | None\n    probabilities: dict[str, float | None]\n\n"


def _write_type(column: Column) -> tuple[str, str]:
    """Return the type of a field of `Row`, and a note on it."""
    if column.role not in ("feature", "sensitive"):
        return "NotRequired[object]", "logged, not read" if column.role == "id" else f"not read ({column.role})"
    listed, kind = column.categories, KINDS[column.kind]
    if listed is not None:
        kind = _write_literal(listed, column.kind)
    numbers = {
        ">=": column.minimum,
        ">": column.exclusive_minimum,
        "<=": column.maximum,
        "<": column.exclusive_maximum,
    }
    bounds = [f"{sign} {bound:.15g}" for sign, bound in numbers.items() if bound is not None]
    note = ", ".join(bounds) if listed is None and column.kind in ("number", "integer") else ""
    return f"NotRequired[{kind} | None]" if column.nullable else kind, note


def _write_literal(values: Iterable[Any], kind: str) -> str:
    """Return the type of a set of values; `Literal` has no floats."""
    if kind == "number":
        return KINDS[kind]
    shown = [quote(v) if isinstance(v, str) else repr(int(v) if kind == "integer" else v) for v in values]
    line = ", ".join(shown)
    return f"Literal[{line}]" if len(line) <= WIDTH else "Literal[\n        " + ",\n        ".join(shown) + ",\n    ]"


def quote(text: str) -> str:
    """Return a text as a literal of Python."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\x7f")
