"""`ml init` gives hints on the rows, each with the setting that helps, and no needless ones."""

import re
import tomllib

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from init_support import draft, load_schema, make_frame, make_project, of_role
from template_support import REPOSITORY

from ondol.contract import check_rows, describe
from ondol.ingestion.python import change_rows
from ondol.ingestion.sources import Reading, open_source


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def said(report, words):
    return [doubt for doubt in report.doubts if words in doubt]


def test_classes_that_differ_in_case_or_spaces_are_named_with_how_many_there_would_be(project):
    rng = np.random.default_rng(1)
    labels = rng.choice(["No", "yes", "no", "YES", "네", "네"], 300)
    frame = pd.DataFrame({"x": rng.normal(size=300).round(3), "y": labels})
    [doubt] = said(draft(project, frame), "differ only in case")
    assert all(f'"{label}"' in doubt for label in ("No", "no", "yes", "YES")) and "they would be 3" in doubt
    assert '"네"' not in doubt and "source" in doubt


def test_classes_that_differ_otherwise_are_not_doubted(project):
    assert not said(draft(project, make_frame()), "differ only in case")


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_exact_repeats_are_counted_with_what_to_do(project, share):
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"a": rng.normal(size=500).round(4), "b": rng.normal(size=500).round(4)})
    frame["y"] = rng.choice(["no", "yes"], 500)
    frame = pd.concat([frame, frame.sample(round(500 * share), random_state=0)], ignore_index=True)
    doubts = said(draft(project, frame), "repeat an earlier row")
    assert len(doubts) == bool(share)
    assert all("150 rows (23.1%)" in doubt and "unique=True" in doubt for doubt in doubts)


def test_repeats_of_one_measurement_beside_flags_are_not_explained_by_chance(project):
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"x": rng.random(150).round(3), "flag": rng.choice(["a", "b"], 150)})
    frame["y"] = rng.choice(["no", "yes"], 150)
    frame = pd.concat([frame, frame.sample(60, random_state=0)], ignore_index=True)
    assert len(said(draft(project, frame), "repeat an earlier row")) == 1


def test_rows_of_few_flags_that_are_equal_by_chance_are_not_repeats(project):
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({f"f{i}": rng.integers(0, 2, 600) for i in range(4)} | {"y": rng.choice(["a", "b"], 600)})
    assert not said(draft(project, frame), "repeat an earlier row")


@pytest.mark.parametrize("by", ["random", "stratified"])
def test_a_rare_class_is_named_with_the_split_that_keeps_its_share(project, by):
    with (project / "config.toml").open("a") as config:
        config.write(f'\n[split]\nby = "{by}"\n')
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"x": rng.normal(size=2000).round(3), "y": np.where(np.arange(2000) < 20, "yes", "no")})
    doubts = said(draft(project, frame), 'by = "stratified"')
    assert len(doubts) == (by == "random")
    assert all('20 rows have the class "yes" of "y" (1.0%)' in doubt for doubt in doubts)


@pytest.mark.parametrize("by", ["random", "stratified"])
@pytest.mark.parametrize("few", [1, 9])
def test_a_class_of_few_rows_is_named_in_one_sentence(project, by, few):
    with (project / "config.toml").open("a") as config:
        config.write(f'\n[split]\nby = "{by}"\n')
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"x": rng.normal(size=200).round(3), "y": np.where(np.arange(200) < few, "드묾", "no")})
    [doubt] = said(draft(project, frame), "드묾")
    assert (
        doubt.startswith(f"Only {few} row{'s have' if few > 1 else ' has'} the class") and "few for training" in doubt
    )
    assert ('by = "stratified"' in doubt) == (by == "random")


@pytest.mark.parametrize("by", ["random", "time"])
def test_a_time_is_named_with_the_split_that_goes_by_it(project, by):
    with (project / "config.toml").open("a") as config:
        config.write(f'\n[split]\nby = "{by}"\n')
    frame = make_frame(created_at=pd.date_range("2024-01-01", periods=200, freq="h").astype(str))
    doubts = said(draft(project, frame), '[split] by = "time" in config.toml')
    assert len(doubts) == (by == "random")


