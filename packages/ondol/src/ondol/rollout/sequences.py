"""Confidence sequences: intervals that hold at all looks together, so that one may look as often as one likes.

- Means: the asymptotic sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory
  and asymptotic confidence sequences, Annals of Statistics 52(6), 2024 (arXiv 2103.06476). They extend it to values
  whose mean and variance change with time, and to asymptotically linear estimators, such as the metrics of a model.
- Shares, also rare ones and few requests: the sequence by a beta mixture (Robbins, 1970), which holds exactly. Howard,
  Ramdas, McAuliffe and Sekhon, Time-uniform, nonparametric, nonasymptotic confidence sequences, Annals of Statistics
  49(2), 2021, show that it holds for all values in [0, 1].

The unit is a request: rows of one request depend on each other, so its mean counts once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

Floats = NDArray[np.float64]
FEWEST = 100  # requests of each version from which an asymptotic sequence is used
RECENT = 12  # looks, an hour
STEPS = 50  # of a bisection: the error is below 1e-15


class Bounds(NamedTuple):
    """The bounds of a confidence sequence at one look."""

    low: float
    high: float


class Moments(BaseModel):
    """Number, mean and sum of squared deviations of values, added batch by batch (Chan, Golub and LeVeque, 1983)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Floats) -> "Moments":
        """Return the moments of values, [N]; those that are not finite are left out."""
        values = values[np.isfinite(values)]
        if not len(values):
            return cls()
        mean = float(values.mean())
        return cls(n=len(values), mean=mean, squares=float(((values - mean) ** 2).sum()))

    def add(self, other: "Moments") -> None:
        """Add the values of `other`."""
        n = self.n + other.n
        if other.n:
            apart = other.mean - self.mean
            self.squares += other.squares + apart**2 * self.n * other.n / n
            self.mean += apart * other.n / n
            self.n = n

    @property
    def variance(self) -> float:
        """The variance of the values."""
        return self.squares / (self.n - 1) if self.n > 1 else 0.0

    def bounds(self, alpha: float, best: float) -> Bounds | None:
        """Return the bounds of the mean; None if there are too few values. See `radius`."""
        return around(self.mean, self.n, self.variance, alpha, best) if self.n >= FEWEST else None


class Share(BaseModel):
    """A share: the sum of `n` values in [0, 1], such as whether a request failed."""

    n: int = 0
    sum: float = 0.0

    @property
    def value(self) -> float:
        """The share; 0 without values."""
        return self.sum / self.n if self.n else 0.0

    def add(self, n: int, sum_: float) -> None:
        """Add `n` values with that sum."""
        self.n += n
        self.sum += sum_

    def bounds(self, alpha: float, prior: float) -> Bounds:
        """Return the bounds of the share; they hold for any number of values.

        Args:
            alpha: The probability that any of all bounds excludes the share.
            prior: The share for which the sequence is the tightest.
        """
        a, b = 0.5, 0.5 * (1 - prior) / prior
        constant = _log_beta(a + self.sum, b + self.n - self.sum) - _log_beta(a, b) + math.log(alpha)

        def excluded(share: float) -> bool:
            logarithms = 0.0
            if self.sum:
                logarithms += self.sum * math.log(share)
            if self.n - self.sum:
                logarithms += (self.n - self.sum) * math.log1p(-share)
            return constant > logarithms

        low = _bisect(excluded, 0.0, self.value) if self.sum else 0.0
        high = _bisect(excluded, 1.0, self.value) if self.sum < self.n else 1.0
        return Bounds(low, high)


