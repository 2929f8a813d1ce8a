"""Reads `model/schema.py`, a Pandera `DataFrameModel`, into a `Contract`."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field

from ondol.config import Dialect, Settings
from ondol.errors import Refused, UserError, nearest
from ondol.project import OWN_ERRORS, describe_error, import_owned
from ondol_serving.decision import DecisionRule
from ondol_serving.grammar import AMBIGUOUS_FORMATS, date_grammar, normalize

if TYPE_CHECKING:
    import pandera.pandas as pa

Kind = Literal["number", "integer", "boolean", "text", "date", "duration"]
DatePart = Literal["month", "weekday", "hour"]
Role = Literal["feature", "id", "time", "target", "group", "sensitive", "ignored"]
Label = bool | int | float | str

MISSING_TEXT = "<missing>"


class Frozen(BaseModel):
    """An immutable value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(NamedTuple):
    """One input of a model: its name in the features, its name in ONNX, and its type."""

    name: str
    key: str
    tensor: Literal["float32", "string"]


class Encoding(Frozen):
    """The conversion of a column to a tensor, the same in training, batch prediction and service.

    A float32 tensor is `(x - offset) / scale`, computed in float64, NaN if missing. `x` is the number; for a date the
    days (UTC, with fractions) since `origin`; for a duration the seconds; for a text its position in `order`. A string
    tensor is the text itself, `missing` for a missing value. `known` lists the values seen in training, or is None if
    there were too many. A date has an additional float32 input for each of `parts`: the month (1 to 12), the weekday (0
    for Monday) or the hour, with its name in the features.
    """

    tensor: Literal["float32", "string"]
    offset: float = 0.0
    scale: float = 1.0
    origin: str | None = None
    missing: str | None = None
    known: tuple[str, ...] | None = None
    many: bool = False  # more values than a tree can distinguish by their codes: dtype str, not object
    order: tuple[str, ...] | None = None
    parts: dict[DatePart, str] | None = None


class Column(Frozen):
    """One column: its real name, kind, role, and the allowed values.

    `time` is True for a feature that is the row's time as well.
    `formats` are the listed formats of a date (`[data] date_formats`), None for the default; see
    `ondol_serving.grammar`.
    """

    name: str
    kind: Kind
    role: Role = "feature"
    time: bool = False
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    categories: tuple[Label, ...] | None = None
    ordered: bool = False
    formats: tuple[str, ...] | None = None
    input: str | None = None
    encoding: Encoding | None = None

    @property
    def is_time(self) -> bool:
        """Whether it is the row's time, be it a feature or not."""
        return self.role == "time" or self.time

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The model inputs of this column once it has an encoding: the column, then its parts."""
        if self.encoding is None or self.input is None:
            return ()
        parts = (self.encoding.parts or {}).items()
        own = Input(self.name, self.input, self.encoding.tensor)
        return (own, *(Input(name, f"{self.input}_{part}", "float32") for part, name in parts))


class Contract(Frozen):
    """All columns of the data, the target, its classes (None for regression), and how labels are decided.

    `decision` is None for the most probable class.
    """

    format: Literal[1] = 1
    problem: Literal["binary", "multiclass", "regression"]
    target: str
    classes: tuple[Label, ...] | None = None
    columns: tuple[Column, ...]
    decision: DecisionRule | None = Field(None, exclude_if=lambda rule: rule is None)

    @property
    def features(self) -> tuple[Column, ...]:
        """The columns a model sees, in the order of its inputs."""
        return tuple(c for c in self.columns if c.role in ("feature", "sensitive"))

    @property
    def timeless_features(self) -> tuple[Column, ...]:
        """The features without the row's time, which always moves: an unchanged row of another time is the same row."""
        return tuple(c for c in self.features if not c.time)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs of a model, in order: all columns, then the parts of all dates."""
        made = [column.inputs for column in self.features]
        return tuple([one for inputs in made for one in inputs[:1]] + [one for inputs in made for one in inputs[1:]])

    @property
    def target_column(self) -> Column:
        """The column that is predicted."""
        return self.column(self.target)

    @property
    def used(self) -> tuple[Column, ...]:
        """The columns that a run reads: all except the ignored ones."""
        return tuple(c for c in self.columns if c.role != "ignored")

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each column by name, with which text formats are read.

        Dates with a listed format that looks like ISO 8601, such as `%Y-%d-%m`, are read as text.
        """
        return {
            c.name: "text" if c.kind == "date" and not date_grammar(c.formats).reads_iso else c.kind
            for c in self.columns
        }

    @property
    def by_name(self) -> dict[str, Column]:
        """Every column by its name."""
        return {c.name: c for c in self.columns}

    def column(self, name: str) -> Column:
        """Return the column called `name`.

        Raises:
            UserError: there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise UserError(f'The contract has no column "{name}".{nearest(name, [c.name for c in self.columns])}')

    def role(self, role: Role) -> Column | None:
        """Return the first column with `role`, or None; a feature may be the row's time as well."""
        return next((c for c in self.columns if c.role == role or (role == "time" and c.is_time)), None)


