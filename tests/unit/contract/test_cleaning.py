"""Cleaning: every Arrow type of a source as each kind of the contract; each value is read independently."""

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa_
import pyarrow as pa
import pytest
from pydantic import ValidationError

from ondol.config import load_settings
from ondol.contract import Column, describe, fit_encodings
from ondol.contract.checking import clean_column, to_required
from ondol.errors import UserError
from ondol.validation.validate import validation_id
from ondol_serving.contract import read_contract
from ondol_serving.request import Reader, compile_request

NAN = float("nan")
DAY = datetime(2024, 5, 1)


def clean(
    values: Any, kind: str, arrow: pa.DataType | None = None, formats: tuple[str, ...] | None = None
) -> tuple[list[Any], list[bool]]:
    """Return cleaned values, None if missing, and which were unreadable."""
    column = Column(name="x", kind=kind, nullable=True, formats=formats)  # type: ignore[arg-type]
    series, unreadable = clean_column(pa.chunked_array([pa.array(values, arrow)]), column)
    return [None if pd.isna(v) else v for v in series.tolist()], unreadable.tolist()


NUMBERS = [
    ([1, None, 3], pa.int8()),
    ([1, None, 3], pa.uint64()),
    ([1.0, None, 3.0], pa.float32()),
    ([1.0, NAN, 3.0], pa.float64()),
    (["1", None, "3"], pa.string()),
    ([" 1 ", "", "3.0"], pa.large_string()),
    (["1", "   ", "3e0"], pa.string()),
    ([Decimal("1.0"), None, Decimal("3.0")], pa.decimal128(5, 1)),
]


@pytest.mark.parametrize("kind", ["number", "integer"])
@pytest.mark.parametrize(("values", "arrow"), NUMBERS, ids=lambda v: str(v)[:20])
def test_numbers_are_read_from_every_numeric_and_text_type(values, arrow, kind):
    assert clean(values, kind, arrow) == ([1, None, 3], [False] * 3)


@pytest.mark.parametrize("kind", ["number", "integer"])
def test_booleans_are_not_numbers_typed_or_as_text(kind):
    """As in the service; a column that is text because of another cell has the same result."""
    assert clean([True, False, None], kind) == ([None] * 3, [True, True, False])
    assert clean(["true", "false", None], kind) == ([None] * 3, [True, True, False])


def test_texts_that_are_not_numbers_are_marked_and_spoil_no_neighbour():
    assert clean(["1", "much", "2,5", "0x10", None], "number") == (
        [1.0, None, None, None, None],
        [False, True, True, True, False],
    )


def test_infinite_numbers_are_unreadable():
    assert clean([1.0, np.inf, -np.inf], "number") == ([1.0, None, None], [False, True, True])
    assert clean(["1", "inf", "-Infinity"], "number")[1] == [False, True, True]


def test_fractions_are_not_integers():
    assert clean([1.0, 1.5, -0.5, -2.0], "integer") == ([1, None, None, -2], [False, True, True, False])
    assert clean(["1.0", "1.5"], "integer") == ([1.0, None], [False, True])


LARGE = 2**60 + 1


def test_endless_digits_and_fractions_beyond_what_is_exact_are_not_integers():
    texts = ["9" * 5000, f"{2**53}.5", "-" + "0" * 30 + "7", "3.5"]
    series, unreadable = clean_column(pa.chunked_array([pa.array(texts)]), Column(name="x", kind="integer"))
    assert unreadable.tolist() == [True, True, False, True] and series[2] == -7


@pytest.mark.parametrize(
    ("values", "arrow"),
    [
        ([LARGE, None], pa.int64()),
        ([str(LARGE), None, "oops"], pa.string()),
        ([f" +{LARGE} ", f"{LARGE}.0", f"-{LARGE}", "1e3", f"{2**63}", "00012"], pa.string()),
    ],
)
def test_large_integers_are_exact_beside_gaps_and_texts(values, arrow):
    series, unreadable = clean_column(pa.chunked_array([pa.array(values, arrow)]), Column(name="x", kind="integer"))
    known = {None: None, "oops": None, f"-{LARGE}": -LARGE, "1e3": 1000, f"{2**63}": None, "00012": 12}
    assert [None if pd.isna(value) else value for value in series] == [known.get(value, LARGE) for value in values]
    assert unreadable.tolist() == [value in ("oops", f"{2**63}") for value in values]


def test_large_integers_without_gaps_are_exact():
    assert clean([2**62 + 1, 1], "integer") == ([2**62 + 1, 1], [False, False])


