"""A JSON array of objects is read as JSON Lines are: element by element, however it is written."""

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondol.errors import UserError
from ondol.ingestion.sources import Reading, open_source

ROWS: list[dict[str, Any]] = [
    {"name": 'say "hi" [1] {2}', "x": 1.5, "in": {"side": 1}},
    {"name": 'back\\slash, \\"', "x": None, "in": {"side": 2}},
    {"name": "줄\n바꿈 🙂", "x": -3},
]
READ = [{"name": row["name"], "x": row["x"], "in.side": row.get("in", {}).get("side")} for row in ROWS]


def read(tmp_path: Path, content: bytes) -> list[dict[str, Any]]:
    (tmp_path / "t.json").write_bytes(content)
    source = open_source("t.json", Reading(root=tmp_path))
    return [row for batch in source.batches() for row in batch.to_pylist()]


def text(**how: Any) -> bytes:
    return json.dumps(ROWS, **how).encode()


WRITTEN = {
    "one line": text(),
    "letters": text(ensure_ascii=False),
    "no blanks": text(separators=(",", ":")),
    "pretty": text(indent=2, ensure_ascii=False),
    "Windows": text(indent=2).replace(b"\n", b"\r\n"),
    "BOM and blanks": b"\xef\xbb\xbf \n\t" + text(indent=1) + b"\n\n",
    "in an object": b'{"data": ' + text(indent=4) + b"}\n",
    "in an object, named oddly": b'\n{ "a \\"b\\" [": ' + text() + b"\n}",
    "gzip": gzip.compress(text(indent=2)),
    "bzip2": bz2.compress(text()),
}


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_an_array_is_read_however_it_is_written(tmp_path, form, chunk, monkeypatch):
    monkeypatch.setattr("ondol.ingestion.files.CHUNK", max(chunk, 40))  # the start must be within it
    assert read(tmp_path, WRITTEN[form]) == READ


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"t": st.text(), "n": st.integers(-(10**9), 10**9)}), min_size=1),
    data=st.data(),
)
def test_an_array_holds_what_its_lines_hold(rows, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("array")
    lines = "\n".join(json.dumps(row, ensure_ascii=data.draw(st.booleans())) for row in rows)
    array = json.dumps(rows, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=data.draw(st.booleans()))
    assert read(folder, array.encode("utf-8", "surrogatepass")) == read(folder, lines.encode("utf-8", "surrogatepass"))


REFUSED = {
    "no rows": (b"[]", "no rows"),
    "numbers": (b'[{"a": 1}, 2]', "after an element|Element 2 of the array"),
    "arrays": (b'[{"a": 1}, [2]]', "Element 2 of the array"),
    "a text": (b'[{"a": 1}, "b"]', "Element 2 of the array"),
    "no comma": (b'[{"a": 1} {"a": 2}]', "Element 2 of the array"),
    "a comma at the end": (b'[{"a": 1},]', "Element 2 of the array"),
    "cut short": (b'[{"a": 1}, {"a": 2', "ends within its array, in element 2"),
    "cut short in a text": (b'[{"a": "1', "ends within its array, in element 1"),
    "cut short behind": (b'[{"a": 1}', "ends within its array, in element 2"),
    "two arrays": (b'[{"a": 1}][{"a": 2}]', "has more after its array"),
    "text behind": (b'[{"a": 1}] x', "has more after its array"),
    "more in the object": (b'{"data": [{"a": 1}], "next": 3}', 'more than the list "data"'),
    "more in the object, pretty": (b'{"data": [{"a": 1}],\n "next": 3}\n', 'more than the list "data"'),
    "a list in each line": (b'{"a": [{"b": 1}]}\n{"a": [{"b": 2}]}', 'Line 1 of "t.json" has a list in "a"'),
    "a list first": (b'{"a": [{"b": 1}], "c": 2}\r\n{"a": [], "c": 3}', 'Line 1 of "t.json" has a list in "a"'),
    "an empty list first": (b'\n{"a": [], "c": 2}\n{"a": [], "c": 3}', 'Line 2 of "t.json" has a list in "a"'),
    "rows as arrays": (b"[[1, 2], [3, 4]]", "Element 1 of the array"),
    "rows as arrays, pretty": (b"[\n  [1, 2],\n  [3, 4]\n]", "Element 1 of the array"),
    "an array in each line": (b'["a", "b"]\n[1, 2]\n', "Element 1 of the array"),
    "values": (b"[1, 2]", "Element 1 of the array"),
    "no values": (b"\xef\xbb\xbf[null]", "Element 1 of the array"),
    "no JSON": (b'[{"a": 1}, {b: 2}]', "Element 2 of"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_an_array_of_objects_is_refused_in_one_sentence_with_its_place(tmp_path, form):
    content, said = REFUSED[form]
    with pytest.raises(UserError, match=said) as refused:
        read(tmp_path, content)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("header", ["[x],[y]", "[x];y", "[0, 1);[1, 2)", "[1],[2]", '["a"],b'])
def test_a_header_that_begins_as_an_array_does_is_that_of_a_table(tmp_path, header):
    (row,) = read(tmp_path, f"{header}\n1{';' if ';' in header else ','}2\n".encode())
    assert [*row.values()] == ["1", "2"]


def test_rows_as_arrays_on_one_line_longer_than_the_head_are_refused(tmp_path):
    with pytest.raises(UserError, match="Element 1 of the array"):
        read(tmp_path, json.dumps([["가", 1]] * 100_000, ensure_ascii=False).encode())


def test_an_element_that_never_ends_is_refused_before_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("ondol.ingestion.files.LONGEST_ELEMENT", 10_000)
    monkeypatch.setattr("ondol.ingestion.files.CHUNK", 1000)
    with pytest.raises(UserError, match=r"Element 1 of the array .* is too long"):
        read(tmp_path, b'[{"a": "' + b"x" * 50_000 + b'"}]')
