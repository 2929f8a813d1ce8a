"""Which files the earlier releases rendered into a project, and which of them this one does not.

Run as `releases.py`, it writes `released.txt` of the engine: each such path with the digests that it had, the first
digits of git's object names, by which `ml tidy` knows a file that its owner did not edit. It needs the whole history.
"""

import posixpath
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTED = ROOT / "packages" / "ondol" / "src" / "ondol" / "setup" / "released.txt"
FIRST = "7a2ccccf773eaaa0c87e095146699c9dfcb87095"  # 0.1.0: the one that pyproject.toml does not tell
LINK = "120000"
DIGITS = 16  # as in leftovers.py of the engine
LEFT_OUT = re.compile(r"vendor/ondol/docs/(pictures/.*\.png$|stylesheets/)")  # by copier.yml
ENGINE = "vendor/"  # what leaves it is to be deleted by `copier update`: it is not the owner's


def releases() -> dict[str, str]:
    """Return the commit of each version, the one that set it in pyproject.toml; none in a shallow clone."""
    try:
        git("cat-file", "-e", f"{FIRST}^{{commit}}")
    except subprocess.CalledProcessError:
        return {}
    found = {"0.1.0": FIRST}  # tags need not travel with a clone
    for commit in git("log", "--reverse", "--format=%H", f"{FIRST}..HEAD", "--", "pyproject.toml").decode().split():
        version = version_at(commit)
        if version != version_at(f"{commit}^"):
            found[version] = commit
    return found


def version_at(commit: str) -> str:
    """Return the version in pyproject.toml of a commit."""
    found = re.search(rb'^version = "(.+)"$', git("show", f"{commit}:pyproject.toml"), re.M)
    assert found
    return found[1].decode()


def rendered_at(commit: str) -> dict[str, str]:
    """Return the object of each path that a commit renders into a project, by the path's name there."""
    entries = {}
    for entry in git("ls-tree", "-r", "-z", commit).decode().rstrip("\0").split("\0"):
        about, name = entry.split("\t")
        entries[name] = about.split()
    links = {name: git("cat-file", "blob", about[2]).decode() for name, about in entries.items() if about[0] == LINK}
    return {new: entries[name][2] for new, name in rendered(set(entries), links).items()}


def rendered_now() -> set[str]:
    """Return the paths that the working tree renders into a project."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().rstrip("\0").split("\0")
    names = {name for name in listed if (ROOT / name).exists()}
    links = {name: str((ROOT / name).readlink()) for name in names if (ROOT / name).is_symlink()}
    return set(rendered(names, links))


def rendered(names: set[str], links: dict[str, str]) -> dict[str, str]:
    """Return the name here of each path in a project; Copier follows the links in template/, and those behind them."""
    places = {name: name for name in names - set(links)}  # by a path through links: the file
    for link, target in sorted(links.items(), key=lambda one: one[0].startswith("template/")):
        place = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
        if place in places:
            places[link] = places[place]
        inside = {path: file for path, file in places.items() if path.startswith(f"{place}/")}
        places |= {link + path.removeprefix(place): file for path, file in inside.items()}
    found = {path.removeprefix("template/"): file for path, file in places.items() if path.startswith("template/")}
    return {path.removesuffix(".jinja"): file for path, file in found.items() if not LEFT_OUT.match(path)}


def gone() -> dict[str, list[str]]:
    """Return the digests of each path that a release rendered and the working tree does not, in their order."""
    now = rendered_now()
    found: dict[str, list[str]] = {}
    for commit in releases().values():
        for path, blob in rendered_at(commit).items():
            if path not in now and not path.startswith(ENGINE):
                digests = found.setdefault(path, [])
                if blob[:DIGITS] not in digests:
                    digests.append(blob[:DIGITS])
    return dict(sorted(found.items()))


def git(*arguments: str) -> bytes:
    """Run git in this repository and return what it printed."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


def main() -> None:
    """Write the list."""
    lines = [" ".join([path, *digests]) for path, digests in gone().items()]
    LISTED.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} paths of {', '.join(releases())} are in {LISTED.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
