"""How often the estimate of a metric without labels is right: windows of public tables without concept drift.

    make bench BENCHMARKS=estimates [ARGS="--seeds 5 --windows 40 --tables telco loans"]

Each table becomes a project by `ml init`. For each seed, half of the rows train the first boosting, a fifth is the
reference, and windows are drawn from the rest: at random, or with covariate shift, planted by weights that grow
exponentially with the rank of one column. The features shift and the rule stays. Goal: the metric by the labels is
within the interval of the estimate in at least 90% of the windows that are not marked as unreliable.
"""

import argparse
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from bench_quality import PACKAGES, install  # noqa: E402
from quality.measure import make_project, run_each  # noqa: E402
from quality.tables import TABLES  # noqa: E402

USUAL = ["telco", "pensions", "happiness", "loans", "party", "weather", "weeks of work"]
ROWS = 400  # of a window
SHIFTS = {"none": 0.0, "some": 1.5, "strong": 4.0}
GOAL = 0.9


def main() -> int:
    """Measure every table in a process of its own; return 0 where the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=40, help="of each seed and each shift")
    parser.add_argument("--tables", nargs="+", default=USUAL)
    parser.add_argument("--params", default="boosting", help="the kind of the model; balanced for class weights")
    options = parser.parse_args()
    sys.path.append(str(install(PACKAGES)))
    print("| table | shift | metric | within | reliable windows | within, of these | mean width | mean error |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    balanced = {"kind": "boosting", "class_weight": "balanced"}
    params = balanced if options.params == "balanced" else {"kind": options.params}
    return run_each(options.tables, lambda name: measure(name, options.seeds, options.windows, params))


def measure(name: str, seeds: int, windows: int, params: dict[str, Any]) -> bool:
    """Print the figures of one table, and return whether the metric that decides reaches the goal."""
    make_project(next(one for one in TABLES if one.name == name))
    found: dict[tuple[str, str], list[tuple[bool, bool, float, float]]] = defaultdict(list)
    for seed in range(seeds):
        for shift, results in measure_once(seed, windows, params):
            for metric, result in results.items():
                found[metric, shift].append(result)
    missed, decides = False, next(iter(found))[0]
    for (metric, shift), results in found.items():
        within, reliable, widths, errors = map(np.array, zip(*results, strict=True))
        share = within[reliable].mean() if reliable.any() else float("nan")
        missed |= metric == decides and reliable.any() and share < GOAL
        figures = (
            f"{within.mean():.1%} | {reliable.mean():.0%} | {share:.1%} | {widths.mean():.4f} | {errors.mean():.4f}"
        )
        print(f"| {name} | {shift} | {metric} | {figures} |", flush=True)
    return not missed


def measure_once(seed: int, windows: int, params: dict[str, Any]) -> Any:
    """Yield the kind of shift and, by metric, whether the truth is within the interval, for each window of a seed."""
    from ondol.config import Monitor, load_settings
    from ondol.contract import encode, encode_target
    from ondol.evaluation.metrics import choose_metric, score_metrics
    from ondol.evaluation.targets import Reference, compared_features
    from ondol.ingestion.ingest import read_source
    from ondol.monitoring.drift import pair_sides
    from ondol.monitoring.estimation import Estimator, find_doubts
    from ondol.project import Project
    from ondol.training.candidates import Choice
    from ondol.training.dataset import Holdout, define_holdout, read_rows
    from ondol.training.train import fit_rows
    from ondol.validation.validate import validate_rows

    project, rng = Project(load_settings()), np.random.default_rng(seed)
    settings, contract = project.settings, project.contract
    validation = validate_rows(project, read_source(project).digest).id
    holdout = define_holdout(settings, contract, validation)
    rows = pd.concat([read_rows(settings, contract, validation, side, holdout) for side in ("train", "holdout")])
    rows = rows.iloc[rng.permutation(len(rows))].reset_index(drop=True)
    ends = [0, len(rows) // 2, len(rows) * 7 // 10, len(rows)]
    train, known, pool = (rows.iloc[start:end] for start, end in pairwise(ends))
    fitted = fit_rows(settings, contract, train, Holdout(split=settings.split), Choice(params, ""))
    sides = []
    for part in (known, pool):
        predicted = fitted.pipeline.predict_proba(encode(fitted.contract, part))
        names = [f"probability {place}" for place in range(predicted.shape[1])]
        labels = pd.Series(list(fitted.contract.classes)).take(predicted.argmax(axis=1)).to_numpy()
        outputs = dict(zip(names, predicted.T, strict=True)) | {"prediction": labels}
        part = part.reset_index(drop=True)
        sides.append(part.assign(**outputs)[encode_target(fitted.contract, part[contract.target]) >= 0])
    binary = contract.problem == "binary"
    probability, by_class = ("probability 1", ()) if binary else (None, tuple(names))
    reference = Reference(sides[0], fitted.contract, "prediction", probability, by_class)
    pool, features = sides[1].reset_index(drop=True), [c.name for c in compared_features(fitted.contract)]
    truth = encode_target(fitted.contract, pool[contract.target])
    metrics = dict.fromkeys(
        [choose_metric(contract.problem, None), "accuracy", "log_loss", "f1" if binary else "f1_macro"]
    )
    estimator = Estimator.fit(reference)
    for shift, strength in SHIFTS.items():
        for _ in range(windows):
            codes = pool[rng.choice(features)].astype("category").cat.codes.rank(pct=True).to_numpy()
            weights = np.exp(strength * rng.choice([-1, 1]) * codes)
            size = min(ROWS, len(pool) // 3)
            chosen = rng.choice(len(pool), size, replace=False, p=weights / weights.sum())
            window = pool.iloc[chosen].reset_index(drop=True)
            given = window[names].to_numpy()
            figures = estimator.estimate(given, list(metrics))
            doubts = find_doubts(pair_sides(reference, window), reference.output, Monitor())
            real = score_metrics(contract.problem, truth[chosen], given)
            yield (
                shift,
                {
                    metric: (
                        bool(one.low <= real[metric] <= one.high),
                        not doubts,
                        one.high - one.low,
                        abs(one.value - real[metric]),
                    )
                    for metric in metrics
                    if metric in real and (one := figures.get(metric))
                },
            )


if __name__ == "__main__":
    sys.exit(main())
