"""`ml docs`: the documentation that comes with the engine, in the terminal and without a network."""

import posixpath
import re
from pathlib import Path

from rich.markdown import Markdown
from rich.table import Table

from ondol import __version__
from ondol.cli.console import console, print_plain
from ondol.config import find_root
from ondol.errors import UserError, nearest

DOCS = Path(__file__).parents[3] / "docs"  # beside the engine's pyproject.toml
ANSWERS = ".copier-answers.yml"
KINDS = ("tutorial", "how-to", "", "reference", "explanation", "ko")  # folders, in the order of the list
GITHUB = re.compile(r"(?:gh:|(?:git\+)?(?:https://|ssh://git@)github\.com/|git@github\.com:)([\w-]+)/([\w.-]+)")


def print_docs(page: str | None) -> None:
    """Print the list of pages, or one page with its online address.

    Raises:
        UserError: there is no such page, or the documentation is not beside the engine.
    """
    pages = find_pages()
    if page is None:
        table = Table("page", "title")
        for name, path in pages.items():
            table.add_row(name, read_title(path))
        console.print(table)
        console.print("`ml docs PAGE` shows a page; the last part of its name is enough.")
        shown = ""
    else:
        shown = choose_page(page, list(pages))
        text = write_for_terminal(pages[shown].read_text(encoding="utf-8"), shown)
        console.print(Markdown(text, code_theme="ansi_dark", hyperlinks=False))
    if address := online_address():
        folder = shown.removesuffix("index").rstrip("/")  # a folder's page has the folder's address
        print_plain(f"Online: {address}" + (f"{folder}/" if folder else ""))


def find_pages() -> dict[str, Path]:
    """Return the pages by their names, the overview first.

    Raises:
        UserError: the documentation is missing.
    """
    found = {path.relative_to(DOCS).with_suffix("").as_posix(): path for path in DOCS.rglob("*.md")}
    if not found:
        raise UserError(f"The documentation is not in {DOCS}: `copier update` brings it with the engine.")

    def place(name: str) -> tuple[bool, int, str]:
        kind = name.partition("/")[0] if "/" in name else ""
        return name != "index", KINDS.index(kind) if kind in KINDS else len(KINDS), name

    return {name: found[name] for name in sorted(found, key=place)}


def choose_page(wanted: str, pages: list[str]) -> str:
    """Return the page with this name, file name, folder, or last part of a name.

    Raises:
        UserError: there is none.
    """
    name = wanted.removesuffix(".md").strip("/")
    for exact in (name, f"{name}/index"):
        if exact in pages:
            return exact
    ending = [page for page in pages if page.endswith(f"/{name}")]
    if not ending:
        near = nearest(name, [*pages, *(page.rpartition("/")[2] for page in pages)])
        raise UserError(f'There is no page "{wanted}".{near} `ml docs` lists the pages.')
    return min(ending, key=lambda page: page.count("/"))  # the English one rather than its translation


def read_title(path: Path) -> str:
    """Return the heading of a page."""
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else path.stem


def write_for_terminal(text: str, page: str) -> str:
    """Return the Markdown of a page for a terminal: without comments, pictures and links between pages."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    for number in range(0, len(parts), 2):  # the other parts are code
        part = re.sub(r"<!--.*?-->\n?", "", parts[number], flags=re.DOTALL)
        part = re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"*Picture: \1*", part)
        part = re.sub(r"\[([^\]]+)\]\(#[^)]*\)", r"\1", part)
        parts[number] = re.sub(
            r"\[([^\]]+)\]\((?!\w+:)([^)#]+)\.md(?:#[^)]*)?\)",
            lambda link: f"{link[1]} (`ml docs {_page_of(link[2], page)}`)",
            part,
        )
    return "".join(parts)


def _page_of(link: str, page: str) -> str:
    """Return the page that a relative link points to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def online_address() -> str | None:
    """Return the online address of this version of the docs: GitHub Pages of the template's repository, if any."""
    import yaml

    try:
        answers = yaml.safe_load((find_root() / ANSWERS).read_text(encoding="utf-8"))
        found = GITHUB.match(str(answers["_src_path"]))
    except (UserError, OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
    if found is None:
        return None
    return f"https://{found[1].lower()}.github.io/{found[2].removesuffix('.git')}/{__version__}/"