SCHEMA = "model/schema.py"
MOST_NAMED = 3  # changes that a message lists
Checks: TypeAlias = "pa.DataFrameSchema"
DTYPES: dict[Kind, str] = {
    "number": "float64",
    "integer": "int64",
    "boolean": "bool",
    "text": "str",
    "date": "datetime64[us]",
    "duration": "timedelta64[us]",
}
NULLABLE_DTYPES: dict[Kind, str] = {"integer": "Int64", "boolean": "boolean"}
BOUNDS = {
    "greater_than_or_equal_to": ("min_value", "minimum"),
    "less_than_or_equal_to": ("max_value", "maximum"),
    "greater_than": ("min_value", "exclusive_minimum"),
    "less_than": ("max_value", "exclusive_maximum"),
}


def load_schema() -> type["pa.DataFrameModel"]:
    """Import `model.schema` of the project on the path and return its `Schema`.

    Raises:
        UserError: the file cannot be imported or has no class `Schema`.
    """
    schema = getattr(import_owned("schema"), "Schema", None)
    if schema is None:
        raise UserError(f"{SCHEMA} has no class named Schema: the contract is read from it.")
    if not hasattr(schema, "to_schema"):
        raise UserError(f"Schema in {SCHEMA} is not a pandera.pandas.DataFrameModel: inherit it.")
    return schema


def compile_schema(schema: type["pa.DataFrameModel"]) -> "pa.DataFrameSchema":
    """Return Pandera's schema of a class.

    Raises:
        UserError: a field or check of it is wrong.
    """
    try:
        return schema.to_schema()
    except OWN_ERRORS as error:
        raise UserError(f"Schema in {SCHEMA} cannot be read: {describe_error(error)}.") from error


def load_checks() -> Checks:
    """Return the checks of `model/schema.py`, as an argument of `check_rows` and `unique_sets`."""
    return compile_schema(load_schema())


def reserved_names() -> set[str]:
    """Return the names that a class of `model/schema.py` inherits; they cannot be attributes of columns."""
    import pandera.pandas as pa

    return set(dir(pa.DataFrameModel))


def schema_digest(contract: Contract) -> str:
    """Return the SHA-256 of the contract's content."""
    return hashlib.sha256(contract.model_dump_json().encode()).hexdigest()


def load_contract(settings: Settings) -> Contract:
    """Return the contract of the project on the path, for the target in `settings`."""
    data = settings.data
    return describe(load_schema(), data.target, data.problem, data.date_formats)


def describe(
    schema: type["pa.DataFrameModel"],
    target: str | None,
    problem: Any,
    date_formats: tuple[str, ...] = AMBIGUOUS_FORMATS,
) -> Contract:
    """Derive the contract from `schema`, without encodings.

    Args:
        schema: The Pandera model.
        target: The column to predict; may be None if exactly one field has the role target.
        problem: "binary", "multiclass" or "regression".
        date_formats: The listed formats of dates; see `ondol.config.Data`.

    Raises:
        UserError: a type or role is unknown, or the target is not one column with that role.
    """
    fields = compile_schema(schema).columns
    columns = [_column(normalize(str(name)), field) for name, field in fields.items()]
    _require_distinct(columns)
    target = target and normalize(target)
    if date_formats != AMBIGUOUS_FORMATS:
        columns = [c.model_copy(update={"formats": date_formats}) if c.kind == "date" else c for c in columns]
    chosen = _choose_target(columns, target)
    return Contract(
        problem=problem,
        target=chosen,
        columns=tuple(
            c.model_copy(update={"role": "ignored"}) if c.role == "target" and c.name != chosen else c for c in columns
        ),
    )


