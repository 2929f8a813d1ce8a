"""Names and texts are compared in Unicode's normal form C: one word is one word, however its letters are written."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any
from unicodedata import normalize as unicode_form

import pandas as pd
import pandera.pandas as pa_
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ondol.config import Data, Leakage
from ondol.contract import Column, Contract, check_rows, clean, describe, encode, encode_target, fit_encodings
from ondol.contract.checking import hash_content, unique_sets
from ondol.errors import UserError
from ondol.ingestion.sources import Reading, open_source, read_through
from ondol.monitoring.labels import keys_of
from ondol_serving.contract import read_contract
from ondol_serving.grammar import normalize
from ondol_serving.request import Reader, compile_request

NAME, WORD, OTHER = "지역", "서울", "부산"
NFD_NAME, NFD_WORD = (unicode_form("NFD", text) for text in (NAME, WORD))
KINDS = {NAME: "text", "y": "number"}


def read(path: Path, uri: str | None = None) -> pa.Table:
    source = open_source(uri or str(path), Reading(KINDS, path.parent))
    return read_through(source, lambda batches: pa.Table.from_batches(list(batches)))


def write(folder: Path, how: str, names: list[str], values: list[str]) -> tuple[Path, str | None]:
    """Write a table of two columns, the second of numbers; return its path, and its address where it is another."""
    path, rows = folder / f"t.{how}", list(zip(values, range(len(values)), strict=True))
    if how == "csv":
        path.write_text("".join(f"{a},{b}\n" for a, b in [tuple(names), *rows]), encoding="utf-8")
    elif how in ("jsonl", "ascii.jsonl"):
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=how != "jsonl") for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8")
    elif how == "parquet":
        pq.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], names=names), path)
    else:
        with closing(sqlite3.connect(path)) as database:
            database.execute(f'CREATE TABLE t ("{names[0]}" TEXT, "{names[1]}" REAL)')
            database.executemany("INSERT INTO t VALUES (?, ?)", rows)
            database.commit()
        return path, f"sqlite:///{path.name}#t"
    return path, None


@pytest.mark.parametrize("how", ["csv", "jsonl", "ascii.jsonl", "parquet", "db"])
def test_names_of_every_source_are_in_normal_form_and_values_as_they_were_written(how, tmp_path):
    table = read(*write(tmp_path, how, [NFD_NAME, "y"], [NFD_WORD, WORD]))
    assert table.schema.names == [NAME, "y"]
    assert table.column(NAME).to_pylist() == [NFD_WORD, WORD]
    frame, reasons = clean(table, [Column(name=NAME, kind="text")])
    assert frame[NAME].tolist() == [WORD, WORD] and not len(reasons)


@pytest.mark.parametrize("how", ["csv", "jsonl", "parquet", "db"])
def test_two_columns_that_differ_in_the_form_of_their_names_alone_are_refused(how, tmp_path):
    path, uri = write(tmp_path, how, [NFD_NAME, NAME], [WORD])
    with pytest.raises(UserError, match=f'2 columns named "{NAME}", which differ only in how Unicode writes'):
        read(path, uri)


def test_lines_of_json_may_name_a_column_in_different_forms(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        json.dumps({NFD_NAME: WORD, "y": 1}) + "\n" + json.dumps({NAME: OTHER, "y": 2}), encoding="utf-8"
    )
    assert read(tmp_path / "t.jsonl").column(NAME).to_pylist() == [WORD, OTHER]


def test_rows_are_read_on_from_a_column_that_the_database_names_in_another_form(tmp_path):
    path, uri = write(tmp_path, "db", ["y", NFD_NAME], ["a", "b", "c"])
    source: Any = open_source(str(uri), Reading({NAME: "number", "y": "text"}, path.parent)).since(NAME, 1)  # type: ignore[attr-defined]
    assert [row for batch in source.batches() for row in batch.column("y").to_pylist()] == ["b", "c"]


def make_schema(name: str, words: list[str], **more: Any) -> Any:
    fields = {
        "where": pa_.Field(alias=name, isin=words, **more),
        "y": pa_.Field(metadata={"role": "target"}),
    }
    body = {"__annotations__": {"where": str, "y": str}, "__module__": ModuleType("model").__name__, **fields}
    return type("Schema", (pa_.DataFrameModel,), body)


@pytest.mark.parametrize("name", [NAME, NFD_NAME])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_schema_in_any_form_says_the_same_and_checks_the_same(name, form):
    schema = make_schema(name, [unicode_form(form, WORD), unicode_form(form, OTHER)], unique=True)  # type: ignore[arg-type]
    contract = describe(schema, "y", "binary")
    assert contract.features[0].name == NAME and contract.features[0].categories == (WORD, OTHER)
    table = pa.table({NAME: [NFD_WORD, OTHER, "세종"], "y": ["a", "b", "a"]})
    reasons = check_rows(table, contract.used, schema.to_schema()).reasons
    assert reasons[["row", "column"]].to_numpy().tolist() == [[2, NAME]]
    assert unique_sets(schema.to_schema(), [NAME, "y"]) == [(NAME,)]


def test_checks_of_several_columns_find_them_by_the_names_of_the_schema():
    class Schema(pa_.DataFrameModel):
        where: str = pa_.Field(alias=NFD_NAME)
        y: float = pa_.Field(metadata={"role": "target"})

        @pa_.dataframe_check
        @classmethod
        def known(cls, frame: pd.DataFrame) -> "pd.Series[bool]":
            return frame[NFD_NAME] == WORD

    contract = describe(Schema, "y", "regression")
    reasons = check_rows(
        pa.table({NAME: [NFD_WORD, OTHER], "y": [1.0, 2.0]}), contract.used, Schema.to_schema()
    ).reasons
    assert set(reasons["row"]) == {1} and NAME in set(reasons["column"])


def test_a_schema_with_one_name_in_two_forms_is_refused():
    body = {"a": pa_.Field(alias=NAME), "b": pa_.Field(alias=NFD_NAME), "y": pa_.Field(metadata={"role": "target"})}
    schema = type("Schema", (pa_.DataFrameModel,), {"__annotations__": dict.fromkeys(body, str), **body})
    with pytest.raises(UserError, match=f'2 columns named "{NAME}"'):
        describe(schema, "y", "binary")


def test_settings_name_columns_in_any_form():
    assert Data(target=NFD_NAME, watermark=NFD_NAME).target == NAME == Data(watermark=NFD_NAME).watermark
    assert Leakage(accept={NFD_NAME: "known before"}).accept == {NAME: "known before"}
    assert Data(missing={NFD_NAME: ("-",)}).missing == {NAME: ("-",)}
    assert describe(make_schema(NAME, [WORD]), unicode_form("NFD", "y"), "binary").target == "y"


COLUMNS = (
    Column(name=NAME, kind="text", nullable=True),
    Column(name="등급", kind="text", ordered=True, categories=("낮음", "높음")),
    Column(name="답", kind="text", role="target"),
)


def train() -> tuple[Contract, pd.DataFrame]:
    """Return a contract fitted on words in both forms, and the encoded rows."""
    words = [WORD, NFD_WORD, OTHER]
    table = pa.table(
        {
            NAME: words,
            "등급": ["낮음", unicode_form("NFD", "높음"), "낮음"],
            "답": ["예", unicode_form("NFD", "예"), "아니오"],
        }
    )
    frame, reasons = clean(table, COLUMNS)
    assert not len(reasons)
    column = COLUMNS[1].model_copy(update={"encoding": None})
    contract = fit_encodings(Contract(problem="binary", target="답", columns=(COLUMNS[0], column, COLUMNS[2])), frame)
    assert encode_target(contract, frame["답"]).tolist() == [1, 1, 0]
    return contract, encode(contract, frame)


def test_texts_ranks_classes_and_known_values_are_one_word_in_both_forms():
    contract, encoded = train()
    assert contract.classes == ("아니오", "예")
    assert contract.features[0].encoding and set(contract.features[0].encoding.known or ()) == {WORD, OTHER}
    assert encoded[NAME].tolist() == [WORD, WORD, OTHER] and encoded["등급"].tolist() == [0, 1, 0]


BODIES = {
    "composed": json.dumps({"rows": [{NAME: WORD, "등급": "높음"}]}, ensure_ascii=False),
    "decomposed": unicode_form("NFD", json.dumps({"rows": [{NAME: WORD, "등급": "높음"}]}, ensure_ascii=False)),
    "escaped": json.dumps({"rows": [{NFD_NAME: NFD_WORD, unicode_form("NFD", "등급"): "높음"}]}),
    "partly escaped": json.dumps({"rows": [{NAME: NFD_WORD, "등급": "높음"}]}).replace(
        json.dumps("높음"), unicode_form("NFD", '"높음"')
    ),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_service_reads_names_and_texts_in_any_form_and_logs_them_in_one(body):
    contract = read_contract(json.loads(train()[0].model_dump_json()))
    read = Reader(contract, compile_request(contract, 10), 10).read(body.encode())
    assert read.rows == [(WORD, "높음")]
    assert json.loads(read.body) == {"rows": [{NAME: WORD, "등급": "높음"}]}
    assert read.keys == 3


def test_a_mark_after_an_escape_belongs_to_the_escaped_letter():
    contract = read_contract(json.loads(train()[0].model_dump_json()))
    reader = Reader(contract, compile_request(contract, 10), 10)
    for written in ("\\u0061\u0301", "\\n\u0301", "\\u0041\\u030a", "\\\\u0301", "\\ud83d\\ude00\u0301"):
        body = json.dumps({"rows": [{NAME: "?", "등급": "낮음"}]}, ensure_ascii=False).replace("?", written)
        assert reader.read(body.encode()).rows[0][0] == unicode_form("NFC", json.loads(f'"{written}"')), written


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), st.booleans())
def test_the_service_makes_of_any_text_what_training_makes_of_it(text, ascii_only):
    contract = read_contract(json.loads(TRAINED))
    body = json.dumps({"rows": [{NAME: text, "등급": "낮음"}]}, ensure_ascii=ascii_only).encode()
    read = Reader(contract, compile_request(contract, 10), 10).read(body)
    frame, _ = clean(pa.table({NAME: [text]}), COLUMNS[:1])
    assert [read.rows[0][0]] == [None if pd.isna(value) else value for value in frame[NAME]]


TRAINED = train()[0].model_dump_json()


def test_a_bundle_of_an_earlier_version_that_knows_words_in_another_form_is_served_as_before():
    document = json.loads(TRAINED)
    document["columns"][0] |= {
        "name": NFD_NAME,
        "encoding": {**document["columns"][0]["encoding"], "known": [NFD_WORD]},
    }
    contract = read_contract(document)
    reader = Reader(contract, compile_request(contract, 10), 10)
    body = json.dumps({"rows": [{NFD_NAME: NFD_WORD, "등급": "낮음"}]}).encode()
    assert reader.read(body).rows == [(NFD_WORD, "낮음")]
    with pytest.raises(ValidationError):
        reader.read(json.dumps({"rows": [{NAME: WORD, "등급": "낮음"}]}).encode())


def test_labels_join_by_ids_in_any_form():
    assert keys_of(pd.DataFrame({"id": [NFD_WORD, WORD, None]}), ("번호",)) == [WORD, WORD, ""]


def test_rows_are_equal_in_columns_of_any_form_also_outside_the_contract():
    table = pa.table({"memo": [WORD, NFD_WORD, OTHER]})
    hashes = hash_content(table, ["memo"], {}).tolist()
    assert hashes[0] == hashes[1] != hashes[2]


@given(st.text(st.characters(codec="utf-8", min_codepoint=0x2F0, max_codepoint=0x3100), max_size=30))
def test_normalize_is_the_normal_form_c(text):
    assert normalize(text) == unicode_form("NFC", text)


def test_endless_marks_are_normalized_in_no_more_than_linear_time():
    """Python's own function sorts marks one by one: it would take hours for these."""
    marks = "\u0300\u0316" * 1_000_000
    assert normalize("e\u0301" + "x" + marks + "e\u0301") == "é" + "x" + marks + "é"