@pytest.mark.parametrize("beside", [{}, {"id": range(300)}])
def test_a_date_alone_is_the_time_and_a_feature(project, beside):
    dates = pd.date_range("2021-01-01", periods=300)
    level = (10 + np.arange(300) / 30 + np.random.default_rng(5).normal(0, 0.3, 300)).round(3)
    report = draft(project, pd.DataFrame({**beside, "date": dates.astype(str), "y": level}))
    assert of_role(report, "feature") == [] and of_role(report, "time") == ["date"]
    assert [field.name for field in report.fields if field.time_feature] == ["date"]
    assert '"date"' in said(report, "The rows follow their time")[0]


def seasonal():
    """A level that follows the months, beside a column that says nothing."""
    dates = pd.date_range("2019-01-01", periods=1_200)
    rng = np.random.default_rng(6)
    level = 10 + 5 * np.sin(dates.month * np.pi / 6) + rng.normal(0, 1, 1_200)
    return pd.DataFrame({"날짜": dates.astype(str), "x": rng.normal(size=1_200).round(3), "y": np.round(level, 3)})


def test_a_time_that_tells_of_later_rows_is_a_feature_with_the_figures(project):
    report = draft(project, seasonal())
    assert [field.name for field in report.fields if field.time_feature] == ["날짜"]
    (sentence,) = said(report, "a model sees it, since")
    found = re.search(r"reaches r2 (-?[\d.]+) with it .*, and (-?[\d.]+) without", sentence)
    assert found is not None and float(found[1]) > 0.7 > 0.1 > float(found[2])
    contract = describe(load_schema(project / "model" / "schema.py"), "y", "regression")
    assert [column.name for column in contract.features] == ["날짜", "x"]


@pytest.mark.parametrize("kind", ["missing where the target is low", "of no use"])
def test_a_time_that_may_leak_or_tells_nothing_is_no_feature(project, kind):
    frame = seasonal()
    if kind == "of no use":
        frame["y"] = np.random.default_rng(7).normal(size=len(frame)).round(3)
    else:
        frame.loc[frame["y"] < 7, "날짜"] = None
    report = draft(project, frame)
    assert not any(field.time_feature for field in report.fields)
    assert said(report, 'A model sees it only with "feature": True')


def following(days=60, each=10):
    """Each day has a level of its own, which a column names: of a later day it says nothing."""
    rng = np.random.default_rng(5)
    at = np.repeat(np.arange(days), each)
    frame = pd.DataFrame({"date": (pd.Timestamp("2024-01-01") + pd.to_timedelta(at, "D")).astype(str)})
    frame["pressure"] = rng.normal(size=days).round(4)[at]
    return frame.assign(y=(rng.normal(size=days)[at] + rng.normal(size=days * each) / 5).round(3))


def test_rows_that_follow_their_time_are_split_by_it(project):
    report = draft(project, following().sample(frac=1, random_state=0))
    (sentence,) = said(report, "The rows follow their time")
    found = re.search(r"reaches r2 (-?[\d.]+) on a random fifth of the rows, and (-?[\d.]+) on the latest", sentence)
    assert found is not None and float(found[1]) > 0.7 > 0.2 > float(found[2])
    assert 'so [split] by = "time"' in sentence
    assert tomllib.loads((project / "config.toml").read_text("utf-8"))["split"] == {"by": "time"}


def test_another_table_without_a_time_is_not_split_by_it(project):
    draft(project, following())
    draft(project, make_frame(), force=True)
    assert "by" not in tomllib.loads((project / "config.toml").read_text("utf-8"))["split"]


def test_rows_that_do_not_follow_their_time_keep_the_split(project):
    frame = make_frame(created_at=pd.date_range("2021-01-01", periods=200).astype(str))
    assert said(draft(project, frame), "a quick model reaches roc_auc")
    assert "split" not in tomllib.loads((project / "config.toml").read_text("utf-8"))


@pytest.mark.parametrize("by", ["stratified", "random"])
def test_a_split_that_was_set_is_kept(project, by):
    with (project / "config.toml").open("a") as config:
        config.write(f'\n[split]\nby = "{by}"\n')
    assert f'but config.toml has [split] by = "{by}"' in said(draft(project, following()), "The rows follow")[0]
    assert tomllib.loads((project / "config.toml").read_text("utf-8"))["split"] == {"by": by}


