"""The value of a cell never depends on its neighbours, on the type of its column, or on the reader."""

import csv
import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pandera.pandas as pa_
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ondol.contract import Column, Contract, describe, fit_encodings
from ondol.contract.checking import clean_column
from ondol.contract.encoding import encode_column
from ondol.contract.schema import Kind
from ondol.ingestion.csv_files import NULLS
from ondol.ingestion.sources import Reading, open_source, read_through
from ondol.ingestion.sql.types import fits, to_array
from ondol_serving.contract import Encoder, read_contract
from ondol_serving.grammar import date_grammar, normalize, parse_boolean, parse_duration, parse_integer, parse_number
from ondol_serving.request import Reader, compile_request

KINDS: tuple[Kind, ...] = get_args(Kind)
TARGET = Column(name="y", kind="number", role="target")
LEARNED: dict[Kind, pd.DataFrame] = {
    "number": pd.DataFrame({"지역": [0.0, 1.5], "y": [0.0, 1.0]}),
    "integer": pd.DataFrame({"지역": [0, 1], "y": [0.0, 1.0]}),
    "boolean": pd.DataFrame({"지역": [False, True], "y": [0.0, 1.0]}),
    "text": pd.DataFrame({"지역": ["a", "b"], "y": [0.0, 1.0]}),
    "date": pd.DataFrame({"지역": pd.to_datetime(["2024-01-01", "2024-01-02"]), "y": [0.0, 1.0]}),
    "duration": pd.DataFrame({"지역": pd.to_timedelta([1, 2], unit="s"), "y": [0.0, 1.0]}),
}
DRAWN = 10_000
NUMBERS = (
    *("1", "-1", "+5", "0", "-0", "1.0", "1.", ".5", "+.5", "0.1", "1e3", "1E+5", "1e-400", "1e400", "-1e400", "00012"),
    *("0x10", "0X1f", "1_000", "1,234", "1 2", "1d3", "1e", ".", "e5", "--5", "+-5", "inf", "-Infinity", "nan", "NAN"),
    *("nan(1)", "１２", "٣", " 7 ", "\u00a07", "true", "FALSE", "9007199254740993", "9007199254740992.5", "2147483648"),
    *("9223372036854775807", "9223372036854775808", "1e18", "0.1234567890123456789", "2.2250738585072011e-308", "much"),
)
DATES = (
    *("2024-01-31", "2024-02-30", "2024-1-5", "2024-01", "2024", "20240131", "2024-01-31T10", "2024-01-31 10:30"),
    *("2024-01-31T10:30:00.123456789", "2024-01-31 10:30:00.5+09:00", "2024-01-31T10:30Z", "2024-01-31T24:00"),
    *("0001-01-01", "0000-01-01", "0001-01-01T00:00+09:00", "9999-12-31", "9999-12-31T23:59:59.999999", "10000-01-01"),
    *("1677-09-21", "2262-04-12", "2024/01/31", "2024.1.31", "2024/01", "01/31/2024", "31/01/2024", "05/01/20"),
    *(
        "31.01.2024",
        "2024년 1월 31일",
        normalize("2024년 1월 31일").replace("년", "\u1102\u1167\u11ab"),
        "2024. 1. 31.",
    ),
    *(
        "Jan 31, 2024",
        "31-JAN-2024 3:04 pm",
        "Jan 2024",
        "now",
        "today",
        "NaT",
        ".5",
        "--5",
        "1",
        "soon",
        " 2024-01-31 ",
    ),
    *("2024-W05-1", "2024-01-31 10:30:61", "20240131T103000Z", "1/2/3"),
)
DURATIONS = (
    *("P1D", "-P1DT2H", "PT0.5S", "P1M", "P1Y", "P", "PT", "P1W", "26:03:04", "1:99:99", "00:00:00.123456789", "02:03"),
    *("1 days 02:03:04", "-1 days +02:03:04", "-1 day, 2:03:04", "3 days", "5 min", "1,234", "1 2", "2021-06", "1e11"),
    *("1.5", "-2", "1e12", "0.0000005", "0.000001", "inf", "now", " 7 ", "PT9999999999999999S", "99999999999:00:00"),
)
TEXTS = (
    "a",
    " a ",
    "é",
    "e\u0301",
    "서울",
    "\u1109\u1165\u110b\u116e\u11af",
    "ﬁ",
    "Å",
    "\u212b",
    "🙂",
    "x\u0316\u0301",
    "1",
    "true",
    "\t",
)
NASTY: dict[Kind, Sequence[str]] = {
    "number": NUMBERS,
    "integer": NUMBERS,
    "boolean": (*NUMBERS, "True", " false ", "yes", "t", "TRUEE"),
    "text": (*TEXTS, *NUMBERS[:10], *DATES[:5]),
    "date": DATES,
    "duration": (*DURATIONS, *NUMBERS[:12]),
}
SCALAR: dict[Kind, Callable[[str], Any]] = {
    "number": parse_number,
    "integer": parse_integer,
    "boolean": parse_boolean,
    "text": normalize,
    "date": date_grammar().parse,
    "duration": parse_duration,
}
TYPED: dict[Kind, list[tuple[pa.DataType, list[Any]]]] = {
    "number": [
        (pa.float64(), [0.1, float("inf"), float("nan"), 1e300, -0.0]),
        (pa.float32(), [0.1, 1e38]),
        (pa.int64(), [1, 2**63 - 1, -(2**53) - 1]),
        (pa.uint64(), [2**64 - 1, 1]),
        (pa.decimal128(38, 9), [Decimal("123456789.123456789"), Decimal("0.000000001")]),
        (pa.bool_(), [True, False]),
    ],
    "integer": [
        (pa.float64(), [1.0, 1.5, 1e18, 1e19, float("inf")]),
        (pa.uint64(), [2**64 - 1, 2**63, 7]),
        (pa.decimal128(38, 2), [Decimal("12.00"), Decimal("0.50"), Decimal(10) ** 30]),
    ],
    "boolean": [(pa.float64(), [0.0, 1.0, 0.5]), (pa.int8(), [0, 1, 2]), (pa.decimal128(5, 1), [Decimal("1.0")])],
    "text": [(pa.int64(), [1, 20]), (pa.bool_(), [True]), (pa.large_string(), ["e\u0301", "a"])],
    "date": [
        (pa.timestamp("s"), [0, 253_402_300_799, 253_402_300_800, -62_135_596_800, -62_135_596_801, 2**62]),
        (pa.timestamp("ms"), [0, 253_402_300_799_999, 253_402_300_800_000, 2**62]),
        (pa.timestamp("us"), [0, 2**62, -(2**62)]),
        (pa.timestamp("ns"), [0, 999, -1, 2**62]),
        (pa.timestamp("ns", "Asia/Seoul"), [0, 999, -1, 2**62]),
        (pa.date32(), [0, 2**30, -719_162, -719_163]),
        (pa.date64(), [0, 86_400_000]),
        (pa.int64(), [20240131, 0]),
    ],
    "duration": [
        (pa.duration("s"), [0, 1, 10**11, 10**11 + 1, 2**62]),
        (pa.duration("ms"), [1, 2**62]),
        (pa.duration("us"), [1, 2**62]),
        (pa.duration("ns"), [499, 500, 501, 1500, -1500, 2**62]),
        (pa.float64(), [1.5, 1e11, 1e12, float("nan")]),
        (pa.time64("us"), [1, 86_399_999_999]),
    ],
}


