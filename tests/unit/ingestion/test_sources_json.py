"""JSON Lines are read by Arrow where they are regular, and row by row where not: the same comes out."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondol.errors import UserError
from ondol.ingestion import json_files as json_columns
from ondol.ingestion import json_files as jsonlines
from ondol.ingestion.columns import Unusual
from ondol.ingestion.json_files import parse, write
from ondol.ingestion.sources import Reading, open_source, read_through

HEAD = '{"head": "x"}\n'


def table_of(folder: Path, text: str, columns: dict[str, str] | None = None) -> pa.Table:
    (folder / "t.jsonl").write_bytes(text.encode())
    source = open_source("t.jsonl", Reading(columns, folder))
    table = read_through(source, lambda batches: pa.Table.from_batches(list(batches)))
    table.validate(full=True)
    return table


def row_by_row(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise Unusual

    patch.setattr(json_columns.JsonReader, "_read", refuse)


REGULAR = '{"a": 1, "at": "2024-01-02", "o": {"x": 0.5, "p": {"y": true}}}\n{"o": {"z": "한"}, "b": null}\n'


def test_what_is_regular_is_not_looked_at_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "flatten", None)
    table = table_of(tmp_path, REGULAR * 3, {"a": "text"})
    assert table.schema.names == ["a", "at", "o.x", "o.p.y", "o.z", "b"]
    assert table.schema.types == [pa.string(), pa.string(), pa.float64(), pa.bool_(), pa.string(), pa.string()]
    assert table.slice(2, 2).to_pylist() == [
        {"a": "1", "at": "2024-01-02", "o.x": 0.5, "o.p.y": True, "o.z": None, "b": None},
        {"a": None, "at": None, "o.x": None, "o.p.y": None, "o.z": "한", "b": None},
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2.5"], [1.0, 2.5]),
        (["1", "2.0", '"x"'], ["1", "2.0", "x"]),
        (["9007199254740993"], [9007199254740993]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["18446744073709551616", "1"], ["18446744073709551616", "1"]),
        (["123456789012345678901234567890"], ["123456789012345678901234567890"]),
        (["-9223372036854775808"], ["-9223372036854775808"]),
        (["1e400", "-1e400"], [math.inf, -math.inf]),
        (["1e20", "1"], [1e20, 1.0]),
        (["Infinity", "1"], [math.inf, 1.0]),
        (["true", "1"], ["true", "1"]),
        (['"2024-01-01T00:00:00Z"', '"2024-01-01"'], ["2024-01-01T00:00:00Z", "2024-01-01"]),
        (['"a \\": b : c"', "null"], ['a ": b : c', None]),
        (['"\\u0000"', '"\U0001f600"', '"\\ud83d\\ude00"'], ["\0", "\U0001f600", "\U0001f600"]),
        (["null", "null"], [None, None]),
    ],
)
def test_values_are_what_json_has_in_the_widest_type(tmp_path, monkeypatch, values, expected):
    text = "".join(f'{{"v": {value}}}\n' for value in values)
    for _ in range(2):
        assert table_of(tmp_path, text).column("v").to_pylist() == expected
        row_by_row(monkeypatch)


def test_numbers_of_a_column_of_text_are_as_they_were_written(tmp_path):
    table = table_of(tmp_path, '{"v": 1}\n{"v": 1.0}\n{"v": 1e16}\n{"v": true}\n', {"v": "text"})
    assert table.column("v").to_pylist() == ["1", "1.0", "1e+16", "true"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"a": 1, "a": 2}\n', '2 columns named "a"'),
        ('{"a" : 1, "a"  : 2}\n', '2 columns named "a"'),
        ('{"o": {"a": 1, "a": 2}}\n', '2 columns named "a"'),
        ('{"a.b": 1, "a": {"b": 2}}\n', '2 columns named "a.b"'),
        ('{"a": 1}{"a": 2}\n', "Line 4"),
        ('{"a": 1},\n', "Line 4"),
        ('{"a":\n1}\n', "Line 4"),
        ("[1]\n", "Line 4"),
        ("5\n", "Line 4"),
        ('{"o": {"l": [1]}}\n', 'Line 4 of "t.jsonl" has a list in "o.l"'),
        ('{"a": "\\ud800"}\n', "not Unicode"),
        ('{"a":' * 5000 + "1" + "}" * 5000 + "\n", "Line 4"),
    ],
)
def test_a_bad_line_is_reported_by_its_number_and_blank_lines_count(tmp_path, lines, said):
    with pytest.raises(UserError) as caught:
        table_of(tmp_path, f"{HEAD}\n\r\n{lines}{HEAD}")
    assert said in str(caught.value)


NAMES = st.sampled_from(["a", "b", "c.d", "이름"])
PLAIN = (
    st.none() | st.booleans() | st.integers() | st.integers(-9, 9) | st.floats() | st.text(max_size=3)
    | st.sampled_from([2**53, 2**53 + 1, 2**63, 2**64, -(2**63), 1e16, "2024-01-01", "12:00", 'x": y'])
)  # fmt: skip
RECORDS = st.dictionaries(NAMES, PLAIN | st.dictionaries(NAMES, PLAIN, max_size=2), max_size=4)


@settings(deadline=None, max_examples=300)
@given(st.lists(RECORDS, min_size=1, max_size=8), st.booleans())
def test_arrow_and_row_by_row_give_the_same(tmp_path_factory, records, text):
    folder = tmp_path_factory.mktemp("same")
    lines = HEAD + "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    columns = dict.fromkeys(("a", "이름", "b.a"), "text") if text else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonlines, "BATCH_ROWS", 3)
        quick = outcome(folder, lines, columns)
        row_by_row(patch)
        slow = outcome(folder, lines, columns)
    assert quick == slow


def outcome(folder: Path, lines: str, columns: dict[str, str] | None) -> Any:
    try:
        table = table_of(folder, lines, columns)
    except UserError as error:
        return str(error)
    return {
        name: (str(table.schema.field(name).type), repr(table.column(name).to_pylist())) for name in table.schema.names
    }


@pytest.mark.parametrize(
    "value",
    [
        {"n": 2**64, "f": math.inf, "t": "\ud800"},
        {"n": None, "f": math.nan},
        {"n": None, "l": [1.5, None, {"x": -math.inf}]},
        {"한": "글", "q": 'a ": b', "b": True, "f": 0.1, "i": -(2**63)},
    ],
)
def test_what_is_written_is_read_again(value):
    assert repr(parse(write(value), "t")) == repr(value)
