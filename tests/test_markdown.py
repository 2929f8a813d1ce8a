"""Text of the data within Markdown is shown and means nothing."""

import pytest
from markdown_it import MarkdownIt
from nasty_support import MARKUP, NAMES

from flows.markdown import code, plain, table
from service.printable import printable

NASTY = [
    *MARKUP,
    *NAMES,
    "http://planted.invalid/x",
    "www.planted.invalid",
    "&lt;b&gt; &copy;",
    "_a_ __b__ roc_auc",
    "~~x~~",
    "x\\",
]


def shown(text: str) -> str:
    return printable(" ".join(text.split()))


@pytest.mark.parametrize("text", NASTY)
def test_any_text_is_shown_as_it_is(text):
    children = MarkdownIt("gfm-like", {"linkify": False}).parseInline(f"x {plain(text)}")[0].children or []
    assert {token.type for token in children} <= {"text", "text_special"}
    assert "".join(token.content for token in children) == f"x {shown(text)}".strip()


@pytest.mark.parametrize("text", NASTY)
def test_any_text_is_one_cell_of_a_table(text):
    made = "\n".join(table((text, "b"), [("a", text), (text, "d")]))
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(made)
    assert [t.type for t in tokens].count("td_open") == 4 and [t.type for t in tokens].count("th_open") == 2
    assert not {"html_inline", "html_block", "image", "link_open"} & {c.type for t in tokens for c in t.children or ()}


@pytest.mark.parametrize("text", NASTY)
def test_code_ends_where_it_should(text):
    children = MarkdownIt("gfm-like", {"linkify": False}).parseInline(f"a {code(text)} b")[0].children or []
    assert [token.type for token in children] == ["text", "code_inline", "text"]
    assert children[1].content.strip() == printable(text, one_line=True).strip()


def test_addresses_in_the_data_do_not_become_links():
    assert "://" not in plain("http://planted.invalid") and "www." not in plain("www.planted.invalid")
