"""Verifies that a compiled model predicts as scikit-learn does, on the holdout and on rows with extreme values.

Rows with missing and unknown values, and rows with the most extreme values that the contract allows, are compared too,
because the service answers them as well.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel

from ondol.contract import Column, Contract, encode
from ondol.deployment.onnx import BY_SKLEARN
from ondol.errors import UserError
from ondol.evaluation.scoring import CHUNK, Scorer
from ondol.training.train import final_estimator

FLOAT32 = float(np.finfo(np.float32).max)
REACH = 3.4028234e38  # the largest number that the service accepts, before scaling
BEYOND = 1e30  # sums of products may overflow float32 from here on
FAR = (10.0, 1e3, 1e6)  # times the span of the column's own values
LARGE = (1e6, 1e12, 1e20, 1e30)
DATES = ("0001-01-01", "1900-01-01", "1970-01-01", "2100-01-01", "9999-12-31T23:59:59")
LONGEST_SECONDS = 1e11
TEXTS = ("never seen ☃", "x" * 1000, "0", "nan")
MOST_CATEGORIES, MOST_ALONE, TOGETHER = 5, 3000, 100


class Extremes(NamedTuple):
    """Rows with extreme values.

    Attributes:
        rows: The features; numbers as float64.
        together: Whether several values of the row are extreme.
        columns: The column with the extreme value; empty if there are several.
    """

    rows: pd.DataFrame
    together: np.ndarray
    columns: list[str]


def make_extremes(contract: Contract, frame: pd.DataFrame) -> Extremes:
    """Return rows of `frame` with extreme values: up to 3,000 rows with one each, then a hundred with several each.

    Args:
        contract: With encodings.
        frame: Rows in the contract's dtypes.
    """
    names = [column.name for column in contract.features]
    values = {column.name: list(_extremes_of(column, frame[column.name])) for column in contract.features}
    changes = [(name, value) for name in names for value in values[name]]
    if not changes or frame.empty:
        return Extremes(frame.iloc[:0], np.zeros(0, bool), [])
    if len(changes) > MOST_ALONE:
        changes = [changes[place] for place in np.linspace(0, len(changes) - 1, MOST_ALONE).astype(int)]
    rng = np.random.default_rng(0)
    sets = [{name: value} for name, value in changes]
    sets += [{name: picked[0] for name, picked in values.items() if picked}]
    sets += [{name: picked[-1] for name, picked in values.items() if picked}]
    sets += [
        {name: picked[rng.integers(len(picked))] for name, picked in values.items() if picked} for _ in range(TOGETHER)
    ]
    base = frame[names].iloc[np.linspace(0, len(frame) - 1, len(sets)).astype(int)].reset_index(drop=True)
    columns = {column.name: _put(column, base[column.name], sets) for column in contract.features}
    together = np.arange(len(sets)) >= len(changes)
    return Extremes(pd.DataFrame(columns), together, [name for name, _ in changes] + [""] * (len(sets) - len(changes)))


def name_extreme(extremes: Extremes, place: int) -> str:
    """Return the extreme value of a row as text, such as `"age" = 1e+30`."""
    name = extremes.columns[place]
    if not name:
        return "several at once"
    value = extremes.rows[name].iloc[place]
    shown = f"{value:g}" if isinstance(value, float) else f"{value}"[:40]
    return f'"{name}" = {shown}'


def _put(column: Column, base: "pd.Series[Any]", sets: list[dict[str, Any]]) -> "pd.Series[Any]":
    """Return a column with the given values inserted."""
    if column.kind in ("number", "integer"):
        made = base.to_numpy(np.float64, na_value=np.nan).copy()
    elif column.kind in ("date", "duration"):
        made = base.to_numpy(f"{base.dtype.kind}8[us]").copy()
    else:
        made = base.to_numpy(object).copy()
    for place, values in enumerate(sets):
        if column.name in values:
            made[place] = values[column.name]
    return pd.Series(made, dtype=base.dtype if made.dtype == object else made.dtype)


def _extremes_of(column: Column, values: "pd.Series[Any]") -> Iterator[Any]:
    """Yield the allowed extreme values of a column, in order."""
    if column.nullable:
        yield (
            np.datetime64("NaT", "us")
            if column.kind == "date"
            else (np.timedelta64("NaT", "us") if column.kind == "duration" else np.nan if _is_number(column) else None)
        )
    if column.categories is not None:
        yield from column.categories[:MOST_CATEGORIES]
    elif column.kind == "boolean":
        yield from (False, True)
    elif column.kind == "text":
        yield from TEXTS
    elif column.kind == "date":
        for moment in (np.datetime64(text, "us") for text in DATES):
            if _is_allowed(column, float(moment.astype(np.int64)) / 1e6):
                yield moment
        yield from (np.datetime64(round(bound * 1e6), "us") for bound in _bounds(column, 1e-6))
    elif column.kind == "duration":
        for seconds in sorted({-LONGEST_SECONDS, -86400.0, 0.0, 86400.0, LONGEST_SECONDS, *_bounds(column, 1e-6)}):
            if _is_allowed(column, seconds):
                yield np.timedelta64(round(seconds * 1e6), "us")
    else:
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        yield from (number for number in sorted(_numbers(column, numbers)) if _is_allowed(column, number))


def _numbers(column: Column, known: np.ndarray) -> set[float]:
    """Return extreme numbers, allowed or not: bounds, zero, numbers far from known ones, the service's limits."""
    rule, step = column.encoding, 1.0 if column.kind == "integer" else 0.0
    offset, reach = (rule.offset, REACH * rule.scale) if rule else (0.0, REACH)
    made = {0.0, 1.0, -1.0, offset - reach, offset + reach, *_bounds(column, step), *LARGE, *(-n for n in LARGE)}
    known = known[np.isfinite(known)]
    if len(known):
        low, high = float(known.min()), float(known.max())
        with np.errstate(over="ignore"):
            far = {end + sign * times * (high - low) for times in FAR for end, sign in ((low, -1), (high, 1))}
        made |= {low, high} | far
    inside = {number for number in made if np.isfinite(number) and offset - reach <= number <= offset + reach}
    return {float(np.floor(number)) for number in inside} if step else inside


