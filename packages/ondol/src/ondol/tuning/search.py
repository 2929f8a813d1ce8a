"""The search of `ml tune`: trials of parameters on the folds of the training rows, recorded in a journal of Optuna.

One process asks Optuna for parameters, sends the fits to workers, and is the only one that writes the journal. Every
trial is fitted on the first folds, and, unless the pruner ends it, on the others. A trial that was running when the
process was killed continues under its number. The first trials are the candidates of `model/estimator.py`, so that the
best trial is not worse than they are.

By default a worker that is free gets the next trial at once; which trials Optuna knows by then depends on the time. A
deterministic search asks for `BATCH` trials at once and records them in the order of their numbers, so that any number
of workers finds the same.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ondol.config import Settings, Train
from ondol.errors import UserError
from ondol.evaluation.metrics import choose_metric
from ondol.project import OWN_ERRORS, Project, describe_error, import_owned
from ondol.selection.comparison import FIRST_FOLDS, CrossValidation, with_rounds
from ondol.storage.files import digest_json, sole
from ondol.training.candidates import Trial, name_params, read_candidates, require_recordable
from ondol.training.train import cache_key, load_rows
from ondol.tuning.workers import Workers

if TYPE_CHECKING:
    import optuna

BATCH = 8  # trials that a deterministic search asks for at once
RANDOM_TRIALS = 10  # before Optuna's sampler learns from the trials
PARAMS, RESULT, REASON = "params", "result", "reason"  # attributes of a trial in the journal
WAIT_SECONDS = 0.5
FOLDER = "tune"


@dataclass(frozen=True)
class Attempt:
    """A trial that is not finished.

    Attributes:
        handle: Optuna's trial.
        trial: Its parameters, and the results of the folds so far.
        fits: The fits that were started, one for each of the next folds.
    """

    handle: "optuna.trial.Trial"
    trial: Trial
    fits: "tuple[Future[Trial], ...]" = ()

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the order of recording: also after a kill, trials are pruned before others are complete."""
        return len(self.trial.scores), self.handle.number

    @property
    def ready(self) -> bool:
        """Whether all its fits have ended."""
        return all(fit.done() for fit in self.fits)


@dataclass(frozen=True)
class Progress:
    """How far a search is.

    Attributes:
        finished: The trials that are finished.
        trials: The trials that are wanted.
        best: The best trial so far; None if there is none.
        seconds_left: An estimate of the time that is left; None if it is unknown.
    """

    finished: int
    trials: int
    best: "optuna.trial.FrozenTrial | None"
    seconds_left: float | None


