"""The site: every page is in its navigation, none loads from another host, a language is named, releases stay."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from template_support import REPOSITORY, git

DOCS = REPOSITORY / "docs"
KINDS = ["Tutorial", "How-to guides", "Reference", "Explanation"]


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, which has a tag of its own for variables."""


Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node))
SETTINGS = yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


@pytest.fixture
def site() -> Any:
    """The script that checks and publishes the site."""
    spec = importlib.util.spec_from_file_location("site_script", REPOSITORY / ".ci" / "site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [one for part in (nav.values() if isinstance(nav, dict) else nav) for one in entries(part)]


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    found: set[str] = set()
    for entry in entries(SETTINGS["nav"]):
        pattern = f"{entry}**/*.md" if entry.endswith("/") else entry
        listed = {path.relative_to(DOCS).as_posix() for path in DOCS.glob(pattern)}
        assert listed, f"{entry} is not a page"
        found |= listed
    assert found == pages, "add the page to nav in mkdocs.yml"


def test_the_navigation_has_kinds_of_pages():
    kinds = [name for part in SETTINGS["nav"] for name in part]
    assert kinds == ["Overview", *(kind for kind in KINDS if kind in kinds), "한국어"]
    assert len(kinds) >= 4


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_what_belongs_to_an_item_of_a_list_is_indented_by_four(path: Path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^ {1,3}(?:[-*] |\d+\. |```).*$", text, re.MULTILINE)
    assert not found, "Python-Markdown, which builds the site, ends the list there"


def test_the_theme_loads_no_font():
    assert SETTINGS["theme"]["font"] is False


@pytest.mark.parametrize(
    ("element", "loaded"),
    [
        ('<script src="https://cdn.example.org/x.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example.org/x.css">', True),
        ('<img src="http://example.org/x.png">', True),
        ('<pre class="mermaid"><code>graph TD</code></pre>', True),
        ('<link rel="canonical" href="https://example.org/page/">', False),
        ('<a href="https://example.org/">a link</a>', False),
        ('<script src="../assets/x.js"></script>', False),
    ],
)
def test_a_page_that_loads_from_another_host_is_found(site, tmp_path, element, loaded):
    (tmp_path / "index.html").write_text(f'<!doctype html><html lang="en">{element}', encoding="utf-8")
    assert bool(site.check(tmp_path)) is loaded


def test_a_page_in_another_language_than_it_says_is_found(site, tmp_path):
    for folder, language in (("ko/right", "ko"), ("ko/wrong", "en"), ("right", "en")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "index.html").write_text(f'<!doctype html><html lang="{language}">', encoding="utf-8")
    assert site.check(tmp_path) == ["ko/wrong/index.html says that its language is en: it is ko."]


def test_a_style_that_loads_from_another_host_is_found(site, tmp_path):
    (tmp_path / "x.css").write_text("@font-face { src: url(https://example.org/x.woff2) }", encoding="utf-8")
    assert site.check(tmp_path) == ["x.css loads https://example.org/x.woff2."]


@pytest.fixture
def repository(site, tmp_path, monkeypatch) -> Path:
    """A repository with an empty remote, from which a site of two pages is published."""
    git(tmp_path, "init", "--quiet", "--bare", "remote.git")
    git(tmp_path, "init", "--quiet", "main")
    git(tmp_path / "main", "remote", "add", "origin", str(tmp_path / "remote.git"))
    (tmp_path / "main" / "packages" / "ondol").mkdir(parents=True)
    monkeypatch.setattr(site, "ROOT", tmp_path / "main")
    return tmp_path / "main"


def release(site: Any, repository: Path, version: str, text: str) -> None:
    pyproject = repository / "packages" / "ondol" / "pyproject.toml"
    pyproject.write_text(f'[project]\nversion = "{version}"\n', encoding="utf-8")
    built = repository / "built"
    built.mkdir(exist_ok=True)
    (built / "index.html").write_text(text, encoding="utf-8")
    site.publish(built, f"v{version}")


def published(repository: Path, name: str) -> str:
    return git(repository.parent / "remote.git", "show", f"gh-pages:{name}")


def test_each_release_is_published_in_its_own_folder_and_others_stay(site, repository):
    for version in ("0.9.0", "0.10.0", "0.4.2"):  # the last one is a correction of an old release
        release(site, repository, version, f"pages of {version}")
    for version in ("0.9.0", "0.10.0", "0.4.2"):
        assert published(repository, f"{version}/index.html") == f"pages of {version}"
    assert [one["version"] for one in json.loads(published(repository, "versions.json"))] == [
        "0.10.0",
        "0.9.0",
        "0.4.2",
    ]
    assert "url=0.10.0/" in published(repository, "index.html")


def test_a_release_that_is_published_again_replaces_its_own_folder_alone(site, repository, capsys):
    release(site, repository, "0.9.0", "old")
    release(site, repository, "0.10.0", "first")
    release(site, repository, "0.10.0", "second")
    assert published(repository, "0.10.0/index.html") == "second"
    assert published(repository, "0.9.0/index.html") == "old"
    release(site, repository, "0.10.0", "second")
    assert "The pages of 0.10.0 are published already." in capsys.readouterr().out


def test_a_tag_of_another_version_is_refused(site, repository):
    (repository / "packages" / "ondol" / "pyproject.toml").write_text(
        '[project]\nversion = "0.5.0"\n', encoding="utf-8"
    )
    with pytest.raises(SystemExit, match=r"^The tag is v0\.4\.1 and the engine's version is 0\.5\.0: publish the tag"):
        site.publish(repository, "v0.4.1")


def test_the_address_names_owner_repository_and_version(site):
    assert re.fullmatch(r"https://acme\.github\.io/Shop-Ondol/\d+\.\d+\.\d+/", site.address("Acme/Shop-Ondol"))


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link_and_can_be_searched():
    done = subprocess.run([REPOSITORY / ".ci" / "site"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    built = REPOSITORY / "build" / "site"
    for path in DOCS.rglob("*.md"):
        page = path.relative_to(DOCS).with_suffix("")
        folder = page.parent if page.name == "index" else page
        assert (built / folder / "index.html").is_file(), path
    index = (built / "search.json").read_text(encoding="utf-8")
    assert "ML_TRAIN__SEED" in index and "격리된 행" in index
