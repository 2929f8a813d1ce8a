"""Differences between the contract and a table."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from ondol.contract.checking import clean_column
from ondol.contract.schema import Column, Contract, Kind, Label
from ondol.setup.inference import (
    MOST_CATEGORIES,
    Guess,
    Profile,
    TableFormat,
    describe_field,
    find_marks,
    guess_roles,
    profile_column,
)
from ondol.setup.schema_file import Field, literal

What = Literal["new", "missing", "renamed", "retyped", "category", "range", "mark", "gaps"]


@dataclass(frozen=True)
class ContractChange:
    """One difference between the contract and a table.

    Attributes:
        what: Its kind.
        column: The column's name, after any renaming.
        sentence: The change in words.
        role: What the column is for.
        field: A new column as `ml init` would write it.
        before: The name that a renamed column has in the contract.
        kind: The kind of a retyped column, or of one with missing values.
        nullable: Whether the contract allows missing values in a retyped column.
        fits: Whether the limits of a retyped column are still valid.
        categories: The new values, or those of a retyped target; None if the set is opened.
        bounds: The keyword of each exceeded bound, with the smallest or largest value seen.
    """

    what: What
    column: str
    sentence: str
    role: str = "feature"
    field: Field | None = None
    before: str = ""
    kind: Kind = "text"
    nullable: bool = False
    fits: bool = True
    categories: tuple[Label, ...] | None = None
    bounds: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        """Return the line for printing."""
        return f"{self.what}: {self.sentence}."


ALIKE = 0.7


def find_renames(
    contract: Contract, missing: Sequence[Column], new: Sequence[Profile], there: Sequence[str]
) -> dict[str, str]:
    """Return the new names of columns that were probably renamed; each new column is used once.

    A column counts as renamed if the values fit, and if the name is similar, the closed set of values is equal, or the
    neighbours are the same.
    """
    scores = [(_likeness(contract, c, p, there), c.name, p.name) for c in missing for p in new if _fits(c, p)]
    renamed: dict[str, str] = {}
    for score, old, name in sorted(scores, key=lambda found: -found[0]):
        if score > 0 and old not in renamed and name not in renamed.values():
            renamed[old] = name
    return renamed


def _fits(column: Column, profile: Profile) -> bool:
    wider = (column.kind, profile.kind) == ("number", "integer")
    if profile.kind != column.kind and not wider:
        return False
    return column.categories is None or set(profile.counts.index) <= set(column.categories)


def _likeness(contract: Contract, column: Column, profile: Profile, there: Sequence[str]) -> float:
    names = difflib.SequenceMatcher(None, _plain(column.name), _plain(profile.name)).ratio()
    if names >= ALIKE:
        return 2 + names
    if column.kind == "text" and column.categories is not None and profile.distinct == len(column.categories):
        return 2.0
    same_place = _neighbours([c.name for c in contract.columns], column.name) == _neighbours(there, profile.name)
    return 1.0 if same_place else 0.0


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _neighbours(names: Sequence[str], name: str) -> tuple[str | None, str | None]:
    place = list(names).index(name)
    return names[place - 1] if place else None, names[place + 1] if place + 1 < len(names) else None


NUMERIC = ("number", "integer")
SHOWN = 5


def find_changes(
    contract: Contract, table: pa.Table, typed: bool, written: TableFormat | None = None
) -> list[ContractChange]:
    """Return the differences between the table and the contract, except in ignored columns.

    Args:
        contract: The contract from `model/schema.py`.
        table: The raw rows.
        typed: Whether the source has types.
        written: The format of the table.
    """
    written = written or TableFormat()
    there = table.schema.names
    missing = [c for c in contract.used if c.name not in there]
    known = {c.name for c in contract.columns}
    filled = [n for n in there if n not in known and _has_values(table.column(n))]
    profiles = [profile_column(table.field(n), table.column(n), typed, written) for n in filled]
    renamed = find_renames(contract, missing, profiles, there)
    changes: list[ContractChange] = []
    for column in contract.used:
        if column.name in there:
            changes += _compare(column, table, typed, contract, written)
        elif column.name in renamed:
            now = column.model_copy(update={"name": renamed[column.name]})
            sentence = f'"{column.name}" is probably "{now.name}" now{_note(column, contract, problem=False)}'
            changes.append(ContractChange("renamed", now.name, sentence, column.role, before=column.name))
            changes += _compare(now, table, typed, contract, written)
        else:
            sentence = f'"{column.name}" ({column.kind}, {column.role}) is not in the source'
            changes.append(ContractChange("missing", column.name, sentence, column.role))
    return changes + _describe_new([p for p in profiles if p.name not in renamed.values()], contract)


def _has_values(values: pa.ChunkedArray) -> bool:
    cleaned, _ = clean_column(values, Column(name="", kind="text"))
    return bool(cleaned.notna().any())


def _describe_new(profiles: list[Profile], contract: Contract) -> list[ContractChange]:
    guesses = guess_roles(profiles, contract.target)
    fields = [describe_field(p, _yield_role(guesses[p.name], contract)) for p in profiles]
    return [ContractChange("new", f.name, f'"{f.name}" ({f.kind}, {f.role})', f.role, field=f) for f in fields]


def _yield_role(guess: Guess, contract: Contract) -> Guess:
    """Return the guess with another role if id or time already belong to another column."""
    if guess.role == "id" and contract.role("id"):
        return Guess("ignored", guess.reason)
    return Guess("feature") if guess.role == "time" and contract.role("time") else guess


def _compare(
    column: Column, table: pa.Table, typed: bool, contract: Contract, written: TableFormat
) -> list[ContractChange]:
    changes: list[ContractChange] = []
    field, raw = table.field(column.name), table.column(column.name)
    values, unreadable = clean_column(written.spell(raw, column.kind, column.name), column)
    if unreadable.any() and (kind := profile_column(field, raw, typed, written).kind) != column.kind:
        found = int(unreadable.sum())
        as_kind = column.model_copy(update={"kind": kind, "formats": written.column(column.name, kind).formats})
        values, unreadable = clean_column(written.spell(raw, kind, column.name), as_kind)
        retyped = _retype(column, kind, found, values, contract)
        changes.append(retyped)
        column = _as_kind(column, kind, retyped)
    gaps = int((values.isna().to_numpy() & ~unreadable).sum())
    # As always, rows without a target are left out, and rows without an id are quarantined.
    if gaps and not column.nullable and column.role not in ("target", "id"):
        sentence = f'"{column.name}" has no value in {_rows(gaps)}{_note(column, contract)}'
        changes.append(ContractChange("gaps", column.name, sentence, column.role, kind=column.kind))
    return [*changes, *_compare_values(column, values.dropna(), contract)]


def _retype(column: Column, kind: Kind, found: int, values: "pd.Series[Any]", contract: Contract) -> ContractChange:
    sentence = (
        f'"{column.name}" is {column.kind} in the contract, and {found:,} of its values are not: it is {kind} now'
    )
    fits = column.kind in NUMERIC and kind in NUMERIC
    classes = column.role == "target" and contract.problem != "regression" and not fits
    categories = _labels(pd.Series(values.dropna().unique()), kind) if classes else None
    sentence += _note(column, contract)
    return ContractChange(
        "retyped",
        column.name,
        sentence,
        column.role,
        kind=kind,
        nullable=column.nullable,
        fits=fits,
        categories=categories,
    )


def _as_kind(column: Column, kind: Kind, retyped: ContractChange) -> Column:
    """Return the contract's column after it is retyped."""
    if retyped.fits:
        return column.model_copy(update={"kind": kind})
    same = {"name": column.name, "role": column.role, "nullable": column.nullable}
    return Column(kind=kind, categories=retyped.categories, **same)  # type: ignore[arg-type]


