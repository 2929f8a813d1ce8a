"""Sources yield the whole table in one schema, and refuse other files with one sentence."""

import bz2
import codecs
import gzip
import json
from datetime import time
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ondol.config import Fetch
from ondol.errors import UserError
from ondol.ingestion import csv_files as delimited
from ondol.ingestion.sources import Reading, open_source, read_through

ROWS = [{"a": "1", "b": "x, y"}, {"a": "2", "b": None}]


def _write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _table(root, name, columns=None):
    source = open_source(name, Reading(columns, root))
    return read_through(source, lambda batches: pa.Table.from_batches(list(batches)))


def _refusal(root, name, columns=None):
    with pytest.raises(UserError) as caught:
        _table(root, name, columns)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    return sentence


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "^"])
def test_any_delimiter_is_found(tmp_path, delimiter):
    _write(tmp_path / "t.csv", f'a{delimiter}b\n1{delimiter}"x, y"\n2{delimiter}\n')
    assert _table(tmp_path, "t.csv").to_pylist() == ROWS


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("t.csv.gz", gzip.compress),
        ("t.csv.bz2", bz2.compress),
        ("t.csv", bytes),
        ("t.csv.zst", lambda text: pa.compress(text, "zstd", asbytes=True)),
        ("misnamed", gzip.compress),
        ("bom.csv", lambda text: codecs.BOM_UTF8 + text),
        ("crlf.csv", lambda text: text.replace(b"\n", b"\r\n")),
    ],
)
def test_compression_byte_order_mark_and_line_ends_make_no_difference(tmp_path, name, pack):
    _write(tmp_path / name, pack(b'a,b\n1,"x, y"\n2,\n'))
    assert _table(tmp_path, name).to_pylist() == ROWS


def test_kinds_decide_how_columns_are_read(tmp_path):
    _write(tmp_path / "t.csv", "n,i,t,b,d,new\n1.5,2,007,true,2024-01-31,3\n,,,,2024-02-01,\n")
    kinds = {"n": "number", "i": "integer", "t": "text", "b": "boolean", "d": "date"}
    table = _table(tmp_path, "t.csv", kinds)
    assert table.schema.types == [
        pa.float64(),
        pa.int64(),
        pa.string(),
        pa.bool_(),
        pa.timestamp("us"),
        pa.string(),
    ]
    assert table.column("t").to_pylist() == ["007", None]


def test_quoted_values_are_text_if_requested(tmp_path):
    _write(tmp_path / "t.csv", 'a,b,c\n1,"NA",1\n,"",2\n3,,3\n"4",NA,4\n')
    for read in ("t.csv", "t*.csv"):
        source = open_source(read, Reading({"a": "integer", "b": "text"}, tmp_path, quoted=True))
        table = read_through(source, lambda batches: pa.Table.from_batches(list(batches)))
        assert table.column("a").to_pylist() == [1, None, 3, 4]
        assert table.column("b").to_pylist() == ["NA", "", None, None]
    assert _table(tmp_path, "t.csv", {"a": "integer"}).column("b").to_pylist() == [None] * 4


@pytest.mark.parametrize("text", ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "#N/A", '""'])
def test_null_values_are_missing_in_texts_and_numbers(tmp_path, text):
    _write(tmp_path / "t.csv", f"t,n\nx,1\n{text},{text}\n")
    assert _table(tmp_path, "t.csv", {"t": "text", "n": "number"}).to_pylist()[1] == {"t": None, "n": None}


def test_value_that_is_not_a_number_makes_its_whole_column_text(tmp_path):
    _write(tmp_path / "t.csv", "a,b\n01,1\noops,2\n")
    table = _table(tmp_path, "t.csv", {"a": "number", "b": "number"})
    assert table.to_pylist() == [{"a": "01", "b": 1.0}, {"a": "oops", "b": 2.0}]


