"""Every setting that the docs, the template and the engine's messages name is one of `ondol.config`."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

from ondol.config import Settings

REPOSITORY = Path(__file__).parents[2]
PLACES = ("README*.md", "docs/**/*.md", "template/**/*", "flows/*.py", "packages/*/README.md", "packages/*/src/**/*.py")
READ = (".md", ".py", ".jinja", ".yaml", ".yml")
NAMED = [
    re.compile(r"`\[(?P<section>\w+)(?:\.\w+)?\] (?P<key>\w+)"),  # `[train] seed`
    re.compile(r"\[(?P<section>\w+)(?:\.\w+)?\] (?P<key>\w+_\w+|\w+(?= ?=))"),  # the same in a message, without marks
    re.compile(r"(?P<key>\w+)(?: = [^`\n]{1,60}`?|`) under\s`?\[(?P<section>\w+)\]"),  # `seed = 7` under `[train]`
    re.compile(r"\bML_(?P<section>[A-Z]+)__(?:(?<=ENVIRONMENTS__)[A-Z]+__)?(?P<key>[A-Z_]+)"),  # ML_TRAIN__SEED
]


def read_text(path: Path) -> str:
    """Return a page, or the texts within Python code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    constants = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    return "\n".join(value for value in constants if isinstance(value, str))


def keys_of(section: str) -> set[str]:
    """Return the keys of a section; none, if there is no such section."""
    field = Settings.model_fields.get(section)
    kind = field.annotation if field else None
    kind = get_args(kind)[1] if get_args(kind) else kind  # a table of sections, such as [environments]
    return set(getattr(kind, "model_fields", ()))


def unknown_settings(text: str) -> list[str]:
    """Return what a text names as a setting and is none."""
    found = [match for pattern in NAMED for match in pattern.finditer(text)]
    return [match[0] for match in found if match["key"].lower().strip("_") not in keys_of(match["section"].lower())]


def test_each_setting_that_is_named_exists():
    paths = [path for place in PLACES for path in REPOSITORY.glob(place) if path.suffix in READ]
    unknown = {path.relative_to(REPOSITORY).as_posix(): unknown_settings(read_text(path)) for path in paths}
    assert len(unknown) > 100
    assert {name: found for name, found in unknown.items() if found} == {}


@pytest.mark.parametrize(
    "text", ["`[validate] share`", "[data] bad_share is", "share = 1` under `[data]", "ML_DATA__A"]
)
def test_a_setting_that_does_not_exist_is_found(text):
    assert unknown_settings(text)


def test_what_is_not_a_name_of_a_setting_is_left_out():
    right = '`[gates] metric = "f1"`, ([retrain] cooldown_hours), `port = 1` under `[service]`, ML_TRAIN__SEED=7'
    assert unknown_settings(f"{right}, ML_ENVIRONMENTS__STAGING__STORE, `[train.params]` of, [N] values") == []
