"""Which rows are held out: stable as data grows, equal rows on one side, quarantined rows on none."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from flows.contract import Column, Contract
from flows.errors import UserError
from flows.rows import Holdout, define_holdout, in_holdout, read_rows
from flows.settings import Settings
from flows.store.snapshots import Snapshots
from flows.store.validations import Validation, Validations

ID = Column(name="고객 id", kind="text", role="id")
GROUP = Column(name="household", kind="integer", role="group")
TIME = Column(name="when", kind="date", role="time")
FEATURES = (Column(name="x", kind="integer", nullable=True), Column(name="지역", kind="text"))
TARGET = Column(name="y", kind="number", role="target")


def make_contract(*keys: Column) -> Contract:
    return Contract(problem="regression", target="y", columns=(*keys, *FEATURES, TARGET))


def make_frame(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "고객 id": [f"c{i}" for i in range(rows)],
            "household": np.arange(rows) // 3,
            "when": pd.Series(pd.date_range("2024-01-01", periods=rows, freq="h")).astype("datetime64[us]"),
            "x": pd.array(rng.integers(0, 10**6, rows), "Int64"),
            "지역": pd.Series(rng.choice(["서울", "부산"], rows), dtype="str"),
            "y": rng.normal(size=rows),
        }
    )


def settings(root: Path, **split: Any) -> Settings:
    return Settings(root=root, split=split)  # type: ignore[arg-type]


def held(frame: pd.DataFrame, *keys: Column, **split: Any) -> np.ndarray:
    holdout = Holdout(split=settings(Path(), **split).split)
    return in_holdout(frame, make_contract(*keys), holdout)


@pytest.mark.parametrize("keys", [(ID,), (GROUP,), ()])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_about_the_share_that_is_asked_for_is_held_out(keys, share):
    assert abs(held(make_frame(20_000), *keys, holdout=share).mean() - share) < 0.02


@pytest.mark.parametrize("keys", [(ID,), (GROUP,), ()])
def test_a_row_stays_on_its_side_as_data_grows_and_moves(keys):
    frame = make_frame(3000)
    sides = held(frame, *keys)
    grown = pd.concat(
        [make_frame(500, seed=9).assign(**{"고객 id": "new", "household": 10**6}), frame], ignore_index=True
    )
    np.testing.assert_array_equal(held(grown, *keys)[500:], sides)
    order = np.random.default_rng(0).permutation(3000)
    np.testing.assert_array_equal(held(frame.iloc[order], *keys), sides[order])


def test_equal_rows_never_straddle():
    frame = make_frame(1000)
    twice = pd.concat([frame, frame.assign(y=frame["y"] + 1)], ignore_index=True)
    sides = held(twice)
    np.testing.assert_array_equal(sides[:1000], sides[1000:])


def test_a_group_never_straddles_even_where_there_is_an_id():
    sides = pd.Series(held(make_frame(3000), ID, GROUP))
    assert (sides.groupby(make_frame(3000)["household"]).nunique() == 1).all()


def test_a_column_that_is_no_key_moves_no_row():
    frame = make_frame(1000)
    np.testing.assert_array_equal(held(frame, ID), held(frame.assign(x=1, y=0.0, 지역="제주"), ID))


def test_another_seed_holds_out_other_rows():
    frame = make_frame(20_000)
    sides = [held(frame, ID, seed=seed) for seed in (0, 1, 2)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs((sides[a] & sides[b]).mean() - 0.04) < 0.01


def test_a_larger_share_holds_out_what_the_smaller_did_and_more():
    frame = make_frame(5000)
    small, large = held(frame, ID, holdout=0.1), held(frame, ID, holdout=0.3)
    assert (small & ~large).sum() == 0


# Read from the store.


def store(root: Path, frame: pd.DataFrame, bad: list[int]) -> str:
    """Write `frame` as a snapshot of several row groups, with some rows quarantined; return the validation."""
    whole = pa.Table.from_pandas(frame, preserve_index=False)
    made = Snapshots(root / ".ml" / "store").write(whole.to_batches(max_chunksize=50), "s", "f")
    record = Validation(id="v", snapshot=made.digest, rows=len(frame), bad=len(bad), reasons={})
    Validations(root / ".ml" / "store").write(
        record, whole.take(np.array(bad, int)), np.array(bad, int), [["x"]] * len(bad)
    )
    return "v"


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.store.snapshots.ROW_GROUP", 100)


def both(chosen: Settings, contract: Contract, name: str, holdout: Holdout) -> tuple[pd.DataFrame, pd.DataFrame]:
    train = read_rows(chosen, contract, name, "train", holdout)
    return train, read_rows(chosen, contract, name, "holdout", holdout)


@pytest.mark.parametrize("bad", [[], [0], [99, 100], [0, 99, 100, 199, 200, 349], list(range(100, 200))])
def test_quarantined_rows_are_on_neither_side_whatever_row_group_they_are_in(bad, tmp_path):
    frame = make_frame(350)
    chosen, contract = settings(tmp_path), make_contract(ID)
    name = store(tmp_path, frame, bad)
    train, holdout = both(chosen, contract, name, define_holdout(chosen, contract, name))
    assert sorted([*train.index, *holdout.index]) == [i for i in range(350) if i not in bad]
    for part in (train, holdout):
        assert part["고객 id"].tolist() == frame["고객 id"].loc[part.index].tolist()
        assert {name: str(kind) for name, kind in part.dtypes.items()} == {
            "고객 id": "str",
            "x": "Int64",
            "지역": "str",
            "y": "float64",
        }


def test_by_time_the_latest_rows_are_held_out(tmp_path):
    frame = make_frame(350).sample(frac=1, random_state=0)
    chosen, contract = settings(tmp_path, by="time"), make_contract(ID, TIME)
    name = store(tmp_path, frame, [])
    holdout = define_holdout(chosen, contract, name)
    train, late = both(chosen, contract, name, holdout)
    assert train["when"].max() < late["when"].min() == pd.Timestamp(holdout.cutoff)
    assert 0.2 <= len(late) / 350 < 0.21


def test_by_time_rows_of_one_moment_are_on_one_side_and_quarantined_ones_do_not_count(tmp_path):
    frame = make_frame(300)
    frame["when"] = frame["when"].dt.floor("100h")
    frame.loc[299, "when"] = pd.Timestamp("2099-01-01")
    chosen, contract = settings(tmp_path, by="time"), make_contract(TIME)
    name = store(tmp_path, frame, [299])
    train, late = both(chosen, contract, name, define_holdout(chosen, contract, name))
    assert not set(train["when"]) & set(late["when"]) and len(train) and len(late)


def test_the_cutoff_stays_when_later_rows_come(tmp_path):
    chosen, contract = settings(tmp_path, by="time"), make_contract(TIME)
    holdout = define_holdout(chosen, contract, store(tmp_path, make_frame(300), []))
    again = Holdout.model_validate_json(holdout.model_dump_json())
    longer = make_frame(600)
    first, later = in_holdout(longer[:300], contract, again), in_holdout(longer[300:], contract, again)
    np.testing.assert_array_equal(first, in_holdout(make_frame(300), contract, holdout))
    assert later.all()


def test_by_time_needs_a_column_with_that_role(tmp_path):
    with pytest.raises(UserError, match=r'\[split\] by = "time" needs a column'):
        define_holdout(settings(tmp_path, by="time"), make_contract(ID), "v")