def _compare_values(column: Column, values: "pd.Series[Any]", contract: Contract) -> list[ContractChange]:
    changes: list[ContractChange] = []
    if column.categories is not None:
        new = values[~values.isin(list(column.categories))].value_counts()
        if len(new):
            changes.append(_extend(column, new, contract))
    seen = _seconds(values) if column.kind in ("date", "duration") and _is_bounded(column) else values
    if _is_bounded(column) and len(seen):
        changes += _widen(column, seen.to_numpy(), contract)
    return changes


def _extend(column: Column, new: "pd.Series[int]", contract: Contract) -> ContractChange:
    labels = _labels(new.index.to_series(), column.kind)
    shown = ", ".join(f"{literal(_label(v, column.kind))} ({n:,})" for v, n in new.head(SHOWN).items())
    more = ", …" if len(new) > SHOWN else ""
    sentence = (
        f'"{column.name}" has {len(new):,} new value{"s" * (len(new) > 1)} in {_rows(int(new.sum()))}: {shown}{more}'
    )
    many = len(column.categories or ()) + len(new) > MOST_CATEGORIES and column.role != "target"
    sentence += "; so many that the set is no longer closed" if many else _note(column, contract)
    sentence += "; it is ordered: put them in their place" if column.ordered and not many else ""
    return ContractChange("category", column.name, sentence, column.role, categories=None if many else labels)


