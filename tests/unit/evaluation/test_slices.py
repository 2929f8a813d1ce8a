"""The error in parts of the rows: what is measured, what is found, and what is not claimed."""

import numpy as np
import pandas as pd
import pytest

from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.evaluation.gates import apply_slice_margin
from ondol.evaluation.plots import draw_slices
from ondol.evaluation.slices import conditions, describe_weak, find_weak_slices, measure_slices, row_losses, slice_rows

ROWS = 2_000


def make_contract(**roles: str) -> Contract:
    kinds = {"지역": "text", "age": "integer", "score": "number", "at": "date", "plan": "text", "y": "text"}
    columns = tuple(Column(name=n, kind=k, role=({"y": "target"} | roles).get(n, "feature")) for n, k in kinds.items())  # type: ignore[arg-type]
    return Contract(problem="binary", target="y", columns=columns)


def make_frame(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    made = pd.DataFrame(
        {
            "지역": rng.choice(["서울", "부산", "제주"], ROWS, p=[0.6, 0.3, 0.1]),
            "age": rng.integers(18, 90, ROWS),
            "score": np.where(rng.random(ROWS) < 0.1, np.nan, rng.normal(size=ROWS)),
            "at": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, ROWS), "D"),
            "plan": rng.choice(["a", "b", "c", "d"], ROWS),
            "y": "no",
        }
    )
    return made.astype({"지역": "str", "plan": "str", "y": "str"})


def make_losses(frame: pd.DataFrame, seed: int, extra: float) -> np.ndarray:
    """Return wrong labels: 5% of the rows, and so much more of those in 제주."""
    chance = 0.05 + extra * (frame["지역"] == "제주").to_numpy()
    return (np.random.default_rng(seed + 1_000).random(ROWS) < chance).astype(float)


@pytest.mark.parametrize(("extra", "least", "most"), [(0.15, 95, 100), (0.0, 0, 5)])
def test_a_weak_slice_is_found_and_none_is_claimed_without_one(extra, least, most):
    """Of 100 draws; a tenth of 2,000 rows has 15 points more errors, or none has."""
    columns, claimed, found = make_contract().features, 0, 0
    for seed in range(100):
        frame = make_frame(seed)
        names = [name for name, _ in find_weak_slices(columns, frame, make_losses(frame, seed, extra))]
        claimed, found = claimed + bool(names), found + ("지역 is 제주" in names)
    assert least <= (found if extra else claimed) <= most


def test_conditions_cover_each_row_once():
    frame = make_frame(0)
    for column in make_contract().features:
        named = dict(conditions(column, frame[column.name]))
        assert (np.sum(list(named.values()), axis=0) == 1).all(), column.name
        assert len(named) >= 3
    assert "score is missing" in dict(conditions(make_contract().column("score"), frame["score"]))


def test_slices_of_sensitive_columns_and_of_the_project_are_measured(monkeypatch):
    frame = make_frame(0)
    losses = make_losses(frame, 0, 0.15)
    slices = {"노인": lambda rows: rows["age"] >= 65}
    monkeypatch.setattr("ondol.evaluation.slices.read_extension", lambda module, name: slices)
    found = measure_slices(make_contract(**{"지역": "sensitive"}), frame, losses, None)
    assert [(one.kind, one.name) for one in found][:2] == [("own", "노인"), ("sensitive", "지역 is 서울")]
    jeju = next(one for one in found if one.name == "지역 is 제주")
    inside = (frame["지역"] == "제주").to_numpy()
    assert (jeju.rows, jeju.error, jeju.rest) == (
        inside.sum(),
        pytest.approx(losses[inside].mean()),
        pytest.approx(losses[~inside].mean()),
    )
    assert jeju.low < jeju.error - jeju.rest < jeju.high and jeju.worse is None
    assert "Weak where 지역 is 제주" in describe_weak(found, "binary")[0]
    assert slice_rows(found, "binary")[0]["slice"] == "노인"
    assert draw_slices(found, "binary").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([1], "map a name to a function"),
        ({"a": 1}, "map a name to a function"),
        ({"a": lambda rows: rows["없음"]}, 'The slice "a" of .* failed: KeyError'),
        ({"a": lambda rows: True}, "one truth value for each row"),
    ],
)
def test_wrong_slices_of_the_project_are_one_sentence(monkeypatch, slices, message):
    monkeypatch.setattr("ondol.evaluation.slices.read_extension", lambda module, name: slices)
    with pytest.raises(UserError, match=message):
        measure_slices(make_contract(), make_frame(0), np.zeros(ROWS), None)


def test_the_gate_refuses_a_slice_that_is_worse_than_the_champion(monkeypatch):
    frame = make_frame(0)
    contract = make_contract(**{"지역": "sensitive"})
    before, after = make_losses(frame, 0, 0.0), make_losses(frame, 0, 0.3)
    worse = measure_slices(contract, frame, after, before)
    refused = apply_slice_margin(worse, 0.05)
    assert not refused.passed and "지역 is 제주" in refused.sentence
    assert refused.figure is not None and refused.figure > 0.2
    assert apply_slice_margin(measure_slices(contract, frame, before, after), 0.05).passed
    assert apply_slice_margin(worse, 0.5).passed
    assert apply_slice_margin(measure_slices(contract, frame, after, None), 0.0).passed


def test_losses_of_a_regression_are_absolute_errors():
    assert row_losses("regression", np.array([1.0, 2.0]), np.array([3.0, 1.5])).tolist() == [2.0, 0.5]
    assert row_losses("binary", np.array([0, 1]), np.array([[0.4, 0.6], [0.1, 0.9]])).tolist() == [1.0, 0.0]


def test_few_rows_and_equal_losses_claim_nothing():
    frame = make_frame(0)
    assert find_weak_slices(make_contract().features, frame, np.zeros(ROWS)) == []
    assert find_weak_slices(make_contract().features, frame.head(20), np.ones(20)) == []
