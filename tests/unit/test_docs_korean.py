"""The Korean pages have the commands, sections and rows of the English ones that they follow."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS / "ko") for path in (DOCS / "ko").rglob("*.md"))
FENCE = re.compile(r"^ *```\w+\n.*?^ *```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^ *(#+ |\||- |\d+\. |!\[)", re.MULTILINE)
REASON = re.compile(r'--why "[^"]*"|\([^()]*[^\x00-\x7f✓…][^()]*\)|\(wrong answers[^()]*\)')


def read_blocks(path: Path) -> list[str]:
    """Return a page's blocks of code, without the reasons that a person writes."""
    return [REASON.sub("", block) for block in FENCE.findall(path.read_text(encoding="utf-8"))]


def read_outline(path: Path) -> list[str]:
    """Return how the headings, rows, items and pictures of a page begin, in their order."""
    return MARK.findall(FENCE.sub("", path.read_text(encoding="utf-8")))


def test_there_are_korean_pages():
    assert Path("tutorial/first-model.md") in PAGES


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_korean_page_has_the_commands_of_the_english_page_that_it_names(page: Path):
    text = (DOCS / "ko" / page).read_text(encoding="utf-8")
    up = "../" * len(page.parts)
    assert re.search(rf"^> \[영문 문서\]\({re.escape(up + page.as_posix())}\) \d+\.\d+\.\d+판", text, re.MULTILINE)
    assert read_blocks(DOCS / "ko" / page) == read_blocks(DOCS / page)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_korean_page_has_the_sections_rows_and_items_of_the_english_page(page: Path):
    assert read_outline(DOCS / "ko" / page) == read_outline(DOCS / page)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_an_english_page_links_to_its_korean_page(page: Path):
    link = f"[한국어]({'../' * (len(page.parts) - 1)}ko/{page.as_posix()})"
    assert link in (DOCS / page).read_text(encoding="utf-8").splitlines()[:4]
