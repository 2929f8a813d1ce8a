"""`ml contract` says how data differs from its contract, and its edit makes the two agree, all else kept."""

import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from init_support import CONFIG, DATA, load_schema
from marks import slow_but

from ondol.config import Settings
from ondol.contract import Column, describe
from ondol.errors import UserError
from ondol.ingestion.sources import Reading, open_source
from ondol.setup.evolution import find_changes
from ondol.setup.inference import find_marks
from ondol.setup.initialize import initialize, read_table
from ondol.setup.schema_edit import propose

NUMBERS = count()
EDITED = '''"""Ours."""

import pandera.pandas as pa

LEVELS = ["low", "high"]


class Schema(pa.DataFrameModel):
    """Rows."""

    # The key of the billing system.
    key: int = pa.Field(unique=True, metadata={"role": "id"})
    age: int = pa.Field(ge=0, le=99)  # years, never months
    plan: str = pa.Field(
        isin=[
            "basic",  # the cheap one
            "plus",  # 가장 많이 팔림
        ],
        # kept out of logs
        metadata={"role": "sensitive"},
    )
    level: str = pa.Field(isin=LEVELS)
    price: float = pa.Field(alias="단가", ge=0)
    seats: int = pa.Field(
        gt=0, lt=10
    )
    y: str = pa.Field(isin=["no", "yes"], metadata={"role": "target"})

    @pa.check("age")
    def even(cls, ages):  # a rule of ours
        return   ages == ages   # spaced as we like

    class Config:
        """How Pandera reads the class."""

        coerce = True
'''


@pytest.fixture
def project(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def _table():
    rng = np.random.default_rng(0)
    n = 400
    return pd.DataFrame(
        {
            "번호": np.arange(1000, 1000 + n),
            "나이": rng.integers(20, 70, n),
            "요금제": rng.choice(["기본", "플러스"], n),
            "Monthly Charges": rng.uniform(1, 90, n).round(2),
            "open": [f"도시{i}" for i in rng.integers(0, 60, n)],
            "paid": rng.choice([True, False], n),
            "joined": pd.date_range("2024-01-01", periods=n).strftime("%Y-%m-%d"),
            "y": rng.choice(["no", "yes"], n),
        }
    )


def _odd():
    frame = _table()
    frame.columns = ["class", "2nd", 'a "quoted" name', "한글 이름", "x" * 130, "validate", "b\\c", "y"]
    return frame


def _real(name):
    path = DATA / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


TABLES = {
    "korean": (_table, "y"),
    "odd names": (_odd, "y"),
    "telco": (lambda: _real("telco_churn"), "Churn"),
    "mpg": (lambda: _real("mpg"), "mpg"),
}


def _changes(folder, frame, target, problem, text):
    """Return what has changed by the contract that `text` states."""
    frame.to_csv(folder / "now.csv", index=False)
    path = folder / f"schema_{next(NUMBERS)}.py"
    path.write_bytes(text.encode())
    contract = describe(load_schema(path), target, problem)
    table, _ = read_table(open_source("now.csv", Reading(root=folder)))
    return find_changes(contract, table, False)


def _draft(folder, frame, target):
    frame.to_csv(folder / "t.csv", index=False)
    problem = initialize(folder, "t.csv", target, force=True).problem
    return (folder / "model" / "schema.py").read_text(encoding="utf-8"), problem


def _is_clean(folder, text):
    path = folder / "formatted.py"
    path.write_bytes(text.encode())
    options = ["--config", str(Path(__file__).parents[3] / "pyproject.toml"), "--no-cache"]
    found = subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "--diff", *options, str(path)],
                           capture_output=True, text=True, timeout=120)  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def _new(frame, column):
    return frame.assign(**{"새 열!": np.arange(len(frame)) / 7, "grade": np.resize(["a", "b"], len(frame))})


def _missing(frame, column):
    return frame.drop(columns=column)


def _renamed(frame, column):
    return frame.rename(columns={column: f"{column} 2"})


def _retyped(frame, column):
    return frame.assign(**{column: [f"text {i % 3}" for i in range(len(frame))]})