@pytest.mark.parametrize("held", [0, 64 << 20])
def test_late_surprises_retype_all_columns_at_once_and_keep_one_schema(tmp_path, monkeypatch, held):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(delimited, "HELD_BYTES", held)
    rows = ["1,1,1,2024-01-01"] * 2000 + ["x,1.0,2,soon"]
    _write(tmp_path / "t.csv", "a,b,c,d\n" + "\n".join(rows) + "\n")
    kinds = {"a": "number", "b": "integer", "c": "integer", "d": "date"}
    calls = []

    def consume(batches):
        calls.append(1)
        return pa.Table.from_batches(list(batches))  # refuses batches of different schemas

    table = read_through(open_source("t.csv", Reading(kinds, tmp_path)), consume)
    assert table.schema.types == [pa.string(), pa.float64(), pa.int64(), pa.string()]
    assert table.num_rows == 2001
    assert len(calls) == (2 if held == 0 else 1)


@pytest.mark.parametrize("block", [4 << 20, 40])
def test_integers_that_a_float_would_round_stay_exact_as_text(tmp_path, monkeypatch, block):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block)
    _write(tmp_path / "t.csv", "a,b\n9007199254740993,1\n0.5,2\n")
    assert _table(tmp_path, "t.csv", {"a": "integer"}).column("a").to_pylist() == ["9007199254740993", "0.5"]


def test_quoted_line_breaks_belong_to_the_value(tmp_path):
    _write(tmp_path / "t.csv", 'a,b\n1,"x\ny"\n')
    assert _table(tmp_path, "t.csv").to_pylist() == [{"a": "1", "b": "x\ny"}]


