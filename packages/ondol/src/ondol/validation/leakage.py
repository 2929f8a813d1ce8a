"""Searches for leakage; an alarm stops the training unless `config.toml` accepts it by name, with a reason.

The kinds: future columns, single predictors, sums and formulas, overlap of training and holdout.

Formulas: a few columns may determine a numeric target as a sum, product, quotient or time between dates. An expression
`e` determines the target `y` if `y = k × e + c` in nearly every row, up to rounding, where `c` is one of a few
constants. `e` is a linear combination of any number of columns, a sum, difference, product or quotient of two, the time
between two dates, a product of powers of several, or a product of two columns and a discount or a tax.

Cost: with n rows (20,000 at most, of which 4,000 are searched) and p columns, the combinations take O(n p²) for up to
200 columns, and the pairs O(p²) sorts of 500 numbers for up to 60 columns: those with the largest weight in the
combination of all, and those with the same ranking as the target.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from ondol.config import Problem
from ondol.contract import Column, Contract
from ondol.errors import UserError

SAMPLE_ROWS = 20_000  # rows examined on each side; values are looked up in all training rows
FEWEST_ROWS = 50
SUSPICIOUS: dict[Problem, float] = {"binary": 0.99, "multiclass": 0.99, "regression": 0.995}
# For a class and a column with few values: only a doubt in `ml init`, as a good test may reach it too.
SUSPICIOUS_CODE = 0.97
MOST_CODES = 30
NUMBER = r"([-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)"
READABLE = 0.99
WHY = "why it is not a leak"
log = logging.getLogger(__name__)

AlarmKind = Literal["alone", "sum", "product", "threshold", "group", "duplicates", "later"]


@dataclass(frozen=True)
class Alarm:
    """Something that looks like a leak.

    Attributes:
        kind: The kind: one column that predicts the target alone; columns whose sum, product or quotient is the target;
            two columns whose combination, cut at thresholds, is the target; a column whose values have the same target
            on both sides of the split; rows that are on both sides; or a date after the row's time.
        columns: The columns where it was found; accepting one of them accepts the alarm.
        figure: Its strength: a score or a share, at most 1.
        finding: The finding, as a clause.
        remedy: The remedy, as a clause.
    """

    kind: AlarmKind
    columns: tuple[str, ...]
    figure: float
    finding: str
    remedy: str


def find_alarms(
    contract: Contract,
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    other_groups: Sequence[Column] = (),
    doubts: bool = False,
) -> list[Alarm]:
    """Return what looks like a leak.

    Args:
        contract: The contract.
        train: The training rows; 20,000 of them are examined, and values are looked up in all.
        held_out: The held-out rows, or a sample of them; 20,000 are examined.
        other_groups: Columns that are not features but may still be groups.
        doubts: Also report doubts that are not an alarm: codes that some rows contradict.
    """
    target, problem = contract.target, contract.problem
    train, held_out = train[train[target].notna()], _draw(held_out[held_out[target].notna()])
    sample = _draw(train)
    features = contract.timeless_features  # rows may well follow their time
    scores = score_single_columns(sample, features, target, problem)
    alone = find_single_predictors(scores, find_codes(sample, features) if doubts else set(), problem)
    named = {name for alarm in alone for name in alarm.columns}
    others = [column for column in features if column.name not in named]
    return [
        *alone,
        *(sums := find_identities(sample, others, target, problem)),
        *([] if sums else find_thresholds(sample, others, target, problem)),
        *find_groups(train, held_out, [*others, *other_groups], target, problem, scores),
        *find_duplicates(train, held_out, contract),
        *find_later_dates(sample, contract),
    ]


def _draw(frame: pd.DataFrame) -> pd.DataFrame:
    """Return up to `SAMPLE_ROWS` rows in a random order with a fixed seed."""
    return frame.iloc[np.random.default_rng(0).permutation(len(frame))[:SAMPLE_ROWS]]


def accept_alarms(alarms: Sequence[Alarm], accept: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a table row for each alarm, with the reason for accepting it, if there is one."""
    return [
        {
            "kind": alarm.kind,
            "columns": list(alarm.columns),
            "figure": round(alarm.figure, 4),
            "finding": alarm.finding,
            "accepted": next((accept[name] for name in alarm.columns if name in accept), ""),
        }
        for alarm in alarms
    ]


def require_accepted(alarms: Sequence[Alarm], accept: Mapping[str, str]) -> None:
    """Check that every alarm is accepted.

    Raises:
        UserError: one is not; the message has the columns, the strength of each leak, and the line that accepts them.
    """
    open_ = [alarm for alarm in alarms if not set(alarm.columns) & set(accept)]
    if not open_:
        return
    found = "; ".join(alarm.finding for alarm in open_)
    remedies = ", ".join(dict.fromkeys(alarm.remedy for alarm in open_))
    line = ", ".join(
        f"{_key(name)} = {json.dumps(reason, ensure_ascii=False)}"
        for name, reason in {**accept, **{alarm.columns[0]: WHY for alarm in open_}}.items()
    )
    raise UserError(
        f"This looks like a leak: {found}; {remedies}, in model/schema.py, or give a reason in config.toml "
        f"why it is not one: [leakage] accept = {{ {line} }}."
    )


def warn_of_needless(alarms: Sequence[Alarm], accept: Mapping[str, str]) -> None:
    """Log a line for each accepted column that raises no alarm."""
    alarmed = {name for alarm in alarms for name in alarm.columns}
    for name in sorted(set(accept) - alarmed):
        log.warning('[leakage] accept in config.toml: "%s" raises no alarm: remove it', name)


