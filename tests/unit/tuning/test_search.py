"""The search of `ml tune`: a kill loses and doubles nothing, and a deterministic search depends on no worker."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ondol.config import Settings
from ondol.errors import UserError
from ondol.training.candidates import Trial

pytest.importorskip("optuna")
from ondol.tuning.report import choose_best, describe_trial, measure_param_importance, read_history, write_csv
from ondol.tuning.search import BATCH, Search, open_study, params_of, replace_train, suggest_params
from ondol.tuning.workers import Workers

TRIALS = 2 * BATCH


class Arithmetic:
    """Folds whose scores are computed from the parameters, and count how often each was fitted."""

    metric, sign = "r2", 1.0

    def __init__(self, settings: Settings, delay: Callable[[int], float] = lambda number: 0.0):
        self.settings, self.folds, self.target, self.delay = settings, list(range(5)), [0.0] * 100, delay
        self.fits: list[tuple[str, int]] = []

    def fit(self, trial: Trial, numbers: range) -> Trial:
        time.sleep(self.delay(len(self.fits)))
        if trial.params.get("kind") == "broken":
            raise UserError("It cannot be fitted.")
        self.fits += [(trial.name, number) for number in numbers]
        x = float(trial.params.get("x", 3.0))
        return replace(
            trial, scores=(*trial.scores, *(-((x - 1) ** 2) - number / 10 for number in numbers)), seconds=1.0
        )

    def explain(self, ranked: list[Trial], other: str) -> str:
        return f"Chosen: {ranked[0].name}; {other} is {ranked[-1].name}."


@pytest.fixture(autouse=True)
def space(monkeypatch):
    monkeypatch.setattr(
        "model.estimator.suggest_params",
        lambda trial, problem: {
            "kind": "line",
            "x": trial.suggest_float("x", -5, 5),
            "b": trial.suggest_int("b", 1, 9),
        },
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    given = {"root": tmp_path, "project": {"name": "t"}, "data": {"problem": "regression", "target": "y"}}
    return Settings.model_validate(given)


@contextmanager
def threads(validation: Any, count: int) -> Iterator[Workers]:
    with ThreadPoolExecutor(count) as pool:
        yield Workers(count, lambda trial, number: pool.submit(validation.fit, trial, range(number, number + 1)))


def at_once(validation: Any, left: int = 10**9) -> Workers:
    """Workers that fit while a fit is ordered, and are killed after `left` fits."""

    def submit(trial: Trial, number: int) -> "Future[Trial]":
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        made: Future[Trial] = Future()
        try:
            made.set_result(validation.fit(trial, range(number, number + 1)))
        except UserError as error:
            made.set_exception(error)
        return made

    return Workers(2, submit)


def make(path: Path, validation: Any, candidates: Any = ({"x": 2.0},), deterministic: bool = True) -> Search:
    return Search(open_study(path, "maximize"), validation, list(candidates), deterministic, "key", "data")


def found(search: Search) -> list[tuple[int, str, float | None, Any]]:
    return [(one.number, one.state.name, one.value, one.user_attrs["params"]) for one in search.trials]


def test_a_deterministic_search_finds_the_same_with_any_number_of_workers(settings, tmp_path):
    results = []
    for count in (1, 3):
        validation = Arithmetic(settings, lambda number, count=count: 0.004 * (number * 7 % count))
        search = make(tmp_path / f"{count}.journal", validation)
        with threads(validation, count) as workers:
            search.run(workers, TRIALS)
        results.append(found(search))
    assert results[0] == results[1] and len(results[0]) == TRIALS
    assert {state for _, state, _, _ in results[0]} == {"COMPLETE", "PRUNED"}


def test_trials_in_parallel_are_each_fitted_once_and_the_best_is_found(settings, tmp_path):
    validation = Arithmetic(settings)
    search = make(tmp_path / "a.journal", validation, deterministic=False)
    with threads(validation, 3) as workers:
        search.run(workers, TRIALS)
    assert [one.number for one in search.trials] == list(range(TRIALS)) and search.finished == TRIALS
    fits = sum(len(one.user_attrs["result"]["scores"]) for one in search.trials)
    assert len(validation.fits) == len(set(validation.fits)) == fits
    assert search.best is not None and abs(search.best.user_attrs["params"]["x"] - 1) < 0.5


def test_a_pruned_trial_is_fitted_on_the_first_folds_alone(settings, tmp_path):
    search = make(tmp_path / "a.journal", Arithmetic(settings))
    search.run(at_once(search.validation), TRIALS)
    folds = {one.state.name: len(one.user_attrs["result"]["scores"]) for one in search.trials}
    assert folds == {"COMPLETE": 5, "PRUNED": 2}


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_search_that_is_interrupted_between_any_two_fits_continues(settings, tmp_path, deterministic):
    whole = make(tmp_path / "whole.journal", Arithmetic(settings), deterministic=deterministic)
    whole.run(at_once(whole.validation), TRIALS)
    for left in range(0, len(whole.validation.fits), 11):
        path, validation = tmp_path / f"{left}.journal", Arithmetic(settings)
        with pytest.raises(KeyboardInterrupt):
            make(path, validation, deterministic=deterministic).run(at_once(validation, left), TRIALS)
        again = make(path, validation, deterministic=deterministic)
        again.run(at_once(validation), TRIALS)
        assert [one.number for one in again.trials] == list(range(TRIALS)) and again.finished == TRIALS
        if deterministic:
            assert found(again) == found(whole)


def test_a_journal_that_ends_anywhere_continues(settings, tmp_path):
    """As a kill or a full disk leaves it: the end of a line may be missing, and Optuna's lock may be there."""
    path = tmp_path / "whole.journal"
    whole = make(path, Arithmetic(settings))
    whole.run(at_once(whole.validation), TRIALS)
    journal = path.read_bytes()
    for size in range(0, len(journal), len(journal) // 17):
        part = tmp_path / f"{size}.journal"
        part.write_bytes(journal[:size])
        part.with_name(f"{part.name}.lock").symlink_to(part)
        again = make(part, Arithmetic(settings))
        again.run(at_once(again.validation), TRIALS)
        assert [one.number for one in again.trials] == list(range(TRIALS)) and again.finished == TRIALS
        assert found(again) == found(whole)


def test_more_trials_continue_and_enough_trials_do_nothing(settings, tmp_path):
    validation = Arithmetic(settings)
    search = make(tmp_path / "a.journal", validation)
    search.run(at_once(validation), BATCH)
    fits = len(validation.fits)
    search.run(at_once(validation), BATCH)
    assert len(validation.fits) == fits
    search.run(at_once(validation), BATCH + 3)
    assert search.finished == BATCH + 3


def test_no_trial_begins_when_the_time_is_over(settings, tmp_path):
    search = make(tmp_path / "a.journal", Arithmetic(settings))
    search.run(at_once(search.validation), TRIALS, seconds=0)
    assert not search.trials


def test_the_first_trials_are_the_candidates(settings, tmp_path):
    search = make(tmp_path / "a.journal", Arithmetic(settings), [{"x": 1.0}, {"x": 4.0}])
    search.run(at_once(search.validation), TRIALS)
    assert [one.user_attrs["params"] for one in search.trials[:2]] == [{"x": 1.0}, {"x": 4.0}]
    choice = choose_best(search)
    assert choice.params == {"x": 1.0} and "the next" in choice.reason
    assert len(choice.trials) <= 20 and choice.trials[0].params == choice.params


def test_a_trial_that_fails_is_recorded_and_all_failing_is_an_error(settings, tmp_path):
    search = make(tmp_path / "a.journal", Arithmetic(settings), [{"kind": "broken"}])
    search.run(at_once(search.validation), BATCH)
    assert search.trials[0].state.name == "FAIL"
    assert describe_trial(search.trials[0])["reason"] == "It cannot be fitted."
    alone = make(tmp_path / "b.journal", Arithmetic(settings), [{"kind": "broken"}])
    with pytest.raises(UserError, match=r"No trial is complete\. The first one failed: It cannot be fitted\."):
        alone.run(at_once(alone.validation), 1)


def test_the_progress_names_the_best_and_the_time_left(settings, tmp_path):
    search, seen = make(tmp_path / "a.journal", Arithmetic(settings)), []
    search.run(at_once(search.validation), TRIALS, show=seen.append)
    assert seen[-1].finished == seen[-1].trials == TRIALS and seen[-1].seconds_left == 0
    assert seen[-1].best.number == search.best.number


def test_the_report_has_every_trial_and_the_importance_of_what_matters(settings, tmp_path):
    search = make(tmp_path / "가.journal", Arithmetic(settings))
    search.run(at_once(search.validation), 40)
    rows = json.loads(json.dumps([describe_trial(one) for one in search.trials]))
    assert [row["number"] for row in rows] == list(range(40))
    header, *lines = write_csv(rows).splitlines()
    assert header.startswith("number,state,value,") and "fold_4" in header and len(lines) == 40
    history = read_history(search)
    assert history.best[-1] == search.best.value and len(history.values) == 40
    assert all(value <= search.best.value + 1e-12 for value in history.values)  # pruned ones on the same folds
    importance = measure_param_importance(search, "line")
    assert next(iter(importance)) == "x"


def test_numbers_are_rounded_so_that_they_can_be_read(settings, monkeypatch):
    monkeypatch.setattr(
        "model.estimator.suggest_params", lambda trial, problem: {"x": 0.123456789, "n": 12345678, "b": True}
    )
    assert suggest_params(settings, SimpleNamespace()) == {"x": 0.1235, "n": 12345678, "b": True}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1], "must return the parameters"),
        ({"x": None}, "x = None, which config.toml cannot hold"),
        ({"x": object()}, "cannot be recorded"),
    ],
)
def test_what_config_toml_cannot_hold_is_an_error(settings, monkeypatch, returned, message):
    monkeypatch.setattr("model.estimator.suggest_params", lambda trial, problem: returned)
    with pytest.raises(UserError, match=message):
        suggest_params(settings, SimpleNamespace())


def test_a_project_without_a_search_space_is_told_where_to_read(settings, monkeypatch):
    monkeypatch.delattr("model.estimator.suggest_params")
    with pytest.raises(UserError, match=r"has no suggest_params.*ml docs tune-parameters"):
        suggest_params(settings, SimpleNamespace())


def test_the_parameters_in_config_toml_do_not_change_the_search(settings):
    params = {"params": {"kind": "linear"}, "budget": 3, "budget_seconds": 5.0}
    train = settings.train.model_copy(update=params)
    assert replace_train(settings.model_copy(update={"train": train})) == settings


def test_the_rounds_of_boosting_are_part_of_the_best_parameters():
    result = {"scores": [0.5, 0.6], "rounds": [10, 21], "seconds": 1.0}
    trial: Any = SimpleNamespace(user_attrs={"params": {"kind": "boosting"}, "result": result})
    assert params_of(trial) == {"kind": "boosting", "max_iter": 16, "early_stopping": False}