def _gaps(frame, column):
    return frame.assign(**{column: frame[column].astype(object).where(np.arange(len(frame)) > 5, None)})


MUTATIONS = [("new", _new), ("missing", _missing), ("renamed", _renamed), ("retyped", _retyped), ("gaps", _gaps)]


@pytest.mark.parametrize("name", slow_but(["korean", "odd names"], TABLES))
def test_every_kind_of_change_of_every_column_is_reported_and_gone_after_the_edit(project, name):
    make, target = TABLES[name]
    frame = make()
    text, problem = _draft(project, frame, target)
    assert _changes(project, frame, target, problem, text) == []
    contract = describe(load_schema(project / "model" / "schema.py"), target, problem)
    columns = [c for c in contract.used if c.role != "target"]
    told = set()
    for column in columns[:6] if name == "korean" else columns[:2]:
        for what, change in MUTATIONS:
            changed = change(frame, column.name)
            found = _changes(project, changed, target, problem, text)
            told |= {c.what for c in found}
            if what in ("new", "missing", "renamed"):
                assert what in {c.what for c in found}, (column.name, what)
            proposal = propose(text, found)
            assert proposal.left == ()
            assert _changes(project, changed, target, problem, proposal.text) == [], (column.name, what)
            _is_clean(project, proposal.text)
    assert {"new", "missing", "renamed"} <= told


def _case(**columns):
    n = 200
    base = {
        "key": np.arange(n),
        "age": np.arange(n) % 90,
        "plan": np.resize(["basic", "plus"], n),
        "level": np.resize(["low", "high"], n),
        "단가": np.arange(n) / 3,
        "seats": np.arange(n) % 8 + 1,
        "y": np.resize(["no", "yes"], n),
    }
    return pd.DataFrame({name: columns.get(name, values) for name, values in base.items()})


def _with_tail(values, *tail):
    return [*values[: -len(tail)], *tail]


