"""The bundle's contract as the service sees it, and the request type compiled from it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    WithJsonSchema,
    create_model,
)
from pydantic_core import PydanticCustomError

from ondol_serving.grammar import LARGEST_INTEGER, SMALLEST_INTEGER, date_grammar
from ondol_serving.moments import date_type, duration_type

FEATURES = ("feature", "sensitive")
LARGEST = 3.4028234e38  # of float32, which every number becomes


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `contract.json`; the meaning of each entry is `ondol.contract.Column`'s."""

    name: str
    kind: str
    role: str
    nullable: bool
    bounds: dict[str, float]
    categories: tuple[Any, ...] | None
    input: str | None
    encoding: dict[str, Any]
    formats: tuple[str, ...] | None = None

    @property
    def inputs(self) -> tuple[tuple[str, str, bool], ...]:
        """The inputs of the model that it becomes: the features' name of each, its name in ONNX, whether it is text."""
        parts = (self.encoding.get("parts") or {}).items()
        own = (self.name, str(self.input), self.encoding["tensor"] == "string")
        return (own, *((name, f"{self.input}_{part}", False) for part, name in parts))


@dataclass(frozen=True, slots=True)
class Contract:
    """The columns of the data, the problem, and the classes in the order of the model's outputs."""

    problem: str
    target: str
    classes: tuple[Any, ...] | None
    columns: tuple[Column, ...]

    @property
    def features(self) -> tuple[Column, ...]:
        """The columns a model sees, in the order of its inputs."""
        return tuple(c for c in self.columns if c.role in FEATURES)

    @property
    def ids(self) -> tuple[Column, ...]:
        """The columns that name a row: a request may hold them, and they are logged."""
        return tuple(c for c in self.columns if c.role == "id")

    @property
    def unread(self) -> tuple[Column, ...]:
        """The columns that a request may hold as its row has them, and that are neither read nor logged."""
        return tuple(c for c in self.columns if c.role not in (*FEATURES, "id"))

    @property
    def inputs(self) -> tuple[tuple[str, str, bool], ...]:
        """The inputs of the model, in order: the columns, then the parts of all; see `Column.inputs`."""
        made = [column.inputs for column in self.features]
        return tuple([one for inputs in made for one in inputs[:1]] + [one for inputs in made for one in inputs[1:]])


class Envelope(BaseModel):
    """The request of every model: rows of named values."""

    rows: list[dict[str, Any]] = Field(min_length=1)


def read_contract(document: dict[str, Any]) -> Contract:
    """Return the contract that the parsed `contract.json` holds.

    Raises:
        KeyError: an entry is absent.
        ValueError: a feature has no input name or encoding.
    """
    columns = tuple(_read_column(column) for column in document["columns"])
    unfit = [c.name for c in columns if c.role in FEATURES and not (c.input and c.encoding)]
    if unfit:
        raise ValueError(f"features without an encoding: {', '.join(unfit)}")
    classes = document.get("classes")
    return Contract(document["problem"], document["target"], None if classes is None else tuple(classes), columns)


def compile_request(contract: Contract, max_rows: int) -> type[BaseModel]:
    """Return the pydantic type of a request: `rows`, at least one and at most `max_rows` of them.

    The fields of a row are `f0`, `f1`, … in the order of the contract's features, with the real names as
    aliases, so that any name works. The columns that the model does not see come last: they may be given, and are
    ignored.
    """
    fields: dict[str, Any] = {}
    for i, column in enumerate(contract.features):
        default = None if column.nullable else ...
        fields[f"f{i}"] = (_type_of(column), Field(default, alias=column.name))
    for i, column in enumerate((*contract.ids, *contract.unread)):
        text = "Logged, but not read." if column.role == "id" else f"Not read ({column.role})."
        fields[f"x{i}"] = (Any, Field(None, alias=column.name, description=text))
    row = create_model("Row", __config__=ConfigDict(extra="forbid"), **fields)
    rows: Any = (Annotated[list[row], Field(min_length=1, max_length=max_rows)], ...)  # type: ignore[valid-type]
    return create_model("Request", __config__=ConfigDict(extra="forbid"), rows=rows)


