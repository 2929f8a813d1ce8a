"""Log loss and Brier score of candidates with and without calibration, on held-out rows of public tables.

    make bench BENCHMARKS=calibration [ARGS="--seeds 3 --tables telco loans"]

Each table becomes a project by `ml init`. The first boosting, the balanced one, the forest and the linear model are
fitted with `[train] calibration` "none" and "sigmoid" on the same rows; the last column says how often the rule of
"auto" calibrates. The Brier score of more than two classes is the sum over the classes.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from bench_quality import PACKAGES, install  # noqa: E402
from quality.measure import make_project, predict, run_each, target_of  # noqa: E402
from quality.tables import TABLES  # noqa: E402

USUAL = ["telco", "loans", "pensions", "happiness", "breast cancer", "weather", "party", "mpg origin"]
CANDIDATES: tuple[dict[str, Any], ...] = (
    {"kind": "boosting"},
    {"kind": "boosting", "class_weight": "balanced"},
    {"kind": "forest"},
    {"kind": "linear"},
)


def main() -> int:
    """Measure every table in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", default=USUAL)
    options = parser.parse_args()
    sys.path.append(str(install(PACKAGES)))
    print("| table | candidate | log loss | calibrated | Brier | calibrated | by auto |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    return run_each(options.tables, lambda name: measure(name, options.seeds))


def measure(name: str, seeds: int) -> bool:
    """Print the figures of one table; return True, for no figure has a goal."""
    make_project(next(one for one in TABLES if one.name == name))
    for params in CANDIDATES:
        found = [measure_once(seed, params) for seed in range(seeds)]
        means = [statistics.mean(one[place] for one in found) for place in range(4)]
        taken = sum(one[4] for one in found)
        shown = " | ".join(f"{value:.4f}" for value in means)
        label = ", ".join(str(value) for value in params.values())
        print(f"| {name} | {label} | {shown} | {taken} of {seeds} |", flush=True)
    return True


def measure_once(seed: int, params: dict[str, Any]) -> tuple[float, float, float, float, bool]:
    """Return log loss and calibrated log loss, Brier score and calibrated Brier score, and whether auto calibrates."""
    import model.estimator
    from ondol.config import load_settings
    from ondol.evaluation.metrics import log_losses
    from ondol.ingestion.ingest import read_source
    from ondol.project import Project
    from ondol.selection.comparison import compare
    from ondol.training.candidates import Choice
    from ondol.training.dataset import define_holdout, read_rows
    from ondol.training.train import fit_rows
    from ondol.validation.validate import validate_rows

    os.environ |= {"ML_SPLIT__SEED": str(seed), "ML_TRAIN__SEED": str(seed)}
    project = Project(load_settings())
    settings, contract = project.settings, project.contract
    validation = validate_rows(project, read_source(project).digest).id
    holdout = define_holdout(settings, contract, validation)
    train, held_out = (read_rows(settings, contract, validation, side, holdout) for side in ("train", "holdout"))
    model.estimator.list_candidates = lambda problem: [params, params]  # two, so that they are compared
    chosen = compare(settings, contract, train)
    made = []
    for calibrated in (False, True):
        fitted = fit_rows(settings, contract, train, holdout, Choice(chosen.params, "", calibrated=calibrated))
        truth, probabilities = target_of(fitted.contract, held_out), predict(fitted, held_out)
        known = truth >= 0
        truth, probabilities = truth[known], probabilities[known]
        squares = (probabilities - np.eye(probabilities.shape[1])[truth]) ** 2
        made.append((log_losses(truth, probabilities).mean(), squares.sum(axis=1).mean()))
    (loss, brier), (loss_calibrated, brier_calibrated) = made
    return loss, loss_calibrated, brier, brier_calibrated, chosen.calibrated


if __name__ == "__main__":
    sys.exit(main())