def clean(values: Sequence[Any], kind: Kind, arrow: pa.DataType | None = None) -> list[Any]:
    """Return the values of a column: "bad" if unreadable, None if missing."""
    column = Column(name="x", kind=kind, nullable=True)
    series, bad = clean_column(pa.chunked_array([pa.array(values, arrow)]), column)
    return meaning(series, bad)


def meaning(series: "pd.Series[Any]", bad: np.ndarray) -> list[Any]:
    """Return cleaned values in a form of their own: 1, 1.0 and true of one kind are equal, NaN is None."""
    return [
        "bad" if unreadable else None if pd.isna(value) else (float(value) if isinstance(value, bool) else value)
        for value, unreadable in zip(series.tolist(), bad.tolist(), strict=True)
    ]


def alone(values: Sequence[Any], kind: Kind, arrow: pa.DataType | None = None) -> list[Any]:
    return [clean([value], kind, arrow)[0] for value in values]


def by_grammar(text: str, kind: Kind) -> Any:
    """Return the grammar's result for a text, in the form of `clean`."""
    if not text.strip():
        return None
    read = SCALAR[kind](text)
    if read is None:
        return "bad"
    if kind == "duration":
        return pd.Timedelta(read, "us")
    return float(read) if isinstance(read, bool) else read