BOOLEANS = [
    ([True, None, False], pa.bool_()),
    ([1, None, 0], pa.int64()),
    ([1.0, None, 0.0], pa.float64()),
    (["true", None, "false"], pa.string()),
    (["True", "", "FALSE"], pa.string()),
    ([" 1", " ", "0 "], pa.string()),
]


@pytest.mark.parametrize(("values", "arrow"), BOOLEANS, ids=lambda v: str(v)[:20])
def test_booleans_are_read_from_every_type_that_says_them(values, arrow):
    assert clean(values, "boolean", arrow) == ([1.0, None, 0.0], [False] * 3)


def test_other_values_are_not_booleans():
    assert clean(["yes", "2", "truee"], "boolean") == ([None] * 3, [True] * 3)
    assert clean([2, 1, -1], "boolean") == ([None, 1.0, None], [True, False, True])


DATES = [
    ([DAY, None], pa.timestamp("s")),
    ([DAY, None], pa.timestamp("ns")),
    ([date(2024, 5, 1), None], pa.date32()),
    ([date(2024, 5, 1), None], pa.date64()),
    (["2024-05-01", None], pa.string()),
    (["2024-05-01T00:00:00", ""], pa.string()),
    (["2024-05-01 09:00+09:00", " "], pa.string()),
    (["2024/05/01", None], pa.string()),
    (["2024.05.01", None], pa.string()),
    (["2024년 05월 01일", None], pa.string()),
    (["2024년 5월 1일", None], pa.string()),
    (["05/01/2024", None], pa.string()),
    (["May 1, 2024", None], pa.string()),
    (["1 May 2024", None], pa.string()),
    (["2024-05", None], pa.string()),
    (["2024/05", None], pa.string()),
]


@pytest.mark.parametrize(("values", "arrow"), DATES, ids=lambda v: str(v)[:24])
def test_dates_are_read_from_every_type_that_says_them(values, arrow):
    assert clean(values, "date", arrow) == ([DAY, None], [False, False])


def test_moments_in_a_zone_become_utc_without_one():
    moments = pd.Series(pd.to_datetime(["2024-05-01 09:00"])).dt.tz_localize("Asia/Seoul")
    assert clean(moments, "date") == ([DAY], [False])


def test_what_a_date_means_never_depends_on_its_neighbours():
    texts = ["05/01/2024", "2024-05-01", "2024.05.01", "13/01/2024", "soon", "May 2024"]
    together = clean(texts, "date")
    alone = [clean([text], "date") for text in texts]
    assert together == ([a[0][0] for a in alone], [a[1][0] for a in alone])
    assert together[1] == [False, False, False, True, True, False]


def test_numbers_are_not_dates_and_dates_not_numbers():
    assert clean([20240501, None], "date") == ([None, None], [True, False])
    assert clean([DAY, None], "number") == ([None, None], [True, False])
    assert clean([DAY, None], "boolean") == ([None, None], [True, False])


def test_listed_formats_take_the_place_of_month_day_year_and_of_no_standard_form():
    day_first = ("%d/%m/%Y",)
    texts = ["31/01/2024", "01/02/2024 10:30 PM", "01/31/2024", "2024-01-31", "31.01.2024"]
    wanted = [datetime(2024, 1, 31), datetime(2024, 2, 1, 22, 30), None, datetime(2024, 1, 31), datetime(2024, 1, 31)]
    assert clean(texts, "date", formats=day_first)[0] == wanted
    assert clean(["12/31/1999", "01/02/2024"], "date", formats=())[1] == [True, True]