BASE = _case()
CASES = {
    "category beside comments": (
        {"plan": _with_tail(BASE["plan"], "골드", "gold")},
        ['"골드" (1)', "2 rows"],
        {'            "gold",', '            "골드",'},
        set(),
    ),
    "class of the target": (
        {"y": _with_tail(BASE["y"], "maybe")},
        ["changes the binary problem"],
        {'    y: str = pa.Field(isin=["no", "yes", "maybe"], metadata={"role": "target"})'},
        {'    y: str = pa.Field(isin=["no", "yes"], metadata={"role": "target"})'},
    ),
    "range": (
        {"age": _with_tail(BASE["age"], -3, 130, 120)},
        ["from -3 to 130", "3 rows"],
        {"    age: int = pa.Field(ge=-3, le=130)  # years, never months"},
        {"    age: int = pa.Field(ge=0, le=99)  # years, never months"},
    ),
    "fractions": (
        {"age": _with_tail(BASE["age"], 1.5)},
        ["is integer in the contract, and 1 of its values are not: it is number now"],
        {"    age: float = pa.Field(ge=0, le=99)  # years, never months"},
        {"    age: int = pa.Field(ge=0, le=99)  # years, never months"},
    ),
    "gaps": (
        {"age": pd.array(_with_tail(BASE["age"], None, None), "Int64")},
        ["no value in 2 rows"],
        {"import pandas as pd", "    age: pd.Int64Dtype = pa.Field(nullable=True, ge=0, le=99)  # years, never months"},
        {"    age: int = pa.Field(ge=0, le=99)  # years, never months"},
    ),
    "gaps beside comments": (
        {"plan": _with_tail(BASE["plan"], None)},
        ["no value in 1 row"],
        {"        nullable=True,"},
        set(),
    ),
    "bound that excludes": (
        {"seats": _with_tail(BASE["seats"], 0, 12)},
        ["beyond gt=0 and lt=10"],
        {"        ge=0,", "        le=12,"},
        {"        gt=0, lt=10"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_edit_changes_its_lines_and_no_other(project, case):
    columns, said, added, removed = CASES[case]
    frame = _case(**columns)
    assert _changes(project, BASE, "y", "binary", EDITED) == []
    found = _changes(project, frame, "y", "binary", EDITED)
    assert all(part in "\n".join(map(str, found)) for part in said)
    proposal = propose(EDITED, found)
    before, after = EDITED.split("\n"), proposal.text.split("\n")
    assert set(after) - set(before) == added
    assert set(before) - set(after) == removed
    assert [line for line in after if line not in added] == [line for line in before if line not in removed]
    assert _changes(project, frame, "y", "binary", proposal.text) == []


def test_edit_keeps_the_line_ends_of_windows(project):
    found = _changes(project, _case(age=_with_tail(BASE["age"], 130)), "y", "binary", EDITED)
    edited = propose(EDITED.replace("\n", "\r\n"), found).text
    assert edited == EDITED.replace("le=99", "le=130").replace("\n", "\r\n")


def test_list_that_grows_too_long_is_broken_as_ruff_does(project):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"x": rng.normal(size=900), "지역": rng.choice(["가", "나"], 900), "y": np.resize([0, 1], 900)}
    )
    text, problem = _draft(project, frame, "y")
    many = frame.assign(지역=[f"아주 긴 지역의 이름 {i % 20}" for i in range(900)])
    proposal = propose(text, _changes(project, many, "y", problem, text))
    assert '            "아주 긴 지역의 이름 19",\n' in proposal.text
    _is_clean(project, proposal.text)
    assert _changes(project, many, "y", problem, proposal.text) == []


def test_set_with_too_many_new_values_is_opened(project):
    frame = _case(plan=[f"plan {i % 50}" for i in range(200)])
    text = (
        EDITED.replace("            # kept out of logs\n", "")
        .replace("  # the cheap one", "")
        .replace("  # 가장 많이 팔림", "")
    )
    found = _changes(project, frame, "y", "binary", text)
    proposal = propose(text, found)
    assert "no longer closed" in str(found[0])
    assert _changes(project, frame, "y", "binary", proposal.text) == []


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (_case(level=_with_tail(BASE["level"], "top")), '"level" (category) is left to you: its isin is computed'),
        (BASE.drop(columns="age"), '"age" (missing) is left to you: line 29 mentions it'),
        (_case(age=[f"{age}세" for age in BASE["age"]]), '"age" (retyped) is left to you: line 29 mentions it'),
        (BASE.rename(columns={"age": "Age"}), '"age" (renamed) is left to you: line 29 mentions it'),
        (BASE.drop(columns="y"), '"y" (missing) is left to you: it is the target'),
    ],
)
def test_what_no_rule_can_edit_is_reported_and_left_alone(project, frame, why):
    proposal = propose(EDITED, _changes(project, frame, "y", "binary", EDITED))
    assert [why in sentence for sentence in proposal.left] == [True]
    assert proposal.text == EDITED


def test_column_under_another_name_keeps_what_is_reported_of_it(project):
    found = _changes(project, BASE.rename(columns={"단가": "단가(원)", "key": "Key"}), "y", "binary", EDITED)
    assert [(c.what, c.before, c.column) for c in found] == [("renamed", "key", "Key"), ("renamed", "단가", "단가(원)")]
    edited = propose(EDITED, found).text
    assert edited == EDITED.replace('alias="단가"', 'alias="단가(원)"').replace("    key: int", "    Key: int")


def test_schema_edited_meanwhile_is_not_overwritten(tmp_path):
    from ondol.cli.contract import replace_schema

    path = tmp_path / "schema.py"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="was edited while"):
        replace_schema(path, b"before", "proposed")
    assert path.read_text(encoding="utf-8") == "mine"


def test_nothing_changed_is_reported_only_for_the_rows_that_were_read(project, monkeypatch, capsys):
    from ondol.cli import contract

    data = {"source": "sample://?rows=20000", "target": "churned", "problem": "binary"}
    settings = Settings(root=project, data=data)  # type: ignore[arg-type]
    monkeypatch.setattr(contract, "start_command", lambda: settings)
    contract.print_changes(None)
    monkeypatch.setitem(read_table.__globals__, "MOST_ROWS", 200)
    contract.print_changes(None)
    assert capsys.readouterr().out.splitlines() == [
        "Nothing changed. The source matches model/schema.py.",
        "Nothing changed. The first 16,384 rows of the source match model/schema.py.",
    ]