def _key(name: str) -> str:
    """Return a name as a key of TOML."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def as_numbers(values: "pd.Series[Any]", column: Column) -> np.ndarray:
    """Convert a column to float64, NaN if missing: dates and durations to microseconds, texts to ranks."""
    if column.kind == "text":
        codes = pd.factorize(values, sort=True)[0].astype(np.float64)
        return np.where(codes < 0, np.nan, codes)
    if values.dtype.kind in "mM":
        return values.astype(f"{values.dtype.kind}8[us]").astype("int64").where(values.notna()).to_numpy(np.float64)
    return values.to_numpy(np.float64, na_value=np.nan)


def extract_numbers(values: "pd.Series[Any]") -> np.ndarray | None:
    """Return the numbers that nearly all texts of a column contain, such as "12.50 EUR"; None otherwise."""
    texts = values.dropna().astype("str")
    parts = texts.str.replace(",", "").str.extract(NUMBER, expand=False)
    if texts.empty or parts.notna().mean() < READABLE:
        return None
    return pd.to_numeric(parts).reindex(values.index).to_numpy(np.float64, na_value=np.nan)


def label(target: "pd.Series[Any]", problem: Problem) -> np.ndarray:
    """Return the target as float64; classes as ranks."""
    if problem == "regression":
        return target.to_numpy(np.float64, na_value=np.nan)
    return pd.factorize(target, sort=True)[0].astype(np.float64)


NOTABLE, FEWEST_LATER = 0.01, 10


def find_later_dates(frame: pd.DataFrame, contract: Contract) -> list[Alarm]:
    """Return an alarm for each date that is later than the row's time in at least 1% of the rows, and ten rows.

    If the rows' times have no hour, only later days count.

    Args:
        frame: A sample of the rows to train on.
        contract: The contract; without a column with the role time there are no alarms.
    """
    time = contract.role("time")
    if time is None:
        return []
    moments = frame[time.name]
    by_day = bool((moments.dropna() == moments.dropna().dt.normalize()).all())
    alarms = []
    for column in contract.timeless_features:
        if column.kind != "date":
            continue
        dates = frame[column.name].dt.normalize() if by_day else frame[column.name]
        both = dates.notna() & moments.notna()
        later = int((dates[both] > moments[both]).sum())
        if later >= max(FEWEST_LATER, NOTABLE * int(both.sum())):
            share = later / int(both.sum())
            finding = f'"{column.name}" is later than the row\'s time, "{time.name}", in {share:.1%} of the rows'
            remedy = "if it is known only afterwards, give it the role ignored"
            alarms.append(Alarm("later", (column.name,), share, finding, remedy))
    return alarms


FOLDS = 3
LEAVES = 256


def score_single_columns(
    frame: pd.DataFrame, columns: Sequence[Column], target: str, problem: Problem
) -> dict[str, float]:
    """Return how well each column alone predicts the target, from 0 to 1.

    A small tree is cross-validated on each: ROC AUC for a binary target, balanced accuracy for a multiclass one, R² (or
    the agreement of ranks) for regression.

    Args:
        frame: A sample of the rows to train on, none without a target.
        columns: The columns to score.
        target: The column to predict.
        problem: The kind of prediction.
    """
    if problem != "regression":
        counts = frame[target].map(frame[target].value_counts())
        frame = frame[(counts >= FOLDS).to_numpy(bool)]
    y = label(frame[target], problem)
    if len(y) < FEWEST_ROWS or len(np.unique(y)) < 2:
        return {}
    return {column.name: max(_score(x, y, problem) for x in _views(frame[column.name], column)) for column in columns}


def find_codes(frame: pd.DataFrame, columns: Sequence[Column]) -> set[str]:
    """Return the columns that may be codes: flags, and texts or whole numbers with few values."""
    kinds = ("text", "boolean", "integer")
    return {c.name for c in columns if c.kind in kinds and frame[c.name].nunique() <= MOST_CODES}


def find_single_predictors(scores: dict[str, float], codes: Set[str], problem: Problem) -> list[Alarm]:
    """Return an alarm for each column with a suspicious score; for `codes` and a class, the limit is lower."""
    coded = SUSPICIOUS[problem] if problem == "regression" else SUSPICIOUS_CODE
    return [
        Alarm(
            "alone",
            (name,),
            score,
            f'"{name}" alone predicts the target almost perfectly ({score:.3f} of 1)',
            "if it is known only afterwards, give it the role ignored",
        )
        for name, score in scores.items()
        if score > (coded if name in codes else SUSPICIOUS[problem])
    ]


def _views(values: "pd.Series[Any]", column: Column) -> list[np.ndarray]:
    views = [as_numbers(values, column)]
    written = extract_numbers(values) if column.kind == "text" else None
    return views if written is None else [*views, written]


def _score(x: np.ndarray, y: np.ndarray, problem: Problem) -> float:
    score = _cross_validate(x, y, problem)
    return max(score, _rank_agreement(x, y)) if problem == "regression" else score


def _cross_validate(x: np.ndarray, y: np.ndarray, problem: Problem) -> float:
    """Return a small tree's score on rows that it was not fitted on; `cross_val_score` takes ten times as long."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    tree = DecisionTreeRegressor if problem == "regression" else DecisionTreeClassifier
    values, folds = np.clip(x, -1e30, 1e30).reshape(-1, 1), _folds(y)
    scores = []
    for fold in range(FOLDS):
        made = tree(max_leaf_nodes=LEAVES, min_samples_leaf=3, random_state=0).fit(
            values[folds != fold], y[folds != fold]
        )
        held_out = values[folds == fold]
        predicted = made.predict_proba(held_out)[:, 1] if problem == "binary" else made.predict(held_out)
        scores.append(_score_predictions(predicted, y[folds == fold], problem))
    return float(np.mean(scores))


def _folds(y: np.ndarray) -> np.ndarray:
    """Return each row's fold: rows sorted by `y` are assigned in turn, so that all folds have similar targets."""
    order = np.lexsort((np.random.default_rng(0).permutation(len(y)), y))
    folds = np.empty(len(y), np.int64)
    folds[order] = np.arange(len(y)) % FOLDS
    return folds


def _score_predictions(predicted: np.ndarray, y: np.ndarray, problem: Problem) -> float:
    from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

    metric = {"binary": roc_auc_score, "multiclass": balanced_accuracy_score, "regression": r2_score}[problem]
    return float(metric(y, predicted))


