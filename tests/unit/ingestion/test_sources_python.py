"""`python://module:function`: what a function of the project returns is a table, and its mistakes are one sentence."""

import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from ondol.errors import UserError
from ondol.ingestion.python import change_rows
from ondol.ingestion.sources import Reading, Source, open_source, read_through

URI = "python://own_source:rows"
KINDS = {"a": "integer", "b": "text"}
FRAMES = """
import pandas as pd
import pyarrow as pa

def rows():
    {body}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Open the source whose function has a body."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(body: str) -> Source:
        sys.modules.pop("own_source", None)
        (tmp_path / "own_source.py").write_text(FRAMES.format(body=body), encoding="utf-8")
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return open_source(URI, Reading(KINDS, tmp_path))

    return make


def read(source: Source) -> list[dict[str, object]]:
    return read_through(source, lambda batches: pa.Table.from_batches(list(batches))).to_pylist()


@pytest.mark.parametrize(
    "body",
    [
        "return pd.DataFrame({'a': [1, 2], 'b': ['x', None]}, index=[7, 7])",
        "return pa.table({'a': [1, 2], 'b': ['x', None]})",
        "return [pd.DataFrame({'a': [1], 'b': ['x']}), pd.DataFrame({'a': [2], 'b': [None]})]",
        "yield pa.record_batch({'a': [1], 'b': ['x']})\n    yield pa.table({'b': [None], 'a': [2]})",
    ],
)
def test_frames_tables_and_batches_are_one_table(source, body):
    assert read(source(body)) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]


def test_types_are_settled_over_all_tables(source):
    made = source("yield pd.DataFrame({'a': [1], 'c': [1]})\n    yield pd.DataFrame({'a': [2], 'c': [0.5]})")
    assert [field.type for field in made.schema] == [pa.int64(), pa.float64()]
    assert [row["c"] for row in read(made)] == [1.0, 0.5]


def test_fingerprint_is_that_of_the_rows(source):
    same = "return pd.DataFrame({{'a': [{}]}})".format
    first = source(same(1)).fingerprint()
    assert source(same(1)).fingerprint() == first
    assert source(same(2)).fingerprint() != first


def test_nothing_is_left_of_the_rows_that_were_read(source, tmp_path):
    made = source("return pd.DataFrame({'a': [1]})")
    read(made)
    del made
    assert not [path for path in (tmp_path / ".ml").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no\\n  table')", "ValueError: no table."),
        ("yield pd.DataFrame({'a': [1]})\n    raise KeyError('x')", "KeyError: 'x'."),
        ("return 5", "returned int: return a pandas.DataFrame, a pyarrow.Table"),
        ("return {'a': [1]}", "returned dict: return a pandas.DataFrame"),
        ("return []", "returned no table: return a pandas.DataFrame"),
        ("return pd.DataFrame({'a': []})", "has rows"),
        ("return pd.DataFrame({'a': [[1]]})", 'Column "a" of "python://own_source:rows" holds list'),
    ],
)
def test_mistakes_of_the_function_are_one_sentence(source, body, said):
    with pytest.raises(UserError) as caught:
        read(source(body))
    sentence = str(caught.value)
    assert said in sentence and URI in sentence and "\n" not in sentence


def test_changed_rows_keep_integers_beside_missing_values(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,x\n,y\n3,\n", encoding="utf-8")
    reading = Reading(KINDS, tmp_path)
    changed = change_rows(open_source("t.csv", reading), lambda frame: frame.assign(c=frame["a"] * 2), reading)
    assert read(changed) == [
        {"a": 1, "b": "x", "c": 2},
        {"a": None, "b": "y", "c": None},
        {"a": 3, "b": None, "c": 6},
    ]
    assert (changed.uri, changed.schema.field("c").type) == ("t.csv", pa.int64())


def test_rows_are_changed_again_where_a_late_value_changes_a_type(tmp_path):
    lines = "".join(f"{n},x\n" for n in range(200_000))
    (tmp_path / "t.csv").write_text(f"a,b\n{lines}late,y\n", encoding="utf-8")
    reading = Reading(KINDS, tmp_path)
    changed = change_rows(open_source("t.csv", reading), lambda frame: frame.assign(c=frame["b"]), reading)
    rows = read(changed)
    assert (len(rows), rows[0], rows[-1]) == (
        200_001,
        {"a": "0", "b": "x", "c": "x"},
        {"a": "late", "b": "y", "c": "y"},
    )


def test_mistakes_of_a_change_name_it(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,x\n", encoding="utf-8")
    reading = Reading(KINDS, tmp_path)

    def add_column(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(c=frame["z"])

    with pytest.raises(UserError) as caught:
        read(change_rows(open_source("t.csv", reading), add_column, reading))
    assert str(caught.value) == "\"add_column\" in model/source.py failed: KeyError: 'z'."


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("python://own_source", "names no function: write python://module:function"),
        ("python://own_source:", "names no function"),
        ("python://own_source:other", 'own_source has no function "other"'),
        ("python://no_such_module:rows", "no_such_module.py cannot be imported: ModuleNotFoundError"),
    ],
)
def test_addresses_without_a_function_are_refused(source, tmp_path, uri, said):
    source("return []")
    with pytest.raises(UserError) as caught:
        open_source(uri, Reading(KINDS, tmp_path))
    assert said in str(caught.value)