@dataclass
class Search:
    """A study of one project's data, code and settings.

    Attributes:
        study: Optuna's study, with all trials.
        validation: The folds, the rows and the metric.
        candidates: The parameters of the first trials.
        deterministic: Whether trials are asked and recorded in batches.
        key: The digest of all that decides the result.
        data: The validation of the rows.
    """

    study: "optuna.Study"
    validation: CrossValidation
    candidates: list[dict[str, Any]]
    deterministic: bool
    key: str
    data: str

    @property
    def settings(self) -> Settings:
        """The project's settings."""
        return self.validation.settings

    @property
    def trials(self) -> "list[optuna.trial.FrozenTrial]":
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    @property
    def finished(self) -> int:
        """The number of finished trials: complete, pruned or failed."""
        return sum(trial.state.is_finished() for trial in self.trials)

    @property
    def best(self) -> "optuna.trial.FrozenTrial | None":
        """The complete trial with the best value, the first of equal ones; None if no trial is complete."""
        complete = [trial for trial in self.trials if trial.value is not None and trial.state.name == "COMPLETE"]
        return max(complete, key=lambda one: (self.validation.sign * one.value, -one.number), default=None)  # type: ignore[operator]

    def run(
        self,
        workers: Workers,
        trials: int,
        seconds: float | None = None,
        show: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Continue until there are so many trials, or until the time is over; trials that have begun are finished.

        Args:
            workers: What fits.
            trials: The number of trials that the study has at the end.
            seconds: The time after which no trial begins; None for no limit.
            show: Gets the progress, several times a second.

        Raises:
            UserError: the project's code fails, or every trial failed.
        """
        started, before = time.monotonic(), self.finished
        self.study.sampler = make_sampler(self.settings.train.seed, RANDOM_TRIALS + len(self.candidates))
        running = [one for attempt in self._unfinished() if (one := self._begin(attempt, workers))]
        while True:
            fits = [fit for attempt in running for fit in attempt.fits if not fit.done()]
            passed = time.monotonic() - started
            if seconds is None or passed < seconds:
                for _ in range(min(self._room(len(running), len(fits), workers.count), trials - len(self.trials))):
                    if one := self._begin(self._ask(), workers):
                        running.append(one)
                        fits += one.fits
            if not running:
                break
            wait(fits, WAIT_SECONDS, ALL_COMPLETED if self.deterministic else FIRST_COMPLETED)
            ready = sorted((attempt for attempt in running if attempt.ready), key=lambda one: one.place)
            if len(ready) == len(running) or not self.deterministic:
                running = [attempt for attempt in running if attempt not in ready]
                ended = [one for attempt in ready if (one := self._collect(attempt))]
                running += [one for attempt in ended if (one := self._begin(attempt, workers))]
            show(self._progress(trials, before, time.monotonic() - started, seconds))
        reasons = [trial.user_attrs[REASON] for trial in self.trials if REASON in trial.user_attrs]
        if reasons and self.best is None:
            raise UserError(f"No trial is complete. The first one failed: {reasons[0]}")

    def _room(self, running: int, fits: int, workers: int) -> int:
        """Return how many trials may begin, from the numbers of trials and of fits that have begun, and of workers."""
        if not self.deterministic:
            return -(-(workers + 1 - fits) // FIRST_FOLDS)  # one fit waits, so that no worker does
        rest = -len(self.trials) % BATCH  # a batch may be incomplete after a kill
        return rest or (0 if running else BATCH)

    def _ask(self) -> Attempt:
        return self._read(self.study.ask())

    def _unfinished(self) -> list[Attempt]:
        """Return the trials that were running when the process before ended, as they were then."""
        from optuna.trial import Trial as Handle

        running = [trial for trial in self.trials if not trial.state.is_finished()]
        return [self._read(Handle(self.study, trial._trial_id)) for trial in running]

    def _read(self, handle: "optuna.trial.Trial") -> Attempt:
        """Return an attempt with the parameters of Optuna's trial, which it chooses now if it has none."""
        attributes = handle.user_attrs
        if PARAMS not in attributes:
            chosen = self.candidates[handle.number : handle.number + 1]
            params = chosen[0] if chosen else suggest_params(self.settings, handle)
            handle.set_user_attr(PARAMS, params)
        else:
            params = attributes[PARAMS]
        results = {"scores": (), "rounds": (), "seconds": 0.0} | attributes.get(RESULT, {})
        trial = Trial(
            name_params(params), params, tuple(results["scores"]), tuple(results["rounds"]), results["seconds"]
        )
        return Attempt(handle, trial)

    def _begin(self, attempt: Attempt, workers: Workers) -> Attempt | None:
        """Record the results of an attempt, and start the fits that follow; return None if the trial is finished."""
        following = self._record(attempt)
        if following is None:
            return None
        bare = Trial(attempt.trial.name, attempt.trial.params, (), (), 0.0)
        return replace(attempt, fits=tuple(workers.submit(bare, number) for number in following))

    def _collect(self, attempt: Attempt) -> Attempt | None:
        """Return an attempt with the results of its fits; None if one failed, which is recorded."""
        trial = attempt.trial
        try:
            for fit in attempt.fits:
                found = fit.result()
                seconds = trial.seconds + found.seconds
                scores, rounds = trial.scores + found.scores, trial.rounds + found.rounds
                trial = replace(trial, scores=scores, rounds=rounds, seconds=seconds)
            return replace(attempt, trial=trial, fits=())
        except UserError as error:
            self._fail(attempt, str(error))
        return None

    def _fail(self, attempt: Attempt, reason: str) -> None:
        from optuna.trial import TrialState

        attempt.handle.set_user_attr(REASON, reason)
        self.study.tell(attempt.handle, state=TrialState.FAIL)

    def _record(self, attempt: Attempt) -> range | None:
        """Record the results of an attempt; return the folds that follow, or None if the trial is finished.

        The decision of the pruner is recorded first, so that a kill does not change it.
        """
        from optuna.trial import TrialState

        handle, trial, folds = attempt.handle, attempt.trial, len(self.validation.folds)
        done = len(trial.scores)
        if not done:
            return range(min(FIRST_FOLDS, folds))
        if math.isnan(trial.mean):
            self._fail(attempt, f"{self.validation.metric} is undefined on these rows.")
            return None
        known = handle.user_attrs.get(RESULT, {})
        pruned = known.get("pruned", False)
        if len(known.get("scores", ())) < done:
            if done < folds:
                if done not in self.trials[handle.number].intermediate_values:
                    handle.report(trial.mean, done)
                pruned = bool(handle.should_prune())
            result = {"scores": trial.scores, "rounds": trial.rounds, "seconds": trial.seconds, "pruned": pruned}
            handle.set_user_attr(RESULT, result)
        if pruned:
            self.study.tell(handle, state=TrialState.PRUNED)
        elif done < folds:
            return range(done, folds)
        else:
            self.study.tell(handle, trial.mean)
        return None

    def _progress(self, trials: int, before: int, passed: float, seconds: float | None) -> Progress:
        finished = self.finished
        pace = passed / (finished - before) if finished > before else None
        left = None if pace is None else pace * (trials - finished)
        if seconds is not None:
            left = max(0.0, seconds - passed) if left is None else min(left, max(0.0, seconds - passed))
        return Progress(finished, trials, self.best, left)


@contextmanager
def open_search(project: Project, deterministic: bool = False) -> "Iterator[Search]":
    """Open the study of the project's latest validated rows, code and settings; begin it if there is none.

    Raises:
        UserError: Optuna is not installed, there are no validated rows or too few, the project has no `suggest_params`,
            or another process works on the study.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError('`ml tune` needs Optuna: run `uv add "ondol[tune]"`.') from None
    data = project.latest.get("validate")
    find_space()
    bare = replace_train(project.settings)
    metric = choose_metric(bare.data.problem, bare.gates.metric)
    key = digest_json([cache_key(Project(bare), data), metric, deterministic])
    path = bare.home / FOLDER / f"{key[:16]}.journal"
    busy = "Another `ml tune` is working on these data, code and settings: wait for it, or stop it."
    with sole(path.with_suffix(".pid"), busy):
        rows = load_rows(project, data).train
        validation = CrossValidation.prepare(bare, project.contract, rows)
        if validation is None:
            raise UserError(f"Nothing can be tuned on {len(rows):,} training rows: too few rows, groups or classes.")
        study = open_study(path, "maximize" if validation.sign > 0 else "minimize")
        yield Search(study, validation, read_candidates(bare), deterministic, key, data)


def open_study(path: Path, direction: Literal["maximize", "minimize"]) -> "optuna.Study":
    """Open the study in a journal; begin it if there is none. Only one process may use it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from optuna.pruners import MedianPruner
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    # What a killed process leaves: Optuna's lock, for which it would wait, and a part of a line, which it cannot read.
    for left in path.parent.glob(f"{path.name}.lock*"):
        left.unlink()
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name="tune",
        direction=direction,
        load_if_exists=True,
        pruner=MedianPruner(n_startup_trials=5),
    )


