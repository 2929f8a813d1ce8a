"""Reads `model/schema.py`, a Pandera `DataFrameModel`, into a `Contract`."""

import hashlib
import importlib
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from ondol.config.settings import Settings
from ondol.contract.columns import Column, Contract, Kind, Role
from ondol.errors import UserError, nearest
from ondol_serving.grammar import AMBIGUOUS_FORMATS, normalize

if TYPE_CHECKING:
    import pandera.pandas as pa

SCHEMA = "model/schema.py"
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
    try:
        module = importlib.import_module("model.schema")
    except Exception as error:  # whatever a person's edit can raise
        raise UserError(f"{SCHEMA} cannot be imported: {type(error).__name__}: {error}.") from error
    schema = getattr(module, "Schema", None)
    if schema is None:
        raise UserError(f"{SCHEMA} has no class named Schema: the contract is read from it.")
    return schema


def load_checks() -> Checks:
    """Return what `model/schema.py` checks, as `check_rows` and `unique_sets` take it."""
    return load_schema().to_schema()


def reserved_names() -> set[str]:
    """Return the names that a class of `model/schema.py` inherits: no column can have one as its attribute."""
    import pandera.pandas as pa

    return set(dir(pa.DataFrameModel))


def schema_digest(contract: Contract) -> str:
    """Return the SHA-256 of what the contract says."""
    return hashlib.sha256(contract.model_dump_json().encode()).hexdigest()


def load_contract(settings: Settings) -> Contract:
    """Return the contract of the project on the path, for the target that `settings` names."""
    data = settings.data
    return describe(load_schema(), data.target, data.problem, data.date_formats)


def describe(
    schema: type["pa.DataFrameModel"],
    target: str | None,
    problem: Any,
    date_formats: tuple[str, ...] = AMBIGUOUS_FORMATS,
) -> Contract:
    """Return the contract that `schema` states, without encodings.

    Args:
        schema: The Pandera model.
        target: The column to predict; None where just one field has the role target.
        problem: "binary", "multiclass" or "regression".
        date_formats: The listed formats of dates; see `ondol.config.data.Data`.

    Raises:
        UserError: a type or role is unknown, or the target is not one column with that role.
    """
    fields = schema.to_schema().columns
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
        mend = 'give it metadata={"role": "target"}' if target in names else "there is no such column"
        raise UserError(
            f'The target "{target}" of config.toml is no target in {SCHEMA}: {mend}.{nearest(target, targets)}'
        )
    return target


def _column(name: str, field: Any) -> Column:
    said = field.metadata or {}
    role, ordered = said.get("role", "feature"), bool(said.get("ordered", False))
    if role not in get_args(Role):
        raise UserError(f'Column "{name}" in {SCHEMA} has the role "{role}": allowed are {", ".join(get_args(Role))}.')
    kind = _kind(name, str(field.dtype))
    try:
        limits = _limits(field)
        column = Column(name=name, kind=kind, role=role, nullable=bool(field.nullable), ordered=ordered, **limits)
    except (TypeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f'The checks of column "{name}" in {SCHEMA} do not fit its type {field.dtype}: {said}.'
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
    said = check.statistics
    low = "minimum" if said.get("include_min", True) else "exclusive_minimum"
    high = "maximum" if said.get("include_max", True) else "exclusive_maximum"
    return {low: _as_number(said["min_value"]), high: _as_number(said["max_value"])}


def _as_number(value: Any) -> float:
    """Return a bound as a number; a date's as seconds since 1970, UTC, a duration's as seconds."""
    if hasattr(value, "total_seconds"):
        return float(value.total_seconds())
    if isinstance(value, datetime):  # without a zone it would be in the machine's
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
    """Return the pandas dtype in which a column's valid values are held."""
    if column.nullable and column.kind in NULLABLE_DTYPES:
        return NULLABLE_DTYPES[column.kind]
    return DTYPES[column.kind]