def _require_distinct(columns: list[Column]) -> None:
    for name, times in Counter(column.name for column in columns).items():
        if times > 1:
            raise UserError(
                f'{SCHEMA} has {times} columns named "{name}", which differ only in how Unicode writes their letters '
                "(NFC or NFD): take one out."
            )


def _choose_target(columns: list[Column], target: str | None) -> str:
    targets = [c.name for c in columns if c.role == "target"]
    if target is None and len(targets) == 1:
        return targets[0]
    if target is None:
        raise UserError(f'{SCHEMA} has {len(targets)} targets {targets}: name one in config.toml, [data] target = "…".')
    if target not in targets:
        names = [c.name for c in columns]
        remedy = 'give it metadata={"role": "target"}' if target in names else "there is no such column"
        raise UserError(
            f'The target "{target}" of config.toml is not a target in {SCHEMA}: {remedy}.{nearest(target, targets)}'
        )
    return target


def _column(name: str, field: Any) -> Column:
    metadata = field.metadata or {}
    role, ordered = metadata.get("role", "feature"), bool(metadata.get("ordered", False))
    if role not in get_args(Role):
        raise UserError(f'Column "{name}" in {SCHEMA} has the role "{role}": allowed are {", ".join(get_args(Role))}.')
    kind, timed = _kind(name, str(field.dtype)), role == "time" and bool(metadata.get("feature", False))
    role = "feature" if timed else role
    try:
        limits = _limits(field) | {"nullable": bool(field.nullable), "ordered": ordered}
        column = Column(name=name, kind=kind, role=role, time=timed, **limits)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'The checks of column "{name}" in {SCHEMA} do not fit its type {field.dtype}: {reason}.'
        ) from error
    if ordered and (kind != "text" or not column.categories):
        raise UserError(f'Column "{name}" in {SCHEMA} is ordered: write its values in order, as str with isin=[…].')
    return column


def _limits(field: Any) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for check in field.checks:
        if check.name in BOUNDS:
            argument, bound = BOUNDS[check.name]
            limits[bound] = _as_number(check.statistics[argument])
        elif check.name == "in_range":
            limits |= _range(check)
        elif check.name == "isin":
            limits["categories"] = tuple(dict.fromkeys(map(_normalize, check.statistics["allowed_values"])))
    return limits


def _normalize(value: Any) -> Any:
    return normalize(value) if isinstance(value, str) else value


def _range(check: Any) -> dict[str, float]:
    statistics = check.statistics
    low = "minimum" if statistics.get("include_min", True) else "exclusive_minimum"
    high = "maximum" if statistics.get("include_max", True) else "exclusive_maximum"
    return {low: _as_number(statistics["min_value"]), high: _as_number(statistics["max_value"])}


def _as_number(value: Any) -> float:
    """Return a bound as a number: of a date, seconds since 1970 (UTC); of a duration, seconds."""
    if hasattr(value, "total_seconds"):
        return float(value.total_seconds())
    if isinstance(value, datetime):  # without a zone it would be in the machine's time zone
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value)


def _kind(name: str, dtype: str) -> Kind:
    lowered = dtype.lower()
    if "datetime" in lowered:
        return "date"
    if "timedelta" in lowered:
        return "duration"
    for start, kind in (("float", "number"), ("int", "integer"), ("uint", "integer"), ("bool", "boolean")):
        if lowered.startswith(start):
            return kind  # type: ignore[return-value]
    if lowered.startswith(("str", "object", "string")):
        return "text"
    raise UserError(
        f'Column "{name}" in {SCHEMA} has the type {dtype}: use float, int, bool, str, pd.Timestamp, '
        "pd.Timedelta, pd.Int64Dtype or pd.BooleanDtype."
    )