@pytest.mark.parametrize("kind", KINDS)
def test_each_nasty_text_means_beside_every_other_what_it_means_alone(kind):
    single = dict(zip(NASTY[kind], alone(NASTY[kind], kind), strict=True))
    assert single == {text: by_grammar(text, kind) for text in NASTY[kind]}
    for one in NASTY[kind]:
        pairs = [text for other in NASTY[kind] for text in (one, other)]
        assert clean(pairs, kind) == [single[text] for text in pairs]
        assert [clean([one, other], kind)[0] for other in NASTY[kind][::5]] == [single[one]] * len(NASTY[kind][::5])


@pytest.mark.parametrize(
    ("kind", "arrow", "values"),
    [(kind, arrow, values) for kind, columns in TYPED.items() for arrow, values in columns],
    ids=str,
)
def test_each_typed_value_means_beside_every_other_what_it_means_alone(kind, arrow, values):
    single = alone([*values, None], kind, arrow)
    assert clean([*values, None], kind, arrow) == single
    for one, expected in zip(values, single, strict=False):
        for other in values:
            assert clean([other, one], kind, arrow)[1] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_typed_value_means_what_its_text_means(kind):
    """A column turns into text where another file, or another cell, does not fit its type."""
    for arrow, values in TYPED[kind]:
        array = pa.array([value for value in values if value == value], arrow)
        if pa.types.is_duration(arrow) or pa.types.is_float32(arrow):
            continue  # no source gives them as they are
        if kind == "text" or (pa.types.is_temporal(arrow) and "ns" in str(arrow)):
            continue
        assert clean(array.cast(pa.string()), kind) == clean(array, kind), arrow


def test_moments_and_durations_out_of_range_are_bad_and_shift_no_other():
    assert clean([253_402_300_799, 2**62, 0], "date", pa.timestamp("s")) == [
        pd.Timestamp("9999-12-31 23:59:59"),
        "bad",
        pd.Timestamp(0),
    ]
    assert clean([2**62, 1], "duration", pa.duration("s")) == ["bad", pd.Timedelta(1, "s")]


# --- drawn ----------------------------------------------------------------------------------------------------------

letters = st.text(st.characters(codec="utf-8"), max_size=12)
pieces = {
    "number": st.one_of(st.floats().map(repr), st.integers().map(str), st.decimals(allow_nan=False).map(str)),
    "boolean": st.sampled_from(["true", "False", "1", "0", "TRUE", "1.0"]),
    "date": st.one_of(
        st.datetimes(timezones=st.just(UTC) | st.none()).map(lambda moment: moment.isoformat()),
        st.dates().map(str),
        st.dates().map(lambda day: day.strftime("%Y/%m/%d")),
        st.dates(date(1000, 1, 1)).map(lambda day: f"{day.day}.{day.month}.{day.year}"),
    ),
    "duration": st.one_of(
        st.timedeltas(timedelta(-(10**5)), timedelta(10**5)).map(str),
        st.floats(-1e12, 1e12).map(repr),
        st.from_regex(r"-?P([0-9]{1,3}D)?(T([0-9]{1,2}H)?([0-9]{1,3}(\.[0-9]{1,8})?S)?)?", fullmatch=True),
    ),
    "text": letters,
}
pieces["integer"] = pieces["number"]


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_texts_mean_together_what_each_means_alone_and_what_the_grammar_says(kind):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.one_of(pieces[kind], st.sampled_from(NASTY[kind]), letters), min_size=1, max_size=12))
    def check(texts: list[str]) -> None:
        together = clean(texts, kind, pa.string())
        assert together == alone(texts, kind, pa.string())
        assert together == [by_grammar(text, kind) for text in texts]

    check()