def _is_number(column: Column) -> bool:
    return column.kind in ("number", "integer")


def _bounds(column: Column, step: float) -> list[float]:
    """Return the smallest and the largest allowed number, if there are bounds."""
    low, high = column.exclusive_minimum, column.exclusive_maximum
    made = [bound for bound in (column.minimum, column.maximum) if bound is not None]
    made += [low + step if step else float(np.nextafter(low, np.inf))] if low is not None else []
    made += [high - step if step else float(np.nextafter(high, -np.inf))] if high is not None else []
    return [float(bound) for bound in made]


def _is_allowed(column: Column, number: float) -> bool:
    low, high = column.exclusive_minimum, column.exclusive_maximum
    return (
        (column.minimum is None or number >= column.minimum)
        and (column.maximum is None or number <= column.maximum)
        and (low is None or number > low)
        and (high is None or number < high)
    )


PROBES = 1000  # rows that are compared again with missing and unknown values
UNKNOWN = "never seen ☃"
LIKELIEST = ("HistGradientBoostingClassifier", "GradientBoostingClassifier", "LogisticRegression", *(
    "RandomForestClassifier", "ExtraTreesClassifier"))  # fmt: skip


class Parity(BaseModel):
    """The differences between a compiled model and scikit-learn.

    Attributes:
        rows: Rows compared.
        probes: Rows among them with missing and unknown values inserted.
        extremes: Rows that were compared with the most extreme values that the contract allows.
        largest: The largest difference of a probability, or relative difference of a value.
        row: The index of the row with the largest difference.
        labels_differ: Rows with a different label, except ties within the tolerance.
        tolerance: The allowed difference.
    """

    rows: int = 0
    probes: int = 0
    extremes: int = 0
    largest: float = 0.0
    row: str | None = None
    labels_differ: int = 0
    tolerance: float

    @property
    def verified(self) -> bool:
        """Whether both agree."""
        return self.labels_differ == 0 and self.largest <= self.tolerance


