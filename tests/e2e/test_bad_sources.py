"""Tables that cannot be learned from: one sentence, exit status 2, nothing changed."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from marks import slow_but

from e2e.support import Project, files_of, refuse, sample

Write = Callable[[Path], object]
ROWS = 200


def good() -> pd.DataFrame:
    return sample(ROWS)


def write(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Write:
    return lambda path: change(good()).to_csv(path, index=False)


def duplicate_header(path: Path) -> None:
    text = good().to_csv(index=False)
    head, _, rest = text.partition("\n")
    path.write_text(head.replace("support_calls", "monthly_fee") + "\n" + rest, encoding="utf-8")


DAMAGED = [
    ("rows.parquet", b"PAR1"),
    ("rows.jsonl", b'{"churned": "no"\n'),
    ("rows.csv.gz", b"\x1f\x8b\x08"),
    ("rows.xlsx", b"PK\x03\x04"),
]
TABLES: dict[str, tuple[Write, str]] = {  # how it is made, and a word of what is said
    "missing": (lambda path: None, "rows.csv"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "header only": (write(lambda f: f.head(0)), "no rows"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20), "rows.csv"),
    "a page": (lambda path: path.write_text("<!DOCTYPE html><html><body>Not found</body></html>"), "rows.csv"),
    "a folder": (lambda path: path.mkdir(), "rows.csv"),
    "duplicate column names": (duplicate_header, "monthly_fee"),
    "one class only": (write(lambda f: f.assign(churned="no")), "churned"),
    "every target missing": (write(lambda f: f.assign(churned="")), "churned"),
    "a column without values": (write(lambda f: f.assign(monthly_fee="")), "monthly_fee"),
    "no such target": (write(lambda f: f.drop(columns="churned")), "churned"),
}


def owned(project: Project) -> dict[str, bytes]:
    """The state that must not change: the project's own files, and its store."""
    stored = files_of(project.store, "quarantine", "snapshots", "alerts")  # that it failed is reported
    return files_of(project.root, ".ml") | {k: v for k, v in stored.items() if k != "latest.json"}


# A column without values is left out.
@pytest.mark.parametrize(
    "kind", slow_but(["missing", "one class only"], [kind for kind in TABLES if kind != "a column without values"])
)  # ignored
def test_init_refuses(trained: Project, kind: str) -> None:
    make, word = TABLES[kind]
    make(trained.root / "rows.csv")
    before = files_of(trained.root)
    sentence = refuse(trained.ml("init", "rows.csv", "--target", "churned"))
    assert word in sentence
    assert files_of(trained.root, "logs") == {k: v for k, v in before.items() if not k.startswith(".ml/logs/")}


@pytest.mark.parametrize("kind", slow_but(["a page", "one class only"], TABLES))
def test_run_refuses(trained: Project, kind: str) -> None:
    make, word = TABLES[kind]
    make(trained.root / "rows.csv")
    trained.configure("data", source="rows.csv")
    before = owned(trained)
    done = trained.ml("run")
    assert word in refuse(done)
    assert owned(trained) == before
    assert trained.versions() == ["1"]
    assert "Version" not in done.stdout  # nothing of an earlier run is shown as this one's


@pytest.mark.parametrize(
    ("name", "content"),
    slow_but([DAMAGED[0]], DAMAGED),
)
def test_init_refuses_a_damaged_file_of_any_format(trained: Project, name: str, content: bytes) -> None:
    (trained.root / name).write_bytes(content)
    before = files_of(trained.root, ".ml")
    assert name in refuse(trained.ml("init", name, "--target", "churned"))
    assert files_of(trained.root, ".ml") == before