def _seconds(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Convert dates and durations to seconds, as in the contract's bounds."""
    return values.map(lambda v: v.total_seconds() if isinstance(v, pd.Timedelta) else v.timestamp())


def _is_bounded(column: Column) -> bool:
    return {column.minimum, column.maximum, column.exclusive_minimum, column.exclusive_maximum} != {None}


def _widen(column: Column, seen: np.ndarray, contract: Contract) -> list[ContractChange]:
    limits = {
        "ge": (column.minimum, np.less),
        "gt": (column.exclusive_minimum, np.less_equal),
        "le": (column.maximum, np.greater),
        "lt": (column.exclusive_maximum, np.greater_equal),
    }
    beyond = {key: broken(seen, bound) for key, (bound, broken) in limits.items() if bound is not None}
    marks = find_marks(seen, column) & np.logical_or.reduce(list(beyond.values()))
    changes = [_leave_marks(column, seen[marks])] if marks.any() else []
    failed = [key for key, mask in beyond.items() if (mask & ~marks).any()]
    if not failed:
        return changes
    rest = seen[~marks]
    rows = int(np.logical_or.reduce([beyond[key] & ~marks for key in failed]).sum())
    bounds = tuple((key, (rest.min() if key in ("ge", "gt") else rest.max()).item()) for key in failed)
    shown = " and ".join(f"{key}={limits[key][0]:g}" for key in failed)
    sentence = (
        f'"{column.name}" goes from {_show(column, rest.min())} to {_show(column, rest.max())}, beyond {shown} in '
    )
    sentence += f"{_rows(rows)}{_note(column, contract)}"
    return [*changes, ContractChange("range", column.name, sentence, column.role, kind=column.kind, bounds=bounds)]


def _leave_marks(column: Column, marks: np.ndarray) -> ContractChange:
    """Return a change that keeps the bounds, because wider ones would let marks be learned as values."""
    shown = ", ".join(_show(column, value) for value in np.unique(marks)[:SHOWN])
    sentence = (
        f'"{column.name}" is {shown} in {_rows(len(marks))}: apart from all other values, as a mark for a missing one'
    )
    return ContractChange("mark", column.name, sentence, column.role, kind=column.kind)


def _show(column: Column, value: Any) -> str:
    if column.kind == "date":
        return str(pd.Timestamp(value, unit="s"))
    if column.kind == "duration":
        return str(pd.Timedelta(value, unit="s"))
    return str(int(value) if column.kind == "integer" else value)


def _note(column: Column, contract: Contract, problem: bool = True) -> str:
    """Return a note on the consequence if the column has a special role."""
    if column.role == "target" and problem:
        return f"; it is the target, so this changes the {contract.problem} problem that is learned"
    if column.role == "target":
        return "; it is the target: name it in config.toml, [data] target, too"
    return "; it is the id, which names the row" if column.role == "id" else ""


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _labels(values: "pd.Series[Any]", kind: Kind) -> tuple[Label, ...]:
    return tuple(sorted(_label(value, kind) for value in values))  # type: ignore[type-var]


def _label(value: Any, kind: Kind) -> Label:
    if kind in ("integer", "boolean"):
        return int(value) if kind == "integer" else bool(value)
    return float(value) if kind == "number" else str(value)