class Arms(BaseModel):
    """A mean of both versions, on different requests of the same time.

    The difference is measured within each look and step, in which the traffic differs by its assignment alone, and then
    averaged, so that neither a growing share nor the hour of the day counts as a difference.

    Attributes:
        champion: The champion's values, before the rollout or in it.
        challenger: The challenger's values.
        alone: Those of the challenger from looks in which the champion answered nothing.
        recent: The champion's values of the last looks in which it answered, which are compared with those: there, a
            change with the hour does count, so both must be close in time.
        weight: The sum of the weights of the looks: a look of m and n values has mn / (m + n), which for a common
            variance is the best choice, and then the number of values that the difference is worth.
        difference: The weighted mean of the differences.
        spread: The variance of its sum, as the two factors of the variances within looks.
        within: The sums of squared deviations within looks, and their degrees of freedom, champion first.
    """

    champion: Moments = Moments()
    challenger: Moments = Moments()
    alone: Moments = Moments()
    recent: list[Moments] = []
    weight: float = 0.0
    difference: float = 0.0
    spread: tuple[float, float] = (0.0, 0.0)
    within: tuple[tuple[float, int], tuple[float, int]] = ((0.0, 0), (0.0, 0))

    def add(self, champion: Moments, challenger: Moments) -> None:
        """Add the values of one look and step."""
        self.champion.add(champion)
        self.challenger.add(challenger)
        if champion.n:
            self.recent = [*self.recent, champion][-RECENT:]
        if champion.n and challenger.n:
            total = champion.n + challenger.n
            weight = champion.n * challenger.n / total
            self.weight += weight
            self.difference += (challenger.mean - champion.mean - self.difference) * weight / self.weight
            shares = (challenger.n / total) ** 2 * champion.n, (champion.n / total) ** 2 * challenger.n
            self.spread = (self.spread[0] + shares[0], self.spread[1] + shares[1])
            first, second = (
                (squares + one.squares, free + one.n - 1)
                for (squares, free), one in zip(self.within, (champion, challenger), strict=True)
            )
            self.within = (first, second)
        elif challenger.n:
            self.alone.add(challenger)

    def bounds(self, alpha: float, best: float) -> list[Bounds]:
        """Return the bounds of challenger minus champion: while both answered, and while the challenger did alone.

        There are none for a difference with too few values.
        """
        both = 2 if self.alone.n and self.weight else 1
        found = [self._together(alpha / both, best), self._alone(alpha / both, best)]
        return [one for one in found if one]

    def _together(self, alpha: float, best: float) -> Bounds | None:
        if self.champion.n < FEWEST or self.challenger.n - self.alone.n < FEWEST:
            return None
        variances = [squares / max(free, 1) for squares, free in self.within]
        variance = (self.spread[0] * variances[0] + self.spread[1] * variances[1]) / self.weight
        return around(self.difference, self.weight, variance, alpha, best)

    def _alone(self, alpha: float, best: float) -> Bounds | None:
        before = Moments()
        for one in self.recent:
            before.add(one)
        ours, theirs = self.alone.bounds(alpha / 2, best), before.bounds(alpha / 2, best)
        return Bounds(ours.low - theirs.high, ours.high - theirs.low) if ours and theirs else None


def around(mean: float, n: float, variance: float, alpha: float, best: float) -> Bounds:
    """Return the bounds of a mean; see `radius`."""
    half = radius(n, variance, alpha, best)
    return Bounds(mean - half, mean + half)


def radius(n: float, variance: float, alpha: float, best: float) -> float:
    """Return half the width of the asymptotic confidence sequence after `n` values.

    Args:
        n: The number of values.
        variance: Their variance.
        alpha: The probability that any of all intervals excludes the mean.
        best: The number of values for which the sequence is the tightest.
    """
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / best
    scaled = n * rho + 1
    return math.sqrt(variance * 2 * scaled / (n * n * rho) * math.log(math.sqrt(scaled) / alpha))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _bisect(excluded: Callable[[float], bool], outside: float, inside: float) -> float:
    """Return the limit between an excluded and an included share, on the excluded side."""
    for _ in range(STEPS):
        middle = (outside + inside) / 2
        if excluded(middle):
            outside = middle
        else:
            inside = middle
    return outside
