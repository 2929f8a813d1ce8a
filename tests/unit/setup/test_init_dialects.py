"""`ml init` finds how a table is written, says it, writes it into `config.toml`, and every later read goes by it."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from init_support import CONFIG, make_project

from ondol.config import load_settings
from ondol.contract import Column, Contract
from ondol.contract.checking import clean_column
from ondol.errors import UserError
from ondol.ingestion.ingest import open_project_source
from ondol.ingestion.sources import Reading, open_source
from ondol.setup.initialize import InitReport, initialize, read_table


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def init(project: Path, text: str, target: str = "y", encoding: str = "utf-8") -> tuple[InitReport, dict[str, object]]:
    """Return the report, and the settings in `[data]` besides source, target and problem."""
    (project / "t.csv").write_bytes(text.encode(encoding))
    report = initialize(project, "t.csv", target, force=True)
    data = tomllib.loads((project / "config.toml").read_text(encoding="utf-8"))["data"]
    return report, {k: v for k, v in data.items() if k not in ("source", "target", "problem", "max_bad_share")}


def kinds(report: InitReport) -> dict[str, str]:
    return {field.name: field.kind for field in report.fields}


def table(delimiter: str = ",", header: bool = True, **columns: list[str]) -> str:
    """Return 200 rows of `columns`, repeated, with x, a number without signs, and y, a class."""
    rng = np.random.default_rng(0)
    columns |= {"x": [str(v) for v in rng.integers(100, 999, 200)], "y": list(rng.choice(["no", "yes"], 200))}
    lines = [delimiter.join(columns)] if header else []
    quoted = {n: [f'"{v}"' if delimiter in v else v for v in values] for n, values in columns.items()}
    lines += [delimiter.join(values[i % len(values)] for values in quoted.values()) for i in range(200)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("delimiter", "cells", "settings"),
    [
        (";", ["1,5", "22,25", "0,125"], {"delimiter": ";", "decimal": ","}),
        (",", ["1,5", "22,25", "0,125"], {"decimal": ","}),
        (";", ["1.973,63", "12,5", "8"], {"delimiter": ";", "decimal": ",", "thousands": "."}),
        (",", ["1,973.63", "12.5", "8"], {"thousands": ","}),
        (",", ["12 345,6", "8,5", "1 200,0"], {"decimal": ",", "thousands": " "}),
        (",", ["12\u00a0345.6", "8.5", "1\u00a0200.0"], {"thousands": " "}),
        (";", ["12'345.6", "8.5", "1'200.0"], {"delimiter": ";", "thousands": "'"}),
        (",", ["1,234,567", "8", "12"], {"thousands": ","}),
        (";", ["1.234.567", "8", "12"], {"delimiter": ";", "decimal": ",", "thousands": "."}),
        (",", ["0.125", "1.234", "12.5"], {}),
        (";", ["1,5E+03", "2,25E-01", "7,5"], {"delimiter": ";", "decimal": ","}),
        ("\t", ["1.5", "2.5"], {"delimiter": "\t"}),
    ],
)
def test_the_notation_of_numbers_is_found_and_read(project, delimiter, cells, settings):
    report, written = init(project, table(delimiter, amount=cells))
    assert written == settings
    assert kinds(report)["amount"] in ("number", "integer") and not report.doubts
    assert (len(report.notes) > 0) == bool(settings)
    data = load_settings(project).data
    source = open_source("t.csv", Reading({"amount": "number"}, project, dialect=data.dialect))
    read, _ = read_table(source)
    assert read.column("amount").null_count == 0 and str(read.schema.field("amount").type) == "double"


@pytest.mark.parametrize(
    ("delimiter", "cells", "settings", "said"),
    [
        (",", ["1,234", "12,500", "8"], {"thousands": ","}, '"1,234" is read as 1234'),
        (";", ["1,234", "12,500"], {"delimiter": ";", "decimal": ","}, '"1,234" is read as 1.234'),
        (";", ["1.234", "12.500"], {"delimiter": ";"}, '"1.234" is read as 1.234'),
    ],
)
def test_a_sign_that_may_be_either_is_reported_with_the_setting_that_decides(project, delimiter, cells, settings, said):
    report, written = init(project, table(delimiter, amount=cells))
    assert written == settings
    assert any(said in doubt and "read it otherwise" in doubt for doubt in report.doubts)


def test_another_column_decides_what_one_alone_leaves_open(project):
    report, written = init(project, table(";", amount=["1,234", "12,500"], rate=["0,5", "0,75"]))
    assert written == {"delimiter": ";", "decimal": ","} and kinds(report)["amount"] == "number"
    (project / "config.toml").write_text(CONFIG, encoding="utf-8")
    _, written = init(project, table(";", amount=["1,234", "12,500"], rate=["0.5", "0.75"]))
    assert written == {"delimiter": ";", "thousands": ","}


def test_lists_of_numbers_versions_and_phone_numbers_are_not_numbers(project):
    report, written = init(project, table(a=["1,2,3", "2,3"], b=["1.2.3", "10.0.1"], c=["010 123 456", "011 222 333"]))
    assert written == {} and {kinds(report)[name] for name in "abc"} == {"text"}


@pytest.mark.parametrize("marker", ["?", "-", "none", "n/a", ".", "unknown", "없음", "--", "#VALUE!"])
@pytest.mark.parametrize("share", [1, 50, 120])
def test_a_marker_of_missing_numbers_is_found_at_any_count(project, marker, share):
    numbers = [f"{i / 4 + 0.5:g}" for i in range(200)]
    numbers[:share] = [marker] * share
    report, written = init(project, table(pulse=numbers))
    field = next(field for field in report.fields if field.name == "pulse")
    assert (field.kind, field.nullable, written) == ("number", True, {"missing": [marker]})
    assert any(f'"{marker}" means in {share} row' in note for note in report.notes)
    assert not report.doubts


def test_a_marker_is_found_among_dates_too_and_stays_a_category_of_a_text(project):
    report, written = init(
        project, table(when=["2024-01-31", "2024-02-01", "2023-11-30", "-"], plan=["basic", "none", "-", "plus"])
    )
    assert written == {"missing": ["-"]} and kinds(report)["when"] == "date"
    plan = next(field for field in report.fields if field.name == "plan")
    assert plan.categories == ("-", "basic", "none", "plus") and not plan.nullable


def test_a_marker_of_one_column_is_reported_for_every_column_that_it_makes_numeric(project):
    report, written = init(
        project, table(pulse=["1.5", "2.5", "3.5", "none"], code=["1", "2", "none"], job=["a", "none"])
    )
    assert written == {"missing": ["none"]} and kinds(report)["code"] == "integer" and kinds(report)["job"] == "text"
    assert [note.split('"')[3] for note in report.notes] == ["pulse", "code"]


def test_other_words_among_numbers_are_not_markers(project):
    report, written = init(project, table(size=["1", "2", "3", "large"], flag=["1", "-"], code=["1", "2", "A", "none"]))
    assert written == {} and {kinds(report)[name] for name in ("size", "flag", "code")} == {"text"}


def test_a_table_without_a_header_gets_numbered_columns_and_says_so(project):
    report, written = init(project, table(header=False, job=[" State-gov", " Private"]), "column_3")
    assert written == {"header": False, "trim": True}
    assert list(kinds(report)) == ["column_1", "column_2", "column_3"]
    assert "has no header" in report.notes[0] and report.fields[0].categories == ("Private", "State-gov")
    with pytest.raises(
        UserError, match=r'no column "y"\. Its first line looks like a row.* It has: column_1, column_2'
    ):
        init(project, table(header=False, job=["a", "b"]), "y")


def test_korean_in_its_old_encoding_is_read_and_reported(project):
    report, written = init(project, table(지역=["서울", "부산"]), encoding="cp949")
    assert written == {"encoding": "cp949"} and report.notes == ("Its text is encoded as CP949.",)
    assert report.fields[0].categories == ("부산", "서울")


def test_an_encoding_that_is_a_guess_is_to_be_checked(project):
    report, written = init(project, table(город=["Москва", "Сидорова"]), encoding="cp1251")
    assert written == {"encoding": "cp1251"}
    assert report.notes == (
        "Its text is encoded as CP1251, as a guess by its letters: check the names and values below.",
    )


def test_utf_16_as_excel_writes_it_is_read(project):
    _, written = init(project, table("\t", 지역=["서울", "부산"]), encoding="utf-16")
    assert written == {"encoding": "utf-16", "delimiter": "\t"}


def test_settings_keep_the_owners_comments_and_go_with_the_table_that_they_were_of(project):
    init(project, table(";", amount=["1,5", "2,25"]))
    text = (project / "config.toml").read_text(encoding="utf-8")
    assert "# rows\n" in text and text.endswith("# How the model is trained.\n[train]\nseed = 1\n")
    (project / "other.csv").write_text(table(amount=["1.5", "2.25"]), encoding="utf-8")
    initialize(project, "other.csv", "y", force=True)
    assert load_settings(project).data.dialect.model_dump(exclude_defaults=True) == {}


def test_what_the_owner_set_is_taken_as_it_is(project):
    path = project / "config.toml"
    path.write_text(CONFIG.replace("max_bad", 'decimal = "."\nthousands = "."\nmax_bad', 1))
    with pytest.raises(UserError, match="decimal and thousands are both"):
        init(project, table(";", amount=["1.234", "12.500"]))
    path.write_text(
        CONFIG.replace("max_bad", 'decimal = ","\nthousands = "."\nmissing = { plan = ["none"] }\nmax_bad', 1)
    )
    report, written = init(project, table(";", amount=["1.234", "12.500"], plan=["basic", "none", "plus"]))
    assert written == {"delimiter": ";", "decimal": ",", "thousands": ".", "missing": {"plan": ["none"]}}
    assert kinds(report)["amount"] == "integer" and report.fields[1].categories == ("basic", "plus")
    assert report.fields[1].nullable and not any("read it otherwise" in doubt for doubt in report.doubts)


def test_a_marker_of_a_column_that_is_not_there_is_refused_with_the_nearest_name(project):
    path = project / "config.toml"
    said = r'\[data\] missing in config.toml names "플렌", which is not a column: .* Did you mean "플랜"\?$'
    path.write_text(CONFIG.replace("max_bad", 'missing = { "플렌" = ["none"] }\nmax_bad', 1), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        init(project, table(플랜=["basic", "none", "plus"]))
    column = Column(name="플랜", kind="text")
    contract = Contract(problem="binary", target="y", columns=(column, Column(name="y", kind="text", role="target")))
    with pytest.raises(UserError, match=said):
        open_project_source(load_settings(project), contract)


DAYS = pd.Series(pd.date_range("2020-01-01 09:05", periods=200, freq="26h"))
REPEATED = {
    "notation": (table(";", amount=["1.973,63", "12,5", "-"], plan=[" a", " b"]), "y", 4),
    "no header": ("\n".join(f"{i % 7};{i / 8};n{i % 3}" for i in range(200)), "column_3", 2),
    "markers of columns": (table(pulse=["1", "2", "3", "?"], z=["no", "yes", "?", "yes"]), "z", 2),
    "dates": (table(a=list(DAYS.dt.strftime("%d/%m/%Y")), b=list(DAYS.dt.strftime("%m/%d/%y"))), "y", 2),
    "two orders": (table(a=list(DAYS.dt.strftime("%d/%m/%Y")), b=list(DAYS.dt.strftime("%m/%d/%Y"))), "y", 1),
    "one order of two": (table(a=["01/02/2024", "03/04/2024"] * 9, b=list(DAYS.dt.strftime("%d/%m/%Y"))), "y", 2),
}


@pytest.mark.parametrize("case", REPEATED)
def test_a_second_init_changes_nothing_and_says_the_same(project, case):
    text, target, notes = REPEATED[case]
    first, _ = init(project, text, target)
    before = (project / "config.toml").read_bytes()
    second = initialize(project, "t.csv", target)
    assert second.status == "unchanged" and (project / "config.toml").read_bytes() == before
    assert (second.notes, second.doubts) == (first.notes, first.doubts) and len(first.notes) == notes


@pytest.mark.parametrize(
    ("form", "listed", "said"),
    [
        ("%d/%m/%Y", ["%d/%m/%Y"], "day/month/year"),
        ("%m/%d/%Y", None, "month/day/year"),
        ("%m/%d/%Y %I:%M:%S %p", None, "month/day/year"),
        ("%d/%m/%Y %H:%M", ["%d/%m/%Y"], "day/month/year"),
        ("%m/%d/%y", ["%m/%d/%y"], "month/day/year (two digits of the year)"),
        ("%d-%m-%Y", ["%d-%m-%Y"], "day-month-year"),
        ("%d.%m.%y", ["%d.%m.%y"], "day.month.year (two digits of the year)"),
        ("%y.%m.%d", ["%y.%m.%d"], "year.month.day (two digits of the year)"),
        ("%d-%b-%y", ["%d-%b-%y"], "%d-%b-%y"),
        ("%Y%m%d", ["%Y%m%d"], "%Y%m%d"),
        ("%Y%m%d%H%M%S", ["%Y%m%d%H%M%S"], "%Y%m%d%H%M%S"),
        ("%y년 %m월 %d일", ["%y년 %m월 %d일"], "%y년 %m월 %d일"),
        ("%A, %B %d, %Y", ["%A, %B %d, %Y"], "%A, %B %d, %Y"),
        ("%d/%b/%Y:%H:%M:%S +0000", ["%d/%b/%Y:%H:%M:%S %z"], "%d/%b/%Y:%H:%M:%S %z"),
        ("%Y.%m.%d.", ["%Y.%m.%d."], "year.month.day."),
        ("%d.%m.%Y", None, "day.month.year"),
        ("%Y년 %m월 %d일", None, "%Y년 %m월 %d일"),
        ("%b %d %Y", None, "%b %d %Y"),
        ("%Y-%m-%d", None, None),
    ],
)
def test_date_formats_are_found_reported_and_read_to_the_day(project, form, listed, said):
    report, written = init(project, table(sold=list(DAYS.dt.strftime(form))))
    assert kinds(report)["sold"] == "date"
    assert written.get("date_formats") == listed and set(written) <= {"date_formats"}
    assert [note for note in report.notes if f'"sold" are written {said}, as' in note] == list(report.notes)
    assert len(report.notes) == (said is not None)
    settings = load_settings(project)
    source = open_source("t.csv", Reading({"sold": "date"}, project, dialect=settings.data.dialect))
    column = Column(name="sold", kind="date", formats=settings.data.date_formats)
    days, unreadable = clean_column(read_table(source)[0].column("sold"), column)
    assert not unreadable.any() and (days.dt.normalize() == DAYS.dt.normalize()).all()


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m/%d/%y"])
def test_dates_that_may_be_either_stay_text_and_the_setting_that_decides_is_named_and_obeyed(project, form):
    text = table(sold=list(pd.date_range("2020-01-01", periods=12, freq="MS").strftime(form)))
    report, written = init(project, text)
    assert kinds(report)["sold"] == "text" and "date_formats" not in written
    [doubt] = [doubt for doubt in report.doubts if doubt.startswith('"sold"')]
    assert f'date_formats = ["{form}"]' in doubt and "does not decide" in doubt
    path = project / "config.toml"
    path.write_text(CONFIG.replace("max_bad", f'date_formats = ["{form}"]\nmax_bad', 1), encoding="utf-8")
    report, written = init(project, text)
    assert kinds(report)["sold"] == "date" and written == {"date_formats": [form]}
    assert any(note.startswith('Dates of "sold"') and "as date_formats says" in note for note in report.notes)


def test_a_column_that_tells_day_from_month_decides_for_one_that_does_not(project):
    open_, told = (
        pd.date_range("2020-01-01", periods=n, freq=f).strftime("%d/%m/%Y") for n, f in ((12, "MS"), (99, "D"))
    )
    report, written = init(project, table(a=list(open_), b=list(told)))
    assert kinds(report)["a"] == kinds(report)["b"] == "date" and written == {"date_formats": ["%d/%m/%Y"]}
    assert any('"a" are written day/month/year, as those of "b" are' in note for note in report.notes)


def test_two_columns_of_the_same_shape_in_two_orders_are_not_both_read(project):
    days = pd.date_range("2020-01-01", periods=200)
    report, written = init(project, table(a=list(days.strftime("%d/%m/%Y")), b=list(days.strftime("%m/%d/%Y"))))
    assert (kinds(report)["a"], kinds(report)["b"]) == ("date", "text") and written == {"date_formats": ["%d/%m/%Y"]}
    assert any('"b" stays text' in doubt and "a table has one order" in doubt for doubt in report.doubts)


def test_formats_of_several_shapes_are_listed_together(project):
    days = pd.date_range("2020-01-01", periods=200)
    _, written = init(project, table(a=list(days.strftime("%m/%d/%Y")), b=list(days.strftime("%d-%m-%Y"))))
    assert written == {"date_formats": ["%m/%d/%Y", "%d-%m-%Y"]}


def test_clock_times_without_seconds_say_how_to_write_them(project):
    report, _ = init(project, table(at=[f"{i % 24:02}:{i % 60:02}" for i in range(200)]))
    assert kinds(report)["at"] == "text" and any("write them as 10:30:00" in doubt for doubt in report.doubts)


@pytest.mark.parametrize("values", [["now", "today"], ["1.2.3", "10.0.1"], ["20240131", "99999999"], ["A-01", "B-12"]])
def test_words_versions_and_numbers_are_not_dates(project, values):
    report, written = init(project, table(a=values))
    assert kinds(report)["a"] in ("text", "integer") and written == {} and not report.notes


def test_rows_that_repeat_the_header_are_reported_and_are_not_a_class(project):
    lines = table(amount=["1.5", "2.5"]).splitlines()
    report, _ = init(project, "\n".join([*lines[:50], lines[0], *lines[50:], lines[0]]) + "\n")
    assert report.doubts == ("2 rows repeat the header: they are quarantined; remove such lines.",)
    assert report.rows == 200 and report.problem == "binary" and kinds(report)["amount"] == "number"


def test_question_marks_among_classes_mean_that_there_is_no_label(project):
    labels = ["no", "yes", "?", "yes"]
    report, written = init(project, table(pulse=["1", "2", "3", "?"], z=labels), "z")
    assert written == {"missing": {"pulse": ["?"], "z": ["?"]}} and report.problem == "binary"
    assert '"z" is missing in 50 rows (25.0%): they are left out of training.' in report.doubts


def test_other_markers_among_classes_are_doubted_with_the_setting_and_signs_alone_are_classes(project):
    report, written = init(project, table(z=["no", "yes", "unknown", "yes"]), "z")
    assert written == {} and report.problem == "multiclass"
    assert any('missing = { "z" = ["unknown"] } under [data]' in doubt for doubt in report.doubts)
    report, written = init(project, table(z=["+", "-"]), "z")
    assert written == {} and report.problem == "binary" and report.doubts == ()


@pytest.mark.parametrize("marker", ["-", "?"])
def test_the_setting_that_is_named_for_labels_keeps_the_markers_of_other_columns(project, marker):
    text = table(pulse=["1", "2", "3", marker], z=["no", "yes", "unknown", "yes"])
    report, _ = init(project, text, "z")
    [setting] = [doubt.partition(": ")[2] for doubt in report.doubts if "may mean that there is no label" in doubt]
    config = project / "config.toml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("missing")]
    place = next(number for number, line in enumerate(lines) if line.startswith("target"))
    lines.insert(place, setting.partition(" under")[0])
    config.write_text("\n".join(lines) + "\n")
    report, written = init(project, text, "z")
    assert written == {"missing": {"pulse": [marker], "z": ["unknown"]}}
    assert report.problem == "binary" and kinds(report)["pulse"] == "integer"


@pytest.mark.parametrize(("pair", "kind"), [(["0", "1"], "integer"), (["true", "false"], "boolean")])
def test_a_sign_beside_two_numbers_or_truth_values_means_that_there_is_none(project, pair, kind):
    report, written = init(project, table(flag=[*pair, "?"]))
    assert written == {"missing": ["?"]} and kinds(report)["flag"] == kind


@pytest.mark.parametrize("pair", [["0", "1"], ["true", "false"]])
def test_a_word_beside_two_numbers_or_truth_values_is_a_third_text(project, pair):
    report, written = init(project, table(flag=[*pair, "unknown"]))
    assert written == {} and kinds(report)["flag"] == "text"


def test_digits_of_other_scripts_are_text(project):
    report, _ = init(project, table(floor=["１", "２", "３"], room=["٣", "٤", "٥"]))
    assert kinds(report)["floor"] == kinds(report)["room"] == "text"


@pytest.mark.parametrize(
    "cells", [["−12.5", "3.5"], ["(12.50)", "3.5"], ["$12.50", "3"], ["12,000원", "900원"], ["47%", "3.5 %"]]
)
def test_numbers_with_other_signs_stay_text_with_a_hint_and_are_not_a_target(project, cells):
    report, _ = init(project, table(amount=cells))
    assert kinds(report)["amount"] == "text" and any("write them as 1234.5" in doubt for doubt in report.doubts)
    with pytest.raises(UserError, match=r'The target "amount" cannot be used in this form: .* write them as 1234\.5'):
        init(project, table(amount=cells), "amount")


@pytest.mark.parametrize("clock", ["오후 3:04", "오후 03:04:05", "3:04 PM"])
def test_korean_halves_of_the_day_are_read(project, clock):
    report, _ = init(project, table(at=[f"2024-01-{day:02} {clock}" for day in range(1, 29)]))
    assert kinds(report)["at"] == "date"
    days, _ = clean_column(pa.chunked_array([[f"2024-01-31 {clock}"]]), Column(name="at", kind="date"))
    assert (days[0].hour, days[0].minute) == (15, 4)


@pytest.mark.parametrize(
    ("cells", "hinted"),
    [
        ([f"{day}. Juni 2023" for day in range(1, 29)], True),
        ([f"le {day} mai 2023" for day in range(1, 29)], True),
        ([f"2023 {day:02} 05 x" for day in range(1, 29)], True),
        ([f"10.0.{i}" for i in range(40)], False),
        ([f"A-{i}-2000" for i in range(1000, 1040)], False),
        ([f"Road {i}" for i in range(1980, 2020)], False),
    ],
)
def test_dates_in_a_form_that_is_not_read_are_hinted_at(project, cells, hinted):
    report, _ = init(project, table(at=cells))
    assert any("may be dates in an unknown form" in doubt for doubt in report.doubts) == hinted


def test_markers_in_a_table_of_types_are_reported_with_the_way_out(project):
    rows = [{"pulse": "?" if i % 5 == 0 else str(i / 4), "x": i % 7, "y": "ab"[i % 2]} for i in range(200)]
    (project / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = initialize(project, "t.jsonl", "y")
    assert any('"pulse" stays text because of "?" in 40 rows' in doubt for doubt in report.doubts)


def test_what_keeps_the_only_feature_from_being_read_is_reported_with_the_refusal(project):
    days = [f"{day:02}/{month:02}/2020" for day in range(1, 13) for month in range(1, 13)]
    (project / "t.csv").write_text(
        "day,y\n" + "".join(f"{d},{i * 1.5}\n" for i, d in enumerate(days)), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r'no column is left .*date_formats = \["%d/%m/%Y"\]'):
        initialize(project, "t.csv", "y")


@pytest.mark.parametrize("above", ["Sales of 2024\n\n", "# made by hand\n", "sep=;\n"])
def test_lines_above_the_header_are_passed_over(project, above):
    report, written = init(project, above + table(";", amount=["1.5", "2.25"]))
    assert list(kinds(report)) == ["amount", "x", "y"]
    assert written.pop("skip_lines", 0) == (0 if "sep" in above else above.count("\n"))
    assert written == {"delimiter": ";"}