def _rank_agreement(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rho squared: 1 for any monotone function of the target, however long its tail."""
    if np.isnan(x).mean() > 1 - SUSPICIOUS["regression"] or np.nanmin(x) == np.nanmax(x):
        return 0.0
    return float(pd.Series(x).rank().corr(pd.Series(y).rank()) ** 2)


MANY = 0.05  # a column with at least this share of distinct values identifies things, such as households
# At least this share and this number of the held-out rows must have a value that occurs in training.
COVERED, FEWEST_COVERED = 0.9, 500
COVERED_BY_NAMES, FEWEST_BY_NAMES = 0.1, 50
SURE = 0.95  # score from which an identifying column predicts the target
SMOOTH = 0.1  # unless a tree on its values is nearly as good: then the column is a measurement
OF_EACH = 10
QUICK = 4
BY_CHANCE = 1e-4
TWINS, FEWEST_TWINS = 0.01, 5


def find_groups(
    train: pd.DataFrame,
    held_out: pd.DataFrame,
    columns: Sequence[Column],
    target: str,
    problem: Problem,
    alone: dict[str, float],
) -> list[Alarm]:
    """Return an alarm for each column whose values are on both sides of the split and share the target.

    Args:
        train: All training rows.
        held_out: A sample of the held-out rows.
        columns: The features.
        target: The column to predict.
        problem: The kind of prediction.
        alone: The score of a tree on each column alone.
    """
    alarms = []
    for column in columns:
        score, names = _score_values(train, held_out, column, target, problem)
        names = names and score - alone.get(column.name, 0.0) > SMOOTH
        if score > (SURE if names else SUSPICIOUS[problem]):
            finding = (
                f'rows of one "{column.name}" are on both sides of the split and share the target ({score:.3f} of 1)'
            )
            remedy = "give it the role group, or ignored where it is a code for the target"
            alarms.append(Alarm("group", (column.name,), score, finding, remedy))
    return alarms


def _score_values(
    train: pd.DataFrame, held_out: pd.DataFrame, column: Column, target: str, problem: Problem
) -> tuple[float, bool]:
    """Return how well training rows of a value predict the held-out target, and whether it identifies things."""
    part = train.iloc[:: max(1, len(train) // SAMPLE_ROWS)]
    if _names(column, part):
        part = train
    part = part[part[column.name].isin(held_out[column.name].dropna())]
    known = held_out[column.name].isin(part[column.name]).to_numpy()
    names = _names(column, part)
    share, fewest = (COVERED_BY_NAMES, FEWEST_BY_NAMES) if names else (COVERED, FEWEST_COVERED)
    if known.sum() < max(fewest, share * len(held_out)):
        return 0.0, names
    return _agree(part, held_out[known], column.name, target, problem), names


def _names(column: Column, rows: pd.DataFrame) -> bool:
    """Return True if a column identifies things: text or whole numbers with many distinct values."""
    return column.kind in ("text", "integer") and rows[column.name].nunique() >= MANY * len(rows)


def _agree(part: pd.DataFrame, held_out: pd.DataFrame, name: str, target: str, problem: Problem) -> float:
    """Return the score of predicting held-out targets by the training rows of the same value."""
    if problem == "regression":
        y = label(held_out[target], problem)
        predicted = held_out[name].map(part[target].astype("float64").groupby(part[name]).mean()).to_numpy(np.float64)
        spread = float(((y - y.mean()) ** 2).sum())
        return 1 - float(((y - predicted) ** 2).sum()) / spread if spread else 0.0
    counts = held_out[target].value_counts()
    classes = sorted(counts[counts >= OF_EACH].index)
    if len(classes) < 2:
        return 0.0
    shares = pd.crosstab(part[name], part[target], normalize="index").reindex(columns=classes, fill_value=0.0)
    shown = held_out[held_out[target].isin(classes)]
    predicted = shares.reindex(shown[name]).to_numpy()
    y = pd.Index(classes).get_indexer(pd.Index(shown[target]))
    return _auc(y, predicted[:, 1]) if problem == "binary" else _balanced_accuracy(y, predicted.argmax(axis=1))


def _auc(y: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, predicted))


def _balanced_accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(y, predicted))


def find_duplicates(train: pd.DataFrame, held_out: pd.DataFrame, contract: Contract) -> list[Alarm]:
    """Return an alarm if held-out rows equal training rows in all features and the target.

    A row counts if chance does not explain it: if fewer than 0.0001 equal rows would be expected for independent
    columns. It is an alarm from 1% of the held-out rows (and five rows). The alarm names the column of the split, whose
    different values put equal rows on both sides.

    Args:
        train: All training rows.
        held_out: A sample of the held-out rows.
        contract: The contract.
    """
    key = contract.role("group") or contract.role("id") or contract.role("time")
    names = [c.name for c in contract.timeless_features] + [contract.target]
    if key is None or held_out.empty:
        return []
    twins = _find_twins(train, held_out, names)
    rare = expect_by_chance(train, held_out[twins], names) < BY_CHANCE
    count, share = int(rare.sum()), float(rare.sum()) / len(held_out)
    if count < FEWEST_TWINS or share < TWINS:
        return []
    where = f'in all features and the target, under another "{key.name}"'
    finding = f"{share:.1%} of the rows held out equal rows to train on {where}"
    return [
        Alarm(
            "duplicates",
            (key.name,),
            share,
            finding,
            "remove the repeated rows, or give what they share the role group",
        )
    ]


def _find_twins(train: pd.DataFrame, held_out: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return which rows of `held_out` are in `train`; a few numeric columns exclude most rows first."""
    quick = [name for name in names if train[name].dtype.kind in "iufmM"][:QUICK]
    near = train[np.isin(_hash(train, quick), _hash(held_out, quick))] if quick else train
    return np.isin(_hash(held_out, names), _hash(near, names))


def _hash(frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    return pd.util.hash_pandas_object(frame[names], index=False).to_numpy(dtype=np.uint64)


def expect_by_chance(train: pd.DataFrame, rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return how many rows equal to each of `rows` are expected in `train` if the columns were independent."""
    part = train.iloc[:: max(1, len(train) // SAMPLE_ROWS)]
    logs = np.full(len(rows), np.log(len(train)))
    for name in names:
        shares: Any = part[name].value_counts(normalize=True, dropna=False)
        logs += np.log(rows[name].map(shares).astype("float64").fillna(1 / len(part)).to_numpy())
    return np.exp(logs)


HOLDS = 0.9  # share of the rows, and of those without the most common value: a few percent may be exceptions
HOLDS_FOR_CLASSES = 0.99
EXPLAINED = 0.995  # R² from which the effect of constants and rounding is small
MOSTLY = 0.93  # share of values that must be multiples of the rounding step
GAIN = 3.0  # bits of information about the target that an expression must add to its constants
EXACT = 1e-6  # size of an expression's terms up to which arithmetic is exact
MOST_CONSTANTS, RAREST = 6, 0.01
SPARSE = 3  # of the possible values between the smallest and the largest constant, at most one in so many is a constant
SEARCHED_ROWS, PAIR_ROWS = 4000, 800
MOST_COLUMNS, MOST_PAIRED, MOST_PRODUCTS, MOST_RATED = 200, 60, 10, 3
ROWS_PER_COLUMN, ENOUGH_ROWS = 10, 200
COMPLETE = 0.5
MOST_FOUND = 5
PLAIN = 0.003
SLOPES, DENSEST, NARROW, MOST_SLOPES = 500, 0.1, 0.05, 300
LARGEST = 1e100  # squares of larger numbers overflow
SECONDS_OF_DAY = 86_400.0
UNITS = {1.0: "days", 24.0: "hours", 1440.0: "minutes", SECONDS_OF_DAY: "seconds", 1 / 7: "weeks", 1 / 365.25: "years"}
Floats = np.ndarray


class Start(NamedTuple):
    """A start of the search for weights; each finds expressions that others miss; see `_fit_sparse`.

    Attributes:
        kept: The share of the rows that is kept at first.
        shrink: By how much clusters become narrower each time, at least, and
        spread: to how many times the deviation within them.
    """

    kept: float
    shrink: float
    spread: float


STARTS = (Start(0.9, 2, 2), Start(0.75, 2, np.inf), Start(1.0, 3, np.inf))


@dataclass(frozen=True)
class Operand:
    """A column as numbers.

    Attributes:
        name: The column's name.
        values: Its values: dates as days since 1970, durations as seconds; NaN where missing.
        step: The rounding step of its values, such as 0.01; 0 if there is none.
        date: Whether it holds dates.
    """

    name: str
    values: Floats
    step: float
    date: bool = False


@dataclass(frozen=True)
class Expression:
    """A function of columns.

    Attributes:
        columns: Their names.
        text: The expression as text.
        values: Its values, NaN if unknown.
        error: The possible error of each value from the rounding of its columns.
        kind: "sum" or "product".
        days: Whether the values are days.
        times: Whether it is one column times another.
    """

    columns: tuple[str, ...]
    text: str
    values: Floats
    error: Floats
    kind: Any = "product"
    days: bool = False
    times: bool = False


@dataclass(frozen=True)
class Found:
    """An expression that determines the target: factor, constants, share of the rows, and exactness."""

    expression: Expression
    factor: float
    constants: tuple[float, ...]
    share: float
    rounding: float = 0.0


class Target:
    """A numeric target.

    Attributes:
        values: The values, [rows].
        step: Their rounding step.
        rare: Which rows have a value other than the most common one.
        holds: The share of the rows in which an expression must hold.
    """

    def __init__(self, values: Floats, step: float, holds: float) -> None:
        """Take the values of the sampled rows."""
        self.values, self.step, self.holds = values, step, holds
        self.rare = values != pd.Series(values).mode().iloc[0]

    def rows(self, chosen: Floats) -> "Target":
        """Return the target of some rows."""
        return Target(self.values[chosen], self.step, self.holds)


def find_identities(frame: pd.DataFrame, columns: Sequence[Column], target: str, problem: Problem) -> list[Alarm]:
    """Return an alarm for each expression of `columns` that determines the target, at most five.

    Classes are treated as ranks, and only exact linear combinations count.

    Args:
        frame: A sample of the rows to train on, in random order, none without a target.
        columns: The features; those that alone predict the target should not be among them.
        target: The column to predict.
        problem: The kind of prediction.
    """
    y = label(frame[target], problem)
    if len(y) < FEWEST_ROWS or np.abs(y).max() > LARGEST or len(np.unique(y)) < 2:
        return []
    numbers = problem == "regression"
    goal = Target(y, step_of(y) if numbers else 0.0, HOLDS if numbers else HOLDS_FOR_CLASSES)
    operands = read_operands(frame, columns)
    found: list[Found] = []
    named: set[str] = set()
    while len(found) < MOST_FOUND and (one := _find_one(operands, goal, numbers)):
        found += [] if set(one.expression.columns) <= named else [one]
        named |= set(one.expression.columns)
        drop = _heaviest(one, operands)
        operands = [operand for operand in operands if operand.name != drop]
    return [_describe(one, target) for one in found]


def read_operands(frame: pd.DataFrame, columns: Sequence[Column]) -> list[Operand]:
    """Return the columns that are numbers, dates or durations, or texts that contain numbers."""
    operands = []
    for column in columns:
        values = frame[column.name]
        if column.kind == "text":
            numbers = extract_numbers(values) if extract_numbers(values.iloc[:200]) is not None else None
            if numbers is None:
                continue
        else:
            numbers = as_numbers(values, column)
        if column.kind in ("date", "duration"):
            numbers = numbers / 1e6 / (SECONDS_OF_DAY if column.kind == "date" else 1.0)
        known = numbers[np.isfinite(numbers)]
        if len(known) >= FEWEST_ROWS and np.abs(known).max() <= LARGEST and known.min() < known.max():
            step = 0.0 if column.kind == "date" else step_of(known)
            operands.append(Operand(column.name, numbers, step, column.kind == "date"))
    return operands


def step_of(values: Floats) -> float:
    """Return the power of ten, from 1 to 0.00001, of which nearly all values are multiples; 0 if there is none."""
    for digits in range(6):
        scaled = values * 10.0**digits
        if (np.abs(scaled - np.round(scaled)) <= 1e-6 * np.maximum(1.0, np.abs(scaled) * 1e-3)).mean() >= MOSTLY:
            return float(10.0**-digits)
    return 0.0


def _find_one(operands: Sequence[Operand], goal: Target, numbers: bool) -> Found | None:
    """Return the simplest expression that determines the target, or None.

    The time between two dates comes first, then a plain sum, then pairs, then sums with several constants, then sums
    with products among their terms, products of several powers, sums with products and several constants, and last
    two columns times a rate, or times what it leaves or adds, and several constants.
    """
    if not operands:
        return None
    if numbers and (found := _find_pair([operand for operand in operands if operand.date], goal)):
        return found
    if found := _find_sum(operands, goal, most=1) or _find_sum(_fill(operands), goal, most=1):
        return found
    if not numbers:
        return None
    paired = choose_paired(operands, goal)
    if found := _find_pair(paired, goal):
        return found
    if found := _find_sum(operands, goal, most=MOST_CONSTANTS):
        return found
    both = [*operands, *products] if (products := _likeliest_products(paired, goal)) else []
    found = _find_sum(both, goal, most=1) or _find_powers(operands, goal) or _find_sum(both, goal, most=MOST_CONSTANTS)
    if found or not (rated := _rate(products[:MOST_RATED], operands)):
        return found
    return _find_sum([*products[:MOST_RATED], *rated], goal, most=MOST_CONSTANTS)


def _fill(operands: Sequence[Operand]) -> list[Operand]:
    """Return operands with missing numbers replaced by 0; none if no number is missing."""
    gaps = [np.isnan(operand.values).any() and not operand.date for operand in operands]
    if not any(gaps):
        return []
    return [
        Operand(o.name, np.nan_to_num(o.values, nan=0.0) if gap else o.values, o.step, o.date)
        for o, gap in zip(operands, gaps, strict=True)
    ]


# Whether an expression determines the target.


def _check_identity(expression: Expression, goal: Target, factor: float, most: int) -> Found | None:
    """Return the expression with its constants if it determines the target, first up to the target's own rounding."""
    known = np.isfinite(expression.values)
    if known.sum() < max(FEWEST_ROWS, COMPLETE * len(known)) or not np.isfinite(factor):
        return None
    y, made = goal.values[known], factor * expression.values[known]
    terms = np.abs(y - np.median(y)) + np.abs(made - np.median(made))
    tight = goal.step / 2 * (1 + 1e-6) + EXACT * terms + 1e-9 * np.abs(y).max()
    loose = tight + np.abs(factor) * expression.error[known] / 2
    for half in (tight, loose):
        fine = half <= 0.05 * y.std() if half is loose else np.ones(len(y), bool)
        if fine.sum() < max(FEWEST_ROWS, COMPLETE * len(y)):
            continue
        fitted = _fit_constants(y[fine], made[fine], half[fine], goal.rare[known][fine], goal.holds, most)
        if fitted:
            return Found(expression, factor, *fitted, rounding=float(np.median(half)))
    return None


def _fit_constants(
    y: Floats, made: Floats, half: Floats, rare: Floats, holds: float, most: int
) -> tuple[tuple[float, ...], float] | None:
    """Return the constants and the share of rows where `y` is `made` plus one of them; None if too few."""
    rest = y - made
    width = float(np.median(half))
    centers = _modes(rest, width, most)
    if not len(centers) or not rare.any():
        return None
    nearest = np.abs(rest[:, None] - centers[None, :]).argmin(axis=1)
    inside = np.abs(rest - centers[nearest]) <= np.maximum(half, width)
    share = float(min(inside.mean(), inside[rare].mean()))
    counted = inside & rare
    if share < holds or counted.sum() < FEWEST_ROWS // 3 or not y[counted].std():
        return None
    constants = [float(np.median(rest[inside & (nearest == place)])) for place in np.unique(nearest[counted])]
    explained = 1 - float(rest[inside].var() / y[inside].var())
    if explained < EXPLAINED and not _is_explained(y[counted], nearest[counted], constants, width):
        return None
    return tuple(sorted(constants, key=abs)), share


def _is_explained(y: Floats, cluster: Floats, constants: Sequence[float], half: float) -> bool:
    """Return True if several constants leave much less uncertainty than the target, and are not evenly close."""
    if len(constants) < 2:
        return False
    unit = max(2 * half, np.finfo(float).tiny)
    places = (max(constants) - min(constants)) / unit + 1
    gained = _entropy(np.round(y / unit)) - _entropy(cluster)
    return bool(len(constants) * SPARSE <= places and gained >= GAIN)


def _entropy(values: Floats) -> float:
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log2(shares)).sum())


def _modes(values: Floats, half: float, most: int) -> Floats:
    """Return the centers of the densest windows (width `2 × half`, 1% of the values or more), densest first."""
    left = np.sort(values)
    fewest = max(2, RAREST * len(left))
    centers: list[float] = []
    while len(centers) < most and len(left) >= fewest:
        ends = np.searchsorted(left, left + 2 * half * (1 + 1e-9), side="right")
        counts = ends - np.arange(len(left))
        start = int(counts.argmax())
        if counts[start] < fewest:
            break
        centers.append(float(left[start] + left[ends[start] - 1]) / 2)
        left = np.concatenate([left[:start], left[ends[start] :]])
    return np.array(centers)


def _fit_sparse(matrix: Floats, y: Floats, weights: Floats, half: float, most: int, start: Start) -> Floats:
    """Return the weights of a linear function that holds up to constants, starting from some near to them.

    First the rows that fit worst are left out. Then rows are put to the nearest of the densest residuals, the weights
    are fitted within these clusters, and the clusters are made narrower.
    """
    for _ in range(3 if start.kept < 1 else 0):
        rest = y - matrix @ weights
        misses = np.abs(rest - np.median(rest))
        kept = misses <= np.quantile(misses, start.kept)
        weights = _fit_within(matrix[kept], y[kept], np.zeros(int(kept.sum()), np.int64))
    width = 4 * _deviation(y - matrix @ weights)
    for _ in range(60):
        width = max(width, half)
        rest = y - matrix @ weights
        nearest, inside = _cluster(rest, width, most)
        if inside.sum() < matrix.shape[1] + most + 2:
            break
        weights = _fit_within(matrix[inside], y[inside], nearest[inside])
        if width <= half:
            break
        left = y - matrix @ weights - _means(rest, nearest, inside)[nearest]
        width = min(width / start.shrink, start.spread * _deviation(left[inside]))
    return weights


def _means(values: Floats, cluster: Floats, inside: Floats) -> Floats:
    counts = np.bincount(cluster[inside], minlength=int(cluster.max()) + 1)
    return np.bincount(cluster[inside], values[inside], len(counts)) / np.maximum(counts, 1)


def _deviation(values: Floats) -> float:
    return float(np.median(np.abs(values - np.median(values))))


def _fit_within(matrix: Floats, y: Floats, cluster: Floats) -> Floats:
    """Return the least-squares weights if each cluster has its own constant."""
    counts = np.maximum(np.bincount(cluster), 1)[:, None]
    both = np.column_stack([matrix, y])
    means = np.zeros((len(counts), both.shape[1]))
    np.add.at(means, cluster, both)
    return _fit(both - (means / counts)[cluster])


def _fit(both: Floats) -> Floats:
    """Return the least-squares weights for the last column; rows and columns are centered.

    By the normal equations, a tenth of the cost of a QR decomposition, refined once to the same precision.
    """
    matrix, y = both[:, :-1], both[:, -1]
    inverse = np.linalg.pinv(matrix.T @ matrix, rcond=1e-13, hermitian=True)
    weights = inverse @ (matrix.T @ y)
    return np.asarray(weights + inverse @ (matrix.T @ (y - matrix @ weights)))


# Linear combinations of any number of columns.


def _find_sum(operands: Sequence[Operand], goal: Target, most: int) -> Found | None:
    """Return a linear combination of as few columns as possible that determines the target up to `most` constants."""
    if not operands:
        return None
    searched = goal.rows(np.arange(min(len(goal.values), SEARCHED_ROWS)))
    used, rows = _complete(operands, searched.values)
    if not used or len(rows) < FEWEST_ROWS or len(np.unique(searched.values[rows])) < 2:
        return None
    part = searched.rows(rows)
    matrix = np.column_stack([operand.values[rows] for operand in used])
    scale = matrix.std(axis=0)
    matrix = (matrix - np.median(matrix, axis=0)) / scale
    y = part.values - np.median(part.values)
    size = float(np.abs(y).max())
    half = max(part.step / 2, EXACT * float(np.median(np.abs(y))), 1e-9 * size)
    fitted = _fit(np.column_stack([matrix, y]) - np.append(matrix.mean(axis=0), y.mean()))
    for start in STARTS[: 1 if most == 1 else None]:
        weights = _fit_sparse(matrix, y, fitted, half, most, start)
        weights, places = _leave_out(used, matrix, weights, scale, part, half, most)
        if places:
            chosen = [used[place] for place in places]
            weights = _fit_sparse(matrix[:, places], y, weights, half, most, STARTS[0]) / scale[places]
            plain = np.array([_whole(weight) for weight in weights.tolist()])
            for one in (_combine(chosen, plain), _combine(chosen, weights)):
                if found := _check_identity(one, goal, 1.0, most):
                    return found
    return None


def _combine(operands: Sequence[Operand], weights: Floats) -> Expression:
    """Return a linear combination, for all rows."""
    values = np.sum([w * operand.values for w, operand in zip(weights, operands, strict=True)], axis=0)
    rounded = sum(abs(w) * o.step for w, o in zip(weights, operands, strict=True) if o.step < 1)
    text = _write_sum(operands, weights)
    names = tuple(dict.fromkeys(name for o in operands for name in o.name.split("\0")))
    return Expression(names, text, values, np.full(len(values), float(rounded)), "sum")


def _write_sum(operands: Sequence[Operand], weights: Floats) -> str:
    order = sorted(range(len(weights)), key=lambda place: weights[place] < 0)  # "total" - "fare" reads best
    terms = [(operands[i], float(weights[i])) for i in order]
    text = " ".join(f"{'-' if weight < 0 else '+'} {_times(weight)}{_name(operand)}" for operand, weight in terms)
    return text.removeprefix("+ ")


def _name(operand: Operand) -> str:
    return " × ".join(f'"{name}"' for name in operand.name.split("\0"))


def _times(weight: float) -> str:
    written = f"{abs(weight):.6g}"
    return "" if written == "1" else f"{written} × "


def _complete(operands: Sequence[Operand], y: Floats) -> tuple[list[Operand], Floats]:
    """Return a limited number of columns (the heaviest ones), with the rows in which all have a value."""
    table = pd.DataFrame({place: o.values[: len(y)] for place, o in enumerate(operands)})
    table = table.loc[:, table.nunique() > 1]
    weights = _weigh(table, y) if table.shape[1] else pd.Series(dtype="float64")
    most = min(MOST_COLUMNS, len(table) // ROWS_PER_COLUMN)
    table = table[weights.nlargest(most).index.sort_values()]
    for place in weights[table.isna().any()[lambda gaps: gaps].index].sort_values().index:
        enough = min(COMPLETE * len(y), max(ENOUGH_ROWS, ROWS_PER_COLUMN * table.shape[1]))
        if table.notna().all(axis=1).sum() >= enough:
            break
        table = table.drop(columns=place)
    table = table[table.notna().all(axis=1)]
    table = table.loc[:, (table.nunique() > 1) & (table.to_numpy().std(axis=0) > 0)]  # squares of tiny numbers are 0
    return [operands[int(place)] for place in table.columns], table.index.to_numpy()


def _weigh(table: pd.DataFrame, y: Floats) -> "pd.Series[float]":
    """Return each column's weight in the linear combination of all, with missing values replaced by medians."""
    filled = ((table - table.median()) / table.std()).fillna(0.0).clip(-1e3, 1e3).to_numpy()
    weights = _fit(np.column_stack([filled - filled.mean(axis=0), y - y.mean()]))
    return pd.Series(np.abs(weights), index=table.columns)


def _leave_out(
    used: Sequence[Operand], matrix: Floats, weights: Floats, scale: Floats, part: Target, half: float, most: int
) -> tuple[Floats, list[int]]:
    """Return the weights and positions of the columns that a combination needs; none if it does not hold."""
    y = part.values
    rounded = half + sum(abs(w) / s * o.step for w, s, o in zip(weights, scale, used, strict=True) if o.step < 1) / 2
    everything = list(range(len(weights)))
    for width in (half, rounded):
        nearest, inside = _cluster(y - matrix @ weights, width, most)
        if len(nearest) and _holds(matrix @ weights, part, width, most):
            break
    else:
        return weights, []

    def fit(places: list[int]) -> Floats | None:
        made = _fit_within(matrix[inside][:, places], y[inside], nearest[inside])
        return made if _holds(matrix[:, places] @ made, part, width, most) else None

    heavy = [place for place in everything if abs(weights[place]) > 1e-3 * y.std()]
    kept = heavy if heavy and fit(heavy) is not None else everything
    for place in sorted(kept, key=lambda place: abs(weights[place])):
        others = [other for other in kept if other != place]
        if others and fit(others) is not None:
            kept = others
    made = fit(kept)
    return (weights[kept] if made is None else made), kept


def _holds(made: Floats, part: Target, width: float, most: int) -> bool:
    half = np.full(len(made), width) + EXACT * np.abs(part.values)
    return _fit_constants(part.values, made, half, part.rare, part.holds, most) is not None


def _cluster(rest: Floats, width: float, most: int) -> tuple[Floats, Floats]:
    """Return the nearest dense cluster of each residual, and whether it is within `width`."""
    centers = _modes(rest, width, most)
    if not len(centers):
        return np.zeros(0, np.int64), np.zeros(0, bool)
    nearest = np.abs(rest[:, None] - centers[None, :]).argmin(axis=1)
    return nearest, np.abs(rest - centers[nearest]) <= width


# Pairs of columns.


def choose_paired(operands: Sequence[Operand], goal: Target) -> list[Operand]:
    """Return up to 60 columns: half by weight in the combination of all, half by rank correlation with the target."""
    if len(operands) <= MOST_PAIRED:
        return list(operands)
    rows = min(len(goal.values), SEARCHED_ROWS)
    table = pd.DataFrame({place: o.values[:rows] for place, o in enumerate(operands)})
    y = goal.values[:rows]
    ranks = table.rank().corrwith(pd.Series(y).rank()).abs().fillna(0.0)
    weights = _weigh(table, y)
    chosen = dict.fromkeys(weights.nlargest(MOST_PAIRED // 2).index)
    chosen |= dict.fromkeys(ranks.drop(list(chosen)).nlargest(MOST_PAIRED - len(chosen)).index)
    return [operands[place] for place in sorted(chosen)]


def pair_expressions(operands: Sequence[Operand]) -> Iterator[Expression]:
    """Yield each column, and the sum, difference, product and quotients of each two; of dates the time between."""
    for one in operands:
        if not one.date:
            yield Expression((one.name,), f'"{one.name}"', one.values, np.full(len(one.values), _off(one)), "sum")
    for a, b in combinations(operands, 2):
        x, z, both = a.values, b.values, (a.name, b.name)
        if a.date and b.date:
            yield Expression(both, f'"{a.name}" - "{b.name}"', x - z, np.zeros(len(x)), "sum", days=True)
            if (x % 1 != 0).any() or (z % 1 != 0).any():
                days = np.floor(x) - np.floor(z)
                yield Expression(both, f'"{a.name}" - "{b.name}"', days, np.zeros(len(x)), "sum", days=True)
        elif not a.date and not b.date:
            with np.errstate(all="ignore"):
                off = np.full(len(x), _off(a) + _off(b))
                yield Expression(both, f'("{a.name}" + "{b.name}")', x + z, off, "sum")
                yield Expression(both, f'("{a.name}" - "{b.name}")', x - z, off, "sum")
                off = np.abs(z) * _off(a) + np.abs(x) * _off(b)
                yield Expression(both, f'"{a.name}" × "{b.name}"', x * z, off, times=True)
                for (p, q), (first, second) in (((x, z), (a, b)), ((z, x), (b, a))):
                    values = np.where(q == 0, np.nan, p / q)
                    off = _off(first) / np.abs(q) + np.abs(p) * _off(second) / q**2
                    yield Expression((first.name, second.name), f'"{first.name}" / "{second.name}"', values, off)


def _off(operand: Operand) -> float:
    """Return the possible rounding error of a value; whole numbers are counts, and exact."""
    return operand.step if operand.step < 1 else 0.0


def _find_pair(operands: Sequence[Operand], goal: Target) -> Found | None:
    """Return the expression of one or two columns that determines the target up to a few constants, or None."""
    if not operands:
        return None
    rows = np.arange(min(len(goal.values), PAIR_ROWS))
    part = goal.rows(rows)
    first, second = _far_pairs(part.values)
    rise = part.values[first] - part.values[second]
    few = [Operand(o.name, o.values[rows], o.step, o.date) for o in operands]
    likely = []
    for place, one in enumerate(pair_expressions(few)):
        slope, width = _mode_of_slopes(one.values[first] - one.values[second], rise)
        if width <= NARROW:
            likely.append((width, place, slope))
    slopes = {place: slope for _, place, slope in sorted(likely)[:MOST_SLOPES]}
    passed = {}
    for place, one in enumerate(pair_expressions(few)):
        if place in slopes and (factor := _refine(one, part, slopes[place])) is not None:
            passed[place] = factor
    found = []
    for place, one in enumerate(pair_expressions(operands) if passed else ()):
        if place in passed and (identity := _check_identity(one, goal, passed[place], MOST_CONSTANTS)):
            found.append(identity)
    return min(found, key=lambda one: (len(one.constants), -round(one.share, 3)), default=None)


def _far_pairs(y: Floats) -> tuple[Floats, Floats]:
    """Return pairs of rows whose values are far apart."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, len(y), (2, 4 * SLOPES))
    far = np.argsort(-np.abs(y[first] - y[second]), kind="stable")[: 2 * SLOPES]
    chosen = rng.permutation(far)[:SLOPES]
    return first[chosen], second[chosen]


def _mode_of_slopes(run: Floats, rise: Floats) -> tuple[float, float]:
    """Return the middle of the narrowest tenth of the slopes, and its relative width."""
    with np.errstate(all="ignore"):
        slopes = rise / run
    slopes = np.sort(slopes[np.isfinite(slopes)])
    count = max(int(DENSEST * len(slopes)), 5)
    if len(slopes) < SLOPES // 5:
        return 0.0, np.inf
    widths = slopes[count:] - slopes[:-count]
    middles = (slopes[count:] + slopes[:-count]) / 2
    with np.errstate(all="ignore"):
        shares = np.where(middles == 0, np.inf, widths / np.abs(middles))
    best = int(shares.argmin())
    return float(middles[best]), float(shares[best])


def _refine(expression: Expression, part: Target, slope: float) -> float | None:
    """Return the factor with which an expression determines the target of some rows, or None."""
    known = np.isfinite(expression.values)
    if known.sum() < max(FEWEST_ROWS, COMPLETE * len(known)):
        return None
    e, y = expression.values[known], part.values[known]
    size = e.std()
    if not np.isfinite(size) or not size:
        return None
    half = max(part.step / 2, EXACT * float(np.median(np.abs(y - np.median(y)))), 1e-9 * float(np.abs(y).max()))
    start = np.array([slope * size])
    fitted = (
        float(_fit_sparse(((e - np.median(e)) / size)[:, None], y, start, half, MOST_CONSTANTS, STARTS[0])[0]) / size
    )
    factors = dict.fromkeys((_whole(slope), _whole(fitted), fitted))
    identities = [made for factor in factors if (made := _check_identity(expression, part, factor, MOST_CONSTANTS))]
    return min(identities, key=lambda one: (len(one.constants), -round(one.share, 2))).factor if identities else None


def _whole(factor: float) -> float:
    """Round a factor to a simple one if it is near (an integer, its inverse, a unit of time, or few digits)."""
    size = abs(factor)
    if not size or not np.isfinite(size):
        return factor
    plain = [
        float(round(size)),
        *([1 / round(1 / size)] if size < 1 else []),
        *UNITS,
        *(float(f"{size:.{d}g}") for d in (1, 2, 3)),
    ]
    near = next((value for value in plain if value and abs(value / size - 1) < PLAIN), size)
    return float(np.sign(factor)) * near


def _likeliest_products(operands: Sequence[Operand], goal: Target) -> list[Operand]:
    """Return the ten products of two columns with the best rank correlation with the target, as operands."""
    rows = np.arange(min(len(goal.values), PAIR_ROWS))
    ranks = pd.Series(goal.values[rows]).rank().to_numpy()
    few = [Operand(o.name, o.values[rows], o.step, o.date) for o in operands if not o.date]
    scores = {}
    for place, one in enumerate(pair_expressions(few)):
        known = np.isfinite(one.values)
        varies = known.sum() >= max(FEWEST_ROWS, COMPLETE * len(known)) and np.ptp(one.values[known]) > 0
        if one.times and varies:
            scores[place] = abs(np.corrcoef(one.values[known].argsort().argsort(), ranks[known])[0, 1])
    best = sorted(scores, key=lambda place: -scores[place])[:MOST_PRODUCTS]
    whole = [operand for operand in operands if not operand.date]
    made = {
        place: Operand("\0".join(one.columns), one.values, float(np.nanmedian(one.error)))
        for place, one in enumerate(pair_expressions(whole) if best else ())
        if place in best
    }
    return [made[place] for place in best]


def _rate(products: Sequence[Operand], operands: Sequence[Operand]) -> list[Operand]:
    """Return each product times each share or percentage, so that a discounted product is a sum with these."""
    return [
        Operand(f"{product.name}\0{rate.name}", product.values * rate.values, product.step + rate.step)
        for product in products
        for rate in operands
        if not rate.date and rate.name not in product.name.split("\0") and _whole_of(rate)
    ]


# Products of powers.


def _find_powers(operands: Sequence[Operand], goal: Target) -> Found | None:
    """Return a product of powers of several columns that determines the target, such as weight / height², or None.

    A rate is tried unchanged, then as the rest, such as 1 - discount, then as an increase, such as 1 + tax.
    """
    with np.errstate(all="ignore"):
        y = np.log(np.abs(goal.values))
    usable = np.isfinite(y) & (np.abs(goal.values) >= 20 * goal.step)
    if usable.sum() < max(FEWEST_ROWS, COMPLETE * len(y)) or not y[usable].std():
        return None
    rounding = float(np.quantile(goal.step / np.abs(goal.values[usable]), 0.9))
    part = Target(y[usable], rounding, goal.holds)
    numbers = [operand for operand in operands if not operand.date]
    rates = {operand.name: _whole_of(operand) for operand in numbers}
    wholes = sorted({whole for whole in rates.values() if whole})
    for largest, sign in [(0.0, 0), *((whole, sign) for whole in wholes for sign in (-1, 1))]:
        factors = [_factor(o, rates[o.name] if rates[o.name] <= largest else 0.0, sign) for o in numbers]
        with np.errstate(all="ignore"):
            logs = [np.where(f.values == 0, np.nan, np.log(np.abs(f.values)))[usable] for f in factors]
        found = _find_sum([Operand(f.text, log, 0.0) for f, log in zip(factors, logs, strict=True)], part, most=1)
        if found:
            powers = _powers_of(found.expression, {f.text: log for f, log in zip(factors, logs, strict=True)})
            if identity := _check_powers([f for f in factors if f.text in powers], powers, goal):
                return identity
    return None


def _whole_of(operand: Operand) -> float:
    """Return 1 if a column seems to hold shares, 100 for percentages, else 0."""
    low, high = np.nanmin(operand.values), np.nanmax(operand.values)
    if low >= 0 and 0 < high < 1:
        return 1.0
    return 100.0 if low == 0 and 1 < high < 100 else 0.0


def _factor(operand: Operand, whole: float, sign: int) -> Expression:
    """Return a column as a factor, or with `whole` as the rest (-1) or the increase (1)."""
    text = f'"{operand.name}"' + ("" if whole in (0.0, 1.0) else f" / {whole:g}")
    values = 1 + sign * operand.values / whole if whole else operand.values
    written = f"(1 {'-' if sign < 0 else '+'} {text})" if whole else text
    return Expression((operand.name,), written, values, np.zeros(len(values)))


def _check_powers(factors: Sequence[Expression], powers: dict[str, float], goal: Target) -> Found | None:
    with np.errstate(all="ignore"):
        values = np.prod([np.abs(factor.values) ** powers[factor.text] for factor in factors], axis=0)
        known = np.isfinite(values) & (values > 0) & (goal.values != 0)
    if not known.any():
        return None
    factors = sorted(factors, key=lambda factor: powers[factor.text] < 0)  # "w" / "h"^2 reads best
    terms = [(f.text, abs(powers[f.text]), "/" if powers[f.text] < 0 else "×") for f in factors]
    written = "".join(f" {sign} {text}" + (f"^{power:g}" if power != 1 else "") for text, power, sign in terms)
    written = f"1{written}" if terms[0][2] == "/" else written.removeprefix(" × ")
    names = tuple(factor.columns[0] for factor in factors)
    expression = Expression(names, written, np.where(np.isfinite(values), values, np.nan), np.zeros(len(values)))
    exact = float(np.median(goal.values[known] / values[known]))
    return _check_identity(expression, goal, _whole(exact), 1) or _check_identity(expression, goal, exact, 1)


def _powers_of(expression: Expression, logs: dict[str, Floats]) -> dict[str, float]:
    """Return the power of each factor in a combination of logarithms, rounded to whole or half ones if near."""
    names = list(expression.columns)
    matrix = np.column_stack([*(logs[name] for name in names), expression.values])
    matrix = matrix[np.isfinite(matrix).all(axis=1)]
    weights = _fit(matrix - matrix.mean(axis=0))
    return {
        name: round(w * 2) / 2 if abs(w * 2 - round(w * 2)) < 0.1 and round(w * 2) else float(w)
        for name, w in zip(names, weights.tolist(), strict=True)
    }


# Messages.


def _heaviest(found: Found, operands: Sequence[Operand]) -> str:
    """Return the column of an expression that correlates most with its values."""
    by_name = {operand.name: operand.values for operand in operands}
    values = pd.Series(found.expression.values).rank()
    known = [name for name in found.expression.columns if name in by_name]
    strength = {name: abs(values.corr(pd.Series(by_name[name]).rank())) for name in known}
    return max(strength, key=lambda name: (np.nan_to_num(strength[name]), name))


def _describe(found: Found, target: str) -> Alarm:
    expression, count = found.expression, len(found.constants)
    columns = expression.columns
    names = " and ".join(f'"{name}"' for name in columns)
    verb = "gives" if len(columns) == 1 else "give"
    text = expression.text
    if expression.kind == "sum" and count == 1 and not expression.days and len(columns) > 1:
        clause = f"{names} add up to the target"
    else:
        clause = f"{names} {verb} the target" + (f" up to {count} constants" if count > 1 else "")
    if found.factor < 0 and len(columns) == 2 and " - " in text:  # b - a, not -(a - b)
        first, second = columns
        text, factor = text.replace(f'"{first}" - "{second}"', f'"{second}" - "{first}"'), -found.factor
        columns = (second, first)
    else:
        factor = found.factor
    if expression.days:
        unit = next((unit for size, unit in UNITS.items() if abs(factor / size - 1) < 1e-3), None)
        text = f"{text} in {unit}" if unit else f"{factor:.6g} × ({text} in days)"
    else:
        whole = _times(factor) if factor > 0 else f"-{_times(factor) or ''}"
        text = f"{whole}{text}" if whole else text.removeprefix("(").removesuffix(")") if text[:2] == '("' else text
    return Alarm(
        expression.kind,
        columns,
        found.share,
        f'{clause} in {found.share:.1%} of the rows, "{target}" = {text}{_write_constants(found)}',
        "give those that are known only afterwards the role ignored",
    )


def _write_constants(found: Found) -> str:
    slack = max(found.rounding, 1e-6 * float(np.nanmax(np.abs(found.factor * found.expression.values))))
    shown = [0.0 if abs(value) <= slack * (1 + 1e-3) else value for value in found.constants]
    if len(shown) == 1:
        return f" {'-' if shown[0] < 0 else '+'} {abs(shown[0]):.6g}" if shown[0] else ""
    return f" + one of {', '.join(f'{value:.6g}' for value in shown)}"


SEPARATED = 0.995  # balanced accuracy of the cuts, on other rows than those they were chosen on
ALMOST = 0.97  # score on fewer rows, from which an expression is examined
FEWEST_OF_CLASS, MOST_CLASSES = 20, 20
FEWEST_VALUES = 10  # distinct values of a column: an expression of flags and codes is itself a code
FEW_ROWS, MOST_EXPRESSIONS = 1500, 50


def find_thresholds(frame: pd.DataFrame, columns: Sequence[Column], target: str, problem: Problem) -> list[Alarm]:
    """Return an alarm if thresholds on a sum, difference, product, quotient or span of two columns give the classes.

    Cost: as for pairs in `ondol.validation.leakage`, a sort of 1,500 values for each.

    Args:
        frame: A sample of the rows to train on, in random order, none without a target.
        columns: The features; those that alone predict the target should not be among them.
        target: The column to predict.
        problem: The kind of prediction.
    """
    if problem == "regression" or len(frame) < FEWEST_ROWS:
        return []
    y = label(frame[target], problem).astype(np.int64)
    counts = np.bincount(y)
    if not 2 <= len(counts) <= MOST_CLASSES or np.sort(counts)[-2] < FEWEST_OF_CLASS:
        return []
    varied = [o for o in read_operands(frame, columns) if len(np.unique(o.values)) >= FEWEST_VALUES]
    operands = choose_paired(varied, Target(y.astype(np.float64), 0.0, 1.0))
    rows = slice(0, FEW_ROWS)
    few = [Operand(o.name, o.values[rows], o.step, o.date) for o in operands]
    scores = {place: _separate(one.values, y[rows]) for place, one in enumerate(pair_expressions(few))}
    likely = [place for place in sorted(scores, key=lambda place: -scores[place]) if scores[place] >= ALMOST]
    best: tuple[float, Expression] | None = None
    tried = set(likely[:MOST_EXPRESSIONS])
    for place, one in enumerate(pair_expressions(operands) if tried else ()):
        if place in tried and len(one.columns) > 1:
            score = _separate(one.values, y)
            if score >= SEPARATED and (best is None or score > best[0]):
                best = (score, one)
    return [_threshold_alarm(*best, target)] if best else []


def _separate(values: np.ndarray, y: np.ndarray) -> float:
    """Return the balanced accuracy of thresholds that cut `values` into one class each, scored on every other row."""
    known = np.isfinite(values)
    if known.sum() < max(FEWEST_ROWS, len(y) / 2):
        return 0.0
    values, y = values[known], y[known]
    learn = np.arange(len(y)) % 2 == 0
    classes = np.flatnonzero(np.bincount(y[learn], minlength=int(y.max()) + 1) >= FEWEST_OF_CLASS / 2)
    if len(classes) < 2:
        return 0.0
    by_class = [np.sort(values[learn & (y == one)]) for one in classes]
    order = np.argsort([np.median(part) for part in by_class])
    cuts = [_cut(by_class[a], by_class[b]) for a, b in pairwise(order)]
    predicted = classes[order][np.searchsorted(np.maximum.accumulate(cuts), values[~learn], side="left")]
    rest = y[~learn]
    shares = [float((predicted[rest == one] == one).mean()) for one in classes if (rest == one).any()]
    return min(float(np.mean(shares)), 1.0)


def _cut(low: np.ndarray, high: np.ndarray) -> float:
    """Return the threshold between two classes with the fewest errors, as shares of each class."""
    places = np.concatenate([low, high])
    above = 1 - np.searchsorted(low, places, side="right") / len(low)
    below = np.searchsorted(high, places, side="right") / len(high)
    best = int((above + below).argmin())
    after = high[np.searchsorted(high, places[best], side="right") :]
    return float(places[best] / 2 + after[0] / 2) if len(after) else float(places[best])


def _threshold_alarm(score: float, expression: Expression, target: str) -> Alarm:
    names = " and ".join(f'"{name}"' for name in expression.columns)
    text = expression.text.removeprefix("(").removesuffix(")") + (" in days" if expression.days else "")
    return Alarm(
        "threshold",
        expression.columns,
        score,
        f'{names} give the target: cuts of {text} separate the classes of "{target}" ({score:.3f} of 1)',
        "give those that are known only afterwards the role ignored",
    )
