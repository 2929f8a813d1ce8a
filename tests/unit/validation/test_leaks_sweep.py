"""No leak is claimed on tables without one: random, correlated, rounded, sparse, with gaps, of every problem."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from leaks_support import search
from marks import slow_but

ROWS = 1200


def correlated(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Measures of one thing, such as the sides of a stone: they go together closely."""
    size = rng.lognormal(0, 0.4, rows)
    parts = {f"side {i}": (size * rng.normal(1, 0.03, rows)).round(2) for i in range(4)}
    return pd.DataFrame(
        parts | {"mass": (size**3 * rng.normal(1, 0.05, rows)).round(2), "grade": rng.integers(1, 6, rows)}
    )


def counts(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Small whole numbers, most of them zero."""
    return pd.DataFrame({f"n{i}": rng.poisson(rate, rows) for i, rate in enumerate((0.1, 0.5, 1, 3, 8, 20))})


def money(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Amounts with long tails, in cents and in whole numbers, with zeros and gaps."""
    income = rng.lognormal(8, 1, rows).round(0)
    rent = (income * rng.beta(3, 7, rows)).round(2)
    food = np.where(rng.random(rows) < 0.2, 0, rng.lognormal(5, 0.5, rows)).round(2)
    debt = np.where(rng.random(rows) < 0.3, np.nan, rng.lognormal(7, 2, rows)).round(0)
    return pd.DataFrame(
        {"income": income, "rent": rent, "food": food, "debt": debt, "rate": rng.choice([0, 5, 7.5, 19], rows)}
    )


def flags(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Flags, a few codes and one number."""
    made: dict[str, Any] = {f"f{i}": rng.random(rows) < share for i, share in enumerate((0.02, 0.2, 0.5, 0.9))}
    return pd.DataFrame(made | {"code": rng.choice(["a", "b", "c"], rows), "age": rng.integers(18, 90, rows)})


def dates(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Dates that follow each other, with gaps."""
    start = pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 10**7, rows), "s"))
    later = start + pd.to_timedelta(rng.exponential(5, rows), "D")
    return pd.DataFrame(
        {"start": start, "later": later.mask(rng.random(rows) < 0.1), "load": rng.normal(50, 9, rows).round(1)}
    )


FRAMES = (correlated, counts, money, flags, dates)


def signal(frame: pd.DataFrame) -> np.ndarray:
    """Return a sum of the standardized columns, those with long tails by their logarithms."""
    total = np.zeros(len(frame))
    for place, name in enumerate(frame):
        values = frame[name]
        if values.dtype.kind in "mM":
            values = (values - values.min()) / pd.Timedelta(days=1)
        numbers = pd.Series(pd.factorize(values)[0]) if values.dtype.kind not in "iufb" else values.astype(float)
        numbers = np.log1p(numbers.clip(lower=0)) if numbers.std() > numbers.mean() else numbers
        total += ((-1) ** place * ((numbers - numbers.mean()) / (numbers.std() or 1))).fillna(0).to_numpy()
    return (total - total.mean()) / total.std()


def targets(score: np.ndarray, rng: np.random.Generator) -> list[tuple[str, np.ndarray, Any]]:
    """Return targets that go with `score`, more or less: numbers, rounded and not, and classes."""
    noise = rng.normal(0, 1, len(score))
    return [
        ("good", (10 + 3 * score + 0.6 * noise).round(1), "regression"),
        ("whole", np.round(20 + 4 * score + 2 * noise), "regression"),
        ("zeros", np.where(score + noise > 0.5, np.exp(score + noise), 0).round(2), "regression"),
        ("few", np.clip(np.round(2 + score + 0.5 * noise), 0, 5), "regression"),
        ("binary", np.where(score + 0.5 * noise > 0.6, "yes", "no"), "binary"),
        ("rare", np.where(score + 0.3 * noise > 2.0, 1, 0), "binary"),
        ("classes", np.array(["d", "a", "c", "b"])[np.digitize(score + 0.5 * noise, [-0.8, 0, 0.9])], "multiclass"),
    ]


@pytest.mark.parametrize("seed", slow_but([0], [0, 1]))
@pytest.mark.parametrize("make", FRAMES)
def test_nothing_is_claimed_of_seven_targets_of_a_table_without_a_leak(make, seed):
    rng = np.random.default_rng([seed, FRAMES.index(make)])
    frame = make(rng, ROWS)
    claimed = {
        name: [alarm.finding for alarm in search(frame.assign(y=y), "y", problem, seed)]
        for name, y, problem in targets(signal(frame), rng)
    }
    assert not any(claimed.values()), claimed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("make", FRAMES)
def test_nothing_is_claimed_of_many_more(make, seed):
    test_nothing_is_claimed_of_seven_targets_of_a_table_without_a_leak(make, seed)
