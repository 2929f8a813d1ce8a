"""Any column name makes a schema that imports, validates, and is formatted and lint-clean as written."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ondol.setup.schema_file import Field, make_attributes, quote, write_schema

NASTY = [
    "class",
    "class_",
    "validate",
    "to_schema",
    "Config",
    "Schema",
    "str",
    "int",
    "pd",
    "pa",
    "l",
    "O",
    "None",
    "mean radius",
    "mean_radius",
    "od280/od315_of_diluted_wines",
    "2nd",
    "_private",
    "__dunder__",
    "a.b",
    "a b",
    "가격 (원)",
    "가격",
    "나이",
    "\u1112\u1161\u11ab",
    "数量",
    "größe",
    "цена",
    "\u03bf",
    "\uff46\uff55\uff4c\uff4c",
    "it's",
    'say "hi"',
    '"both\' "',
    "back\\slash",
    "new\nline",
    "tab\there",
    "brace{d}",
    "percent%s",
    "#hash",
    "emoji🎉",
    "a\u00a0b",
    "x" * 200,
    "many words " * 20,
    "가" * 80,
    "가 나 " * 40,
    "match",
    "self",
    "cls",
    "metadata",
    "Field",
    "-",
    "!!!",
    "??",
]


def _ruff(arguments: list[str], path: Path) -> str:
    made = [
        sys.executable,
        "-m",
        "ruff",
        *arguments,
        "--no-cache",
        "--isolated",
        "--line-length",
        "120",
        str(path),
    ]
    done = subprocess.run(made, capture_output=True, text=True, encoding="utf-8", check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(f"drafted_{abs(hash(path))}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Schema


def _fields(names: list[str]) -> list[Field]:
    long = tuple(sorted(f"{name[:50]} {i}" for i, name in enumerate(names)))
    made = [
        Field(name, "text", "feature", i % 2 == 0, categories=long[:i])
        if i % 3 == 1
        else Field(
            name,
            "integer",
            "id" if i == 0 else "feature",
            i % 2 == 1,
            minimum=0,
            comments=(f'"{name}": {name}.',),
        )
        for i, name in enumerate(names)
    ]
    return made


def _assert_clean(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
    assert _ruff(["format", "--diff"], path) == ""
    assert (
        _ruff(
            [
                "check",
                "--select",
                "E,F,I,UP,B,SIM,C4,RUF,PTH,D",
                "--config",
                'lint.pydocstyle.convention="google"',
            ],
            path,
        )
        == ""
    )


def test_schema_of_nasty_names_is_formatted_and_lint_clean(tmp_path):
    _assert_clean(write_schema(_fields(NASTY)), tmp_path / "schema.py")


def test_schema_of_nasty_names_keeps_every_real_name(tmp_path):
    path = tmp_path / "schema.py"
    path.write_text(write_schema([Field(name, "integer") for name in NASTY]), encoding="utf-8")
    schema = _load(path)
    frame = pd.DataFrame([[1] * len(NASTY)], columns=NASTY)
    assert list(schema.to_schema().columns) == NASTY
    assert list(schema.validate(frame, lazy=True).columns) == NASTY


def test_schema_with_every_kind_and_long_categories_is_clean_and_typed(tmp_path):
    kinds = ["number", "integer", "boolean", "text", "date"]
    fields = [Field(f"{kind} {gap}", kind, nullable=gap) for kind in kinds for gap in (False, True)]
    fields += [Field("levels", "text", "target", categories=tuple(f"level number {i:02}" for i in range(30)))]
    fields += [Field("codes", "integer", categories=tuple(range(40)))]
    _assert_clean(write_schema(fields), tmp_path / "schema.py")
    mypy = [
        sys.executable,
        "-m",
        "mypy",
        "--no-incremental",
        "--cache-dir",
        str(tmp_path),
        "--follow-imports=silent",
    ]
    done = subprocess.run([*mypy, str(tmp_path / "schema.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@given(st.lists(st.text(min_size=1, max_size=30).filter(lambda t: t.strip()), min_size=1, unique=True))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_attributes_are_unique_identifiers_that_shadow_nothing(names):
    import pandera.pandas as pa

    made = make_attributes(names)
    assert list(made) == names
    assert len(set(made.values())) == len(names)
    assert all(name.isidentifier() and not name.startswith("_") for name in made.values())
    assert not set(made.values()) & set(dir(pa.DataFrameModel))


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_quoted_text_is_a_literal_of_itself(text):
    assert eval(quote(text)) == text


@given(st.lists(st.text(min_size=1, max_size=150).filter(lambda t: t.strip()), min_size=40, max_size=60, unique=True))
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_schema_of_any_names_is_clean(tmp_path_factory, names):
    encodable = [name for name in names if name.isprintable() or name.isascii()]
    _assert_clean(write_schema(_fields(encodable)), tmp_path_factory.mktemp("any") / "schema.py")


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("mean radius", "mean_radius"),
        ("가격", "가격"),
        ("가격 (원)", "가격_원"),
        ("class", "class_"),
        ("validate", "validate_"),
        ("2nd", "column_2nd"),
        ("customerID", "customerID"),
        ("?", "column"),
    ],
)
def test_attribute_stays_close_to_the_name(name, attribute):
    assert make_attributes([name]) == {name: attribute}