def required_dtype(column: Column) -> str:
    """Return the pandas dtype of a column's valid values."""
    if column.nullable and column.kind in NULLABLE_DTYPES:
        return NULLABLE_DTYPES[column.kind]
    return DTYPES[column.kind]


def require_columns(present: Sequence[str], columns: Sequence[Column]) -> None:
    """Check that all `columns` are in the data.

    Raises:
        UserError: one is missing; the message names the most similar column.
    """
    missing = [column.name for column in columns if column.name not in present]
    if not missing:
        return
    asked = {column.name for column in columns}
    other = [name for name in present if name not in asked]
    hint = nearest(missing[0], other) or f" It has: {', '.join(present)}."
    more = f" {len(missing) - 1} more columns of the contract are missing." if len(missing) > 1 else ""
    raise UserError(f'The data has no column "{missing[0]}", which the contract asks for.{hint}{more}')


def require_known(setting: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Check that every column in a setting of `config.toml` exists.

    Raises:
        UserError: one does not; the message names the most similar column.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(
                f'{setting} in config.toml names "{name}", which is not a column: correct it, or take it out.'
                f"{nearest(name, known)}"
            )


def require_known_markers(dialect: Dialect, known: Iterable[str]) -> None:
    """Check that every column with its own markers of missing values in a dialect is one of `known`.

    Raises:
        UserError: one is not.
    """
    require_known("[data] missing", dialect.missing if isinstance(dialect.missing, dict) else (), known)


def breaking_changes(old: Contract, new: Contract) -> list[str]:
    """List in words the fields of `old` that requests may no longer contain, and the new required ones."""
    # A bundle from before 0.3.1 may have names in another form than Unicode's NFC, and callers may still use that form.
    before, after = ({normalize(c.name): c for c in contract.features} for contract in (old, new))
    removed = [f'the field "{name}" is gone' for name in before if name not in after]
    retyped = [
        f'"{name}" was {column.kind} and is {after[name].kind}'
        for name, column in before.items()
        if name in after and after[name].kind != column.kind
    ]
    required = [
        f'"{name}" is now required' for name, column in after.items() if _newly_required(before.get(name), column)
    ]
    if old.problem != new.problem or old.target != new.target:
        retyped.append(f'the answer was "{old.target}" ({old.problem}) and is "{new.target}" ({new.problem})')
    return removed + retyped + required


def require_compatible(old: Contract, new: Contract, before: str, after: str, remedy: str) -> None:
    """Check that callers of one version can use another without a change.

    Args:
        old: The contract of the version `before`.
        new: The contract of the version `after`.
        before: The version in production.
        after: The version that will replace it.
        remedy: The command that deploys it anyway, for the message.

    Raises:
        Refused: they need a change.
    """
    if changes := breaking_changes(old, new):
        more = f"; {len(changes) - MOST_NAMED:,} more" if len(changes) > MOST_NAMED else ""
        raise Refused(
            f"Version {after} would break callers of version {before} ({'; '.join(changes[:MOST_NAMED])}{more}): "
            f"inform them, then {remedy}."
        )


def can_score(old: Contract, new: Contract) -> str | None:
    """Return None if a model of contract `old` can be scored on rows of `new`, else the reason."""
    if (old.problem, old.target) != (new.problem, new.target):
        return f'it predicts "{old.target}" ({old.problem})'
    present = {c.name: c.kind for c in new.used}
    # The columns that decide the split must be unchanged, or the model would be evaluated on its training rows.
    needed = [c for c in old.used if c.role not in ("target", "ignored")]
    missing = [c.name for c in needed if present.get(c.name) != c.kind]
    return f'the data no longer has its column "{missing[0]}" as it was' if missing else None


def _newly_required(before: Column | None, after: Column) -> bool:
    return not after.nullable and (before is None or before.nullable)


def free_names(wanted: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Return the names `wanted`, with a number appended if a name is taken: `prediction 2`."""
    names: list[str] = []
    for name in wanted:
        free, number = name, 1
        while free in taken or free in names:
            number += 1
            free = f"{name} {number}"
        names.append(free)
    return names
