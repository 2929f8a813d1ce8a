"""Chooses the rule of `[decision]` on out-of-fold predictions of the training rows.

Of two classes, the rule is a threshold of the second one's probability. It minimizes the mean cost, or reaches the
wanted precision or recall. Costs are computed from smoothed labels, because the minimum of the counted costs depends on
single rows: on public tables it cost 1.6% more than the best threshold of fresh rows, and the smoothed one 1.2%. Of
more classes, the label is the class with the least expected cost (Elkan, IJCAI 2001).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondol.config import Decision
from ondol.errors import UserError, nearest
from ondol.training.calibration import log_odds
from ondol.training.folds import OutOfFold
from ondol_serving.decision import Costs, DecisionRule, decide, sum_costs
from ondol_serving.names import label_key

FEWEST = 10  # rows that a precision is computed from
Floats = NDArray[np.float64]
Labels = tuple[Any, ...]


@dataclass(frozen=True)
class ChosenRule:
    """A rule, and what it reaches out of fold.

    Attributes:
        rule: The rule.
        reason: One sentence.
        figures: What it reaches, and what the most probable class would (`usual`), as metrics of MLflow.
    """

    rule: DecisionRule
    reason: str
    figures: dict[str, float]

    @property
    def params(self) -> dict[str, Any]:
        """The rule as parameters of MLflow."""
        return {"decision.threshold": self.rule.threshold, "decision.costs": self.rule.costs}


def choose_rule(decision: Decision, classes: Labels, found: OutOfFold, rows: int) -> ChosenRule:
    """Choose the rule on folds of the training rows.

    Args:
        decision: The section `[decision]`.
        classes: The classes, in order.
        found: The predictions out of fold, calibrated if those of the model are.
        rows: The number of training rows.

    Raises:
        UserError: no fold can be made, or the precision is not reached.
    """
    if not len(found.target):
        raise UserError(
            f"[decision] needs predictions of training rows by models that were not fitted on them, and {rows:,} "
            "rows make no folds with every class: add rows, or remove the section."
        )
    return explain_rule(decision, classes, find_rule(decision, classes, found.target, found.predictions), found)


def find_rule(decision: Decision, classes: Labels, y: NDArray[Any], probabilities: Floats) -> DecisionRule:
    """Return the rule that is best on rows that the model was not fitted on.

    If no threshold reaches the wanted precision, the one with the highest precision is returned.

    Args:
        decision: The section `[decision]`.
        classes: The classes, in order.
        y: The indexes of the true classes, [N].
        probabilities: The probabilities, [N, K].
    """
    costs = build_costs(decision, classes)
    if len(classes) > 2:
        return DecisionRule(None, costs)
    score = probabilities[:, 1]
    thresholds, true, predicted = _count(score, y if costs is None else _smooth(score, y))
    if costs is not None:
        total = sum_costs(costs, true, predicted - true, true[0], len(y) - true[0])
        return DecisionRule(float(thresholds[total.argmin()]), costs)
    precision, recall = true / np.maximum(predicted, 1), true / max(true[0], 1)
    precision[predicted < min(FEWEST, len(y))] = 0.0  # that of a few rows is reached by chance
    if decision.recall is not None:  # of equal precisions, the highest threshold
        place = len(precision) - 1 - int(np.where(recall >= decision.recall, precision, -1.0)[::-1].argmax())
    else:
        reached = precision >= float(decision.precision or 0)
        place = int(reached.argmax()) if reached.any() else int(precision.argmax())
    return DecisionRule(float(thresholds[place]))


def build_costs(decision: Decision, classes: Labels) -> Costs | None:
    """Return the costs by index of the true and the predicted class; None if none are set."""
    if decision.costs is None:
        return None
    names = [label_key(label) for label in classes]
    rows = [decision.costs.get(true, {}) for true in names]
    return tuple(
        tuple(row.get(name, 0.0 if name == true else 1.0) for name in names)
        for true, row in zip(names, rows, strict=True)
    )


def require_classes(decision: Decision, classes: Labels) -> None:
    """Check that the classes of the costs exist.

    Raises:
        UserError: one does not.
    """
    names = [label_key(label) for label in classes]
    costs = decision.costs or {}
    for name in (*costs, *(other for row in costs.values() for other in row)):
        if name not in names:
            raise UserError(
                f'[decision] costs has the class "{name}", which the target does not have.'
                + (nearest(name, names) or f" Known here: {', '.join(names)}.")
            )


def _count(score: Floats, positive: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Return the thresholds between different scores, and at each the true positives and the predicted ones."""
    order = np.argsort(score)
    ranked = score[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=-1.0))
    edges = np.concatenate([[0.0], ranked[starts], [1.0]])
    # As float32, in which the service compares.
    thresholds = ((edges[1:] + edges[:-1]) / 2).astype(np.float32).astype(np.float64)
    below = np.concatenate([[0.0], np.cumsum(positive[order])])
    places = np.append(starts, len(score))
    return thresholds, below[-1] - below[places], len(score) - places.astype(np.float64)


def _smooth(score: Floats, y: NDArray[Any]) -> Floats:
    """Return the probability of class 1 by a sigmoid of the log-odds (Platt, 1999), [N]; it varies little by chance."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(y)) < 2:
        return y.astype(np.float64)
    features = log_odds(score)[:, None]
    model = LogisticRegression(C=1e6, max_iter=1_000)
    return np.asarray(model.fit(features, y).predict_proba(features)[:, 1])


def explain_rule(decision: Decision, classes: Labels, rule: DecisionRule, found: OutOfFold) -> ChosenRule:
    """Return the rule with what it reaches on these rows, and what the most probable class does.

    Raises:
        UserError: it does not reach the wanted precision.
    """
    ours, usual = (_measure(rule.costs, found.target, decide(one, found.predictions)) for one in (rule, None))
    figures = {f"out_of_fold_{name}": value for name, value in ours.items()}
    figures |= {f"out_of_fold_usual_{name}": value for name, value in usual.items()}
    if decision.precision is not None and ours["precision"] < decision.precision:
        raise UserError(
            f"[decision] precision = {decision.precision:g} is not reached: the highest precision on folds of the "
            f"training rows is {ours['precision']:.3f}, with a recall of {ours['recall']:.3f}. Ask for less."
        )
    which, instead = "The label has the least expected cost", "the most probable class"
    if rule.threshold is not None:
        which = f'The label is "{label_key(classes[1])}" from a probability of {rule.threshold:.3g} on'
        instead = "a threshold of 0.5"
    return ChosenRule(
        rule, f"{which}: {_show(ours)} on {len(found.target):,} out-of-fold rows ({instead}: {_show(usual)}).", figures
    )


def _measure(costs: Costs | None, y: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    if costs is not None:
        return {"cost": float(np.array(costs)[y, labels].mean())}
    both = float(((y == 1) & (labels == 1)).sum())
    return {"precision": both / max(float((labels == 1).sum()), 1), "recall": both / max(float((y == 1).sum()), 1)}


def _show(figures: dict[str, float]) -> str:
    if "cost" in figures:
        return f"a mean cost of {figures['cost']:.4g} a row"
    return f"precision {figures['precision']:.3f}, recall {figures['recall']:.3f}"