def test_parquet_types_become_plain_ones(tmp_path):
    frame = pd.DataFrame(
        {
            "i": pd.array([1, None], "Int8"),
            "c": pd.Categorical(["x", None]),
            "f": pd.Series([1.5, None], dtype="float32"),
            "z": pd.to_datetime(["2024-01-01T09:00+09:00", None], utc=True),
            "b": [True, False],
            "code": [7, 8],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table = _table(tmp_path, "t.parquet", {"code": "text"})
    types = [pa.int64(), pa.string(), pa.float64(), pa.timestamp("us"), pa.bool_(), pa.string()]
    assert table.schema.types == types
    assert table.column("z").to_pylist()[0] == pd.Timestamp("2024-01-01")


def test_whole_numbers_of_parquet_are_exact_in_any_type(tmp_path):
    large, huge = 2**60 + 1, 2**63
    table = pa.table(
        {
            "unsigned": pa.array([large, None], pa.uint64()),
            "beyond": pa.array([large, huge], pa.uint64()),
            "warehouse": pa.array([Decimal(large), None], pa.decimal128(38, 0)),
            "vast": pa.array([Decimal(10**30), Decimal(1)], pa.decimal128(38, 0)),
            "small": pa.array([Decimal(7), None], pa.decimal128(10, 0)),
            "price": pa.array([Decimal("1.5"), None], pa.decimal128(10, 2)),
            "clock": pa.array([time(9, 30), None], pa.time64("us")),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    [first, second] = _table(tmp_path, "t.parquet").to_pylist()
    assert first == {"unsigned": large, "beyond": str(large), "warehouse": large, "vast": str(10**30), "small": 7,
                     "price": 1.5, "clock": "09:30:00.000000"}  # fmt: skip
    assert second["beyond"] == str(huge) and [v for k, v in second.items() if k not in ("beyond", "vast")] == [None] * 5
    bare = table.select(["warehouse"])
    pq.write_table(bare, tmp_path / "t.parquet", write_statistics=False)
    assert _table(tmp_path, "t.parquet").column("warehouse").to_pylist() == [str(large), None]


def test_json_lines_take_the_widest_type_of_each_key(tmp_path):
    rows = [{"n": 1, "t": "007", "m": 1}, {"n": 2.5, "late": True}, {"n": None, "m": "x"}]
    _write(tmp_path / "t.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    table = _table(tmp_path, "t.jsonl.gz")
    assert table.schema.types == [pa.float64(), pa.string(), pa.string(), pa.bool_()]
    assert table.column("m").to_pylist() == ["1", None, "x"]
    assert table.column("late").to_pylist() == [None, True, None]


def test_fingerprint_follows_bytes_and_kinds(tmp_path):
    _write(tmp_path / "t.csv", "a,b\n1,2\n")
    first = open_source("t.csv", Reading({"a": "number"}, tmp_path)).fingerprint()
    assert open_source(str(tmp_path / "t.csv"), Reading({"a": "number"}, tmp_path)).fingerprint() == first
    assert open_source("t.csv", Reading({"a": "text"}, tmp_path)).fingerprint() != first
    _write(tmp_path / "t.csv", "a,b\n1,3\n")
    assert open_source("t.csv", Reading({"a": "number"}, tmp_path)).fingerprint() != first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"a,b\n", "header but no rows"),
        (codecs.BOM_UTF8, "is empty"),
        (b"one line of prose\n", "is not a table"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x89PNG\r\n\x1a\n\x00", "PNG"),
        (b"PK\x03\x04rest", "Excel"),
        (b"a,b\n\x00\x01,2\n", "binary"),
        (b"a,b,a\n1,2,3\n", '2 columns named "a"'),
        (b",b\n1,2\n", "Column 1"),
        (b"a,b\n1,2\n1,2,3\n", "Line 3"),
        ("a,b\n1,café\n".encode("cp1252"), "line 2 holds the byte 0xE9"),
        ("이름,나이\n김,1\n".encode("cp949"), "CP949"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 99, mtime=0)[:-9], "cut short"),
        (b"PAR1 and no more", "Parquet"),
        (b'{"a": 1}\n{"a":\n', "Line 2"),
        (b'{"a": [1]}', "a list"),
        (b'{"a": 1, "a": 2}', '2 columns named "a"'),
        (b"{}\n", "no rows"),
        (b'a,b\n1,"2\n3,4\n', "never closed"),
        (b'a,b\n1,"2\n' + b"3,4\n" * 1_500_000, "never closed"),
    ],
)
def test_what_is_not_a_table_is_refused_in_one_sentence(tmp_path, content, said):
    _write(tmp_path / "bad", content)
    assert said in _refusal(tmp_path, "bad")


def test_wrong_encoding_far_into_a_file_names_line_and_byte(tmp_path):
    _write(tmp_path / "t.csv", b"a,b\n" + b"1,x\n" * 400_000 + "1,한국\n".encode("cp949"))
    sentence = _refusal(tmp_path, "t.csv")
    assert "line 400002" in sentence and "offset 1,600,006" in sentence and "CP949" in sentence


def test_parquet_cut_short_is_refused(tmp_path):
    pq.write_table(pa.table({"a": list(range(1000))}), tmp_path / "t.parquet")
    _write(tmp_path / "t.parquet", (tmp_path / "t.parquet").read_bytes()[:500])
    assert "not a complete Parquet file" in _refusal(tmp_path, "t.parquet")


def test_nested_parquet_column_is_named(tmp_path):
    pq.write_table(pa.table({"tags": [["x"]], "a": [1]}), tmp_path / "t.parquet")
    assert '"tags"' in _refusal(tmp_path, "t.parquet")


def test_missing_file_names_the_nearest_and_empty_folder_is_refused(tmp_path):
    assert "names no file" in _refusal(tmp_path, ".")
    _write(tmp_path / "customers.csv", "a,b\n1,2\n")
    assert 'Did you mean "customers.csv"?' in _refusal(tmp_path, "costumers.csv")


def test_unknown_scheme_names_the_known(tmp_path):
    assert "sample://" in _refusal(tmp_path, "ftp://host/t.csv")


def test_files_of_a_folder_are_one_table_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "data"
    (folder / "2024").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    _write(folder / "b.csv.gz", gzip.compress(b"a,b\n2,x\n"))
    _write(folder / "2024" / "z.tsv", "b\ta\nw\t1\n")
    pq.write_table(pa.table({"a": [3], "c": [0.5]}), folder / "c.parquet")
    _write(folder / "d.jsonl", '{"a": 4, "b": "y"}\n')
    for name in ("_SUCCESS", ".c.parquet.crc", ".hidden/t.csv"):
        _write(folder / name, "no table")
    expected = [(1, "w", None), (2, "x", None), (3, None, 0.5), (4, "y", None)]
    for name in ("data", "data/", str(folder)):
        rows = _table(tmp_path, name, {"a": "integer"}).to_pylist()
        assert [(row["a"], row["b"], row["c"]) for row in rows] == expected


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        ("data/2024-*.csv", ["1", "2"]),
        ("data/*.csv", ["1", "2", "3"]),
        ("data/**/*.csv", ["1", "2", "3", "4"]),
        ("data/**", ["1", "2", "3", "4"]),
        ("data/2024-0[2-9].csv", ["2"]),
    ],
)
def test_files_that_match_a_pattern_are_one_table(tmp_path, pattern, values):
    (tmp_path / "data/more").mkdir(parents=True)
    for number, name in enumerate(["2024-01", "2024-02", "2025-01", "more/2024-01"], start=1):
        _write(tmp_path / "data" / f"{name}.csv", f"a,b\n{number},x\n")
    assert _table(tmp_path, pattern).column("a").to_pylist() == values


