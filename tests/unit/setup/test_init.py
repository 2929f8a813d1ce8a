"""`ml init` drafts a contract that its own data keeps, says its doubts, and never overwrites an edit."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from init_support import (
    CONFIG,
    DATA,
    SAMPLE_MODEL,
    check_own_source,
    draft,
    field_of,
    make_frame,
    make_project,
    of_role,
)
from rich.console import Console

from ondol.cli.init import print_init_report
from ondol.errors import UserError
from ondol.setup.initialize import initialize


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def _fail_on(name, write):
    def write_or_fail(path, content):
        if path.name == name:
            raise OSError("the disk is full")
        return write(path, content)

    return write_or_fail


@pytest.mark.parametrize(
    ("name", "target", "problem", "ignored", "doubted"),
    [
        ("telco_churn", "Churn", "binary", [], ["TotalCharges"]),
        ("diamonds", "price", "regression", [], []),
        ("mpg", "origin", "multiclass", ["name"], ["name"]),
        ("mpg", "mpg", "regression", ["name"], ["name"]),
    ],
)
def test_draft_of_real_table_is_kept_by_all_its_rows(project, name, target, problem, ignored, doubted):
    path = DATA / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    report = initialize(project, str(path), target)
    assert (report.problem, of_role(report, "ignored")) == (problem, ignored)
    assert [doubt.split('"')[1] for doubt in report.doubts] == doubted
    assert check_own_source(project, report).empty


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("breast_cancer", "binary"),
        ("wine", "multiclass"),
        ("diabetes", "regression"),
    ],
)
def test_draft_of_scikit_learn_table_is_kept_by_all_its_rows(project, name, problem):
    from sklearn import datasets

    report = draft(project, getattr(datasets, f"load_{name}")(as_frame=True).frame, "target")
    assert report.problem == problem
    assert not any("almost perfectly" in doubt for doubt in report.doubts)
    assert check_own_source(project, report).empty


def test_draft_of_awkward_columns_is_kept_by_all_its_rows(project):
    n = 200
    report = draft(
        project,
        make_frame(
            **{
                "가격 (원)": np.arange(n) * 10_000,
                "class": ["a", "b"] * 100,
                "zip": [f"{i % 50:05}" for i in range(n)],
                "month": ["2024-01", "2024-12"] * 100,
                "day": ["2024/01/31", ""] * 100,
                "flag": ["True", ""] * 100,
                "count": pd.array([1, None] * 100, "Int64"),
                "amount": ["1.5", " "] * 100,
                "gap": ["u", "  "] * 100,
                "customerID": [f"{i:04}-X" for i in range(n)],
                "created_at": ["2024-01-31 10:00:00"] * 99 + ["2024-02-01"] * 101,
            }
        ),
    )
    kinds = {field.name: (field.kind, field.role, field.nullable) for field in report.fields}
    assert kinds == {
        "가격 (원)": ("integer", "feature", False),
        "class": ("text", "feature", False),
        "zip": ("text", "feature", False),
        "month": ("date", "feature", False),
        "day": ("date", "feature", True),
        "flag": ("boolean", "feature", True),
        "count": ("integer", "feature", True),
        "amount": ("number", "feature", True),
        "gap": ("text", "feature", True),
        "customerID": ("text", "id", False),
        "created_at": ("date", "time", False),
        "x": ("number", "feature", False),
        "y": ("text", "target", False),
    }
    assert check_own_source(project, report).empty


@pytest.mark.parametrize(
    "write",
    [
        lambda frame, path: frame.to_parquet(path),
        lambda frame, path: frame.to_json(path, orient="records", lines=True),
        lambda frame, path: frame.to_csv(path, sep=";", index=False, compression="gzip"),
    ],
)
def test_format_of_the_file_does_not_change_the_draft(project, write):
    frame = make_frame(day=pd.Series(["2024-01-01", None] * 100), k=[0, 1] * 100, code=["007", "010"] * 100)
    expected = draft(project, frame).fields
    write(frame, project / "other")
    assert initialize(project, "other", "y", force=True).fields == expected


def test_ranges_never_repeat_the_samples_extremes(project):
    report = draft(project, make_frame(age=np.arange(200) % 60 + 18, balance=np.arange(-100, 100)))
    assert (field_of(report, "age").minimum, field_of(report, "balance").minimum) == (0, None)
    assert "77" not in (project / "model" / "schema.py").read_text(encoding="utf-8")


def test_set_is_closed_only_when_each_value_was_seen_often(project):
    report = draft(project, make_frame(often=["a", "b"] * 100, seldom=["a"] * 195 + ["b"] * 5))
    assert field_of(report, "often").categories == ("a", "b")
    assert field_of(report, "seldom").categories is None
    assert 'Open to new values: "b" was seen only 5 times.' in field_of(report, "seldom").comments


def test_empty_constant_near_unique_and_second_id_are_ignored_and_named(project):
    report = draft(
        project,
        make_frame(
            same=["k"] * 200,
            note=[f"text number {i} of many" for i in range(200)],
            id=range(200),
            ref=range(1000, 1200),
            빈칸=[None] * 200,
        ),
    )
    assert (of_role(report, "id"), of_role(report, "ignored")) == (["id"], ["same", "note", "ref", "빈칸"])
    assert [doubt.split('"')[1] for doubt in report.doubts] == ["same", "note", "ref", "빈칸"]
    assert check_own_source(project, report).empty


def test_an_empty_date_is_not_the_time_of_the_rows(project):
    days = pd.Series(pd.date_range("2024-01-01", periods=200))
    make_frame(deleted_at=pd.Series([pd.NaT] * 200), created_at=days).to_parquet(project / "t.parquet")
    report = initialize(project, "t.parquet", "y")
    assert (of_role(report, "time"), of_role(report, "ignored")) == (["created_at"], ["deleted_at"])


@pytest.mark.parametrize(
    "leak",
    [
        lambda y: (y == "yes") * 1.5,
        lambda y: y.map({"no": "A", "yes": "B"}),
        lambda y: (y == "yes").map({True: 3.0, False: None}),
    ],
)
def test_column_that_gives_the_target_away_is_named_and_kept(project, leak):
    frame = make_frame()
    report = draft(project, frame.assign(leak=leak(frame["y"])))
    assert [doubt for doubt in report.doubts if doubt.startswith('"leak" alone predicts')]
    assert field_of(report, "leak").role == "feature"


def test_dates_are_read_where_the_values_tell_day_and_month_apart(project):
    days = pd.Series(pd.date_range("2020-01-01", periods=200))
    forms = {
        "month_first": "%m/%d/%Y",
        "named": "%b %d, %Y",
        "zoned": "%Y-%m-%dT%H:%M:%SZ",
    }
    report = draft(project, make_frame(**{name: days.dt.strftime(form) for name, form in forms.items()}))
    assert [field_of(report, name).kind for name in forms] == ["date", "date", "date"]
    assert check_own_source(project, report).empty


def test_a_group_among_the_texts_that_are_ignored_is_doubted(project):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"fare": rng.normal(size=1500), "가구": [f"가구 {i:05}" for i in range(1500)]})
    frame["y"] = np.where(frame["fare"] + rng.normal(size=1500) > 0.7, "yes", "no")
    twins = frame.sample(frac=0.4, random_state=1)
    report = draft(project, pd.concat([frame, twins.assign(fare=twins["fare"] + 0.001)], ignore_index=True))
    assert [doubt for doubt in report.doubts if "가구" in doubt and "give it the role group" in doubt]
    assert field_of(report, "가구").role == "ignored"


def test_copy_of_a_number_is_named_as_leak(project):
    amount = np.random.default_rng(1).lognormal(3, 1, 2000)
    report = draft(project, pd.DataFrame({"copy": amount * 3, "x": amount % 1, "amount": amount}), "amount")
    assert [doubt.split('"')[1] for doubt in report.doubts] == ["copy"]


@pytest.mark.parametrize(
    ("values", "hinted"),
    [
        (["1.973,63", "12,5"], True),
        (["$1,247.50", "$ 8"], True),
        (["47%", "3.5 %"], True),
        (["12,000원", "₩900"], True),
        (["1.2.3", "10.0.1"], False),
        (["1,2,3", "2,3"], False),
        (["47%", "none"], False),
    ],
)
def test_numbers_with_marks_stay_text_and_a_hint_says_how_to_write_them(project, values, hinted):
    report = draft(project, make_frame(price=values * 100))
    assert field_of(report, "price").kind == "text"
    assert any("write them as 1234.5" in doubt for doubt in report.doubts) == hinted


def test_few_unreadable_numbers_keep_the_column_a_number_and_are_counted(project):
    report = draft(project, make_frame(price=["1.5", "2.25"] * 99 + ["oops", "12 kg"]))
    assert field_of(report, "price").kind == "number"
    assert "2 values cannot be read: their rows are quarantined" in report.doubts[0]
    assert len(check_own_source(project, report)) == 2


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["a", "b"], "binary"),
        ([0, 1], "binary"),
        ([True, False], "binary"),
        (["a", "b", "c"], "multiclass"),
        ([1, 2, 3, 4], "multiclass"),
        ([1.0, 2.0, 3.0, 4.0], "multiclass"),
        ([0.5, 1.5, 2.5, 9.0], "regression"),
        (list(range(100)), "regression"),
        ([10_000 * i for i in range(20)], "regression"),
    ],
)
def test_problem_is_inferred_from_the_targets_values(project, values, problem):
    assert draft(project, make_frame(y=(values * 200)[:200])).problem == problem


def test_guessed_problem_is_marked_as_a_guess_and_can_be_set(project):
    frame = make_frame(y=[1, 2, 3, 4] * 50)
    assert "--problem regression" in draft(project, frame).doubts[0]
    assert draft(project, frame, problem="regression", force=True).problem == "regression"


@pytest.mark.parametrize(
    ("columns", "target", "options", "said"),
    [
        ({}, "yy", {}, 'Did you mean "y"?'),
        ({"y": ["a"] * 200}, "y", {}, "'a' in every row"),
        ({"y": [None] * 200}, "y", {}, '"y" has no value'),
        ({"y": range(200)}, "y", {}, "as an id has"),
        ({"y": [f"u{i}" for i in range(200)]}, "y", {}, "as an id has"),
        ({"y": ["2024-01-01", "2024-01-02"] * 100}, "y", {}, "is a date"),
        ({}, "y", {"problem": "binry"}, "binary"),
        ({}, "y", {"problem": "regression"}, "needs numbers"),
        ({}, "y", {"problem": "multiclass"}, "--problem binary"),
        ({"y": [1, 2, 3, 4] * 50}, "y", {"problem": "binary"}, "--problem multiclass"),
        ({"y": [i / 2 for i in range(200)]}, "y", {"problem": "multiclass"}, "fractions"),
        (
            {"y": [i // 2 * 7 for i in range(202)][:200] * 2, "x": range(400)},
            "y",
            {"problem": "binary"},
            "binary needs two",
        ),
        ({"x": ["same"] * 200}, "y", {}, "no column is left"),
    ],
)
def test_target_that_cannot_be_learned_is_refused_and_nothing_is_changed(project, columns, target, options, said):
    with pytest.raises(UserError) as caught:
        draft(project, make_frame(**columns), target, **options)
    sentence = str(caught.value)
    assert said in sentence and "\n" not in sentence
    assert (project / "config.toml").read_text(encoding="utf-8") == CONFIG
    assert (project / "model" / "schema.py").read_text(encoding="utf-8") == SAMPLE_MODEL.read_text(encoding="utf-8")


def test_missing_targets_are_counted_as_rows_that_are_left_out(project):
    report = draft(project, make_frame(y=["a", "b", None, "a"] * 50))
    assert not field_of(report, "y").nullable
    assert report.doubts[0] == '"y" is missing in 50 rows (25.0%): they are left out of training.'


def test_unreadable_targets_are_counted_apart_from_missing_ones(project):
    report = draft(project, make_frame(y=["1.5", "2.5", "", "3.25"] * 49 + ["4.5", "oops", "", ""]))
    assert [doubt for doubt in report.doubts if '"y"' in doubt] == [
        '"y" is missing in 51 rows (25.5%): they are left out of training.',
        '"y" holds numbers stored as text: 1 value cannot be read: its row is quarantined.',
    ]


def test_config_keeps_its_comments_and_other_keys(project):
    draft(project, make_frame())
    text = (project / "config.toml").read_text(encoding="utf-8")
    added = 'target = "y"\nproblem = "binary"\nmax_bad'
    assert text == CONFIG.replace("sample://", "t.csv").replace("max_bad", added)


def test_config_comment_above_the_next_section_stays_there(project):
    (project / "config.toml").write_text(
        '[data]\nsource = "sample://"\n\n# Ours.\n[split]\nseed = 1\n', encoding="utf-8"
    )
    draft(project, make_frame())
    text = (project / "config.toml").read_text(encoding="utf-8")
    assert text.endswith('target = "y"\nproblem = "binary"\n\n# Ours.\n[split]\nseed = 1\n')


def test_nothing_is_changed_when_one_of_the_files_cannot_be_written(project, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", _fail_on("config.toml", Path.write_bytes))
    with pytest.raises(OSError, match="full"):
        draft(project, make_frame())
    monkeypatch.undo()
    assert (project / "model" / "schema.py").read_text(encoding="utf-8") == SAMPLE_MODEL.read_text(encoding="utf-8")
    assert sorted(p.name for p in project.iterdir()) == ["config.toml", "model", "t.csv"]


def test_second_init_changes_nothing_and_says_so(project):
    draft(project, make_frame())
    report = draft(project, make_frame())
    assert (report.status, report.diff) == ("unchanged", "")


def test_owners_edit_is_shown_as_diff_and_overwritten_only_with_force(project):
    draft(project, make_frame())
    schema = project / "model" / "schema.py"
    edited = schema.read_text(encoding="utf-8").replace("x: float", "x: float  # mine\n    more: float")
    schema.write_text(edited, encoding="utf-8")
    report = draft(project, make_frame())
    assert report.status == "differs" and "-    more: float = pa.Field()" in report.diff.splitlines()
    assert schema.read_text(encoding="utf-8") == edited
    assert draft(project, make_frame(), force=True).status == "written"
    assert schema.read_text(encoding="utf-8") != edited


def test_edited_schema_of_the_sample_is_not_overwritten_without_force(project):
    schema = project / "model" / "schema.py"
    schema.write_text(schema.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    assert draft(project, make_frame()).status == "differs"
    assert "# mine" in schema.read_text(encoding="utf-8")
    assert (project / "config.toml").read_text(encoding="utf-8") == CONFIG


def test_crash_before_config_was_written_is_made_good_by_the_same_command(project):
    draft(project, make_frame())
    (project / "config.toml").write_text(CONFIG, encoding="utf-8")
    assert draft(project, make_frame()).status == "written"


def test_report_is_printed_in_plain_sentences(project):
    report = draft(project, make_frame(**{"[red]odd": ["a", "b"] * 100, "same": [1] * 200}))
    console = Console(file=io.StringIO(), width=200)
    print_init_report(report, console)
    said = console.file.getvalue()
    assert all(part in said for part in ("[red]odd", '"same" is constant', "binary", "Next: uv run ml run"))


@pytest.mark.parametrize(
    ("times", "said"), [(1e300, "divide it by 1e30"), (1e39, "divide it by 1e3"), (1e-310, "too small")]
)
def test_a_target_near_the_limits_of_float_is_refused_with_what_to_divide_it_by(project, times, said):
    values = np.random.default_rng(0).normal(size=200) * times
    with pytest.raises(UserError, match=said) as refused:
        draft(project, make_frame(y=[repr(float(value)) for value in values]))
    assert "\n" not in str(refused.value) and '"y"' in str(refused.value)


def test_a_large_target_within_float32_is_taken(project):
    values = np.random.default_rng(0).normal(size=200) * 1e30
    assert draft(project, make_frame(y=[repr(float(value)) for value in values])).problem == "regression"
