"""Delimited text in other dialects than UTF-8 with commas: the settings under [data], and their detection."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ondol.config import Data, Dialect, load_settings
from ondol.contract import Column
from ondol.contract.checking import clean_column
from ondol.errors import UserError
from ondol.ingestion.csv_files import read_cells, write_numbers
from ondol.ingestion.sources import Reading, open_source, read_through

KINDS = {"id": "integer", "preis": "number", "art": "text"}


def write(folder: Path, text: str | bytes, encoding: str = "utf-8", name: str = "t.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(folder: Path, kinds: dict[str, str] | None = None, uri: str = "t.csv", **settings: Any) -> pa.Table:
    source = open_source(uri, Reading(kinds, folder, dialect=Dialect(**settings)))
    return read_through(source, lambda batches: pa.Table.from_batches(list(batches)))


def find(folder: Path, text: str | bytes, *expected: str, encoding: str = "utf-8") -> tuple[dict[str, Any], list[str]]:
    """Return the detected dialect of a table, without the comma, and the names of its columns."""
    write(folder, text, encoding)
    source = open_source("t.csv", Reading(root=folder, expected=expected))
    told = source.dialect.model_dump(exclude_defaults=True)  # type: ignore[attr-defined]
    names = read_through(source, lambda batches: next(batches).schema.names)
    return {name: value for name, value in told.items() if (name, value) != ("delimiter", ",")}, names


GERMAN = "id;preis;art\n0;1.346,61;b\n1;-9,5;a\n2;12;b\n3;;a\n"


def test_a_decimal_comma_and_thousands_are_read_as_numbers(tmp_path):
    write(tmp_path, GERMAN)
    table = read(tmp_path, KINDS, delimiter=";", decimal=",", thousands=".")
    assert table.schema.types == [pa.int64(), pa.float64(), pa.string()]
    assert table.column("preis").to_pylist() == [1346.61, -9.5, 12.0, None]


@pytest.mark.parametrize(
    ("thousands", "cell"), [(" ", "12 345,6"), (" ", "12\u00a0345,6"), ("'", "12'345,6"), ("'", "12’345,6")]
)
def test_other_thousands_separators(tmp_path, thousands, cell):
    write(tmp_path, f"id;preis\n0;{cell}\n")
    assert read(tmp_path, KINDS, decimal=",", thousands=thousands).column("preis").to_pylist() == [12345.6]


def test_a_number_in_another_notation_is_kept_and_read_as_none_in_any_company(tmp_path):
    cells = ["1.5", "1.234", "12.34", "1,5", "0.638", "12"]
    for company in ("7,1", "x"):
        for cell in cells:
            write(tmp_path, f"id;preis;art\n0;{cell};a\n1;{company};b\n")
            found = read(tmp_path, KINDS, decimal=",", thousands=".").column("preis").to_pylist()[0]
            wanted = {"1.5": "'1.5", "1.234": 1234.0, "12.34": "'12.34", "1,5": 1.5, "0.638": "'0.638", "12": 12.0}[
                cell
            ]
            assert found == wanted or float(found) == wanted, (cell, company, found)


NASTY = [
    "1.5",
    "1,5",
    "1.234",
    "1.234,5",
    "1,234.5",
    "12",
    "0.638",
    "?",
    " ",
    "x",
    "1e3",
    "-7,25",
    "12/2",
    "inf",
    "0x1F",
]

OTHERS = ["7,1", "x", "1.5", "?"]


@pytest.mark.parametrize("kind", ["number", "integer", "date", "duration", "boolean"])
def test_what_a_cell_means_never_depends_on_its_neighbour(tmp_path, kind):
    column = Column(name="x", kind=kind)

    def read_first(*cells: str) -> tuple[str, bool]:
        write(tmp_path, "id;x\n" + "".join(f"{i};{cell}\n" for i, cell in enumerate(cells)))
        table = read(tmp_path, {"x": kind}, decimal=",", thousands=".", missing=["?"])
        values, unreadable = clean_column(table.column("x"), column)
        return str(values[0]).removesuffix(".0"), bool(unreadable[0])

    for cell in NASTY:
        alone = read_first(cell)
        assert {other: read_first(cell, other) for other in OTHERS} == dict.fromkeys(OTHERS, alone), cell


def test_a_marker_is_missing_in_columns_that_are_not_text(tmp_path):
    write(tmp_path, "id,x,when,flag,art\n0,?,?,?,?\n1, - ,2024-01-31,true,-\n2,none,none,false,none\n")
    kinds = {"id": "integer", "x": "number", "when": "date", "flag": "boolean", "art": "text"}
    table = read(tmp_path, kinds, missing=["?", "-", "none"])
    assert table.column("x").null_count == 3
    assert table.column("when").null_count == 2 and table.column("flag").null_count == 1
    assert table.column("art").to_pylist() == ["?", "-", "none"]


def test_a_marker_of_one_column_holds_there_alone_even_in_a_text(tmp_path):
    write(tmp_path, "id,x,art,other\n0,?,?,?\n1,2,a,b\n")
    table = read(tmp_path, {"x": "number"}, missing={"art": ["?"]})
    assert table.column("art").to_pylist() == [None, "a"]
    assert table.column("other").to_pylist() == ["?", "b"] and table.column("x").to_pylist() == ["?", "2"]


def test_spaces_around_names_and_values_are_dropped(tmp_path):
    write(tmp_path, 'id, "x", art \n0, 1.5, <=50K \n1, 2, "a"\n2, NA,  \n')
    table = read(tmp_path, {"id": "integer", "x": "number", "art": "text"}, trim=True)
    assert table.to_pydict() == {"id": [0, 1, 2], "x": [1.5, 2.0, None], "art": ["<=50K", "a", None]}


@pytest.mark.parametrize("encoding", ["cp949", "euc-kr", "utf-16", "utf-16-le", "utf-8-sig"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_encoding_is_read_compressed_or_not(tmp_path, encoding, packed):
    data = "이름,값\n김철수,1\n박영희,2\n".encode(encoding)
    write(tmp_path, gzip.compress(data) if packed else data)
    table = read(tmp_path, {"이름": "text", "값": "integer"}, encoding=encoding)
    assert table.to_pydict() == {"이름": ["김철수", "박영희"], "값": [1, 2]}


def test_a_byte_that_the_encoding_does_not_have_is_named_with_its_line(tmp_path):
    write(tmp_path, "이름,값\n".encode("cp949") + "가,1\n".encode("cp949") * 300_000 + b"\xff\xff,2\n")
    with pytest.raises(UserError, match=r'"t.csv" is not CP949: line 300002 holds the byte 0xFF'):
        read(tmp_path, {"이름": "text"}, encoding="cp949")


def test_another_encoding_than_the_settings_say_is_one_sentence_with_the_setting(tmp_path):
    write(tmp_path, "이름,값\n김철수,1\n", "cp949")
    with pytest.raises(UserError, match=r'is not UTF-8: line 1 .* write encoding = "cp949" under \[data\]'):
        read(tmp_path)
    write(tmp_path, "a,b\n1,2\n", "utf-16")
    with pytest.raises(UserError, match=r'encoded as UTF-16, not UTF-8: write encoding = "utf-16" under \[data\]'):
        read(tmp_path)


@pytest.mark.parametrize(
    ("encoding", "word"), [("cp1252", "Köln"), ("latin-1", "서울"), ("cp1251", "Тула"), ("cp949", "광주")]
)
def test_a_file_of_utf_8_is_not_read_as_other_letters_by_a_code_page(encoding, word, tmp_path):
    write(tmp_path, f"id,art\n1,{word}\n")
    with pytest.raises(UserError, match=r"as encoding under \[data\] in config.toml says, but UTF-8: save it as"):
        read(tmp_path, {"id": "integer", "art": "text"}, encoding=encoding)
    write(tmp_path, f"id,art\n1,{word}\n", "utf-8-sig")
    assert read(tmp_path, {"id": "integer", "art": "text"}, encoding=encoding)["art"].to_pylist() == [word]


def test_korean_of_its_old_encoding_that_is_utf_8_by_chance_is_read(tmp_path):
    text = "id,art\n1,첫째\n"
    assert text.encode("cp949").decode("utf-8") != text
    write(tmp_path, text, "cp949")
    assert read(tmp_path, {"id": "integer", "art": "text"}, encoding="cp949")["art"].to_pylist() == ["첫째"]


def test_utf_8_where_the_settings_say_another_encoding_is_reported(tmp_path):
    write(tmp_path, "지역,값\n서울,1\n대구,2\n부산,3\n제주,4\n")
    with pytest.raises(UserError, match=r"is not CP949, as encoding under \[data\] in config.toml says, but UTF-8"):
        read(tmp_path, encoding="cp949")


@pytest.mark.parametrize("row", ['1,"김", "b, c"', '1, "a ""b"", c",2', ' "a,b",1,2', '1, "b","c",2', '1,2,"a", 3'])
def test_a_quoted_field_behind_a_space_is_refused_with_what_to_do(tmp_path, row):
    write(tmp_path, f"x,y,z\n1,2,3\n{row}\n")
    with pytest.raises(UserError, match=r'Line 3 of "t\.csv" has 4 fields where the header has 3: ') as refused:
        read(tmp_path, {"x": "text"})
    is_spaced = "a quote opens a field only where no space is before it" in str(refused.value)
    assert is_spaced == (row not in ('1, "b","c",2', '1,2,"a", 3'))


def test_the_settings_are_of_delimited_text_alone(tmp_path):
    write(tmp_path, '{"이름": " 김철수", "x": "1,5"}\n', name="t.jsonl")
    settings = {"encoding": "cp949", "decimal": ",", "trim": True, "header": False}
    assert read(tmp_path, {"x": "number"}, "t.jsonl", **settings).to_pydict() == {"이름": [" 김철수"], "x": ["1,5"]}


def test_the_mark_of_utf_8_goes_before_the_setting(tmp_path):
    write(tmp_path, "이름,x\n김철수,1\n", "utf-8-sig")
    assert read(tmp_path, encoding="cp949").to_pydict() == {"이름": ["김철수"], "x": ["1"]}


@pytest.mark.parametrize("decimal", [",", "."])
def test_what_is_written_for_the_owner_is_read_as_the_same(decimal):
    dialect = Dialect(decimal=decimal, thousands="" if decimal == "." else ".")
    values = pa.array(["1234.5", "-7", "1e+20", "oops", "'1.5" if decimal == "," else "1.5", None, "0.1"])
    told = write_numbers(pa.chunked_array([values]), decimal)
    assert read_cells(told.combine_chunks(), dialect, "number", "x").to_pylist() == values.to_pylist()
    assert told.to_pylist()[0] == ("1234,5" if decimal == "," else "1234.5")


def test_a_table_without_a_header_has_numbered_or_given_names(tmp_path):
    write(tmp_path, "47,a\n60,b\n")
    assert read(tmp_path, header=False).to_pydict() == {"column_1": ["47", "60"], "column_2": ["a", "b"]}
    assert read(tmp_path, header=["age", "job"]).to_pydict() == {"age": ["47", "60"], "job": ["a", "b"]}
    with pytest.raises(UserError, match=r'"t.csv" has 2 columns, and header under \[data\] in config.toml names 1'):
        read(tmp_path, header=["age"])


def test_lines_above_the_header_are_passed_over_and_counted_in_messages(tmp_path):
    write(tmp_path, "Report\n\nid,x\n1,2\n3,4,5\n")
    with pytest.raises(UserError, match="Line 5 of"):
        read(tmp_path, skip_lines=2)
    write(tmp_path, "Report\n\nid,x\n1,2\n")
    assert read(tmp_path, skip_lines=2).to_pydict() == {"id": ["1"], "x": ["2"]}


def test_the_hint_of_excel_in_the_first_line_names_the_delimiter(tmp_path):
    write(tmp_path, "\ufeffsep=;\r\nid;x\r\n1;2,5\r\n")
    assert read(tmp_path).to_pydict() == {"id": ["1"], "x": ["2,5"]}


@pytest.mark.parametrize("header", ["id,x,", "id,x"])
def test_a_delimiter_at_the_end_of_each_line_makes_no_column(tmp_path, header):
    write(tmp_path, f"{header}\n1,2,\n3,4,\n")
    assert read(tmp_path, {"id": "integer", "x": "number"}).to_pydict() == {"id": [1, 3], "x": [2.0, 4.0]}
    write(tmp_path, f"{header}\n" + "1,2,\n" * 300 + "3,4,5\n")
    with pytest.raises(UserError, match="has a value behind the last column"):
        read(tmp_path)


def test_a_file_in_another_dialect_says_how_it_was_read(tmp_path):
    write(tmp_path, "id,preis,art\n0,1.5,b\n")
    with pytest.raises(UserError, match=r'none of the required columns .*\(delimiter = ";", decimal = ","\)'):
        read(tmp_path, KINDS, delimiter=";", decimal=",")


def test_settings_of_a_dialect_change_the_fingerprint_and_the_defaults_do_not(tmp_path):
    write(tmp_path, "id;preis\n0;1,5\n")

    def sign(**settings: Any) -> str | None:
        return open_source("t.csv", Reading(KINDS, tmp_path, dialect=Dialect(**settings))).fingerprint()

    assert sign() == sign(encoding="utf-8", trim=False) != sign(decimal=",") != sign(decimal=",", thousands=".")


def test_files_of_one_folder_are_read_in_one_dialect(tmp_path):
    for number in range(3):
        write(tmp_path, f"id;preis;art\n{number};{number},5;b\n", "utf-16", f"in/{number}.csv")
    table = read(tmp_path, KINDS, "in", delimiter=";", decimal=",", encoding="utf-16")
    assert table.column("preis").to_pylist() == [0.5, 1.5, 2.5]
    source = open_source("in", Reading(root=tmp_path, expected=()))
    assert source.dialect.model_dump(exclude_defaults=True) == {"encoding": "utf-16", "delimiter": ";"}  # type: ignore[attr-defined]


def test_files_that_are_not_written_alike_are_named(tmp_path):
    write(tmp_path, "id,x\n1,2\n", "utf-8", "in/a.csv")
    write(tmp_path, "id,이름\n1,김철수\n2,박영희\n", "cp949", "in/b.csv")
    source = open_source("in", Reading(root=tmp_path, expected=()))
    with pytest.raises(UserError, match=r'"in/a.csv" and "in/b.csv" have different formats \(encoding'):
        _ = source.dialect  # type: ignore[attr-defined]


ROWS = "".join(f"{i},{i * 1.7:.2f},{'ab'[i % 2]}\n" for i in range(100))


@pytest.mark.parametrize(
    ("text", "expected", "told", "names"),
    [
        (f"id,x,y\n{ROWS}", (), {}, ["id", "x", "y"]),
        (ROWS, (), {"header": False}, ["column_1", "column_2", "column_3"]),
        (ROWS, ("column_2",), {"header": False}, ["column_1", "column_2", "column_3"]),
        (f"# by hand\n# in 2024, twice\nid,x,y\n{ROWS}", (), {"skip_lines": 2}, ["id", "x", "y"]),
        (f"#id,x,y\n{ROWS}", (), {}, ["#id", "x", "y"]),
        (f"Sales of 2024,,\n,,\nid,x,y\n{ROWS}", (), {"skip_lines": 2}, ["id", "x", "y"]),
        (f"Sales of 2024\n\nid,x,y\n{ROWS}", (), {"skip_lines": 2}, ["id", "x", "y"]),
        (f"2019,2020,2021\n{ROWS.replace('a', '1').replace('b', '2')}", (), {}, ["2019", "2020", "2021"]),
        ("p,x\ne,x\np,y\n" * 30, (), {"header": False}, ["column_1", "column_2"]),
        ("p,x\ne,x\np,y\n" * 30, ("x",), {}, ["p", "x"]),
        ("name,town\nann,rome\nbob,paris\n", (), {}, ["name", "town"]),
        (
            "Bericht, 2023\nid;preis;art\n" + ROWS.replace(",", ";").replace(".", ","),
            (),
            {"delimiter": ";", "skip_lines": 1},
            ["id", "preis", "art"],
        ),
        (" age, job\n1, a\n2, b\n3, a\n", (), {"trim": True}, ["age", "job"]),
        (" age,age, job\n1,2, a\n2,3, b\n3,4, a\n", (), {}, [" age", "age", " job"]),  # trimmed, two would be one
    ],
)
def test_what_is_found_of_a_table(tmp_path, text, expected, told, names):
    assert find(tmp_path, text, *expected) == (told, names)


@pytest.mark.parametrize(
    ("text", "encoding", "found"),
    [
        ("이름,지역\n김철수,서울\n", "cp949", "cp949"),
        ("id,지역\n1,a\n", "euc-kr", "cp949"),
        ("name,town\nMüller,Köln\n", "latin-1", "cp1252"),
        ("price €,x\n5 €,1\n", "cp1252", "cp1252"),
        ("имя,город\nИван,Москва\nПётр,Казань\n", "cp1251", "cp1251"),
        ("имя,город\n" + "Иван,Москва\nПётр,Казань\nСидорова Анна,Псков\n" * 30, "koi8-r", "koi8-r"),
        ("名前,町\n東京,大阪\n北海道,京都\n", "cp932", "cp932"),
        ("imię,miasto\nŁukasz,Łódź\nŻaneta,Kraków\n", "cp1250", "cp1250"),
        ("a,b\n1,2\n3,4\n5,6\n", "utf-16-be", "utf-16-be"),
    ],
)
def test_encodings_are_found(tmp_path, text, encoding, found):
    assert find(tmp_path, text, encoding=encoding)[0] == {"encoding": found}


def test_an_unknown_encoding_must_be_set(tmp_path):
    write(tmp_path, "지역\n" + "서울\n부산\n" * 20, "johab")
    with pytest.raises(UserError, match=r"is not CP1252.*set encoding under \[data\]") as caught:
        source = open_source("t.csv", Reading(root=tmp_path, expected=()))
        read_through(source, list)
    assert "iconv" not in str(caught.value)


def test_utf_8_with_a_damaged_byte_is_not_taken_for_another_encoding(tmp_path):
    write(tmp_path, "이름,값\n".encode() + "김철수,1\n".encode() * 20 + b"\xff,2\n")
    with pytest.raises(UserError, match="is not UTF-8: line 22 holds the byte 0xFF"):
        open_source("t.csv", Reading(root=tmp_path, expected=()))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('encoding = "klingon"', "this encoding is not known"),
        ('decimal = ","\nthousands = ","', 'decimal and thousands are both ","'),
        ('decimal = ","\ndelimiter = ","', 'decimal and delimiter are both ","'),
        ('decimal = "x"', 'use "." or ","'),
        ('thousands = "x"', "use one of"),
        ('delimiter = ";;"', "use one character"),
        ("missing = [1]", "use a list of texts"),
        ('missing = "?"', "use a list of texts"),
        ('header = ["a", "a"]', '"a" is used 2 times'),
        ('header = "no"', "use true, false, or a list"),
        ("skip_lines = -1", "greater than or equal to 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_sentence(tmp_path, said, why):
    (tmp_path / "config.toml").write_text(f"[data]\n{said}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_settings(tmp_path)
    assert why in str(caught.value) and "Value error" not in str(caught.value) and "\n" not in str(caught.value)


def test_tab_may_be_named_and_the_dialect_is_what_was_set():
    data = Data(delimiter="tab", target="y")
    assert data.dialect == Dialect(delimiter="\t") and data.dialect.model_fields_set == {"delimiter"}