def test_name_with_wildcards_that_exists_is_that_file(tmp_path):
    (tmp_path / "in [old]").mkdir()
    _write(tmp_path / "in [old]" / "t*.csv", "a,b\n1,x\n")
    _write(tmp_path / "in [old]" / "t2.csv", "a,b\n2,x\n")
    assert _table(tmp_path, "in [old]/t*.csv").column("a").to_pylist() == ["1"]
    assert _table(tmp_path, "in [old]/t?.csv").column("a").to_pylist() == ["1", "2"]


def test_types_of_many_files_are_unified_and_columns_without_values_take_any(tmp_path):
    pq.write_table(pa.table({"n": [1], "m": [True], "v": pa.nulls(1)}), tmp_path / "a.parquet")
    _write(tmp_path / "b.jsonl", '{"n": 0.5, "m": 2, "v": 7}\n{"n": null, "v": null}\n')
    table = _table(tmp_path, "*.*")
    assert table.to_pydict() == {"n": [1.0, 0.5, None], "m": ["true", "2", None], "v": [None, 7, None]}
    assert table.schema.types == [pa.float64(), pa.string(), pa.int64()]


@pytest.mark.parametrize("held", [0, 64 << 20])
def test_late_surprise_in_one_of_many_files_retypes_the_column_in_all(tmp_path, monkeypatch, held):
    monkeypatch.setattr(delimited, "HELD_BYTES", held)
    for number, last in enumerate(["007,1,9007199254740993", "x,2,1", "8,2.0,0.5"]):
        _write(tmp_path / f"{number}.csv", f"a,b,c\n01,1,1\n{last}\n")
    table = _table(tmp_path, "*.csv", {"a": "number", "b": "integer", "c": "integer"})
    assert table.column("a").to_pylist() == ["01", "007", "01", "x", "01", "8"]
    assert table.column("b").to_pylist() == [1.0, 1.0, 1.0, 2.0, 1.0, 2.0]
    assert table.column("c").to_pylist()[1] == "9007199254740993"


def test_text_beside_a_typed_file_keeps_its_spelling(tmp_path):
    _write(tmp_path / "a.csv", "code,b\n1.50,1\n")
    pq.write_table(pa.table({"code": ["x"], "b": [1]}), tmp_path / "b.parquet")
    assert _table(tmp_path, "*.*", {"code": "number"}).column("code").to_pylist() == ["1.50", "x"]


def test_column_that_one_of_many_files_lacks_is_named_where_it_is_asked_for(tmp_path):
    _write(tmp_path / "a.csv", "a,b\n1,2\n")
    _write(tmp_path / "b.csv", "a,c\n1,2\n")
    sentence = _refusal(tmp_path, "*.csv", {"a": "number", "b": "number", "later": "text"})
    assert '"b.csv" has no column "b"' in sentence
    assert _table(tmp_path, "*.csv", {"a": "number"}).schema.names == ["a", "b", "c"]


def test_files_without_rows_among_many_add_none(tmp_path):
    _write(tmp_path / "1.csv", "a,b\n1,2\n")
    _write(tmp_path / "2.csv", "a,b\n")
    _write(tmp_path / "3.csv", "")
    pq.write_table(pa.table({"a": pa.array([], pa.string()), "b": pa.array([], pa.string())}), tmp_path / "4.parquet")
    assert _table(tmp_path, "*").to_pylist() == [{"a": "1", "b": "2"}]
    (tmp_path / "1.csv").unlink()
    assert "None of the 3 files" in _refusal(tmp_path, "*")