def check_parity(
    model: bytes,
    pipeline: Any,
    contract: Contract,
    frame: pd.DataFrame,
    tolerance: float,
    predicted: np.ndarray | None = None,
) -> Parity:
    """Compare a compiled model with the pipeline on all rows of `frame`, in the contract's dtypes.

    Args:
        model: Serialized ONNX.
        pipeline: The pipeline that it was compiled from.
        contract: With encodings.
        frame: The rows.
        tolerance: The largest allowed difference.
        predicted: The pipeline's probabilities or values for `frame`, if they are already known.

    Raises:
        UserError: they differ by more than `tolerance`, or scikit-learn fails on values that the contract allows.
    """
    scorer = Scorer.from_onnx(model, contract)
    parity = Parity(tolerance=tolerance)
    probes = make_probes(contract, frame)
    unit = 0.0
    try:
        for start in range(0, len(frame), CHUNK):
            rows = slice(start, start + CHUNK)
            known = None if predicted is None else predicted[rows]
            parity, mean = _add(parity, scorer, pipeline, frame.iloc[rows], known)
            unit = max(unit, mean)
        _require(parity, "the held-out rows")
        parity, _ = _add(parity, scorer, pipeline, probes)
    except ValueError as error:
        raise UserError(_refusing(error)) from error
    _require(parity, f"held-out rows with missing values and texts that training never saw, such as {UNKNOWN!r}")
    extremes = _check_extremes(scorer, pipeline, frame, tolerance, unit)
    return parity.model_copy(update={"rows": len(frame), "probes": len(probes), "extremes": extremes})


def _check_extremes(scorer: Scorer, pipeline: Any, frame: pd.DataFrame, tolerance: float, unit: float) -> int:
    """Compare rows with one or several extreme values; return the number of rows.

    If scikit-learn itself fails on a row, for example if a scaled number is infinite, there is nothing to compare.
    For numbers near the limits of float32 the compiled model may give no answer, which the service reports, but it may
    not give a different one. Several extremes may cancel each other out, with a larger rounding error in float32: so
    they may differ a hundred times as much.

    Raises:
        UserError: they differ by more than that.
    """
    contract = scorer.contract
    extremes = make_extremes(contract, frame)
    if extremes.rows.empty:
        return 0
    encoded = encode(contract, extremes.rows)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        expected = _expect_each(pipeline, contract, encoded)
        outputs = _run(scorer, encoded)
    largest = encoded.select_dtypes("number").abs().max(axis=1).fillna(0.0).to_numpy(np.float64)
    gaps, differ = _compare_each(expected, outputs, tolerance, unit)
    compared = np.isfinite(expected[-1].reshape(len(encoded), -1)).all(axis=1)
    answered = np.isfinite(outputs[-1].reshape(len(encoded), -1)).all(axis=1)
    beyond = np.abs(expected[-1].reshape(len(encoded), -1)).max(axis=1) > FLOAT32
    silent = ~answered & ((largest >= BEYOND) | beyond)
    allowed = np.where(extremes.together, 100 * tolerance, tolerance)
    wrong = compared & ~silent & (differ | ~(gaps <= allowed))
    if wrong.any():
        shown = wrong & ~extremes.together if (wrong & ~extremes.together).any() else wrong
        worst = int(np.argmax(np.where(shown, np.where(np.isnan(gaps), np.inf, gaps), -1.0)))
        raise UserError(
            f"The compiled model differs from scikit-learn on {int(wrong.sum()):,} of {int(compared.sum()):,} rows "
            f"with extreme values that model/schema.py allows, such as {name_extreme(extremes, worst)}, by up to "
            f"{gaps[worst]:.2g} ({tolerance:.2g} is allowed). Nothing was deployed: give the columns of numbers "
            f"and dates their bounds (ge=…, le=…) in model/schema.py, or {BY_SKLEARN}."
        )
    return int(compared.sum())


def _expect_each(pipeline: Any, contract: Contract, encoded: pd.DataFrame) -> list[np.ndarray]:
    """Return scikit-learn's predictions of rows; NaN (and label -1) for rows on which it fails."""
    try:
        return _expected(pipeline, contract, encoded, None)
    except ValueError:
        if len(encoded) == 1:
            if contract.classes is None:
                return [np.full(1, np.nan)]
            return [np.full(1, -1), np.full((1, len(contract.classes)), np.nan)]
    half = len(encoded) // 2
    parts = [_expect_each(pipeline, contract, part) for part in (encoded.iloc[:half], encoded.iloc[half:])]
    return [np.concatenate(pair) for pair in zip(*parts, strict=True)]


