"""Writes `model/schema.py`: already formatted, lint-clean, and meant to be edited."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from ondol.contract.columns import Kind, Label, Role
from ondol.setup.names import literal, make_attributes, measure, quote, readable

WIDTH = 120
ANNOTATIONS: dict[Kind, str] = {
    "number": "float",
    "integer": "int",
    "boolean": "bool",
    "text": "str",
    "date": "pd.Timestamp",
    "duration": "pd.Timedelta",
}
NULLABLE: dict[Kind, str] = {"integer": "pd.Int64Dtype", "boolean": "pd.BooleanDtype"}
HEAD = '''"""The data's contract, drafted by `ml init`. Yours to edit.

Everything else is derived from this class: validation, the service's request type, the compiled model.
`isin` closes a set (any other value is a bad row, a 4xx in the service); a plain `str` is open to new ones.
Roles: feature (where none is said), id, time, target, group, sensitive (a feature kept out of logs), ignored.
"""

'''
CLASS = '''import pandera.pandas as pa


class Schema(pa.DataFrameModel):
    """One row of the data."""

'''
CONFIG = '''
    class Config:
        """How Pandera reads the class."""

        coerce = True
        strict = False
        metadata = None
'''


@dataclass(frozen=True)
class Field:
    """What the schema will say of one column.

    Attributes:
        comments: Sentences that stand above it: a reason for each guess.
    """

    name: str
    kind: Kind
    role: Role = "feature"
    nullable: bool = False
    unique: bool = False
    minimum: int | None = None
    categories: tuple[Label, ...] | None = None
    ordered: bool = False
    comments: tuple[str, ...] = ()


def write_schema(fields: Sequence[Field]) -> str:
    """Return the text of `model/schema.py`."""
    attributes = make_attributes([field.name for field in fields])
    body = "".join(write_field(field, attributes[field.name]) for field in fields)
    imports = "import pandas as pd\n" if "pd." in {_annotate(f)[:3] for f in fields} else ""
    return HEAD + imports + CLASS + body + CONFIG


def _annotate(field: Field) -> str:
    return NULLABLE.get(field.kind, ANNOTATIONS[field.kind]) if field.nullable else ANNOTATIONS[field.kind]


def write_field(field: Field, attribute: str) -> str:
    """Return the lines of one field, below its comments."""
    start = f"    {attribute}: {_annotate(field)} = pa.Field("
    options = _options(field, attribute)
    line = f"{start}{', '.join(options)})"
    if measure(line) <= WIDTH:
        return _write_comments(field) + line + "\n"
    parts = "".join(_break_list(option, field) for option in options)
    return f"{_write_comments(field)}{start}\n{parts}    )\n"


def _options(field: Field, attribute: str) -> list[str]:
    said = [f"alias={quote(field.name)}"] if attribute != field.name else []
    said += ["nullable=True"] if field.nullable else []
    said += ["unique=True"] if field.unique else []
    said += [f"ge={field.minimum}"] if field.minimum is not None else []
    if field.categories is not None:
        said.append(f"isin=[{', '.join(literal(value) for value in field.categories)}]")
    about = [f'"role": "{field.role}"'] if field.role != "feature" else []
    about += ['"ordered": True'] if field.ordered else []
    return said + ([f"metadata={{{', '.join(about)}}}"] if about else [])


def _break_list(option: str, field: Field) -> str:
    """Return one option on a line of its own, or its list with one value on each line if too long."""
    if measure(option) + 9 <= WIDTH or not option.startswith("isin="):
        return allow_long(f"        {option},")
    values = "".join(allow_long(f"            {literal(value)},") for value in field.categories or ())
    return f"        isin=[\n{values}        ],\n"


def allow_long(line: str) -> str:
    """Return a line that cannot be broken, exempt from the limit where the linter would mind."""
    minded = measure(line) > WIDTH and len(line.split()) > 1
    return f"{line}  # noqa: E501\n" if minded else f"{line}\n"


def _write_comments(field: Field) -> str:
    lines = [line for comment in field.comments for line in _wrap(readable(comment))]
    return "".join(f"    # {line}\n" for line in lines)


def _wrap(comment: str) -> list[str]:
    """Break a comment so that even wide letters fit the line."""
    width = WIDTH - 6 if measure(comment) == len(comment) else (WIDTH - 6) // 2
    return textwrap.wrap(comment, width, break_on_hyphens=False) or [comment]