def test_bad_file_among_many_is_named(tmp_path):
    _write(tmp_path / "1.csv", "a,b\n1,2\n")
    _write(tmp_path / "2.csv", "a,b\n1,2,3\n")
    assert 'Line 2 of "2.csv"' in _refusal(tmp_path, "*.csv")
    assert "names no file" in _refusal(tmp_path, "*.tsv")


def test_fingerprint_of_many_files_follows_names_order_and_bytes(tmp_path):
    def sign():
        return open_source("data", Reading({"a": "number"}, tmp_path)).fingerprint()

    (tmp_path / "data").mkdir()
    _write(tmp_path / "data/1.csv", "a,b\n1,2\n")
    _write(tmp_path / "data/2.csv", "a,b\n3,4\n")
    seen = [sign()]
    assert sign() == seen[0]
    (tmp_path / "data/1.csv").rename(tmp_path / "data/3.csv")
    seen.append(sign())
    _write(tmp_path / "data/3.csv", "a,b\n1,5\n")
    seen.append(sign())
    _write(tmp_path / "data/4.csv", "a,b\n1,5\n")
    seen.append(sign())
    assert len(set(seen)) == 4


@pytest.mark.parametrize("pack", [gzip.compress, lambda text: pa.compress(text, "zstd", asbytes=True)])
@pytest.mark.parametrize("line", [b"1,2\n", b'{"a": "%s"}\n' % (b"x" * 9999), b'{"a": "'])
def test_file_that_expands_beyond_the_set_ratio_is_refused(tmp_path, pack, line):
    start = b'{"a": 1}\n' if line.startswith(b"{") else b"a,b\n"
    _write(tmp_path / "t", pack(start + line * ((40 << 20) // len(line))))
    with pytest.raises(UserError, match="holds more than 10 times its"):
        _small_ratio(tmp_path, "t")


def test_small_file_may_expand_far(tmp_path):
    _write(tmp_path / "t", gzip.compress(b"a,b\n" + b"1,2\n" * 100_000))
    assert _small_ratio(tmp_path, "t") == 100_000


def _small_ratio(root, name):
    return sum(b.num_rows for b in open_source(name, Reading(root=root, fetch=Fetch(max_ratio=10))).batches())


def test_compressed_file_in_several_parts_is_read_whole(tmp_path):
    for name, pack in (("t.gz", gzip.compress), ("t.zst", lambda text: pa.compress(text, "zstd", asbytes=True))):
        _write(tmp_path / name, pack(b"a,b\n1,2\n") + pack(b"3,4\n"))
        assert _table(tmp_path, name).num_rows == 2


def test_zst_cut_short_is_refused(tmp_path):
    lines = "".join(f"{i},{i * 7919 % 10007}\n" for i in range(100_000))
    packed = pa.compress(b"a,b\n" + lines.encode(), "zstd", asbytes=True)
    _write(tmp_path / "t.csv.zst", packed[: len(packed) // 2])
    assert "cut short" in _refusal(tmp_path, "t.csv.zst")


def test_a_value_of_a_whole_parquet_file_that_cannot_be_read_is_reported_with_its_column(tmp_path):
    beyond = pa.array([2**63, 1], pa.uint64())
    pq.write_table(pa.table({"a": [1, 2], "값": beyond}), tmp_path / "t.parquet")
    source = open_source("t.parquet", Reading(root=tmp_path))
    source.schema = pa.schema([("a", pa.int64()), ("값", pa.int64())])  # as a file whose footer is wrong would have it
    with pytest.raises(
        UserError, match=r'Column "값" of .* holds uint64 with a value that cannot be read as int64'
    ) as told:
        list(source.batches())
    assert "whole" not in str(told.value)


def test_an_encrypted_parquet_file_is_called_that(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PARE" + bytes(100) + b"PARE")
    with pytest.raises(UserError, match="an encrypted Parquet file"):
        open_source("t.parquet", Reading(root=tmp_path))
