"""The choice among candidates: on the training rows alone, on folds like the split, within the budget."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from ondol.config import Settings
from ondol.contract import Column, Contract, encode
from ondol.errors import UserError
from ondol.selection import comparison as module
from ondol.selection.comparison import compare, count_fits, make_folds
from ondol.training.candidates import read_candidates
from ondol.training.dataset import Holdout
from ondol.training.train import fit_rows

ROWS = 600


def settings(tmp_path, problem="regression", by="random", **train: Any) -> Settings:
    about = {"name": "t"}
    split = {"by": by}
    data = {"problem": problem, "target": "y"}
    return Settings.model_validate({"root": tmp_path, "project": about, "data": data, "split": split, "train": train})


def contract(problem="regression", **roles: str) -> Contract:
    kinds = {"x": "number", "z": "number", "word": "text", "at": "date", "who": "text", "y": "number"}
    kinds["y"] = "number" if problem == "regression" else "text"
    given = {"y": "target", "at": "ignored", "who": "ignored"} | roles
    columns = tuple(Column(name=n, kind=k, role=given.get(n, "feature"), nullable=n == "x") for n, k in kinds.items())  # type: ignore[arg-type]
    return Contract(problem=problem, target="y", columns=columns)  # type: ignore[arg-type]


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    made = pd.DataFrame(
        {"x": rng.normal(size=ROWS), "z": rng.normal(size=ROWS), "word": rng.choice(list("가나다"), ROWS)}
    )
    made["word"] = made["word"].astype("str")
    made["at"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.permutation(ROWS), "h")
    made["who"] = pd.Series(rng.integers(0, 60, ROWS)).astype("str")
    made["y"] = 3 * made["x"] + 2 * made["z"] + rng.normal(size=ROWS) / 10
    made.loc[::10, "x"] = np.nan
    return made


def with_classes(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(y=np.where(frame["y"] > 0, "yes", "no"))


def test_a_straight_line_is_found_and_the_reason_is_one_sentence(tmp_path, frame):
    choice = compare(settings(tmp_path), contract(), frame)
    assert choice.params == {"kind": "linear"} and choice.metric == "r2" and choice.rows == ROWS
    assert choice.reason.startswith("Chosen: linear, with r2 0.9") and choice.reason.count(". ") == 0
    assert choice.trials[0].name == "linear" and len(choice.trials[0].scores) == module.FOLDS
    assert len(choice.trials) == 7 and len(choice.trials[-1].scores) == module.FIRST_FOLDS


def test_the_rounds_of_boosting_are_those_of_early_stopping(tmp_path, frame, monkeypatch):
    candidates = [
        {"kind": "linear"},
        {"kind": "boosting"},
        {"kind": "boosting", "early_stopping": False, "max_iter": 2},
    ]
    monkeypatch.setattr("model.estimator.list_candidates", lambda problem: candidates)
    frame["y"] = np.sign(frame["x"].fillna(0)) * np.sign(frame["z"])
    choice = compare(settings(tmp_path), contract(), frame)
    assert choice.params["kind"] == "boosting"
    rounds = choice.trials[0].rounds
    assert choice.params["max_iter"] == round(np.mean(rounds)) and len(rounds) == module.FOLDS
    fitted = fit_rows(settings(tmp_path), contract(), frame, Holdout(split=settings(tmp_path).split), choice)
    assert fitted.pipeline[-1].n_iter_ == choice.params["max_iter"] and fitted.choice == choice


def test_the_same_rows_give_the_same_choice(tmp_path, frame):
    given = with_classes(frame)
    first, second = (compare(settings(tmp_path, "binary"), contract("binary"), given) for _ in range(2))
    assert first.params == second.params and [t.scores for t in first.trials] == [t.scores for t in second.trials]


def test_parameters_in_the_settings_are_not_compared(tmp_path, frame):
    choice = compare(settings(tmp_path, params={"max_leaf_nodes": 7}), contract(), frame)
    assert choice.params == {"max_leaf_nodes": 7} and not choice.trials


@pytest.mark.parametrize(("budget", "trials"), [(0, 0), (count_fits(2, 5), 2), (count_fits(3, 5), 3), (1000, 7)])
def test_the_budget_says_how_many_candidates_are_compared(tmp_path, frame, monkeypatch, budget, trials):
    fits = []
    monkeypatch.setattr(module.Ticker, "add", lambda self, count: fits.append(count))
    choice = compare(settings(tmp_path, budget=budget), contract(), frame)
    assert len(choice.trials) == trials and len(fits) <= budget
    assert choice.params if trials else choice.params == read_candidates(settings(tmp_path))[0]


def test_the_clock_ends_the_comparison_and_the_reason_says_so(tmp_path, frame):
    choice = compare(settings(tmp_path, budget_seconds=1e-6), contract(), frame)
    assert len(choice.trials) == 1
    assert "Only 1 of 7 were tried within [train] budget_seconds = 1e-06" in choice.reason


def test_too_few_rows_are_not_compared(tmp_path, frame):
    choice = compare(settings(tmp_path), contract(), frame.head(20))
    assert choice.params == read_candidates(settings(tmp_path))[0] and "too few" in choice.reason


def test_a_sample_is_compared_of_many_rows(tmp_path, frame, monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 200)
    assert compare(settings(tmp_path), contract(), frame).rows == 200


def test_folds_by_time_are_later_than_the_rows_they_are_predicted_from(tmp_path, frame):
    shape = contract(at="time", who="id")
    frame["who"] = (frame["at"].rank() // 7).astype("str")  # a few rows that follow each other
    folds = make_folds(settings(tmp_path, by="time"), shape, frame, frame["y"].to_numpy())
    assert len(folds) == module.FOLDS
    for fit, predict in folds:
        assert frame["at"].iloc[fit].max() < frame["at"].iloc[predict].min()
        assert not set(frame["who"].iloc[fit]) & set(frame["who"].iloc[predict])


@pytest.mark.parametrize("role", ["id", "group"])
@pytest.mark.parametrize("problem", ["binary", "regression"])
def test_rows_of_a_key_are_in_one_fold(tmp_path, frame, role, problem):
    target = (frame["y"] > 0).astype(int).to_numpy() if problem == "binary" else frame["y"].to_numpy()
    folds = make_folds(settings(tmp_path, problem), contract(problem, who=role), frame, target)
    assert len(folds) == module.FOLDS
    for fit, predict in folds:
        assert not set(frame["who"].iloc[fit]) & set(frame["who"].iloc[predict])
        assert not set(fit) & set(predict)


def test_backtests_are_near_the_later_error_where_a_random_split_flatters(tmp_path):
    """Each day has a level of its own: rows of the same day tell it, and of a later day nothing does."""
    rng = np.random.default_rng(3)
    days = np.repeat(np.arange(120), 10)
    made = pd.DataFrame({"x": rng.normal(size=1200), "z": rng.normal(size=120)[days], "word": "가", "who": "1"})
    made["at"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(days, "D")
    made["y"] = 2 * made["x"] + rng.normal(size=120)[days] + rng.normal(size=1200) / 3
    made = made.astype({"word": "str", "who": "str"})
    train, later = made.iloc[:960], made.iloc[960:]
    flattered = compare(settings(tmp_path), contract(), train)
    honest = compare(settings(tmp_path, by="time"), contract(at="time"), train)
    assert "in 5 backtests of 960 rows" in honest.reason
    shape = contract(at="time")
    fitted = fit_rows(settings(tmp_path), shape, train, Holdout(split=settings(tmp_path).split), honest)
    rest = later["y"] - fitted.pipeline.predict(encode(fitted.contract, later))
    truth = 1 - float((rest**2).mean() / later["y"].var(ddof=0))
    scores = np.array(honest.trials[0].scores)
    assert scores.min() - 0.05 <= truth <= scores.max() + 0.05
    assert abs(scores.mean() - truth) < abs(np.mean(flattered.trials[0].scores) - truth)


def test_a_class_of_a_few_rows_does_not_stop_the_choice(tmp_path, frame):
    classes = np.where(frame["y"] > 0, "b", "a")
    classes[:3] = "c"
    choice = compare(settings(tmp_path, "multiclass"), contract("multiclass"), frame.assign(y=classes))
    assert len(choice.trials) == 8 and all(math.isfinite(score) for score in choice.trials[0].scores)


def test_candidates_that_are_no_list_are_refused_in_one_sentence(tmp_path, frame, monkeypatch):
    monkeypatch.setattr("model.estimator.list_candidates", lambda problem: {"kind": "linear"})
    with pytest.raises(UserError, match=r"list_candidates in model/estimator\.py must return a list"):
        compare(settings(tmp_path), contract(), frame)


def test_a_candidate_that_no_record_can_hold_is_refused(tmp_path, frame, monkeypatch):
    candidates = [{"kind": "linear", "solver": object()}]
    monkeypatch.setattr("model.estimator.list_candidates", lambda problem: candidates)
    with pytest.raises(UserError, match=r"has solver = <object .*>, which cannot be recorded: name it with text"):
        compare(settings(tmp_path), contract(), frame)


def test_balanced_boosting_is_stopped_by_balanced_rows():
    rng = np.random.default_rng(0)
    rows, chance = rng.normal(size=(2_000, 3)), 0.02
    target = (rng.random(2_000) < np.where(rows[:, 0] > 1, 0.1, chance)).astype(int)
    estimator = HistGradientBoostingClassifier(class_weight="balanced", learning_rate=0.02, random_state=0)
    module.fit_with_stopping(estimator, rows[:1_000], target[:1_000], rows[1_000:], target[1_000:])
    weights = compute_sample_weight("balanced", target[1_000:])
    losses = [
        log_loss(target[1_000:], made, sample_weight=weights) for made in estimator.staged_predict_proba(rows[1_000:])
    ]
    assert len(losses) > 1 and min(losses) == losses[-1]


def test_a_candidate_that_fails_is_left_out_and_named(tmp_path, frame, monkeypatch):
    candidates = [{"kind": "linear", "alpha": -1.0}, {"kind": "linear"}]
    monkeypatch.setattr("model.estimator.list_candidates", lambda problem: candidates)
    choice = compare(settings(tmp_path), contract(), frame)
    assert choice.params == {"kind": "linear"}
    assert "The candidate linear, alpha -1.0 is left out: model/estimator.py" in choice.reason
    monkeypatch.setattr("model.estimator.list_candidates", lambda problem: [candidates[0], candidates[0]])
    with pytest.raises(UserError, match=r"linear, alpha -1\.0 is left out: .* failed to fit"):
        compare(settings(tmp_path), contract(), frame)


def test_backtests_keep_rows_of_one_time_together(tmp_path, frame):
    frame["at"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(ROWS) // 7, "D")
    for fit, predict in make_folds(settings(tmp_path, by="time"), contract(at="time"), frame, frame["y"].to_numpy()):
        assert frame["at"].iloc[fit].max() < frame["at"].iloc[predict].min()


def test_a_class_with_one_row_and_a_text_of_many_values_do_not_stop_the_choice(tmp_path, frame):
    classes = np.where(frame["y"] > 0, "b", "a")
    classes[0] = "c"
    many = pd.Series([f"v{n % 300}" for n in range(ROWS)]).astype("str")
    choice = compare(settings(tmp_path, "multiclass"), contract("multiclass"), frame.assign(y=classes, word=many))
    assert choice.trials


def test_the_rounds_of_an_own_estimator_are_left_alone(tmp_path, frame, monkeypatch):
    from sklearn.ensemble import HistGradientBoostingRegressor

    def build(problem: str, seed: int, depth: int = 3) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(max_depth=depth, max_iter=40, early_stopping=False)

    monkeypatch.setattr("model.estimator.build_estimator", build)
    monkeypatch.setattr("model.estimator.list_candidates", lambda problem: [{"depth": 2}, {"depth": 3}])
    choice = compare(settings(tmp_path), contract(), frame)
    assert set(choice.params) == {"depth"}
    fitted = fit_rows(settings(tmp_path), contract(), frame, Holdout(split=settings(tmp_path).split), choice)
    assert fitted.pipeline[-1].n_iter_ == 40


def test_what_cannot_be_compared_is_said(tmp_path, frame):
    choice = compare(settings(tmp_path), contract(), frame.assign(y=1.0))
    assert choice.reason == "The candidates cannot be compared: r2 is undefined on these rows." and not choice.trials