@pytest.mark.parametrize(
    ("form", "said"),
    [("%d/%m", "does not say the year"), ("%d/%m/%Q", "%Q: known are %Y"), ("%y %Y %m", "twice"), ("%Y-%m %", "ends")],
)
def test_a_format_that_says_no_date_is_refused_in_a_sentence(form, said, tmp_path):
    (tmp_path / "config.toml").write_text(f'[data]\ndate_formats = ["{form}"]\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.date_formats") as refusal:
        load_settings(tmp_path)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_contract_carries_the_listed_formats_to_the_service():
    schema = type(
        "Schema",
        (pa_.DataFrameModel,),
        {
            "__annotations__": {"d": pd.Timestamp, "y": float},
            "d": pa_.Field(),
            "y": pa_.Field(metadata={"role": "target"}),
        },
    )
    contract = describe(schema, "y", "regression", ("%d/%m/%Y",))
    frame = pd.DataFrame({"d": pd.to_datetime(["2024-02-01", "2024-02-03"]), "y": [0.0, 1.0]})
    fitted = fit_encodings(contract, frame, parts=False)
    served = read_contract(json.loads(fitted.model_dump_json()))
    reader = Reader(served, compile_request(served, 1), 1)
    assert reader.read(b'{"rows": [{"d": "01/02/2024"}]}').rows == [(datetime(2024, 2, 1),)]
    with pytest.raises(ValidationError, match="ISO 8601 or %d/%m/%Y"):
        reader.read(b'{"rows": [{"d": "02/13/2024"}]}')
    document = json.loads(fitted.model_dump_json())
    del document["columns"][0]["formats"]  # as in a bundle of an earlier version
    older = read_contract(document)
    assert Reader(older, compile_request(older, 1), 1).read(b'{"rows": [{"d": "01/02/2024"}]}').rows == [
        (datetime(2024, 1, 2),)
    ]


def test_a_validation_of_other_date_formats_is_another_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "schema.py").write_text("", encoding="utf-8")
    names = set()
    for formats in ("", 'date_formats = ["%d/%m/%Y"]'):
        (tmp_path / "config.toml").write_text(f"[data]\n{formats}\n", encoding="utf-8")
        names.add(validation_id(load_settings(tmp_path), "0" * 64))
    assert len(names) == 2


def test_a_listed_format_that_looks_like_a_standard_form_is_read_alone():
    assert clean(["12.31.2024", "31.12.2024"], "date", formats=("%m.%d.%Y",))[1] == [False, True]
    assert clean(["2024-31-12", "2024-12-31"], "date", formats=("%Y-%d-%m",))[1] == [False, True]


def test_years_of_two_digits_and_bare_digits_are_dates_only_where_their_format_is_listed():
    for values, formats in ((["31/01/24"], ("%d/%m/%y",)), (["20240131"], ("%Y%m%d",)), ([20240131], ("%Y%m%d",))):
        assert clean(values, "date") == ([None], [True])
        assert clean(values, "date", formats=formats) == ([datetime(2024, 1, 31)], [False])


TEXTS = [
    (["a", None, " b "], pa.string(), ["a", None, " b "]),
    (["a", "", "\t "], pa.large_string(), ["a", None, None]),
    ([1, None, 20], pa.int64(), ["1", None, "20"]),
    ([True, None, False], pa.bool_(), ["true", None, "false"]),
    (["nan", "None", "NULL"], pa.string(), ["nan", "None", "NULL"]),
    (["서울", "🙂", "é"], pa.string(), ["서울", "🙂", "é"]),
]


@pytest.mark.parametrize(("values", "arrow", "wanted"), TEXTS, ids=lambda v: str(v)[:20])
def test_texts_are_kept_as_they_are_and_blank_ones_are_missing(values, arrow, wanted):
    assert clean(values, "text", arrow) == (wanted, [False] * 3)


def test_lists_structures_and_bytes_are_not_texts():
    for values in ([["a"], None], [{"a": 1}, None], [b"a", None]):
        assert clean(values, "text") == ([None, None], [True, False])


@pytest.mark.parametrize("kind", ["number", "integer", "boolean", "text", "date"])
def test_dictionaries_and_all_missing_columns_are_read_as_their_values(kind):
    given = {"number": "1", "integer": "1", "boolean": "1", "text": "1", "date": "2024-05-01"}[kind]
    encoded = pa.array([given, None, given]).dictionary_encode()
    column = Column(name="x", kind=kind, nullable=True)  # type: ignore[arg-type]
    series, unreadable = clean_column(pa.chunked_array([encoded]), column)
    assert series.isna().tolist() == [False, True, False] and not unreadable.any()
    assert clean([None, None], kind, pa.null()) == ([None, None], [False, False])
    assert clean([], kind, pa.string()) == ([], [])


@pytest.mark.parametrize(
    ("kind", "values", "nullable", "dtype"),
    [
        ("integer", [1, 2], False, "int64"),
        ("integer", [1, None], True, "Int64"),
        ("boolean", [True, False], False, "bool"),
        ("boolean", [True, None], True, "boolean"),
        ("number", [1, 2], False, "float64"),
        ("text", ["a", None], True, "str"),
        ("date", [DAY, None], True, "datetime64[us]"),
    ],
)
def test_valid_values_get_the_contracts_dtype(kind, values, nullable, dtype):
    column = Column(name="x", kind=kind, nullable=nullable)
    series, _ = clean_column(pa.chunked_array([pa.array(values)]), column)
    made = to_required(series, column)
    assert str(made.dtype) == dtype
    assert made.isna().tolist() == [v is None for v in values]
