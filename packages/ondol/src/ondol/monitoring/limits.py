"""From where on a difference counts: what the settings say, or what chance alone reaches at the window's size.

A distance between two samples of the same population is never 0, and the fewer rows, the larger it is. So each
limit is the larger of a fixed one and of what about one window in a thousand would reach by chance:

- Jensen-Shannon distance of k categories: n m / (n + m) times eight times its square is about χ² with k - 1 degrees
  of freedom (Lin, 1991; the second-order term of the divergence);
- normed Wasserstein distance: measured at 3 √(1/n + 1/m) on normal, skewed and discrete columns;
- shares: four standard errors of their difference.
"""

import math

NOISE = 3.0
STANDARD_ERRORS = 4.0
CHANCE = 0.001


def number_limit(distance: float, ours: int, theirs: int) -> float:
    """Return the limit of the normed Wasserstein distance of samples of two sizes."""
    return max(distance, NOISE * math.sqrt(1 / ours + 1 / theirs))


def category_limit(distance: float, categories: int, ours: int, theirs: int) -> float:
    """Return the limit of the Jensen-Shannon distance (natural logarithm) of samples of two sizes."""
    from scipy.stats import chi2

    noise = float(chi2.isf(CHANCE, max(categories - 1, 1))) / 8
    return max(distance, math.sqrt(noise * (1 / ours + 1 / theirs)))


def share_limit(change: float, before: float, after: float, ours: int, theirs: int) -> float:
    """Return by how much a share may change between samples of two sizes."""
    both = (before * ours + after * theirs) / (ours + theirs)
    return max(change, STANDARD_ERRORS * math.sqrt(both * (1 - both) * (1 / ours + 1 / theirs)))
