"""The sample: its parameters, its rows, and the effect of drift and shift on a model."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ondol.errors import UserError
from ondol.ingestion.sample import BLOCK, SCHEMA, generate, open_sample, write_csv
from ondol.ingestion.sources import open_source

TARGETS = ["churned", "next_plan", "next_spend"]


def table(**parameters) -> pa.Table:
    return pa.Table.from_batches(generate(**parameters))


def features(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.drop(columns=["customer_id", *TARGETS])
    frame["signup_month"] = (frame["signup_month"] - pd.Timestamp("2020-01-01")).dt.days
    words = frame.select_dtypes(exclude=["number", "bool"]).columns
    for word in words:
        frame[word] = frame[word].map(lambda value: len(str(value)) + ord(str(value)[0]))
    return frame.astype(float)


def test_longer_sample_begins_with_the_shorter_one():
    assert table(rows=3 * BLOCK).slice(0, 1_000).equals(table(rows=1_000))


def test_start_gives_the_rows_from_there_on_across_blocks():
    whole = table(rows=2 * BLOCK + 10)
    assert table(rows=BLOCK, start=BLOCK - 5).equals(whole.slice(BLOCK - 5, BLOCK))
    batches = [table(rows=700, start=700 * week) for week in range(30)]
    assert pa.concat_tables(batches).equals(whole.slice(0, 21_000))


def test_ids_are_unique_and_seeds_give_other_customers():
    assert pc.count_distinct(table(rows=50_000)["customer_id"]).as_py() == 50_000
    assert not table(rows=100, seed=1)["total_paid"].equals(table(rows=100)["total_paid"])


@pytest.mark.parametrize("moved", [{}, {"drift": 3}, {"shift": 3}, {"drift": 3, "shift": 3}])
def test_rows_stay_in_the_stated_ranges(moved):
    frame = table(rows=100_000, **moved).to_pandas()
    bounds = {
        "age": (14, 95),
        "tenure_months": (0, 239),
        "monthly_fee": (22_000, 114_800),
        "total_paid": (10_000, 60_000_000),
        "support_calls": (0, 30),
        "late_payments": (0, 30),
        "data_gb": (0, 404),
        "voice_minutes": (0, 2_981),
        "discount": (0, 0.45),
        "satisfaction": (1, 5),
        "next_spend": (1, 10_000_000),
    }
    for name, (low, high) in bounds.items():
        assert frame[name].dropna().between(low, high).all(), name
    assert (frame["signup_month"].dt.day == 1).all()
    assert set(frame["plan"]) == set(frame["next_plan"]) == {"basic", "plus", "premium"}
    assert set(frame["churned"]) == {"yes", "no"}
    missing = frame.isna().mean()
    assert set(missing.index[missing > 0]) == {"age", "payment_method", "data_gb", "satisfaction"}


def test_sample_holds_what_later_stages_must_survive():
    frame = table(rows=20_000).to_pandas()
    assert 0.2 < (frame["churned"] == "yes").mean() < 0.3
    large = frame["total_paid"][frame["total_paid"] > 2**24]
    assert len(large) > 20 and (large != large.astype(np.float32).astype(np.int64)).any()
    assert frame["region"].value_counts(normalize=True)[["제주", "세종"]].between(0.001, 0.02).all()


def test_all_batches_have_the_schema_of_21_columns():
    batches = list(generate(rows=BLOCK + 1))
    assert len(SCHEMA) == 21
    assert [batch.num_rows for batch in batches] == [BLOCK, 1]
    assert all(batch.schema == SCHEMA for batch in batches)


def test_drift_moves_features_more_the_larger_it_is():
    data, ages = [], []
    for drift in (0, 0.5, 1, 2, 3):
        moved = table(rows=5_000, drift=drift)
        data.append(pc.mean(moved["data_gb"]).as_py())
        ages.append(-pc.mean(moved["age"]).as_py())
    assert data == sorted(data) and ages == sorted(ages) and data[2] > 1.2 * data[0]


def test_shift_leaves_the_features_as_they_are():
    assert table(rows=2_000, shift=1).drop(TARGETS).equals(table(rows=2_000).drop(TARGETS))


def test_model_learns_the_sample_and_loses_to_shift_but_not_to_drift():
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    train = table(rows=4_000).to_pandas()
    model = HistGradientBoostingClassifier(learning_rate=0.08, max_leaf_nodes=15, random_state=0)
    model.fit(features(train), train["churned"])

    def area(**moved) -> float:
        frame = table(rows=4_000, start=4_000, **moved).to_pandas()
        return roc_auc_score(frame["churned"] == "yes", model.predict_proba(features(frame))[:, 1])

    plain = area()
    assert 0.83 < plain < 0.9
    assert area(drift=1) > plain - 0.02
    assert plain > area(shift=0.5) + 0.005 > area(shift=1) + 0.03 > area(shift=2) + 0.05


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sample://?row=3", 'unknown parameter "row". Did you mean "rows"?'),
        ("sample://?colour=3", "Known: rows, seed, drift, shift, start"),
        ("sample://?rows=1e6", "whole number"),
        ("sample://?rows=1_000", "whole number"),
        ("sample://?rows=", "whole number"),
        ("sample://?drift=nan", "a number such as 0.5"),
        ("sample://?rows=0", "1 to 10,000,000"),
        ("sample://?rows=10000001", "1 to 10,000,000"),
        ("sample://?drift=-1", "0 to 3"),
        ("sample://?rows=3&rows=4", "twice"),
        ("sample://churn", "is not a sample"),
    ],
)
def test_wrong_parameter_is_named_with_what_is_allowed(uri, words):
    with pytest.raises(UserError) as error:
        open_sample(uri)
    assert words in str(error.value) and uri in str(error.value)


def test_source_reads_its_uri_and_can_be_read_again():
    source = open_source("sample://?rows=20&seed=3&drift=0.5&shift=1&start=7")
    rows = pa.Table.from_batches(source.batches())
    assert rows.equals(table(rows=20, seed=3, drift=0.5, shift=1, start=7))
    assert rows.equals(pa.Table.from_batches(source.batches()))
    assert source.schema == SCHEMA


def test_fingerprint_tells_samples_apart_and_spellings_not():
    plain = open_sample("sample://").fingerprint()
    assert plain == open_sample("sample://?rows=5000&drift=0.0").fingerprint()
    others = ["rows=4999", "seed=1", "drift=0.1", "shift=0.1", "start=1"]
    assert len({plain, *(open_sample(f"sample://?{other}").fingerprint() for other in others)}) == 6


def test_csv_holds_the_same_rows(tmp_path: Path):
    path = tmp_path / "고객 표.csv"
    write_csv(path, 500, seed=2)
    read = pd.read_csv(path, parse_dates=["signup_month"])
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(SCHEMA.names)
    expected = table(rows=500, seed=2).to_pandas()
    pd.testing.assert_frame_equal(read, expected, check_dtype=False)


def test_command_writes_csv_and_explains_a_wrong_number(tmp_path: Path):
    command = [sys.executable, "-m", "ondol.ingestion.sample", str(tmp_path / "out.csv"), "--rows"]
    folder = Path(__file__).parents[3]
    subprocess.run([*command, "3"], check=True, cwd=folder)
    assert len((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()) == 4
    wrong = subprocess.run([*command, "0"], check=False, cwd=folder, capture_output=True, text=True)
    assert wrong.returncode == 2 and "1 to 10,000,000" in wrong.stderr and "Traceback" not in wrong.stderr
