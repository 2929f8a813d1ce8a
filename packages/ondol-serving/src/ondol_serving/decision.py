"""How labels are decided from probabilities: the most probable class, or by the contract's rule of `[decision]`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Costs = tuple[tuple[float, ...], ...]
GRID = 2.0**20  # smaller differences, as shares of the costs' range, count as ties: sums in float32 are not exact


@dataclass(frozen=True)
class DecisionRule:
    """The rule by which a version decides labels.

    Attributes:
        threshold: Of two classes: the second one is the label from this probability on. None: the label is the class
            with the least expected cost.
        costs: The cost of each true class (rows) and predicted class (columns), [K, K]; None if none are set.
    """

    threshold: float | None = None
    costs: Costs | None = None


def read_rule(document: Mapping[str, Any] | None) -> DecisionRule | None:
    """Return the rule of the entry `decision` of a parsed `contract.json`; None if there is none."""
    if document is None:
        return None
    costs = document.get("costs")
    return DecisionRule(document.get("threshold"), None if costs is None else tuple(map(tuple, costs)))


def decide(rule: DecisionRule | None, probabilities: NDArray[Any]) -> NDArray[np.int64]:
    """Return the index of the label of each row, [N], for probabilities [N, K]; of equal classes, the first one."""
    if rule is None:
        return probabilities.argmax(axis=1)
    if rule.threshold is None:
        return np.asarray(np.round(probabilities @ scale_costs(rule)).argmin(axis=1))
    return (probabilities[:, 1].astype(np.float32) >= np.float32(rule.threshold)).astype(np.int64)


def scale_costs(rule: DecisionRule) -> NDArray[np.float64]:
    """Return the costs in units of the grid, [K, K]: with these, rounded sums that are equal are ties."""
    costs = np.array(rule.costs, np.float64)
    return costs * (GRID / np.ptp(costs))


def sum_costs(costs: Costs, true: Any, false: Any, positives: float, negatives: float) -> Any:
    """Return the total cost for numbers of true and false positives, of two classes with so many rows."""
    (right0, wrong0), (wrong1, right1) = costs
    return (positives - true) * wrong1 + true * right1 + (false * wrong0 + (negatives - false) * right0)


def measure_margins(rule: DecisionRule | None, probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Return by how much the probabilities of each row may change before its label does, [N]; at least."""
    if rule is not None and rule.threshold is not None:
        return np.abs(probabilities[:, 1] - rule.threshold).astype(np.float64)
    if rule is None:
        ranked, span = np.sort(probabilities, axis=1), 2.0
    else:
        costs = scale_costs(rule)
        ranked, span = np.sort(-(probabilities @ costs), axis=1), 2 * len(costs) * GRID
    return np.asarray((ranked[:, -1] - ranked[:, -2]) / span, np.float64)