# --- through the readers ---------------------------------------------------------------------------------------------


def read(path: Path, kinds: dict[str, str]) -> pa.Table:
    source = open_source(str(path), Reading(kinds, path.parent))
    return read_through(source, lambda batches: pa.Table.from_batches(list(batches)))


def write_csv(path: Path, rows: Sequence[Sequence[Any]], names: Sequence[str] | None = None) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([names or [f"c{place}" for place in range(len(rows[0]))], *rows])
    return path


def write_lines(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    lines = (json.dumps({f"c{place}": value for place, value in enumerate(row)}) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def meanings(table: pa.Table, kind: Kind) -> list[list[Any]]:
    """Return the values of each column of a table."""
    return [
        meaning(*clean_column(table.column(name), Column(name=name, kind=kind, nullable=True)))
        for name in table.column_names
    ]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers read about one row at a time, so that they find a changed type of a column late."""
    monkeypatch.setattr("ondol.ingestion.csv_files.BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr("ondol.ingestion.csv_files.HELD_BYTES", 0)
    monkeypatch.setattr("ondol.ingestion.json_files.BATCH_ROWS", 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", [write_csv, write_lines], ids=["csv", "json"])
def test_a_cell_of_a_file_means_beside_another_what_it_means_alone(kind, write, tmp_path, small_blocks):
    """Each pair is a column of two rows, in separate blocks; for comparison, each value is also read alone."""
    texts = [text for text in NASTY[kind] if text.lower() not in ("nan", "\t")]  # which are missing in a CSV
    pairs = [(one, other) for one in texts for other in texts[::3]]
    kinds = {f"c{place}": kind for place in range(len(pairs))}
    single = dict(
        zip(texts, (column[0] for column in meanings(read(write(tmp_path / "one", [texts]), kinds), kind)), strict=True)
    )
    assert single == {text: by_grammar(text, kind) for text in texts}
    filler = [[one for one, _ in pairs]] * 2
    found = meanings(read(write(tmp_path / "two", [*filler, [other for _, other in pairs]]), kinds), kind)
    assert found == [[single[one], single[one], single[other]] for one, other in pairs]


JSON_VALUES: list[Any] = [1, 1.5, -0.0, 2**53 + 1, 2**63, 10**400, 1e18, float("nan"), True, False, None, "", "1", "x"]
JSON_VALUES += ["2024-01-31", "now", 20240131, "P1D", "P1M", "1 2", "e\u0301", float("inf"), "true", "0x10"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_json_value_means_beside_another_what_it_means_alone(kind, tmp_path, small_blocks):
    kinds = {f"c{place}": kind for place in range(len(JSON_VALUES) ** 2)}
    single = [column[0] for column in meanings(read(write_lines(tmp_path / "one", [JSON_VALUES]), kinds), kind)]
    pairs = [(one, other) for one in range(len(JSON_VALUES)) for other in range(len(JSON_VALUES))]
    rows = [[JSON_VALUES[pair[side]] for pair in pairs] for side in (0, 1)]
    found = meanings(read(write_lines(tmp_path / "two", rows), kinds), kind)
    assert found == [[single[one], single[other]] for one, other in pairs]


@pytest.mark.parametrize("other", [20240131, 20240131.5, True, "now", None])
def test_a_day_of_digits_means_the_same_as_a_float_beside_other_json_values(other, tmp_path, small_blocks):
    column = Column(name="c0", kind="date", nullable=True, formats=("%Y%m%d",))
    table = read(write_lines(tmp_path / "days", [[20240131.0], [other]]), {"c0": "date"})
    days, bad = clean_column(table.column("c0"), column)
    assert days[0] == pd.Timestamp("2024-01-31") and not bad[0]


def test_a_table_of_many_files_of_all_types_means_what_each_file_means(tmp_path):
    columns: dict[str, list[pa.Array]] = {
        "number": [pa.array([1, 2**53 + 1]), pa.array([0.5, float("nan")]), pa.array(["1e3", "x"]), pa.array([True])],
        "integer": [pa.array([2**60 + 1, 3]), pa.array([1.0, float("nan")]), pa.array(["1e3", "x"]), pa.array([5, 6])],
        "date": [
            pa.array([0, 2**40], pa.timestamp("s")),
            pa.array([0, 999], pa.timestamp("ns")),
            pa.array(["2024-01-31 10:00", "now"]),
            pa.array([2**30, 1], pa.date32()),
        ],
        "duration": [pa.array([1, 2**62], pa.duration("s")), pa.array([1.5]), pa.array(["P1D", "P1M"]), pa.array([7])],
    }
    for name, parts in columns.items():
        kind: Any = name
        folder = tmp_path / name
        folder.mkdir()
        for place, values in enumerate(parts):
            pq.write_table(pa.table({"c0": values}), folder / f"{place}.parquet")
        apart = [meanings(read(folder / f"{place}.parquet", {"c0": kind}), kind)[0] for place in range(len(parts))]
        assert meanings(read(folder, {"c0": kind}), kind)[0] == [value for part in apart for value in part], name


def test_decimals_of_parquet_are_the_nearest_doubles(tmp_path):
    drawn = random.Random(0)
    values = [Decimal(drawn.randrange(10**15)).scaleb(-4) for _ in range(1000)]
    pq.write_table(pa.table({"x": pa.array(values, pa.decimal128(38, 4))}), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet", {"x": "number"}).column("x").to_pylist() == [float(value) for value in values]


def test_decimals_of_a_database_beyond_doubles_are_read_as_they_are_written():
    """A float64 would be another whole number, and one that is exact does not depend on it."""
    large, small = Decimal(2**53 + 1), Decimal("0.1")
    assert not fits([small, large], pa.float64()) and fits([small, Decimal(2) ** 60, None], pa.float64())
    for values in ([large, small], [small, large]):
        texts = to_array(values, pa.string()).to_pylist()
        assert dict(zip(values, clean(texts, "integer"), strict=True)) == {large: 2**53 + 1, small: "bad"}
        assert dict(zip(values, clean(texts, "number"), strict=True)) == {large: 2.0**53, small: 0.1}


def test_decimals_of_parquet_in_an_integers_place_are_exact(tmp_path):
    values = [Decimal("12345678901234567.00"), Decimal("1.50")]
    pq.write_table(pa.table({"x": pa.array(values, pa.decimal128(38, 2))}), tmp_path / "d.parquet")
    assert meanings(read(tmp_path / "d.parquet", {"x": "integer"}), "integer") == [[12345678901234567, "bad"]]


@pytest.mark.parametrize("zone", [None, "UTC", "+05:30"])
def test_nanoseconds_of_parquet_are_cut_as_those_of_texts_are_before_1970_too(zone, tmp_path):
    moments = pa.array([-1, -1_000, -1_001, 0, 999, None], pa.int64()).cast(pa.timestamp("ns", zone))
    pq.write_table(pa.table({"c0": moments}), tmp_path / "t.parquet")
    [found] = meanings(read(tmp_path / "t.parquet", {"c0": "date"}), "date")
    texts = [f"1969-12-31T23:59:59.{digits}" for digits in ("999999999", "999999000", "999998999")]
    texts += ["1970-01-01T00:00:00.000000000", "1970-01-01T00:00:00.000000999"]
    assert found[:-1] == alone(texts, "date")


def test_moments_of_spark_beyond_nanoseconds_are_read_as_they_are(tmp_path):
    moments = pa.array([datetime(9999, 12, 31), datetime(2024, 1, 31), datetime(1, 1, 1)], pa.timestamp("us"))
    pq.write_table(pa.table({"x": moments}), tmp_path / "d.parquet", use_deprecated_int96_timestamps=True)
    assert read(tmp_path / "d.parquet", {"x": "date"}).column("x").to_pylist() == moments.to_pylist()


def test_bounds_of_dates_do_not_depend_on_the_time_zone_of_the_machine(monkeypatch):
    class Schema(pa_.DataFrameModel):
        when: pd.Timestamp = pa_.Field(ge=datetime(2024, 1, 1))
        until: pd.Timestamp = pa_.Field(ge=pd.Timestamp("2024-01-01"))
        y: float = pa_.Field(metadata={"role": "target"})

    monkeypatch.setenv("TZ", "Asia/Seoul")
    time.tzset()
    try:
        bounds = [column.minimum for column in describe(Schema, "y", "regression").features]
        assert bounds == [datetime(2024, 1, 1, tzinfo=UTC).timestamp()] * 2
        assert clean(["2024-01-01", "2024-01-01T00:00+09:00"], "date") == [
            datetime(2024, 1, 1),
            datetime(2023, 12, 31, 15),
        ]
    finally:
        monkeypatch.undo()
        time.tzset()


# --- training, batch prediction and service ---------------------------------------------------------------------------

WORDS = (
    "now",
    "P1M",
    "1,234",
    "1 2",
    "2021-06",
    "e\u0301",
    "서울",
    "\u1109\u1165",
    "x",
    "-",
    "NaN",
    "inf",
    "0x1",
    "５",
)


def draw_text(drawn: random.Random) -> str:
    """Return arbitrary text: letters of any script, signs, controls, combining marks."""
    codes = [drawn.choice((drawn.randrange(32, 127), drawn.randrange(1, 0x250), drawn.randrange(0x300, 0xD800)))]
    return "".join(chr(drawn.choice(codes) + drawn.randrange(3)) for _ in range(drawn.randrange(8)))


def draw_number(drawn: random.Random) -> str:
    number = drawn.choice((drawn.uniform(-1e6, 1e6), drawn.uniform(0, 1) * 10.0 ** drawn.randrange(-300, 30)))
    exact = drawn.choice((drawn.randrange(-(2**70), 2**70), drawn.randrange(-100, 100), 2**53 + drawn.randrange(9)))
    return drawn.choice((repr(number), str(exact), f"{number:.25g}", f"{number:.3e}", f"{exact}.0", f"+{exact}"))


def draw_date(drawn: random.Random) -> str:
    moment = datetime(1, 1, 1) + timedelta(seconds=drawn.randrange(0, 315_537_897_599), microseconds=drawn.randrange(9))
    day = drawn.choice((f"{moment:%Y-%m-%d}", f"{moment.year:04}/{moment.month}/{moment.day}", f"{moment:%d.%m.%Y}"))
    day = drawn.choice(
        (day, f"{moment:%m/%d/%Y}", f"{moment.year}년 {moment.month}월 {moment.day}일", f"{moment:%d %b %Y}")
    )
    time = drawn.choice(
        ("", "T" + str(moment.time()), f" {moment:%I:%M %p}", f" {moment:%H:%M}", f"T{moment:%H:%M:%S.%f}123")
    )
    return day + time + drawn.choice(("", "", "Z", "+09:00", " UTC", "+0530", "-23:59"))


def draw_duration(drawn: random.Random) -> str:
    span = timedelta(seconds=drawn.uniform(-1e8, 1e8))
    iso = f"P{drawn.randrange(99)}DT{drawn.randrange(30)}H{drawn.randrange(70)}M{drawn.uniform(0, 60):.7f}S"
    return drawn.choice(
        (str(span), iso, "-" + iso, repr(drawn.uniform(-2e11, 2e11)), f"{drawn.randrange(99)}:05:06.1234567")
    )


DRAWS: dict[Kind, Callable[[random.Random], str]] = {
    "number": draw_number,
    "integer": draw_number,
    "boolean": lambda drawn: drawn.choice(("true", "FALSE", "1", "0", "1.0", "2", "yes")),
    "text": draw_text,
    "date": draw_date,
    "duration": draw_duration,
}


def draw(kind: Kind) -> list[str]:
    """Return texts by the grammar, some of them spoiled in a place, and arbitrary ones."""
    drawn, made = random.Random(kind), []
    while len(made) < DRAWN:
        text = (
            draw_text(drawn)
            if drawn.random() < 0.1
            else drawn.choice(NASTY[kind] + WORDS)
            if drawn.random() < 0.1
            else DRAWS[kind](drawn)
        )
        if drawn.random() < 0.2:
            place = drawn.randrange(len(text) + 1)
            text = text[:place] + drawn.choice("0159-+:./, eTZPx년e\u0301") + text[place + drawn.randrange(2) :]
        made.append(drawn.choice(("", "", "", " ")) + text)
    return made


def to_json(text: str, kind: Kind) -> Any:
    """Return the value in a request for the cell of a CSV.

    JSON has types. What a text says as a number is a JSON number in a request, and what it says as a boolean is true or
    false; dates, durations and texts are JSON texts. What says nothing of the kind is sent as the text that it is, and
    so is a fraction beyond 2^53 in an integer's place, which the doubles of JSON do not have.
    """
    if kind == "integer" and abs(parse_number(text) or 0) >= 2**53:
        return parse_integer(text)
    if kind in ("number", "integer"):
        exact = parse_integer(text)
        return parse_number(text) if exact is None else exact
    return parse_boolean(text) if kind == "boolean" else text


def in_reach(text: str) -> bool:
    """Return True unless a text is a number beyond float32, in which models compute: the service refuses it."""
    return abs(parse_number(text) or 0.0) < 1e38


@pytest.mark.parametrize("kind", KINDS)
def test_training_batch_and_service_read_the_same_of_ten_thousand_drawn_values(kind, tmp_path):
    texts = [text for text in draw(kind) if text not in NULLS and text.strip() and in_reach(text)]
    column = Column(name="지역", kind=kind)
    trained = fit_encodings(Contract(problem="regression", target="y", columns=(column, TARGET)), LEARNED[kind])
    path = write_csv(tmp_path / "t.csv", [[text] for text in texts], ["지역"])
    series, bad = clean_column(read(path, {"지역": kind}).column(0), trained.column("지역"))
    training = encode_column(trained.column("지역"), series[~bad])

    batch = Contract.model_validate_json(trained.model_dump_json())  # as the bundle carries it
    lines = tmp_path / "t.jsonl"
    values = [text if (value := to_json(text, kind)) is None else value for text in texts]
    lines.write_text("".join(json.dumps({"지역": value}) + "\n" for value in values), encoding="utf-8")
    again, worse = clean_column(read(lines, {"지역": kind}).column(0), batch.column("지역"))
    assert worse.tolist() == bad.tolist()
    assert encode_column(batch.column("지역"), again[~worse]).tolist() == training.tolist()

    contract = read_contract(json.loads(trained.model_dump_json()))
    reader, encoder = Reader(contract, compile_request(contract, 1), 1), Encoder(contract.features)
    served: list[Any] = []
    refused = []
    for value in values:
        try:
            served += encoder.encode(reader.read(json.dumps({"rows": [{"지역": value}]}).encode()).rows)["c0"][
                0
            ].tolist()
            refused.append(False)
        except ValidationError:
            refused.append(True)
    assert refused == bad.tolist()
    assert served == training.tolist()
    assert 0.02 < np.mean(bad) < 0.9 or kind == "text"
