"""Damage met by real commands: one sentence with the file and the way back, no trace, and all is well after that."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.support import Done, Project, succeed
from ondol.orchestration.guard import free_port

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """Damage to one file of a project with version 1 in production.

    Attributes:
        path: The file, below `.ml`; a pattern.
        damage: What is done to it.
        remedy: What the sentence says to do, done by hand.
        commands: Which commands meet it.
    """

    path: str
    damage: Callable[[Path], None]
    remedy: Callable[[Path], None]
    commands: tuple[str, ...]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def remove(path: Path) -> None:
    path.unlink()


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def bring_back(path: Path) -> None:
    path.unlink()
    shutil.copy2(path.with_name("champion.backup.json"), path)


CASES = [
    Case(
        "store/champion.json",
        cut,
        bring_back,
        ("run", "evaluate", "report", "serve", "rollback --why x"),
    ),
    Case("store/champion.json", empty, bring_back, ("run", "promote 1 --why x", "predict sample://?rows=10 out.csv")),
    Case("store/champion.json", binary, remove, ("run", "status", "monitor")),
    Case("store/champion.json", dangling, bring_back, ("run", "status")),
    Case("store/latest.json", cut, remove, ("run", "train", "status")),
    Case("store/verdicts/1.json", binary, remove, ("run", "evaluate", "report")),
    Case("store/quarantine/*.json", cut, remove, ("run", "quarantine list")),
    Case("store/snapshots/*.json", cut, remove, ("run", "data log", "validate")),
    Case("store/snapshots/sources/*.json", empty, remove, ("run", "ingest")),
    Case("store/loop.json", cut, remove, ("status", "loop show")),
    Case("store/bundles/*/meta.json", cut, remove_folder, ("serve", "predict sample://?rows=10 out.csv")),
    Case("mlflow/mlflow.db", cut, remove, ("run", "train", "reproduce 1")),
    Case("mlflow/mlflow.db", binary, remove, ("run", "evaluate")),
]


def tell(done: Done, path: Path) -> str:
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2), said
    assert "Traceback" not in said
    assert "Unexpected" not in said
    assert str(path) in said.replace("\n", ""), said
    return said


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path.rpartition('/')[2]}-{case.damage.__name__}")
def test_damage_is_one_sentence_and_the_remedy_works(trained: Project, case: Case) -> None:
    trained.configure("service", port=free_port())
    if case.path == "store/loop.json":
        succeed(trained.ml("loop", "pause", "--why", "a test"))
    (path,) = (trained.root / ".ml").glob(case.path)
    named = path.parent if "bundles" in case.path else path
    case.damage(path)
    for command in case.commands:
        said = tell(trained.ml(*command.split()), named)
        assert any(word in said for word in ("remove it", "restore it", "move it away", "to champion.json")), said
    tell(trained.ml("doctor"), named)
    case.remedy(path)
    trained.run()
    succeed(trained.ml("doctor"))
    succeed(trained.ml("status"))
    assert trained.champion
