"""Hints on a table's rows, each with a helpful setting.

They concern repeated rows, similar or rare classes, numbers that mean a missing value, and times.
"""

import json
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ondol.contract import Column
from ondol.contract.encoding import EPOCH
from ondol.setup.inference import Goal, Profile, find_marks
from ondol.setup.schema_file import Field
from ondol.setup.time_split import SplitComparison

MOST_ROWS = 200_000
BEYOND_CHANCE = 5.0  # a multiple of the repeats that are expected for independent columns
NOTABLE = 0.02  # smallest share of repeats that is reported
FEW_ROWS, RARE = 10, 0.02  # of a class: rows and share of the rows
MOST_SHOWN = 5


def find_hints(
    profiles: Sequence[Profile],
    fields: Sequence[Field],
    goal: Goal,
    split: str,
    splits: SplitComparison | None,
    *,
    delimited: bool,
) -> list[str]:
    """Return hints for the owner, each with a remedy.

    Args:
        profiles: The columns.
        fields: The contract's field of each, in the same order.
        goal: The target and the problem.
        split: `[split] by` of the table.
        splits: A quick model on a random split and on one by time.
        delimited: Whether the source is delimited text, to which `[data] missing` applies.
    """
    aim = next(p for p in profiles if p.name == goal.field.name)
    classes = goal.problem != "regression"
    reasons = [*(_hint_variants(aim) if classes else []), *(_hint_rare(aim, fields, split) if classes else [])]
    reasons += [hint for pair in zip(profiles, fields, strict=True) for hint in _hint_marks(*pair, delimited)]
    return [*reasons, *_hint_repeats(profiles, fields), *_hint_time(fields, split, splits)]


def _hint_variants(aim: Profile) -> list[str]:
    """Return hints on classes that differ only in case or spaces."""
    if aim.kind != "text":
        return []
    groups: dict[str, list[str]] = defaultdict(list)
    for label in aim.counts.index.astype("str"):
        groups[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    alike = [", ".join(f'"{label}"' for label in sorted(group)) for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    listed = "; ".join(alike[:MOST_SHOWN]) + ("; …" if len(alike) > MOST_SHOWN else "")
    return [
        f'"{aim.name}" has {aim.distinct} classes, of which some differ only in case, width or spaces ({listed}): '
        f"written alike they would be {len(groups)}. Each stays a class of its own until the source writes them alike."
    ]


def _hint_rare(aim: Profile, fields: Sequence[Field], split: str) -> list[str]:
    """Return hints on classes with few rows, with the split that helps."""
    times, label = int(aim.counts.iloc[-1]), aim.counts.index[-1]
    share = times / max(aim.present, 1)
    reasons = ["few for training and a holdout"] * (times < FEW_ROWS)
    if share < RARE or reasons:
        stratifies = split not in ("stratified", "time") and not any(field.role == "group" for field in fields)
        reasons += ['[split] by = "stratified" in config.toml holds out the same share of each class'] * stratifies
    shown = f'"{label}"' if isinstance(label, str) else str(label)
    rows = "1 row has" if times == 1 else f"{times:,} rows have"
    return [f'Only {rows} the class {shown} of "{aim.name}" ({share:.1%}): {"; ".join(reasons)}.'] * bool(reasons)


def _hint_marks(profile: Profile, field: Field, delimited: bool) -> list[str]:
    """Return hints on numbers or dates of a column that probably mean a missing value, such as 9999 among ages."""
    if field.role == "ignored" or field.kind not in ("number", "integer", "date"):
        return []
    counts = profile.counts
    values = pd.Series(counts.index)
    dated = field.kind == "date"
    moments = (values - EPOCH.tz_localize(values.dt.tz)).dt.total_seconds() if dated else values
    marks = find_marks(moments.to_numpy(np.float64), Column(name=field.name, kind=field.kind))
    rows = int(counts.to_numpy()[marks].sum())
    if rows < FEW_ROWS or len(counts) - int(marks.sum()) < FEW_ROWS:  # values such as -1, 0, 1 are not marks
        return []
    texts = [f"{value:%Y-%m-%d}" if dated else f"{value:.15g}" for value in values[marks].sort_values()]
    listed = json.dumps(texts, ensure_ascii=False)
    remedy = f"missing = {{ {json.dumps(field.name, ensure_ascii=False)} = {listed} }} under [data] in config.toml"
    remedy = f"add {remedy}, as the file writes it" if delimited else "leave it empty in the source"
    return [
        f'"{field.name}" has {", ".join(texts)} in {rows:,} rows, far from all other values. If that means that there '
        f"is no value, {remedy}, and run this again."
    ]


def _hint_repeats(profiles: Sequence[Profile], fields: Sequence[Field]) -> list[str]:
    """Return a hint if more rows are repeated in all columns than expected by chance."""
    frame = pd.DataFrame({p.name: p.values for p in profiles}).head(MOST_ROWS)
    names = [field.name for field in fields if field.role != "ignored"]
    if any(field.role == "id" for field in fields) or len(frame) < 2:
        return []
    again = pd.util.hash_pandas_object(frame[names], index=False).duplicated().to_numpy()
    count, share = int(again.sum()), float(again.mean())
    if share < NOTABLE or count < BEYOND_CHANCE * _expect_equal(frame[~again], names, len(frame)):
        return []
    return [
        f"{count:,} rows ({share:.1%}) repeat an earlier row in every column. They stay on one side of the split, but "
        "count each time: remove them from the source, or give the column that names a row the "
        "role id with unique=True in model/schema.py, so that repeats of it are quarantined."
    ]


def _expect_equal(distinct: pd.DataFrame, names: Sequence[str], rows: int) -> float:
    """Return how many pairs among `rows` rows would be equal if the columns were independent.

    The probability of equal values in a column is estimated from the distinct rows, so that repeated measurements do
    not look like common values.
    """
    pairs, total = rows * (rows - 1) / 2, max(len(distinct) * (len(distinct) - 1), 1)
    for name in names:
        times = distinct[name].value_counts(dropna=False).to_numpy()
        pairs *= float((times * (times - 1)).sum()) / total
    return pairs


def _hint_time(fields: Sequence[Field], split: str, splits: SplitComparison | None) -> list[str]:
    """Return a hint on the split if the rows have times: which one, and the figures that show why."""
    time = next((field.name for field in fields if field.role == "time"), None)
    if time is None:
        return []
    figures = ""
    if splits is not None:
        figures = (
            f": a quick model reaches {splits.metric} {splits.random:.2f} on a random fifth of the rows, and "
            f"{splits.later:.2f} on the latest fifth"
        )
    if splits is not None and splits.flatters:
        chosen = 'so [split] by = "time" in config.toml holds out the latest'
        chosen = chosen if split == "time" else f'but config.toml has [split] by = "{split}"'
        return [f'The rows follow their time, "{time}"{figures}, {chosen}.']
    if split == "time":
        return []
    return [
        f'The rows have a time, "{time}", but are not held out by it{figures}. [split] by = "time" in config.toml '
        f'(now "{split}") holds out the latest instead, as the model will meet them.'
    ]
