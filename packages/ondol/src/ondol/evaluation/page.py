"""Documents of paragraphs, tables and pictures, written as Markdown or as one HTML file without external resources.

A text may hold anything from the data: it is escaped. What is between backticks is shown as code.
"""

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeAlias

from ondol.orchestration.reporting import code, plain, table
from ondol_serving.names import printable

CODE = re.compile(r"`([^`]+)`")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { margin: 0; background: #f6f7f9; color: #1f2933; line-height: 1.6; overflow-wrap: anywhere;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR",
  sans-serif }
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1rem 4rem }
header, section { background: #fff; border: 1px solid #e3e7ec; border-radius: 10px; padding: 1.25rem 1.5rem;
  margin-bottom: 1rem }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem }
h2 { font-size: 1.2rem; margin: 0 }
p { margin: .6rem 0 } ul { margin: .6rem 0; padding-left: 1.3rem }
p.question { color: #5b6775; margin: .1rem 0 .8rem; font-style: italic }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin-top: .8rem; font-size: .92rem }
a { color: #0060a0; text-decoration: none } a:hover { text-decoration: underline }
code { background: #eef1f4; border-radius: 4px; padding: .05rem .3rem; font-size: .9em }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid #e9edf1;
  overflow-wrap: break-word; word-break: keep-all }
td { min-width: 4.5rem; max-width: 26rem } th { color: #5b6775; font-weight: 600; white-space: nowrap }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0 }
figure { margin: 0; flex: 1 1 20rem; max-width: 30rem } img { max-width: 100%; height: auto; display: block }
@media (max-width: 600px) { main { padding: .75rem .5rem 3rem }
  header, section { padding: 1rem } h1 { font-size: 1.4rem } }
@media print { body { background: #fff } header, section { border: 0; padding: 0; break-inside: avoid-page } }
"""


@dataclass(frozen=True)
class Rows:
    """A table: its headings, and the cells of each row."""

    head: tuple[str, ...]
    cells: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Pictures:
    """PNG images by what they show."""

    images: dict[str, bytes]


Block: TypeAlias = "str | Sequence[str] | Rows | Pictures"  # a paragraph, a list, …


@dataclass(frozen=True)
class Section:
    """A part of a document: its heading, the question that it answers, and what it says."""

    title: str
    question: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A document.

    Attributes:
        title: The heading.
        lead: The blocks above the sections.
        sections: The sections.
        front: The fields of the front matter of the Markdown.
    """

    title: str
    lead: Sequence[Block]
    sections: Sequence[Section]
    front: dict[str, Any]


def write_markdown(page: Page) -> str:
    """Return the document as Markdown with its front matter; pictures are left out."""
    import yaml

    lines = ["---", yaml.safe_dump(page.front, allow_unicode=True, sort_keys=False).strip(), "---", ""]
    lines += [f"# {_markdown(page.title)}", "", *_markdown_blocks(page.lead)]
    for section in page.sections:
        lines += [f"## {_markdown(section.title)}", "", f"*{_markdown(section.question)}*", ""]
        lines += _markdown_blocks(section.blocks)
    return "\n".join(lines).strip() + "\n"


def _markdown_blocks(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, Pictures):
            continue
        if isinstance(block, str):
            yield _markdown(block)
        elif isinstance(block, Rows):
            yield from table(block.head, block.cells, show=_markdown)
        else:
            yield from (f"- {_markdown(text)}" for text in block)
        yield ""


def _markdown(text: str) -> str:
    """Return a text as Markdown; every second part is code."""
    parts = CODE.split(text)
    return "".join(code(part) if number % 2 else _plain(part) for number, part in enumerate(parts))


def _plain(text: str) -> str:
    """Escape a part of a text, with the spaces at its ends."""
    return f"{' ' * text[:1].isspace()}{plain(text)}{' ' * text[-1:].isspace()}" if text.strip() else text


def write_html(page: Page) -> str:
    """Return the document as one HTML file, with the pictures in it."""
    links = [f'<a href="#{number}">{_html(section.title)}</a>' for number, section in enumerate(page.sections)]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_html(page.title)}</title><style>{STYLE}</style></head><body><main>",
        f"<header><h1>{_html(page.title)}</h1>{_html_blocks(page.lead)}<nav>{''.join(links)}</nav></header>",
        *(
            f'<section id="{number}"><h2>{_html(section.title)}</h2>'
            f'<p class="question">{_html(section.question)}</p>{_html_blocks(section.blocks)}</section>'
            for number, section in enumerate(page.sections)
        ),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _html_blocks(blocks: Sequence[Block]) -> str:
    return "\n".join(map(_html_block, blocks))


def _html_block(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{_html(block)}</p>"
    if isinstance(block, Rows):
        head = "".join(f"<th>{_html(name)}</th>" for name in block.head)
        rows = "".join(f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in row)}</tr>" for row in block.cells)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    if isinstance(block, Pictures):
        return f'<div class="pictures">{"".join(map(_figure, block.images, block.images.values()))}</div>'
    return f"<ul>{''.join(f'<li>{_html(text)}</li>' for text in block)}</ul>"


def _figure(name: str, png: bytes) -> str:
    address = base64.b64encode(png).decode()
    return f'<figure><img alt="{_html(name)}" src="data:image/png;base64,{address}"></figure>'


def _html(text: str) -> str:
    parts = CODE.split(printable(text, one_line=True))
    return "".join(f"<code>{escape(part)}</code>" if number % 2 else escape(part) for number, part in enumerate(parts))
