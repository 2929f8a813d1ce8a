"""The report of a search: one run in MLflow with the history, and the best trials as runs below it.

The others are in `trials.csv` and `trials.json` of the run alone: a list of a thousand runs cannot be read.
"""

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ondol.errors import UserError
from ondol.evaluation.plots import SearchHistory, draw_search
from ondol.project import Project
from ondol.training.candidates import Choice
from ondol.training.train import log_trials
from ondol.tuning.search import REASON, Search, as_trial, params_of

if TYPE_CHECKING:
    import optuna

NESTED = 20  # trials that are runs of their own
LEAST_TRIALS = 10  # complete ones, to measure the importance of parameters
DEFAULT = "default"  # the kind of a trial whose parameters name none


def choose_best(search: Search) -> Choice:
    """Return the best trial as the choice of a model, with the best trials.

    Raises:
        UserError: no trial is complete.
    """
    best = search.best
    if best is None:
        raise UserError("No trial is complete yet: run the command again.")
    sign, complete = search.validation.sign, [one for one in search.trials if one.state.name == "COMPLETE"]
    ranked = sorted(complete, key=lambda one: (-sign * float(one.value or 0.0), one.number))
    candidates = [one for one in ranked if one.number < len(search.candidates)]
    others = candidates if best not in candidates else ranked[1:]
    other = "the next" if best in candidates else "the best candidate of model/estimator.py"
    reason = search.validation.explain([as_trial(one) for one in [best, *others[:1]]], other)
    trials = tuple(as_trial(one) for one in ranked[:NESTED])
    return Choice(params_of(best), reason, search.validation.metric, len(search.validation.target), trials)


def log_search(project: Project, search: Search, choice: Choice) -> tuple[str, bytes]:
    """Record a search in MLflow; return the page of its run, and the picture."""
    registry, metric, trials = project.registry, search.validation.metric, search.trials
    history = read_history(search)
    picture = draw_search(history)
    rows = [describe_trial(one) for one in trials]
    tags = {"validation": search.data, "search": search.key, "choice": choice.reason[:500]}
    with registry.run(f"tune-{search.data}", tags) as run_id:
        registry.log_results(
            run_id,
            {metric: choice.trials[0].mean, "trials": len(trials), **count_states(search)},
            {"choice.json": choice.describe()},
            {"search": picture},
            {name: str(value)[:500] for name, value in choice.params.items()},
        )
        registry.log_history(run_id, f"best_{metric}", [value for value in history.best if not math.isnan(value)])
        text = json.dumps(rows, ensure_ascii=False, indent=1)
        registry.log_files(run_id, {"trials.json": text.encode(), "trials.csv": write_csv(rows).encode()})
        log_trials(project, choice)
    return registry.run_path(run_id), picture


def count_states(search: Search) -> dict[str, int]:
    """Return how many trials are complete, were pruned after the first folds, and failed."""
    names = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    return {word: sum(one.state.name == name for one in search.trials) for word, name in names.items()}


def describe_trial(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    """Return a trial as a JSON document."""
    done = as_trial(trial)
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": None if math.isnan(done.mean) else done.mean,
        "params": dict(done.params),
        "scores": [None if math.isnan(score) else score for score in done.scores],
        "rounds": list(done.rounds),
        "seconds": round(done.seconds, 3),
        "reason": trial.user_attrs.get(REASON),
    }


def write_csv(rows: list[dict[str, Any]]) -> str:
    """Return trials as CSV, with a column for each parameter and each fold."""
    flat = [
        {
            **{name: row[name] for name in ("number", "state", "value", "seconds", "reason")},
            **row["params"],
            **{f"fold_{place}": score for place, score in enumerate(row["scores"])},
        }
        for row in rows
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def read_history(search: Search) -> SearchHistory:
    """Return what the plot of a search shows."""
    trials, sign = search.trials, search.validation.sign
    values = np.array([value_of(one, search.best) for one in trials])
    complete = np.array([one.state.name == "COMPLETE" for one in trials])
    best = sign * np.fmax.accumulate(np.where(complete, sign * values, math.nan))
    kinds = [kind_of(one) for one in trials]
    of = kind_of(search.best) if search.best else DEFAULT
    return SearchHistory(
        metric=search.validation.metric,
        values=values.tolist(),
        kinds=kinds,
        pruned=[one.state.name == "PRUNED" for one in trials],
        best=best.tolist(),
        importance=measure_param_importance(search, of),
        of=of,
    )


def value_of(trial: "optuna.trial.FrozenTrial", best: "optuna.trial.FrozenTrial | None") -> float:
    """Return the value of a trial; for a pruned one, that which is as far from the best one's as on its own folds."""
    scores = as_trial(trial).scores
    if best is None or len(scores) == len(as_trial(best).scores):
        return as_trial(trial).mean
    return as_trial(best).mean + float(np.mean(np.subtract(scores, as_trial(best).scores[: len(scores)])))


def kind_of(trial: "optuna.trial.FrozenTrial") -> str:
    """Return the kind of a trial's estimator."""
    return str(as_trial(trial).params.get("kind", DEFAULT))


def measure_param_importance(search: Search, kind: str) -> Mapping[str, float]:
    """Return the share of each parameter in the variance of the values of a kind's trials (fANOVA), the largest first.

    Empty if too few trials are complete. Only trials of one kind have the same parameters.
    """
    import optuna

    trials = [one for one in search.trials if one.state.name == "COMPLETE" and one.params and kind_of(one) == kind]
    if len(trials) < LEAST_TRIALS or len({one.value for one in trials}) < 2:
        return {}
    study = optuna.create_study(direction=search.study.direction)
    study.add_trials(trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)
