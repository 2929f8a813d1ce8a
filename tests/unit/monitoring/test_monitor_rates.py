"""How often the monitor cries wolf, and how often it sleeps: simulated windows of the sample, as in the flow.

Each simulated project has its own data, model and reference (about 1,000 held-out rows of 5,000). Its windows follow
each other; an alarm is a decision that would start the pipeline. docs/explanation/drift.md has the figures: `-s` prints
them, for another `[monitor] confidence` with the variable CONFIDENCE.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from marks import slow_but
from monitor_support import START, predictions, typed_sample

from ondol.config import Gates, Monitor, Retrain, Settings, Split
from ondol.contract import describe, encode, encode_target
from ondol.evaluation.metrics import bootstrap
from ondol.evaluation.scoring import Scorer
from ondol.evaluation.targets import Reference, output_columns
from ondol.monitoring.drift import compare_sides, pair_sides, window_frame
from ondol.monitoring.log import Logged
from ondol.monitoring.performance import measure
from ondol.monitoring.retraining import Loop, decide, with_comparison, with_performance
from ondol.monitoring.windows import Window
from ondol.registry.champion import Champion
from ondol.training.dataset import Holdout, in_holdout
from ondol.training.train import fit_rows

RULES = Monitor(confidence=float(os.environ.get("CONFIDENCE", Monitor().confidence)))
RETRAIN, GATES = Retrain(cooldown_hours=0), Gates()
ROWS = 1_000
CHAMPION = Champion(version="1", run_id="r", bundle="1-b", digest="d", since=START.isoformat())


@dataclass
class Project:
    """A model in production and what the monitor knows of it."""

    seed: int
    reference: Reference
    scorer: Scorer
    metrics: dict[str, Any]


@cache
def project(problem: str, target: str, seed: int) -> Project:
    """Fit a model on 5,000 rows, and hold its reference."""
    from model.schema import Schema

    contract = describe(Schema, target, problem)
    settings = Settings(root="/nowhere", data={"problem": problem, "target": target})  # type: ignore[arg-type]
    frame = typed_sample(contract, 5_000, seed=seed)
    holdout = Holdout(split=Split())
    held = in_holdout(frame, contract, holdout)
    fitted = fit_rows(settings, contract, frame[~held], holdout)
    contract, held_out = fitted.contract, frame[held].reset_index(drop=True)

    def run(encoded: pd.DataFrame) -> list[np.ndarray]:
        predicted = fitted.pipeline.predict(encoded)
        return [predicted] if contract.classes is None else [predicted, fitted.pipeline.predict_proba(encoded)]

    scorer = Scorer(contract, run)
    known = held_out.assign(**output_columns(contract, scorer.predict(held_out), "prediction", "probability"))
    reference = Reference(known, contract, "prediction", "probability" if problem == "binary" else None)
    y = encode_target(contract, held_out[contract.target])
    found = bootstrap(problem, y, scorer.predict(held_out))
    metrics = {name: {"value": i.value, "low": i.low, "high": i.high} for name, i in found.items()}
    assert len(encode(contract, held_out)) > 900
    return Project(seed, reference, scorer, metrics)


def window(project: Project, number: int, drift: float, shift: float, labels: bool) -> Window:
    """Evaluate the project's window of that number, as `ondol.monitoring.monitor` does."""
    contract = project.reference.contract
    frame = typed_sample(contract, ROWS, seed=project.seed, start=100_000 + number * ROWS, drift=drift, shift=shift)
    answers = predictions(project.scorer, frame)
    names = [c.name for c in contract.features]
    rows = [{k: v for k, v in row.items() if not pd.isna(v)} for row in frame[names].astype(object).to_dict("records")]
    rows = [{k: v.isoformat() if isinstance(v, pd.Timestamp) else v for k, v in row.items()} for row in rows]
    logged = [Logged(str(i), 0, row, answer) for i, (row, answer) in enumerate(zip(rows, answers, strict=True))]
    sides = pair_sides(project.reference, window_frame(project.reference, logged))
    start = START + timedelta(days=7 * number)
    made = Window(id=str(number), start=start, end=start + timedelta(days=7), version="1", bundle="1-b", verdict="ok")
    made = with_comparison(made, compare_sides(sides, project.reference.output, RULES), RULES.drift_share)
    if not labels:
        return made
    predicted = [a["probabilities"].values() if "probabilities" in a else [a["value"]] for a in answers]
    truth = pd.DataFrame({"prediction": [list(p) for p in predicted], "label": frame[contract.target].to_numpy()})
    return with_performance(made, measure(contract, project.metrics, truth, GATES, RULES), RULES.drift_share)


def count_alarms(project: Project, numbers: range, drift: float = 0, shift: float = 0, labels: bool = True) -> int:
    """Return in how many of the windows the pipeline would have been asked to train."""
    windows: list[Window] = []
    alarms = 0
    for number in numbers:
        windows.append(window(project, number, drift, shift, labels))
        alarms += decide(windows, CHAMPION, RETRAIN, Loop(), windows[-1].end).wanted
    flagged = sum(w.bad for w in windows)
    moved = sum(
        (w.drift_share or 0) >= RULES.drift_share or bool(w.prediction and w.prediction.drifted) for w in windows
    )
    columns = sorted(sum(c.drifted for c in w.columns) for w in windows)
    drifted = f"{columns[0]} to {columns[-1]} of {len(windows[0].columns)} columns drifted"
    found = f"{flagged} of {len(windows)} windows flagged, {moved} without labels; {drifted}; {alarms} alarms"
    print(f"seed {project.seed} drift {drift} shift {shift}: {found}", flush=True)
    return alarms


def churn(seed: int) -> Project:
    """The sample's default."""
    return project("binary", "churned", seed)


@pytest.mark.parametrize("windows", slow_but([6], [6, 20]))
def test_windows_without_drift_raise_no_alarm(windows):
    assert count_alarms(churn(0), range(windows)) == 0


def test_drift_of_the_sample_is_seen_within_two_windows():
    assert count_alarms(churn(0), range(2), drift=1, labels=False) == 1


def test_shift_of_the_sample_is_seen_within_two_windows_with_labels():
    assert count_alarms(churn(0), range(2), shift=1) == 1


def test_shift_alone_cannot_be_seen_in_features():
    assert count_alarms(churn(0), range(2), shift=1, labels=False) == 0


@pytest.mark.slow
def test_at_most_five_of_two_hundred_windows_without_drift_raise_an_alarm():
    assert sum(count_alarms(churn(seed), range(40)) for seed in range(5)) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("moved", ["drift", "shift"])
def test_what_moves_in_the_sample_is_seen_within_two_windows_in_95_percent_of_runs(moved):
    runs = [(seed, run) for seed in range(5) for run in range(8)]
    seen = [count_alarms(churn(s), range(2 * r, 2 * r + 2), labels=moved == "shift", **{moved: 1}) for s, r in runs]  # type: ignore[arg-type]
    assert sum(seen) >= 0.95 * len(runs)


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "target"), [("multiclass", "next_plan"), ("regression", "next_spend")])
def test_other_problems_keep_the_rates_too(problem, target):
    made = project(problem, target, 0)
    assert count_alarms(made, range(20)) == 0
    assert count_alarms(made, range(2), drift=1, labels=False) == 1
    assert count_alarms(made, range(2), shift=1) == 1
