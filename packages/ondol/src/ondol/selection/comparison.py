"""Compares the candidates of `model/estimator.py` within a budget of fits, and chooses the best one.

Every candidate is fitted on the first folds of the training rows, and the better half of them on the others (successive
halving: Jamieson and Talwalkar, AISTATS 2016); the best mean of the metric of the gates wins. The folds respect the
split: by time, each fold is later than the rows it is predicted from; the rows of a group or an id are in one fold. The
comparison uses a sample of the rows, so that its cost does not grow with them.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ondol.config import Settings
from ondol.contract import Contract, encode, encode_target, fit_encodings
from ondol.errors import UserError
from ondol.evaluation.metrics import Decided, choose_metric, log_losses, metrics_of, require_decision, score_metrics
from ondol.orchestration.reporting import Ticker, publish_table, say
from ondol.project import Project, import_owned
from ondol.storage.files import digest_json
from ondol.training.calibration import calibrate_folds, read_scores
from ondol.training.candidates import Choice, Params, Trial, name_params, read_candidates
from ondol.training.decision import find_rule
from ondol.training.folds import FOLDS, Fold, make_folds
from ondol.training.pipeline import asks_for, build_pipeline, features_params, fitting
from ondol.training.train import TrainingRows

FIRST_FOLDS = 2
LEAST_ROWS = 50
MOST_ROWS = 10_000  # of the sample
MOST_TRANSFORMED = 40  # folds whose features are kept
LEAST_GAIN, STANDARD_ERRORS = 0.01, 2.0  # of the log loss, for which calibration is worth more fits
NOTHING = 1e-9  # a difference that only rounding makes
MOST_ROUNDS, PATIENCE = 1_000, 20  # of boosting: the most, and how many without an improvement end it
# Predictions and scores of a fold, by the trial's name and the number of the fold.
Outputs = dict[tuple[str, int], tuple[NDArray[np.float64], NDArray[np.float64]]]


def choose(project: Project, rows: TrainingRows) -> Choice:
    """Return the best candidate; the first one where nothing can be compared.

    Raises:
        UserError: a candidate cannot be built or fitted.
    """
    choice = compare(project.settings, project.contract, rows.train)
    say(choice.reason)
    if choice.trials:
        publish_table("candidates", [_show(trial, str(choice.metric)) for trial in choice.trials])
    return choice


def compare(settings: Settings, contract: Contract, frame: pd.DataFrame) -> Choice:
    """Compare the candidates on training rows, without a report.

    Args:
        settings: The settings, with the budget.
        contract: The contract, without encodings.
        frame: The training rows in the contract's dtypes.

    Raises:
        UserError: a candidate cannot be built or fitted.
    """
    require_decision(contract.problem, settings.gates.metric, settings.decision if settings.decision.is_set else None)
    candidates = read_candidates(settings)
    affordable = [n for n in range(len(candidates) + 1) if count_fits(n, FOLDS) <= settings.train.budget]
    tried = candidates[: affordable[-1]]
    if len(candidates) < 2:
        return Choice(candidates[0], "The project has one candidate.")
    if len(tried) < 2:
        return Choice(candidates[0], f"[train] budget = {settings.train.budget} allows no comparison of candidates.")
    comparison = CrossValidation.prepare(settings, contract, frame)
    if comparison is None:
        reason = f"The candidates cannot be compared on {len(frame):,} training rows: too few rows, groups or classes."
        return Choice(candidates[0], reason)
    return comparison.run(tried)


@dataclass
class CrossValidation:
    """The candidates on the same folds of a sample of the training rows; equal features are computed once.

    Attributes:
        settings: The settings.
        features: The encoded rows.
        target: The encoded target.
        folds: For each fold, the rows to fit on and those to predict.
        metric: The metric that decides.
        classes: The classes; None for regression.
    """

    settings: Settings
    features: pd.DataFrame
    target: NDArray[Any]
    folds: list[Fold]
    metric: str
    classes: tuple[Any, ...] | None = None
    _transformed: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False)

    @property
    def sign(self) -> float:
        """1 if a greater score is better, else -1."""
        return metrics_of(self.settings.data.problem)[self.metric].sign

    @classmethod
    def prepare(cls, settings: Settings, contract: Contract, frame: pd.DataFrame) -> "CrossValidation | None":
        """Return the comparison on a sample of `frame`; None if it has too few rows."""
        sample = frame.sample(min(len(frame), MOST_ROWS), random_state=settings.train.seed)
        fitted = fit_encodings(contract, sample, parts=asks_for("problem"))
        target = encode_target(fitted, sample[contract.target])
        folds = make_folds(settings, contract, sample, target)
        if len(sample) < LEAST_ROWS or len(folds) < 2:
            return None
        metric = choose_metric(contract.problem, settings.gates.metric)
        return cls(settings, encode(fitted, sample), target, folds, metric, fitted.classes)

    def run(self, candidates: list[dict[str, Any]]) -> Choice:
        """Compare the candidates on the first folds, the better half of them on the others, and return the best one."""
        from threadpoolctl import threadpool_limits

        most, started = self.settings.train.budget_seconds, time.perf_counter()
        ticker = Ticker("fits", count_fits(len(candidates), len(self.folds)))
        first, others = range(FIRST_FOLDS), range(FIRST_FOLDS, len(self.folds))
        outputs: Outputs | None = {} if self.settings.train.calibration == "auto" else None
        trials: list[Trial] = []
        failed: list[str] = []
        tried = 0
        with threadpool_limits(1):  # on a sample, more threads cost more than they save
            for params in candidates:
                if tried and most is not None and time.perf_counter() - started > most:
                    break
                tried += 1
                trial = Trial(name_params(params), params, (), (), 0.0)
                try:
                    trials.append(self.fit(trial, first, ticker, outputs))
                except UserError as error:
                    failed.append(f"The candidate {trial.name} is left out: {error}")
            if not trials:
                raise UserError(failed[0])
            ranked = self._rank(trials)
            kept = count_better(len(ranked))
            ranked = self._rank([self.fit(trial, others, ticker, outputs) for trial in ranked[:kept]]) + ranked[kept:]
        ticker.close()
        if math.isnan(ranked[0].mean):
            return Choice(
                candidates[0], f"The candidates cannot be compared: {self.metric} is undefined on these rows."
            )
        reason = " ".join([self.explain(ranked), *failed])
        if tried < len(candidates):
            reason += f" Only {tried} of {len(candidates)} were tried within [train] budget_seconds = {most:g}."
        calibrated, found = self._try_calibration(ranked[0], outputs or {})
        return Choice(with_rounds(ranked[0]), reason + found, self.metric, len(self.target), tuple(ranked), calibrated)

    def fit(self, trial: Trial, numbers: range, ticker: Ticker | None = None, outputs: Outputs | None = None) -> Trial:
        """Return the trial with the results of more folds.

        Args:
            trial: The trial, with the results of the folds before.
            numbers: The numbers of the folds.
            ticker: Counts the fits.
            outputs: Gets what calibration needs; None to keep nothing.

        Raises:
            UserError: the model cannot be built or fitted.
        """
        started, scores, rounds = time.perf_counter(), list(trial.scores), list(trial.rounds)
        for number in numbers:
            fit, predict = self.folds[number]
            features, estimator = build_pipeline(self.settings, trial.params)
            with fitting():
                known, unknown = self._transform(features, trial.params, number)
                target, truth = self.target[fit], self.target[predict]
                if stops_early(estimator):
                    rounds.append(fit_with_stopping(estimator, known, target, unknown, truth))
                else:
                    estimator.fit(known, target)
                made = self._predict(estimator, unknown)
                if outputs is not None and self._is_bounded(estimator):
                    outputs[trial.name, number] = made, read_scores(estimator, unknown)
                scores.append(self._measure(truth, made))
            if ticker is not None:
                ticker.add(1)
        seconds = trial.seconds + time.perf_counter() - started
        return replace(trial, scores=tuple(scores), rounds=tuple(rounds), seconds=seconds)

    def _rank(self, trials: list[Trial]) -> list[Trial]:
        """Return the trials with the best mean first; of equal ones, the first candidate."""
        costs = [-self.sign * trial.mean for trial in trials]
        return [trials[place] for place in np.argsort(costs, kind="stable")]  # which puts an unknown mean last

    def explain(self, ranked: Sequence[Trial], other: str = "the next") -> str:
        """Return the reason for the choice as one sentence; `other` says what the second trial is."""
        best, where = ranked[0], "backtests" if self.settings.split.by == "time" else "folds"
        found = (
            f"Chosen: {best.name}, with {self.metric} {best.mean:.4g} ({min(best.known):.4g} to "
            f"{max(best.known):.4g}) in {len(best.scores)} {where} of {len(self.target):,} rows"
        )
        if len(ranked) < 2 or len(ranked[1].scores) != len(best.scores):
            return f"{found}."
        gains = self.sign * (np.array(best.scores) - np.array(ranked[1].scores))
        gains = gains[~np.isnan(gains)]
        if len(gains) < 2:
            return f"{found}; {other} is {ranked[1].name}."
        error = gains.std(ddof=1) / math.sqrt(len(gains))
        return f"{found}; {other} is {ranked[1].name}, worse by {gains.mean():.2g} (standard error {error:.2g})."

    def _transform(self, features: Any, params: Params, number: int) -> tuple[Any, Any]:
        """Return the transformed rows of a fold: those to fit on and those to predict."""
        key = digest_json([features_params(params), number])
        if key not in self._transformed:
            if len(self._transformed) >= MOST_TRANSFORMED:  # each is a copy of the sample
                del self._transformed[next(iter(self._transformed))]
            fit, predict = self.folds[number]
            known = features.fit_transform(self.features.iloc[fit], self.target[fit])
            self._transformed[key] = known, features.transform(self.features.iloc[predict])
        return self._transformed[key]

    def _predict(self, estimator: Any, rows: Any) -> NDArray[np.float64]:
        return np.asarray((estimator.predict if self.classes is None else estimator.predict_proba)(rows), np.float64)

    def _is_bounded(self, estimator: Any) -> bool:
        """Return True for a classifier that sigmoids may follow.

        Those of several unbounded scores have no exact limit in float32; such models seldom need them.
        """
        return self.classes is not None and (len(self.classes) == 2 or not hasattr(estimator, "coef_"))

    def _measure(self, truth: NDArray[Any], predictions: NDArray[np.float64]) -> float:
        problem, decision, rule = self.settings.data.problem, self.settings.decision, None
        if decision.is_set and self.classes is not None:
            rule = find_rule(decision, self.classes, truth, predictions)  # each candidate is scored by its best one
        return score_metrics(problem, truth, Decided.by(rule, predictions)).get(self.metric, math.nan)

    def _try_calibration(self, best: Trial, outputs: Outputs) -> tuple[bool, str]:
        """Return whether the probabilities of the best candidate should be calibrated, and a sentence if so.

        They should if sigmoids that are fitted on the other folds lower the log loss by more than `LEAST_GAIN` of it
        and by more than chance, and the metric that decides is not worse by more than its standard error.
        """
        numbers = range(len(best.scores))
        if (best.name, 0) not in outputs or len(numbers) < 2:
            return False, ""
        parts, found = zip(*(outputs[best.name, number] for number in numbers), strict=True)
        truths = [self.target[self.folds[number][1]] for number in numbers]
        folds, target = np.repeat(numbers, [len(part) for part in parts]), np.concatenate(truths)
        scores = np.concatenate(found)
        if any(set(target[folds != number]) != set(target) for number in numbers):
            return False, ""  # too few rows of a class to fit its sigmoid
        calibrated = calibrate_folds(scores, target, folds)
        before, after = log_losses(target, np.concatenate(parts)), log_losses(target, calibrated)
        gain, error = (before - after).mean(), (before - after).std(ddof=1) / math.sqrt(len(target))
        made = [
            self._measure(truth, calibrated[folds == number]) for number, truth in zip(numbers, truths, strict=True)
        ]
        falls = self.sign * (np.array(best.scores) - np.array(made))
        falls = falls[~np.isnan(falls)]
        worse = len(falls) > 1 and falls.mean() > falls.std(ddof=1) / math.sqrt(len(falls)) + NOTHING
        if worse or gain < max(LEAST_GAIN * before.mean(), STANDARD_ERRORS * error):
            return False, ""
        return True, (
            f" Its probabilities are calibrated, which lowers their log loss from {before.mean():.4g} to "
            f"{after.mean():.4g} (standard error of the difference {error:.2g})."
        )


def fit_with_stopping(estimator: Any, known: Any, target: NDArray[Any], unknown: Any, truth: NDArray[Any]) -> int:
    """Fit boosting with the number of rounds that is best for the other rows, and return that number."""
    from sklearn.utils.class_weight import compute_sample_weight

    estimator.set_params(early_stopping=True, max_iter=MOST_ROUNDS, n_iter_no_change=PATIENCE)
    # As those of the rows that it is fitted on.
    weights = compute_sample_weight(getattr(estimator, "class_weight", None), truth)
    estimator.fit(known, target, X_val=unknown, y_val=truth, sample_weight_val=weights)
    best = max(int(np.argmax(estimator.validation_score_)), 1)  # the first score is that before the first round
    del estimator._predictors[best:]  # those that did not improve it: scikit-learn keeps them
    return best


def stops_early(estimator: Any) -> bool:
    """Return True for boosting whose rounds are left to this comparison: neither they nor early stopping are set."""
    if "X_val" not in signature(estimator.fit).parameters:
        return False
    usual, given = type(estimator)().get_params(), estimator.get_params()
    return all(given[name] == usual[name] for name in ("max_iter", "early_stopping")) and takes_rounds()


def takes_rounds() -> bool:
    """Return True if `build_estimator` passes on the number of rounds that this comparison finds."""
    parameters = signature(import_owned("estimator").build_estimator).parameters.values()
    names = {one.name for one in parameters}
    return {"max_iter", "early_stopping"} <= names or any(one.kind is one.VAR_KEYWORD for one in parameters)


def with_rounds(trial: Trial) -> dict[str, Any]:
    """Return the parameters with which the chosen candidate is fitted on all rows."""
    if not trial.rounds:
        return dict(trial.params)
    rounds = max(1, round(float(np.mean(trial.rounds))))
    # Else scikit-learn would stop by itself above 10,000 rows, on a part of them that it chooses at random.
    return {**trial.params, "max_iter": rounds, "early_stopping": False}


def count_better(candidates: int) -> int:
    """Return how many of the candidates are fitted on the other folds, too: the better half, and at least two."""
    return min(candidates, max(2, (candidates + 1) // 2))


def count_fits(candidates: int, folds: int) -> int:
    """Return the number of fits that the comparison of so many candidates takes."""
    first = min(FIRST_FOLDS, folds)
    return candidates * first + count_better(candidates) * (folds - first)


def _show(trial: Trial, metric: str) -> dict[str, Any]:
    return {
        "candidate": trial.name,
        f"{metric}, mean": f"{trial.mean:.4g}",
        "from": f"{min(trial.known, default=math.nan):.4g}",
        "to": f"{max(trial.known, default=math.nan):.4g}",
        "rounds": f"{np.mean(trial.rounds):.0f}" if trial.rounds else "",
        "seconds": f"{trial.seconds:.1f}",
    }
