"""Checks the built site, and publishes it to the branch that GitHub serves as the repository's pages.

`site.py check FOLDER` fails where a page loads something from another host, or says that it is in another language than
it is. `site.py address` prints where this version is published. `site.py publish FOLDER` commits the site of this
version to the branch `gh-pages` of `origin` and pushes it; each version has a folder of its own, and those of other
versions stay as they are.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "gh-pages"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
NOT_LOADED = {"canonical", "next", "prev", "alternate"}  # of a <link>: they name a page
START = """<!doctype html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={version}/">
<title>Ondol {version}</title>
<a href="{version}/">Ondol {version}</a>
"""


class Loads(HTMLParser):
    """Collects what a page loads from another host, and the language that it says it is in."""

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()
        self.found: list[str] = []
        self.language: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one element."""
        given = dict(attrs)
        if tag == "html":
            self.language = given.get("lang")
        address = given.get(LOADED.get(tag, "")) or ""
        if tag == "link" and given.get("rel") in NOT_LOADED:
            return
        if re.match(r"(https?:)?//", address):
            self.found.append(address)
        if given.get("class") == "mermaid":  # the theme would load the library from unpkg.com
            self.found.append("a mermaid diagram")


def check(site: Path) -> list[str]:
    """Return a sentence for each thing that a page loads from another host, and for each page of a wrong language."""
    said = []
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":  # its addresses are absolute, since it is shown at any path
            continue
        loads = Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        name = path.relative_to(site)
        said += [f"{name} loads {address}." for address in loads.found]
        language = "ko" if name.parts[0] == "ko" else "en"  # by theme/partials/language.html
        if loads.language != language:
            said.append(f"{name} says that its language is {loads.language}: it is {language}.")
    for path in sorted(site.rglob("*.css")):
        for address in re.findall(r"url\(\s*[\"']?((?:https?:)?//[^\"')]+)", path.read_text(encoding="utf-8")):
            said.append(f"{path.relative_to(site)} loads {address}.")
    return said


def version() -> str:
    """Return the version of the engine, which is that of the documentation."""
    text = (ROOT / "packages" / "ondol" / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def address(repository: str) -> str:
    """Return where the pages of this version are, of a repository `OWNER/NAME` on GitHub."""
    owner, name = repository.split("/")
    return f"https://{owner.lower()}.github.io/{name}/{version()}/"


def newest_first(names: list[str]) -> list[str]:
    """Return versions, the newest first."""
    return sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], reverse=True)


def publish(site: Path, tag: str) -> None:
    """Put the site of this version beside the others, and push the branch."""
    if tag.removeprefix("v") != version():
        raise SystemExit(f"The tag is {tag} and the engine's version is {version()}: publish the tag of this version.")
    remote = git(ROOT, "remote", "get-url", "origin")
    with tempfile.TemporaryDirectory() as temporary:
        pages = Path(temporary)
        git(pages, "init", "--quiet", "--initial-branch", BRANCH)
        git(pages, "remote", "add", "origin", remote)
        if git(pages, "ls-remote", "--heads", "origin", BRANCH):
            git(pages, "fetch", "--quiet", "--depth=1", "origin", BRANCH)
            git(pages, "reset", "--quiet", "--hard", "FETCH_HEAD")
        shutil.rmtree(pages / version(), ignore_errors=True)
        shutil.copytree(site, pages / version())
        found = newest_first([p.name for p in pages.iterdir() if re.fullmatch(r"\d+(\.\d+)+.*", p.name)])
        listed = [{"version": name, "title": name, "aliases": []} for name in found]
        (pages / "versions.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        (pages / "index.html").write_text(START.format(version=found[0]), encoding="utf-8")
        (pages / ".nojekyll").write_text("", encoding="utf-8")
        git(pages, "add", "--all")
        if not git(pages, "status", "--porcelain"):
            print(f"The pages of {version()} are published already.")
            return
        author = ["-c", "user.name=github-actions", "-c", "user.email=github-actions@users.noreply.github.com"]
        git(pages, *author, "commit", "--quiet", "--message", f"Documentation of {version()}")
        git(pages, "push", "--quiet", "origin", BRANCH)
    print(f"The pages of {version()} are published beside {len(found) - 1} other versions.")


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder and return what it printed."""
    done = subprocess.run(["git", *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def main(command: str, *arguments: str) -> None:
    """Run a command of this script."""
    if command == "check":
        if said := check(Path(arguments[0])):
            raise SystemExit("\n".join(said))
    elif command == "address":
        print(address(os.environ["GH_REPO"]))
    else:
        publish(Path(arguments[0]), os.environ["TAG"])


if __name__ == "__main__":
    main(*sys.argv[1:])
