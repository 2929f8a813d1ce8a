"""Files an issue on what failed in `make test-all` or `make test-newest`, with what was newer than the tested bounds.

Run as `newest.py all` or `newest.py newest`, by the environment's Python. It calls GitHub's `gh`; an open issue of the
same title gets a comment instead.
"""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
TITLES = {"all": "make test-all fails", "newest": "The newest dependencies break something"}
MOST_FAILURES = 50


def changed() -> list[str]:
    """Return a line for each dependency: the version that was installed, and the bound that was tested."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("packages/*/pyproject.toml")))
    lines = []
    for name, bound in re.findall(r'"([a-z0-9-]+)(?:\[\w+\])?(?:>=[0-9.]+,)?<([0-9.]+)"', text):
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed"
        newer = found != "not installed" and numbers(found) >= numbers(bound)
        lines.append(f"| {name} | {found} | <{bound} | {'newer' if newer else ''} |")
    return lines


def numbers(text: str) -> list[int]:
    """Return the numbers of a version, enough to compare it with a bound."""
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


def failed(results: Path) -> list[str]:
    """Return the names of the tests that failed, each with the first line of why; the newest may not install at all."""
    if not results.exists():
        return ["no test ran: the dependencies could not be installed together, or the code is not clean (see the log)"]
    lines = []
    for case in ElementTree.parse(results).iter("testcase"):
        for fault in (*case.findall("failure"), *case.findall("error")):
            message = (fault.get("message") or "").strip().splitlines() or [""]
            lines.append(f"`{case.get('classname')}::{case.get('name')}`: {message[0][:200]}")
    return lines


def main(what: str) -> int:
    """Write the report of `make test-{what}` and file it; return the exit status of `gh`."""
    faults = [f"- {line}" for line in failed(BUILD / f"{what}.xml")]
    shown = faults[:MOST_FAILURES] + ([f"- … and {len(faults) - MOST_FAILURES} more"] if faults[MOST_FAILURES:] else [])
    table = ["| package | installed | tested | |", "| --- | --- | --- | --- |", *changed()]
    text = "\n".join(["## What failed", "", *shown, "", "## With what", "", *table, ""])
    report = BUILD / f"{what}.md"
    report.parent.mkdir(exist_ok=True)
    report.write_text(text, encoding="utf-8")
    title = TITLES[what]
    listing = ["gh", "issue", "list", "--state", "open", "--search", f'"{title}" in:title', "--json", "number"]
    listing += ["--jq", ".[0].number"]
    there = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.strip()
    command = ["issue", "comment", there] if there else ["issue", "create", "--title", title]
    return subprocess.run(["gh", *command, "--body-file", str(report)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
