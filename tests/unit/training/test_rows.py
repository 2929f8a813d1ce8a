"""Which rows are held out: stable as data grows, equal rows on one side, quarantined rows on none."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ondol.config import Settings
from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.snapshots.snapshots import Snapshots
from ondol.storage.store import Store
from ondol.training.dataset import (
    Holdout,
    define_holdout,
    find_sides,
    in_holdout,
    read_columns,
    read_rows,
    read_sides,
    sample_share,
)
from ondol.validation.results import Validation, Validations

ID = Column(name="고객 id", kind="text", role="id")
GROUP = Column(name="household", kind="integer", role="group")
TIME = Column(name="when", kind="date", role="time")
SEEN = Column(name="when", kind="date", time=True)  # the row's time, which is a feature as well
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


def settings(root: Path, data: Any = None, train: Any = None, **split: Any) -> Settings:
    return Settings(root=root, split=split, data=data or {}, train=train or {})  # type: ignore[arg-type]


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


def test_a_column_that_is_not_a_key_moves_no_row():
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


def store(root: Path, frame: pd.DataFrame, bad: list[int], unlabelled: int = 0) -> str:
    """Write `frame` as a snapshot of several row groups, with some rows quarantined; return the validation."""
    whole = pa.Table.from_pandas(frame, preserve_index=False)
    made = Snapshots(Store(root / ".ml" / "store")).write(whole.to_batches(max_chunksize=50), "s", "f")
    counts = {"rows": len(frame), "bad": len(bad), "unlabelled": unlabelled}
    record = Validation(id="v", snapshot=made.digest, reasons={}, **counts)
    with Validations(Store(root / ".ml" / "store")).quarantine("v", whole.schema) as quarantine:
        quarantine.add(
            whole.take(np.array(bad, int)), np.array(bad, int), pa.array([["x"]] * len(bad), pa.list_(pa.string()))
        )
        quarantine.finish(record)
    return "v"


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ondol.snapshots.snapshots.ROW_GROUP", 100)


@pytest.mark.parametrize("bare", [[0], [99, 100, 349], list(range(0, 350, 3))])
def test_rows_without_a_label_are_on_neither_side_of_any_read(bare, tmp_path):
    frame = make_frame(350)
    frame.loc[bare, "y"] = np.nan
    chosen, contract = settings(tmp_path, by="time"), make_contract(ID, TIME)
    name = store(tmp_path, frame, [5, 101], unlabelled=len(bare))
    kept = [i for i in range(350) if i not in {*bare, 5, 101}]
    train, holdout = both(chosen, contract, name, define_holdout(chosen, contract, name))
    assert sorted([*train.index, *holdout.index]) == kept and not train["y"].isna().any()
    parts = list(read_columns(chosen, contract, name, {"when", "x"}))
    assert [*pd.concat(parts).index] == kept and list(parts[0].columns) == ["when", "x"]
    assert abs(sample_share(settings(tmp_path, train={"sample_rows": 100}), name) * len(kept) * 0.8 - 100) < 1e-9


def both(chosen: Settings, contract: Contract, name: str, holdout: Holdout) -> tuple[pd.DataFrame, pd.DataFrame]:
    train = read_rows(chosen, contract, name, "train", holdout)
    return train, read_rows(chosen, contract, name, "holdout", holdout)


@pytest.mark.parametrize("bad", [[], [0], [99, 100], [0, 99, 100, 199, 200, 349], list(range(100, 200))])
def test_quarantined_rows_are_on_neither_side_in_any_row_group(bad, tmp_path):
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


@pytest.mark.parametrize("time", [TIME, SEEN])
@pytest.mark.parametrize("by", ["hash", "time"])
def test_only_the_last_days_are_used_on_both_sides(by, time, tmp_path):
    frame = make_frame(480)  # 20 days
    chosen, contract = settings(tmp_path, {"window_days": 5}, by=by), make_contract(ID, time)
    name = store(tmp_path, frame, [479])
    holdout = define_holdout(chosen, contract, name)
    train, late = both(chosen, contract, name, Holdout.model_validate_json(holdout.model_dump_json()))
    first = frame["when"][478] - pd.Timedelta(days=5)
    assert sorted([*train.index, *late.index]) == list(frame.index[frame["when"] >= first][:-1])
    assert abs(len(late) / (len(train) + len(late)) - 0.2) < 0.1


def test_unchanged_rows_of_other_times_are_on_one_side():
    frame = make_frame(300)
    copies = frame.assign(when=frame["when"] + pd.Timedelta(days=400))
    np.testing.assert_array_equal(held(frame, SEEN), held(copies, SEEN))
    assert held(frame, SEEN).any()


def test_a_window_needs_a_column_with_the_role_time(tmp_path):
    with pytest.raises(UserError, match=r"\[data\] window_days needs a column"):
        define_holdout(settings(tmp_path, {"window_days": 5}), make_contract(ID), "v")


def test_a_sample_is_drawn_from_the_side_to_train_on_alone_and_is_the_same_each_time(tmp_path):
    frame, contract = make_frame(5000), make_contract(ID)
    name = store(tmp_path, frame, [])
    plain, sampled = settings(tmp_path), settings(tmp_path, train={"sample_rows": 400})
    whole, held = both(plain, contract, name, define_holdout(plain, contract, name))
    part, again = both(sampled, contract, name, define_holdout(sampled, contract, name))
    assert again.equals(held) and 300 < len(part) < 500 and set(part.index) < set(whole.index)
    other = settings(tmp_path, train={"sample_rows": 400, "seed": 1})
    assert set(both(other, contract, name, define_holdout(other, contract, name))[0].index) != set(part.index)
    assert part.equals(both(sampled, contract, name, define_holdout(sampled, contract, name))[0])


# By group, by stratum, and by time where rows belong together.


def test_the_former_name_of_a_random_split_is_read_in_settings_and_in_recorded_rules():
    assert settings(Path(), by="hash").split == settings(Path(), by="random").split
    old = Holdout.model_validate_json('{"split":{"by":"hash","holdout":0.2,"seed":0},"cutoff":null,"since":null}')
    np.testing.assert_array_equal(in_holdout(make_frame(500), make_contract(ID), old), held(make_frame(500), ID))


def test_by_group_needs_a_column_with_that_role_and_holds_out_whole_groups(tmp_path):
    frame, chosen = make_frame(300), settings(tmp_path, by="group")
    name = store(tmp_path, frame, [])
    with pytest.raises(UserError, match=r'by = "group" needs a column with metadata=\{"role": "group"\}'):
        define_holdout(chosen, make_contract(ID), name)
    contract = make_contract(ID, GROUP)
    train, late = both(chosen, contract, name, define_holdout(chosen, contract, name))
    assert len(train) + len(late) == 300 and not set(train["household"]) & set(late["household"])


def labelled(rows: int, seed: int = 0) -> pd.DataFrame:
    """Rows of which a hundredth are of a rare class."""
    frame = make_frame(rows, seed)
    rare = np.random.default_rng(seed).permutation(rows) < max(rows // 100, 5)
    return frame.assign(y=pd.Series(np.where(rare, "rare", "often"), dtype="str"))


CLASSES = Contract(problem="binary", target="y", columns=(ID, *FEATURES, Column(name="y", kind="text", role="target")))


@pytest.mark.parametrize("seed", range(5))
def test_by_stratum_each_class_is_held_out_at_its_share_and_stays_where_it_is_as_data_grows(tmp_path, seed):
    chosen = settings(tmp_path, by="stratified", seed=seed)
    first = labelled(1000, seed)
    holdout = define_holdout(chosen, CLASSES, store(tmp_path, first, []))
    sides = in_holdout(first, CLASSES, holdout)
    assert sides[(first["y"] == "rare").to_numpy()].sum() == 2
    assert abs(sides.sum() - 200) <= 3
    more = labelled(4000, seed).assign(**{"고객 id": [f"n{i}" for i in range(4000)]})
    more.loc[:9, "y"] = "rarer still"
    grown = pd.concat([more, first], ignore_index=True)
    again = define_holdout(chosen, CLASSES, store(tmp_path, grown, []))
    np.testing.assert_array_equal(in_holdout(grown, CLASSES, again)[4000:], sides)
    assert in_holdout(grown, CLASSES, again)[:10].sum() == 2
    assert abs(in_holdout(grown, CLASSES, again)[10:].mean() - 0.2) < 0.03
    recorded = Holdout.model_validate_json(again.model_dump_json())
    np.testing.assert_array_equal(in_holdout(grown, CLASSES, recorded), in_holdout(grown, CLASSES, again))


def test_by_stratum_of_a_number_every_tenth_is_held_out_at_its_share_and_the_tenths_stay(tmp_path):
    chosen, contract, frame = settings(tmp_path, by="stratified"), make_contract(ID), make_frame(1000)
    holdout = define_holdout(chosen, contract, store(tmp_path, frame, []))
    sides = pd.Series(in_holdout(frame, contract, holdout))
    assert sides.groupby(pd.qcut(frame["y"], 10, labels=False)).sum().between(18, 22).all()
    grown = pd.concat([frame, make_frame(500, 1).assign(**{"고객 id": "n", "y": 99.0})], ignore_index=True)
    grown.loc[1000:, "고객 id"] = [f"n{i}" for i in range(500)]
    again = define_holdout(chosen, contract, store(tmp_path, grown, []))
    assert again == holdout
    np.testing.assert_array_equal(in_holdout(grown, contract, again)[:1000], sides)


def test_by_stratum_what_would_be_on_both_sides_is_refused(tmp_path):
    chosen = settings(tmp_path, by="stratified")
    with pytest.raises(UserError, match='would put a "household" on both sides'):
        define_holdout(chosen, make_contract(GROUP), "v")
    twice = pd.concat([labelled(100), labelled(100).assign(y="rare")], ignore_index=True)
    with pytest.raises(UserError, match='would put a "고객 id" on both sides'):
        define_holdout(chosen, CLASSES, store(tmp_path, twice, []))


def test_by_time_no_group_is_on_both_sides_and_nothing_late_is_learned_from(tmp_path):
    frame = make_frame(600)
    frame["household"] = np.random.default_rng(0).integers(0, 300, 600) + np.arange(600) // 2
    chosen, contract = settings(tmp_path, by="time"), make_contract(GROUP, TIME)
    name = store(tmp_path, frame, [5])
    holdout = define_holdout(chosen, contract, name)
    train, late = both(chosen, contract, name, holdout)
    assert not set(train["household"]) & set(late["household"])
    assert train["when"].max() < pd.Timestamp(holdout.cutoff) <= late["when"].min()
    assert 0.2 <= len(late) / 599 < 0.25
    between = frame.drop(index=[5, *train.index, *late.index])
    assert set(between["household"]) <= set(frame["household"][frame["when"] < pd.Timestamp(holdout.cutoff)])
    np.testing.assert_array_equal(find_sides(frame.drop(index=5), contract, holdout)[1].sum(), len(late))


def test_by_time_groups_that_all_begin_at_once_are_refused_in_a_sentence(tmp_path):
    frame = pd.concat([make_frame(30)] * 2, ignore_index=True)
    frame["household"], frame["when"] = np.arange(60) % 30, frame["when"].dt.normalize().sort_values(ignore_index=True)
    frame["when"] = pd.Series(np.repeat(pd.to_datetime(["2024-01-01", "2024-01-02"]), 30)).astype("datetime64[us]")
    name = store(tmp_path, frame, [])
    with pytest.raises(UserError, match='cannot be split by time without a "household" on both sides'):
        define_holdout(settings(tmp_path, by="time"), make_contract(GROUP, TIME), name)


def test_both_sides_are_read_at_once_as_they_are_alone_and_few_of_those_held_out(tmp_path):
    frame, contract, chosen = make_frame(5000), make_contract(ID), settings(tmp_path)
    name = store(tmp_path, frame, [7])
    holdout = define_holdout(chosen, contract, name)
    train, held = both(chosen, contract, name, holdout)
    together, few = read_sides(chosen, contract, name, holdout, 200)
    assert together.equals(train) and 140 < len(few) < 270 and set(few.index) < set(held.index)
