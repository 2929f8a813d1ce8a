"""Measures `[decision]` on one table: `python benchmarks/quality/measure_decision.py TABLE SEEDS OUT`.

It works in an empty folder, which becomes a project by `ml init`. For each seed and each ratio of costs, the rule is
chosen on the training rows, and its mean cost of the held-out rows is compared with that of the best threshold there.
For each wanted precision or recall, what the threshold reaches on the held-out rows is written.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from quality.measure import make_project, predict, split_rows, target_of  # noqa: E402
from quality.tables import TABLES, Table, from_shared  # noqa: E402

RATIOS = (5, 10)
PRECISION, RECALL = 0.6, 0.8
FRESH = 5_100  # held-out rows, at least; a few may be left out
DIAMONDS = from_shared("data/diamonds.csv")


def read_ideal() -> Any:
    """Return the diamonds with whether their cut is ideal."""
    frame = DIAMONDS()
    return frame.assign(ideal=np.where(frame["cut"] == "Ideal", "yes", "no")).drop(columns="cut")


CHOSEN = ("telco", "pensions", "happiness", "weeks of work")
DECISIONS = (*(one for one in TABLES if one.name in CHOSEN), Table("ideal cuts", read_ideal, "ideal"))


def main(name: str, seeds: int, out: Path) -> None:
    """Measure the table `name`, and write the figures to `out`."""
    table = next(one for one in DECISIONS if one.name == name)
    rows = len(table.read())
    os.environ["ML_SPLIT__HOLDOUT"] = str(max(0.3, FRESH / rows))
    make_project(table)
    found = [one for seed in range(seeds) for one in measure(seed)]
    out.write_text(json.dumps(found), encoding="utf-8")


def measure(seed: int) -> list[dict[str, Any]]:
    """Return the figures of one seed."""
    from ondol.config import Decision, load_settings
    from ondol.contract import fit_encodings
    from ondol.errors import UserError
    from ondol.project import Project
    from ondol.selection.comparison import compare
    from ondol.training.train import fit_rows
    from ondol_serving.decision import decide
    from ondol_serving.names import label_key

    os.environ |= {"ML_SPLIT__SEED": str(seed), "ML_TRAIN__SEED": str(seed)}
    project = Project(load_settings())
    train, held_out, holdout = split_rows(project)
    settings, contract = project.settings, project.contract
    choice = compare(settings, contract, train)
    no, yes = map(label_key, fit_encodings(contract, train).classes or ())
    wanted = [Decision(costs={yes: {no: ratio}}) for ratio in RATIOS]
    found = []
    for decision in [*wanted, Decision(precision=PRECISION), Decision(recall=RECALL)]:
        asked = settings.model_copy(update={"decision": decision})
        try:
            fitted = fit_rows(asked, contract, train, holdout, choice)
        except UserError:  # the precision is not reached
            continue
        probabilities, truth = predict(fitted, held_out), target_of(fitted.contract, held_out)
        rule = fitted.contract.decision
        labels, usual = decide(rule, probabilities), decide(None, probabilities)
        one = {"decision": decision.model_dump(exclude_none=True), "rows": len(train), "fresh": len(truth)}
        one |= {"threshold": rule.threshold, "share": float(truth.mean())}
        both = int(((labels == 1) & (truth == 1)).sum())
        one |= {"precision": both / max(int(labels.sum()), 1), "recall": both / int(truth.sum())}
        if decision.costs:
            ratio = decision.costs[yes][no]
            one |= {"ratio": ratio, "cost": mean_cost(labels, truth, ratio), "usual": mean_cost(usual, truth, ratio)}
            one["best"] = best_cost(probabilities[:, 1], truth, ratio)
        found.append(one)
    return found


def mean_cost(labels: Any, truth: Any, ratio: float) -> float:
    """Return the mean cost of a row, where a missed row of class 1 costs `ratio`, and a false label 1."""
    return float(np.mean(np.where(truth == 1, ratio * (labels == 0), labels == 1)))


def best_cost(score: Any, truth: Any, ratio: float) -> float:
    """Return the lowest mean cost that a threshold reaches on these rows."""
    order = np.argsort(score)
    ends = np.append(np.flatnonzero(np.diff(score[order])) + 1, len(score))
    missed = np.append(0, np.cumsum(truth[order] == 1)[ends - 1])
    false = np.append(0, np.cumsum(truth[order] == 0)[ends - 1])
    return float((ratio * missed + false[-1] - false).min() / len(score))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
