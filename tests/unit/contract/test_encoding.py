"""Encodings: every value of training stays apart as float32, and unseen or missing ones have a place."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondol.contract import Column, Contract, encode, encode_target, fit_encodings
from ondol.contract.encoding import AFFINE, MOST_KNOWN, encode_column
from ondol.contract.schema import MISSING_TEXT, Encoding

TARGET = Column(name="y", kind="number", role="target")


def fitted(kind: str, values: Any) -> Column:
    """Return the column `x` with the encoding that `values` give."""
    column = Column(name="x", kind=kind, nullable=True)  # type: ignore[arg-type]
    contract = Contract(problem="regression", target="y", columns=(column, TARGET))
    return fit_encodings(contract, pd.DataFrame({"x": values, "y": 0.0})).column("x")


def tensor(kind: str, values: Any) -> np.ndarray:
    """Return `values` by the encoding that they give."""
    series = pd.Series(values)
    return encode_column(fitted(kind, series), series).to_numpy()


def rule(kind: str, values: Any) -> tuple[float, float]:
    encoding = fitted(kind, values).encoding
    assert encoding is not None
    return encoding.offset, encoding.scale


def kept_apart(kind: str, values: Any) -> bool:
    return len(np.unique(tensor(kind, values))) == len(np.unique(values))


@pytest.mark.parametrize("values", [[0, 1, 2], [-(2**24), 2**24], [5], [7, 7, 7], [0.5, np.nan], [1e-30, 2e-30]])
def test_what_float32_holds_is_left_as_it_is(values):
    assert rule("number", values) == (0.0, 1.0)
    np.testing.assert_array_equal(tensor("number", values), np.array(values, dtype=np.float32))


LARGE: dict[str, np.ndarray] = {
    "won": 10_000_000 + np.arange(5000) * 10_007 + 1,
    "won in tens": 3_000_000_000 + np.arange(5000) * 10,
    "won in thousands": np.arange(5000) * 1_000_000_000_000,
    "epoch seconds": 1_700_000_000 + np.arange(100_000),
    "epoch milliseconds": 1_700_000_000_000 + np.arange(100_000) * 1000,
    "negative": -(10**12) - np.arange(5000),
    "both signs": np.array([-(2**40), 0, 2**40, 2**40 + 2**20]),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_integers_stay_apart(name):
    assert kept_apart("integer", LARGE[name])


def test_the_common_step_is_the_scale():
    assert rule("integer", LARGE["won in tens"])[1] == 10.0
    assert rule("integer", LARGE["epoch milliseconds"])[1] == 1000.0
    assert rule("integer", LARGE["epoch seconds"])[1] == 1.0
    assert rule("integer", 10**9 + 125 * np.arange(4))[1] == 125.0


@pytest.mark.parametrize("name", LARGE)
def test_encoded_integers_are_whole_so_that_every_side_computes_the_same(name):
    made = tensor("integer", LARGE[name]).astype(np.float64)
    np.testing.assert_array_equal(made, np.round(made))


def test_fractions_near_a_large_number_stay_apart():
    assert kept_apart("number", 1e8 + np.arange(1000) / 8)
    assert kept_apart("number", 1000 + np.arange(1000) * 1e-5)


def test_numbers_beyond_float32_are_brought_into_it():
    values = np.array([-1e300, 0.0, 1e300])
    assert np.isfinite(tensor("number", values)).all() and kept_apart("number", values)


def test_order_is_never_reversed():
    for values in LARGE.values():
        assert (np.diff(tensor("integer", np.sort(values)).astype(np.float64)) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(-(10**15), 10**15),
    st.sampled_from([1, 2, 5, 10, 100, 1000, 86_400, 10**6]),
    st.lists(st.integers(0, 2**23), min_size=1, max_size=30),
)
def test_integers_on_a_grid_of_up_to_2_to_the_24_steps_stay_apart(first, step, places):
    values = np.array([first + step * place for place in places], dtype=np.int64)
    if np.abs(values).max() < 2**53:
        assert kept_apart("integer", values)


def test_a_constant_large_number_is_encoded_exactly():
    assert tensor("integer", [2**31 + 1] * 3).tolist() == [0.0] * 3


@pytest.mark.parametrize("kind", ["number", "integer", "boolean", "date"])
def test_an_all_missing_column_becomes_nan(kind):
    dtypes = {"number": "float64", "integer": "Int64", "boolean": "boolean", "date": "datetime64[us]"}
    assert np.isnan(tensor(kind, pd.Series([None, None], dtype=dtypes[kind]))).all()


def test_missing_numbers_of_every_dtype_become_nan():
    for values in (pd.array([1, None], "Int64"), pd.array([True, None], "boolean"), np.array([1.0, np.nan])):
        made = tensor("number", values)
        assert made.dtype == np.float32
        np.testing.assert_array_equal(made, np.array([1, np.nan], dtype=np.float32))


# Dates.


def test_dates_become_days_since_the_first_ones_midnight():
    dates = pd.Series(pd.to_datetime(["2024-05-03 12:00", "2024-05-01 06:00", None])).astype("datetime64[us]")
    column = fitted("date", dates)
    assert column.encoding is not None and column.encoding.origin == "2024-05-01T00:00:00"
    np.testing.assert_array_equal(encode_column(column, dates), np.array([2.5, 0.25, np.nan], dtype=np.float32))


def test_dates_may_all_be_after_what_nanoseconds_can_hold():
    dates = pd.Series(pd.to_datetime(["9998-12-31", "9999-12-31"])).dt.as_unit("us")
    frame = pd.DataFrame({"d": dates, "y": ["no", "yes"]})
    columns = (Column(name="d", kind="date"), Column(name="y", kind="text", role="target"))
    made = encode(fit_encodings(Contract(problem="binary", target="y", columns=columns), frame), frame)
    assert made["d"].tolist() == [0.0, 365.0]
    assert made.attrs[AFFINE]["d"] == (2932531.0, 1.0)


def test_later_and_earlier_dates_than_trainings_keep_their_place():
    column = fitted("date", pd.to_datetime(pd.Series(["2024-05-01", "2024-06-01"])))
    later = pd.to_datetime(pd.Series(["2024-04-30", "2034-05-01"]))
    assert encode_column(column, later).tolist() == [-1.0, 3652.0]


def test_moments_minutes_apart_over_years_stay_apart():
    moments = pd.Series(pd.date_range("2000-01-01", "2024-01-01", freq="7D"))
    moments = pd.concat([moments, moments + pd.Timedelta(minutes=5)], ignore_index=True)
    assert kept_apart("date", moments)


# Texts.


def test_missing_texts_of_every_sort_are_the_sentinel():
    column = fitted("text", pd.Series(["가", None], dtype="str"))
    made = encode_column(column, pd.Series(["가", None, np.nan, pd.NA, "", "nan", "None"], dtype=object))
    assert made.tolist() == ["가", *[MISSING_TEXT] * 4, "nan", "None"]


def test_known_texts_are_those_of_training_unless_there_are_too_many():
    few, many = fitted("text", ["b", "a", None, ""]), fitted("text", [str(i) for i in range(MOST_KNOWN + 1)])
    assert few.encoding is not None and many.encoding is not None
    assert few.encoding.known == ("a", "b") and few.encoding.missing == MISSING_TEXT
    assert many.encoding.known is None


# The frame.


def test_a_frame_is_encoded_by_real_names_in_the_contracts_order_under_its_index():
    columns = (
        Column(name="이름 (a)", kind="text"),
        Column(name="id", kind="text", role="id"),
        Column(name="class", kind="number"),
        TARGET,
    )
    frame = pd.DataFrame({"class": [1.0, 2.0], "y": 0.0, "이름 (a)": ["x", "y"], "id": ["1", "2"]}, index=[7, 3])
    contract = fit_encodings(Contract(problem="regression", target="y", columns=columns), frame)
    made = encode(contract, frame)
    assert list(made) == ["이름 (a)", "class"] and made.index.tolist() == [7, 3]
    assert [c.input for c in contract.columns] == ["c0", None, "c1", None]
    assert contract.column("id").encoding is None


def test_encoding_comes_after_fitting():
    with pytest.raises(ValueError, match="has no encoding"):
        encode_column(Column(name="x", kind="number"), pd.Series([1.0]))


def test_encoding_leaves_the_frame_as_it_was():
    frame = pd.DataFrame({"x": [2.0**31, 2.0**31 + 1], "y": 0.0})
    contract = Contract(problem="regression", target="y", columns=(Column(name="x", kind="number"), TARGET))
    before = frame.copy()
    encode(fit_encodings(contract, frame), frame)
    pd.testing.assert_frame_equal(frame, before)


# The target.


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([3, 1, 3], (1, 3)),
        ([True, False, True], (False, True)),
        (pd.array([3, 1, 3], "Int64"), (1, 3)),
        (pd.array([True, False, True], "boolean"), (False, True)),
    ],
)
def test_classes_are_sorted_json_scalars_and_the_target_their_index(values, classes):
    frame = pd.DataFrame({"x": 1.0, "y": pd.Series(values)})
    columns = (Column(name="x", kind="number"), Column(name="y", kind="text", role="target"))
    contract = fit_encodings(Contract(problem="binary", target="y", columns=columns), frame)
    assert contract.classes == classes
    assert [type(c) for c in contract.classes] == [type(c) for c in classes]
    assert encode_target(contract, frame["y"]).tolist() == [1, 0, 1]


def test_a_class_never_trained_on_is_minus_one():
    contract = Contract(problem="binary", target="y", classes=("a", "b"), columns=(TARGET,))
    assert encode_target(contract, pd.Series(["b", "c"])).tolist() == [1, -1]


def test_values_are_float64():
    contract = Contract(problem="regression", target="y", columns=(TARGET,))
    made = encode_target(contract, pd.Series([1, 2]))
    assert made.dtype == np.float64 and made.tolist() == [1.0, 2.0]


def test_an_encoding_without_offset_is_the_plain_cast():
    column = Column(name="x", kind="number", encoding=Encoding(tensor="float32"))
    values = pd.Series([0.1, 2**24 + 1])
    np.testing.assert_array_equal(encode_column(column, values), values.to_numpy().astype(np.float32))
