"""`ml docs`: the pages that come with the engine, offline, and where the same are online."""

from pathlib import Path
from typing import Any

import pytest

from ondol import __version__
from ondol.cli import docs
from ondol.errors import UserError

PAGES = {
    "index.md": "# Overview\n\nSee [alerts](operate.md#alerts).\n",
    "operate.md": "# Operate\n\n## Alerts\n\nBack to [the top](#operate).\n",
    "how-to/index.md": "# Guides\n",
    "how-to/roll-back.md": "# Roll back\n\n![The page of a run](../pictures/run.png)\n\n[Operate](../operate.md)\n",
    "ko/how-to/roll-back.md": "# 되돌리기\n\n```bash\nml status # [a](b.md)\n```\n",
    "reference/settings.md": "# Settings\n\n<!-- begin settings -->\n[roll](../how-to/roll-back.md)\n",
    "notes.txt": "no page",
}


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "docs"
    for name, text in PAGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(docs, "DOCS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_engine_has_its_pages():
    found = docs.find_pages()
    assert {"index", "how-to/add-a-gate", "reference/settings"} <= found.keys()
    assert next(iter(found)) == "index"


def test_pages_are_listed_by_kind(pages, capsys):
    assert list(docs.find_pages()) == [
        "index",
        "how-to/index",
        "how-to/roll-back",
        "operate",
        "reference/settings",
        "ko/how-to/roll-back",
    ]
    docs.print_docs(None)
    shown = capsys.readouterr().out
    assert "Roll back" in shown and "되돌리기" in shown and "notes" not in shown


@pytest.mark.parametrize(
    ("wanted", "page"),
    [
        ("settings", "reference/settings"),
        ("reference/settings.md", "reference/settings"),
        ("roll-back", "how-to/roll-back"),
        ("ko/how-to/roll-back", "ko/how-to/roll-back"),
        ("index", "index"),
        ("how-to", "how-to/index"),
    ],
)
def test_a_page_is_found_by_the_last_part_of_its_name(pages, wanted, page):
    assert docs.choose_page(wanted, list(docs.find_pages())) == page


def test_a_name_that_is_not_a_page_is_one_sentence_with_the_nearest(pages):
    with pytest.raises(UserError, match=r'^There is no page "setings"\. Did you mean "settings"\? `ml docs` lists'):
        docs.print_docs("setings")


def test_links_between_pages_name_the_command_that_follows_them(pages):
    def written(page: str) -> str:
        return docs.write_for_terminal(PAGES[f"{page}.md"], page)

    assert "See alerts (`ml docs operate`)." in written("index")
    assert "Back to the top." in written("operate")
    assert "*Picture: The page of a run*\n\nOperate (`ml docs operate`)" in written("how-to/roll-back")
    assert written("reference/settings") == "# Settings\n\nroll (`ml docs how-to/roll-back`)\n"
    assert written("ko/how-to/roll-back") == PAGES["ko/how-to/roll-back.md"]  # code is shown as it is


def test_a_page_is_shown_without_a_project_and_without_an_address(pages, capsys):
    docs.print_docs("operate")
    shown = capsys.readouterr().out
    assert "Alerts" in shown and "Online" not in shown


@pytest.mark.parametrize(
    "source",
    [
        "gh:Acme/ondol",
        "https://github.com/Acme/ondol.git",
        "https://github.com/Acme/ondol",
        "git+https://github.com/Acme/ondol.git",
        "git@github.com:Acme/ondol.git",
        "ssh://git@github.com/Acme/ondol",
    ],
)
def test_a_template_on_github_has_the_pages_of_this_version_online(pages, capsys, source):
    (pages.parent / "config.toml").write_text("", encoding="utf-8")
    (pages.parent / ".copier-answers.yml").write_text(f"_src_path: {source}\nproblem: binary\n", encoding="utf-8")
    docs.print_docs("settings")
    assert f"Online: https://acme.github.io/ondol/{__version__}/reference/settings/\n" in capsys.readouterr().out
    for page in (None, "index"):
        docs.print_docs(page)
        assert f"Online: https://acme.github.io/ondol/{__version__}/\n" in capsys.readouterr().out
    docs.print_docs("how-to/index")
    assert f"Online: https://acme.github.io/ondol/{__version__}/how-to/\n" in capsys.readouterr().out


@pytest.mark.parametrize("answers", ["_src_path: /srv/templates/ondol\n", "_src_path: [", "other: 1\n", ""])
def test_a_template_elsewhere_has_no_known_address(pages, answers):
    (pages.parent / "config.toml").write_text("", encoding="utf-8")
    (pages.parent / ".copier-answers.yml").write_text(answers, encoding="utf-8")
    assert docs.online_address() is None


def test_an_engine_without_its_pages_is_one_sentence(pages: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(docs, "DOCS", pages / "gone")
    with pytest.raises(
        UserError, match=r"^The documentation is not in .*gone: `copier update` brings it with the engine"
    ):
        docs.print_docs(None)
