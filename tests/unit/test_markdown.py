"""Text of the data within Markdown is shown and means nothing."""

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from nasty_support import MARKUP, NAMES

from ondol.orchestration.reporting import code, plain, table
from ondol_serving.names import printable

NASTY = [
    *MARKUP,
    *NAMES,
    "http://planted.invalid/x",
    "www.planted.invalid",
    "&lt;b&gt; &copy;",
    "_a_ __b__ roc_auc",
    "~~x~~",
    "x\\",
    "|",
    "a|b||c",
    "a \\| b",
    "\\\\| \\\\\\|",
    "`|` ``|``",
    "`",
    " both ",
    "",
]


def shown(text: str) -> str:
    return printable(" ".join(text.split()))


def said_in_code(tokens: list[Token]) -> str:
    """The text of a span of code, written as one or as HTML."""
    if [token.type for token in tokens] == ["code_inline"]:
        return " ".join(tokens[0].content.split())
    assert [tokens[0].content, tokens[-1].content] == ["<code>", "</code>"]
    assert {token.type for token in tokens[1:-1]} <= {"text", "text_special"}
    return " ".join("".join(token.content for token in tokens[1:-1]).split())


@pytest.mark.parametrize("text", NASTY)
def test_any_text_is_shown_as_it_is(text):
    children = MarkdownIt("gfm-like", {"linkify": False}).parseInline(f"x {plain(text)}")[0].children or []
    assert {token.type for token in children} <= {"text", "text_special"}
    assert "".join(token.content for token in children).strip() == f"x {shown(text)}".strip()


@pytest.mark.parametrize("text", NASTY)
def test_any_text_is_one_cell_of_a_table(text):
    made = "\n".join(table((text, "b"), [("a", text), (text, "d")]))
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(made)
    assert [t.type for t in tokens].count("td_open") == 4 and [t.type for t in tokens].count("th_open") == 2
    assert not {"html_inline", "html_block", "image", "link_open"} & {c.type for t in tokens for c in t.children or ()}


@pytest.mark.parametrize("text", NASTY)
def test_code_ends_where_it_should(text):
    children = MarkdownIt("gfm-like", {"linkify": False}).parseInline(f"a {code(text)} b")[0].children or []
    inside = children[1:-1]
    assert children[0].content == "a " and children[-1].content == " b"
    assert said_in_code(inside) == " ".join(printable(text, one_line=True).split())


@pytest.mark.parametrize("text", NASTY)
def test_code_is_one_cell_of_a_table_and_shown_as_it_is(text):
    made = "\n".join(table((text, "b"), [("a", text), (text, "d")], show=code))
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(made)
    cells = [t.children or [] for t in tokens if t.type == "inline"]
    assert len(cells) == 6
    for cell in (cells[0], cells[3], cells[4]):
        assert said_in_code(cell) == " ".join(printable(text, one_line=True).split())


def test_any_markdown_is_one_cell_of_a_table():
    given = ["a|b", "a\nb", "a\\\\|b", "`a|b`", "\r\n| x | y |"]
    made = "\n".join(table(("a", "b"), [(text, "end") for text in given], show=str))
    cells = [t.content for t in MarkdownIt("gfm-like", {"linkify": False}).parse(made) if t.type == "inline"]
    assert len(cells) == 2 + 2 * len(given) and cells[3::2] == ["end"] * len(given)


def test_addresses_in_the_data_do_not_become_links():
    assert "://" not in plain("http://planted.invalid") and "www." not in plain("www.planted.invalid")