def test_numbers_and_dates_that_stand_for_a_missing_value_are_named(project):
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"age": rng.integers(18, 90, 400), "나이": rng.normal(50, 9, 400).round(1)})
    frame["since"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, 400), "D")
    frame["step"] = rng.integers(-1, 2, 400)  # a sign is not a mark
    frame["y"] = rng.choice(["no", "yes"], 400)
    frame.loc[::10, "age"], frame.loc[::8, "나이"] = -1, 9999.0
    frame.loc[::10, "since"] = pd.Timestamp("1900-01-01")
    doubts = said(draft(project, frame), "far from all other values")
    assert [doubt.partition(" has ")[0] for doubt in doubts] == ['"age"', '"나이"', '"since"']
    assert 'missing = { "나이" = ["9999"] } under [data]' in doubts[1] and "in 50 rows" in doubts[1]
    assert 'missing = { "since" = ["1900-01-01"] }' in doubts[2]


def test_an_open_end_that_nanoseconds_cannot_hold_is_doubted(project):
    days = pd.date_range("2020-01-01", periods=190).strftime("%Y-%m-%d").tolist()
    frame = make_frame(valid_to=days + ["9999-12-31"] * 10)
    (doubt,) = said(draft(project, frame), "far from all other values")
    assert "9999-12-31 in 10 rows" in doubt


def test_the_setting_that_is_named_for_such_numbers_takes_them_out(project):
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"v": rng.integers(1, 90, 400), "y": rng.choice(["no", "yes"], 400)})
    frame.loc[::10, "v"] = 999
    assert said(draft(project, frame), "far from all other values")
    config = project / "config.toml"
    written = config.read_text(encoding="utf-8")
    config.write_text(written.replace("[data]\n", '[data]\nmissing = { "v" = ["999"] }\n'), encoding="utf-8")
    report = draft(project, frame, force=True)
    assert not said(report, "far from all other values")
    assert report.fields[0].nullable


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (["No Data"], 'most values are numbers, but 40 are not: .* write missing = \\["No Data"\\] under'),
        (["12.34-", "1.5-", "7-", "0.2-"], 'most values are numbers, but 4 others are not, such as "12.34-", '),
    ],
)
def test_a_column_of_numbers_but_for_some_texts_is_named_as_such(project, others, words):
    rng = np.random.default_rng(6)
    frame = pd.DataFrame(
        {"v": rng.normal(size=400).round(3).astype(str), "x": rng.random(400), "y": rng.choice(["no", "yes"], 400)}
    )
    frame.loc[::10, "v"] = [others[i % len(others)] for i in range(40)]
    [doubt] = said(draft(project, frame), "most values are")
    assert re.search(words, doubt)


@pytest.mark.parametrize(("other", "rest"), [("0000-00-00", 'missing = ["0000-00-00"]'), ("2021-02-30", "2021-02-30")])
def test_a_column_of_dates_but_for_some_texts_is_named_as_such(project, other, rest):
    rng = np.random.default_rng(7)
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, 400), "D")
    frame = pd.DataFrame({"d": days.strftime("%Y-%m-%d"), "x": rng.random(400), "y": rng.choice(["no", "yes"], 400)})
    frame.loc[::5, "d"] = other
    [doubt] = said(draft(project, frame), "most values are dates, but 80 are not")
    assert rest in doubt


@pytest.mark.parametrize("cells", [["$1,234.50", "$8"], ["12%", "3.5 %"], ["$9", ""]])
def test_numbers_with_marks_become_numbers_by_what_the_hint_names(project, cells):
    report = draft(project, make_frame(price=cells * 100))
    [hint] = said(report, "stay text")
    declared = "declare the column as `float = pa.Field()` in model/schema.py"
    page = "docs/how-to/change-the-rows-before-validation.md"
    assert f"by `prepare` in model/source.py ({page}) and {declared}" in hint
    recipe = (REPOSITORY / page).read_text(encoding="utf-8")
    [expression] = re.findall(r"`(frame\.assign\(price=.+?\))`", recipe)
    path = project / "model" / "schema.py"
    drafted = path.read_text(encoding="utf-8")
    field = "float = pa.Field(nullable=True)" if "" in cells else "float = pa.Field()"
    edited = re.sub(r"price: str = pa\.Field\(.*", f"price: {field}", drafted)
    path.write_text(edited, encoding="utf-8")
    schema = load_schema(path)
    contract = describe(schema, report.target, report.problem)
    reading = Reading(contract.kinds, project)
    source = open_source(report.source, reading)
    changed = change_rows(source, lambda frame: eval(expression, {"frame": frame, "pd": pd}), reading)
    rows = pa.Table.from_batches(changed.batches())
    assert rows.column("price").to_pylist()[0] == float(cells[0].strip("$%").replace(",", ""))
    assert len(check_rows(rows, contract.columns, schema.to_schema()).reasons) == 0
