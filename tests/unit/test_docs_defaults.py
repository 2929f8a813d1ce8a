"""Defaults of settings that the docs name in brackets are those of the code."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ondol.config import Settings

DOCS = Path(__file__).parents[2] / "docs"
# `[section] name` (value), or `name` (value)
NAMED = re.compile(r"`(?:\[(?P<section>\w+)\] )?(?P<name>[a-z][a-z_]+)` \((?P<value>\d[\d,.]*\d|\d)[;)]")


def defaults() -> dict[tuple[str, str], Any]:
    """Return the default of each number among the settings, by section and name."""
    found = {}
    for section, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            numbers = {
                name: one.default for name, one in kind.model_fields.items() if type(one.default) in (int, float)
            }
            found |= {(section, name): default for name, default in numbers.items()}
    return found


DEFAULTS = defaults()


def wrong_defaults(text: str) -> list[str]:
    """Return the settings whose value in a text is not their default; a name of no setting is left out."""
    wrong = []
    for found in NAMED.finditer(text):
        section, name, value = found["section"], found["name"], float(found["value"].replace(",", ""))
        real = [one for (place, known), one in DEFAULTS.items() if known == name and section in (None, place)]
        if real and value not in real:
            wrong.append(found[0])
    return wrong


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_defaults_in_the_docs_are_those_of_the_code(path):
    assert not wrong_defaults(path.read_text(encoding="utf-8"))


def test_a_wrong_default_is_found():
    text = "`[gates] margin` (0.01), `sample_rows` (10,000), `drift_share` (0.3; a share), `of` (3), `lines` (7)"
    assert wrong_defaults(text) == [] and len(NAMED.findall(text)) == 5
    wrong = ["`[gates] margin` (0.02)", "`min_rows` (20)"]
    assert wrong_defaults(f"{' and '.join(wrong)}, and `[service] hosts` (421)") == wrong
