"""A pairwise cover of the answers: few rows, in which any two answers to two questions stand together once."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import yaml
from template_support import REPOSITORY

Row = dict[str, str]
DEFAULT = ""  # the question is left to its default
NAMES = [
    DEFAULT,
    "고객 Churn 예측 📈",
    "Модель 売上 نموذج v2",
    'Sales & "Returns" <b>it\'s</b> \\n # {x}: [y]',
    "Which of our customers is going to leave us for a competitor in the next 12 mont",
]
SLUGS = [DEFAULT, "churn_model_2", "a" * 50]
DESCRIPTIONS = [DEFAULT, 'Sagt "wer" geht – 왜? it\'s \\ 100 % & <b>', "Tells who leaves and why. " * 15 + "And when."]


def questions() -> dict[str, list[str]]:
    """Return the answers to try for each question of copier.yml, a default first."""
    asked = yaml.safe_load((REPOSITORY / "copier.yml").read_text(encoding="utf-8"))
    return {
        "project_name": NAMES,
        "project_slug": SLUGS,
        "description": DESCRIPTIONS,
        "problem": list(asked["problem"]["choices"].values()),
        "python_version": asked["python_version"]["choices"],
    }


def cover(answers: Mapping[str, Sequence[str]]) -> list[Row]:
    """Return rows that hold every pair, the defaults first.

    Greedy: each row is the one, of all that there are, with the most pairs that no row before it holds.
    """
    everything = [dict(zip(answers, row, strict=True)) for row in product(*answers.values())]
    missing = set().union(*(_pairs(row) for row in everything))
    rows: list[Row] = []
    while missing:
        rows.append(max(everything, key=lambda row: len(missing & _pairs(row))))
        missing -= _pairs(rows[-1])
    return rows


def given(row: Row) -> Row:
    """Return the answers that differ from the defaults."""
    return {question: answer for question, answer in row.items() if answer != DEFAULT}


def _pairs(row: Row) -> set[Any]:
    return set(combinations(row.items(), 2))