def make_sampler(seed: int, random_trials: int) -> "optuna.samplers.BaseSampler":
    """Return Optuna's TPE with its own seed for each parameter of each trial.

    So a search that was killed while it asked for a trial continues like one that was not.
    """
    from optuna.samplers import BaseSampler, TPESampler

    class Sampler(BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            own = int(digest_json([seed, trial.number, param_name])[:8], 16)
            sampler = TPESampler(seed=own, n_startup_trials=random_trials, constant_liar=True)
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    return Sampler()


def replace_train(settings: Settings) -> Settings:
    """Return the settings without those of the candidates' comparison, which the search does not depend on."""
    usual = Train()
    update = {"params": {}, "budget": usual.budget, "budget_seconds": None}
    return settings.model_copy(update={"train": settings.train.model_copy(update=update)})


def find_space() -> Callable[[Any, str], Any]:
    """Return the function `suggest_params` of `model/estimator.py`.

    Raises:
        UserError: there is none.
    """
    found = getattr(import_owned("estimator"), "suggest_params", None)
    if not callable(found):
        raise UserError(
            "model/estimator.py has no suggest_params, which says what to search: add the function as in "
            "`ml docs tune-parameters`."
        )
    return found  # type: ignore[no-any-return]


def suggest_params(settings: Settings, handle: "optuna.trial.Trial") -> dict[str, Any]:
    """Return the parameters that the project suggests for a trial.

    Raises:
        UserError: its function fails, or returns what `config.toml` cannot hold.
    """
    try:
        found = find_space()(handle, settings.data.problem)
    except OWN_ERRORS as error:
        raise UserError(f"suggest_params in model/estimator.py failed: {describe_error(error)}.") from error
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise UserError(
            "suggest_params in model/estimator.py must return the parameters of build_estimator, such as "
            '{"kind": "boosting", "learning_rate": 0.1}.'
        )
    require_recordable(found, "suggest_params")
    if missing := [name for name, value in found.items() if value is None]:
        raise UserError(
            f"suggest_params in model/estimator.py has {missing[0]} = None, which config.toml cannot hold: leave the "
            "parameter out."
        )
    # Four digits are enough, and can be read.
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}


def params_of(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    """Return the parameters with which a trial is fitted on all rows: with the rounds that its folds needed."""
    return with_rounds(as_trial(trial))


def as_trial(trial: "optuna.trial.FrozenTrial") -> Trial:
    """Return a trial of a journal in the form of the comparison of candidates."""
    params, result = trial.user_attrs.get(PARAMS, {}), trial.user_attrs.get(RESULT, {})
    scores, rounds = tuple(result.get("scores", ())), tuple(result.get("rounds", ()))
    return Trial(name_params(params), params, scores, rounds, result.get("seconds", 0.0))