def test_commands_say_propose_and_apply(project, ml, render):
    import shutil

    made = project / "made"
    shutil.copytree(render(), made)
    assert ml(made, "contract", "diff").returncode == 0
    schema = made / "model" / "schema.py"
    before = schema.read_bytes()
    schema.write_bytes(
        before.replace(b'"basic", "plus", "premium"]', b'"basic", "plus"]', 1).replace(b"le=120", b"le=30")
    )
    edited = schema.read_bytes()
    said = ml(made, "contract", "diff")
    assert said.returncode == 1
    assert 'category: "plan" has 1 new value' in said.stdout
    proposed = ml(made, "contract", "update")
    assert (proposed.returncode, schema.read_bytes()) == (0, edited)
    assert '+    plan: str = pa.Field(isin=["basic", "plus", "premium"])' in proposed.stdout
    assert ml(made, "contract", "update", "--apply").returncode == 0
    assert schema.read_bytes() != edited
    after = ml(made, "contract", "diff")
    assert (after.returncode, "Nothing changed" in after.stdout) == (0, True)


def _days(*days: str) -> np.ndarray:
    return np.array([pd.Timestamp(day, tz="UTC").timestamp() for day in days])


AGES = np.arange(0, 91)
MARKS = {
    "nines": ("integer", AGES, [999]),
    "-1 among counts": ("integer", AGES, [-1]),
    "several": ("number", AGES / 7, [-1.0, -999.0, 99999.0, 999.99]),
    "limits of types": ("number", AGES, [2147483647.0, -3.4e38]),
    "the last date": ("date", _days("2020-01-01", "2024-05-05"), _days("9999-12-31")),
    "the first dates": ("date", _days("2020-01-01", "2024-05-05"), _days("0001-01-01", "1900-01-01", "1970-01-01")),
}
VALUES = {
    "near the others": ("integer", np.arange(0, 951), [999]),
    "-1 among negatives": ("integer", np.arange(-40, 40), [-1, -9]),
    "an age": ("integer", AGES, [130]),
    "a birthday": ("date", _days("1890-01-01", "1950-01-01", "2000-01-01"), _days("1900-01-01")),
    "a contract's end": ("date", _days("2020-01-01", "2024-05-05"), _days("2031-12-31")),
    "nothing else": ("integer", np.array([], dtype=np.int64), [-1, 999]),
}


@pytest.mark.parametrize("case", MARKS)
def test_marks_for_missing_values_are_distinguished_from_values(case):
    kind, others, marks = MARKS[case]
    found = find_marks(np.concatenate([others, marks]), Column(name="x", kind=kind))
    assert found.sum() == len(marks) and found[len(others) :].all()


@pytest.mark.parametrize("case", VALUES)
def test_values_are_not_taken_for_marks(case):
    kind, others, values = VALUES[case]
    assert not find_marks(np.concatenate([others, values]), Column(name="x", kind=kind)).any()


@pytest.mark.parametrize("mark", [999, -1, -99])
def test_a_mark_is_never_proposed_as_a_bound(project, mark):
    found = _changes(project, _case(age=_with_tail(BASE["age"], mark, mark)), "y", "binary", EDITED)
    assert [change.what for change in found] == ["mark"]
    assert f'"age" is {mark} in 2 rows' in str(found[0])
    proposal = propose(EDITED, found)
    assert proposal.text == EDITED
    assert "[data] missing" in proposal.left[0] and "by hand" in proposal.left[0]


def test_a_bound_follows_the_values_beside_a_mark(project):
    found = _changes(project, _case(age=_with_tail(BASE["age"], 120, 9999)), "y", "binary", EDITED)
    assert [change.what for change in found] == ["mark", "range"]
    assert "le=120" in propose(EDITED, found).text and "9999" not in propose(EDITED, found).text