def _read_column(entry: dict[str, Any]) -> Column:
    names = {"ge": "minimum", "le": "maximum", "gt": "exclusive_minimum", "lt": "exclusive_maximum"}
    categories = entry.get("categories")
    return Column(
        name=entry["name"],
        kind=entry["kind"],
        role=entry["role"],
        nullable=bool(entry.get("nullable")),
        bounds={short: entry[name] for short, name in names.items() if entry.get(name) is not None},
        categories=None if categories is None else tuple(categories),
        input=entry.get("input"),
        encoding=entry.get("encoding") or {},
        formats=None if entry.get("formats") is None else tuple(entry["formats"]),
    )


def _type_of(column: Column) -> Any:
    """Return the annotation of one column; strict, so that no "3" or true becomes a number."""
    base = _TYPES[column.kind](column)
    if column.kind == "text" and column.nullable:
        return Annotated[Optional[base], BeforeValidator(_blank_to_none)]  # noqa: UP045 - as below
    return Optional[base] if column.nullable else base  # noqa: UP045 - `base` is a value, not a type expression


def _number(column: Column) -> Any:
    # Integers are parsed as floats too: they become float64 anyway, and 3.0 is what pandas writes for 3.
    rule = column.encoding
    offset, reach = rule.get("offset") or 0.0, LARGEST * (rule.get("scale") or 1.0)
    bounds: dict[str, Any] = {"ge": offset - reach, "le": offset + reach} | column.bounds
    kind: Any = Annotated[float, Field(strict=True, allow_inf_nan=False, **bounds)]
    if column.kind == "integer":
        kind = Annotated[kind, BeforeValidator(_check_whole)]  # `multiple_of` would let 1000000000.5 pass
    schema = {"type": column.kind, **_bounds_schema(bounds)}
    if column.categories is None:
        return Annotated[kind, WithJsonSchema(schema)]
    inside = _inside({float(c) for c in column.categories}, column.categories)
    enum = {"type": column.kind, "enum": list(column.categories)}
    return Annotated[kind, AfterValidator(inside), WithJsonSchema(enum)]


def _bounds_schema(bounds: dict[str, float]) -> dict[str, float]:
    names = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
    return {names[short]: bound for short, bound in bounds.items()}


def _boolean(column: Column) -> Any:
    if column.categories is None:
        return StrictBool
    inside = _inside(set(column.categories), tuple(json.dumps(c) for c in column.categories))
    enum = {"type": "boolean", "enum": list(column.categories)}
    return Annotated[StrictBool, AfterValidator(inside), WithJsonSchema(enum)]


def _text(column: Column) -> Any:
    if column.categories is not None:
        return Literal[column.categories]
    # A blank text is a missing one, which only a nullable column may be.
    filled: Any = Field(min_length=1, json_schema_extra={"pattern": r"\S"})
    return StrictStr if column.nullable else Annotated[StrictStr, filled, AfterValidator(_refuse_blank)]


def _refuse_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("Input should be a text that is not blank")
    return text


def _blank_to_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


_TYPES: dict[str, Callable[[Column], Any]] = {
    "number": _number,
    "integer": _number,
    "boolean": _boolean,
    "text": _text,
    "date": lambda column: date_type(column.bounds, date_grammar(column.formats)),
    "duration": lambda column: duration_type(column.bounds, _bounds_schema(column.bounds)),
}


def _check_whole(value: Any) -> Any:
    """Refuse fractions and what is beyond 64 bits; what is no number is refused as such afterwards."""
    if isinstance(value, float) and not value.is_integer():
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    if isinstance(value, int | float) and not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
        raise PydanticCustomError("int_type", "Input should be an integer of 64 bits")
    return value


def _inside(allowed: set[Any], names: tuple[Any, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"Input should be one of {', '.join(map(str, names))}")
        return value

    return check