def make_probes(contract: Contract, frame: pd.DataFrame) -> pd.DataFrame:
    """Return some rows of `frame`, each with a missing or unknown value where the contract allows it."""
    changes = [change for column in contract.features for change in _changes(column)]
    if not changes or frame.empty:
        return frame.iloc[:0]
    count = max(min(PROBES, len(frame)), len(changes))
    rows = frame.iloc[np.linspace(0, len(frame) - 1, count).astype(int)].reset_index(drop=True)
    turn = np.arange(count) % len(changes)
    for i, (name, value) in enumerate(changes):
        rows[name] = rows[name].mask(turn == i, value)
    return rows


def _changes(column: Column) -> Iterator[tuple[str, Any]]:
    if column.nullable:
        yield column.name, None
    if column.kind == "text" and column.categories is None:
        yield column.name, UNKNOWN


def _add(
    parity: Parity, scorer: Scorer, pipeline: Any, frame: pd.DataFrame, predicted: np.ndarray | None = None
) -> tuple[Parity, float]:
    """Compare the rows of `frame` too; return the updated `parity` and the mean size of their values."""
    if frame.empty:
        return parity, 0.0
    encoded = encode(scorer.contract, frame)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found unknown categories", UserWarning)  # expected for open sets
        expected = _expected(pipeline, scorer.contract, encoded, predicted)
    unit = float(np.abs(expected[0]).mean())
    gaps, differ = _compare_each(expected, _run(scorer, encoded), parity.tolerance, unit)
    worst = int(np.argmax(np.where(np.isnan(gaps), np.inf, gaps)))
    largest = float(gaps[worst]) if np.isfinite(gaps[worst]) else float("inf")
    found = {"labels_differ": parity.labels_differ + int(differ.sum())}
    further = {"largest": largest, "row": str(frame.index[worst])} if largest >= parity.largest else {}
    return parity.model_copy(update=found | further), unit


def _run(scorer: Scorer, encoded: pd.DataFrame) -> list[np.ndarray]:
    try:
        return scorer.run(encoded)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        message = str(error).splitlines()[0][:300]
        raise UserError(f"The compiled model fails where scikit-learn does not ({message}): {BY_SKLEARN}.") from error


def _expected(
    pipeline: Any, contract: Contract, encoded: pd.DataFrame, predicted: np.ndarray | None
) -> list[np.ndarray]:
    """Return scikit-learn's [labels, probabilities] or [values], without predicting twice if not needed."""
    if contract.classes is None:
        return [np.asarray(pipeline.predict(encoded) if predicted is None else predicted, np.float64).ravel()]
    probabilities = pipeline.predict_proba(encoded) if predicted is None else predicted
    likeliest = type(final_estimator(pipeline)).__name__ in LIKELIEST
    return [probabilities.argmax(axis=1) if likeliest else pipeline.predict(encoded), probabilities]


def _compare_each(
    expected: list[np.ndarray], given: list[np.ndarray], tolerance: float, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's difference [N] (of values: relative to the value or to `unit`), and whether its label differs.

    Labels of classes with nearly equal probabilities are not compared.
    """
    if len(expected) == 1:
        values = expected[0]
        share = np.maximum(np.abs(values), max(unit, np.finfo(float).tiny))
        return np.abs(given[0].ravel() - values) / share, np.zeros(len(values), bool)
    ranked = np.sort(expected[1], axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > 2 * tolerance
    return np.abs(given[1] - expected[1]).max(axis=1), (given[0].ravel() != expected[0]) & clear


def _require(parity: Parity, where: str) -> None:
    if parity.verified:
        return
    raise UserError(
        f"The compiled model differs from scikit-learn on {where}: by up to {parity.largest:.2g} (row {parity.row}; "
        f"{parity.tolerance:.2g} is allowed), with another label for {parity.labels_differ:,}. Nothing was "
        f"deployed: simplify model/features.py, or {BY_SKLEARN}."
    )


def _refusing(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0][:300].rstrip(".")
    return (
        "The model fails on a missing value or on a text that training never saw, which model/schema.py allows "
        f'({text}): give its encoder handle_unknown="use_encoded_value" (OrdinalEncoder) or "ignore" (OneHotEncoder), '
        "or close the set by isin=[…] in model/schema.py."
    )
