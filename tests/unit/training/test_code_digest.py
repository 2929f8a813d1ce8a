"""What of a project's code decides whether a version is trained again."""

import hashlib
from pathlib import Path

import pytest
from template_support import REPOSITORY

from ondol.training.provenance import TRAIN_FLOW, code_digest

FLOW = (REPOSITORY / "flows" / "train.py").read_text(encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {"model/estimator.py": "A = 1\n", "flows/train.py": FLOW, "flows/report.py": "B = 1\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_train_flow_of_the_template_is_known():
    assert hashlib.sha256(FLOW.encode()).hexdigest() == TRAIN_FLOW, "flows/train.py changed: set TRAIN_FLOW"


def test_the_train_flow_of_the_template_does_not_count(root):
    before = code_digest(root)
    (root / "flows" / "train.py").write_text(FLOW.replace("\n", "\r\n"), encoding="utf-8", newline="")
    (root / "flows" / "report.py").write_text("B = 2\n", encoding="utf-8")
    assert code_digest(root) == before


IMPORTS = {
    "flows/train.py": [
        "from flows.report import B",
        "from flows import report",
        "import flows.report",
        "from . import report",
        "from .report import B",
        "def extras() -> None:\n    from flows import (\n        report as r,\n    )",
        "from flows.more import C",
    ],
    "model/estimator.py": ["from flows.report import B", "from tools import D", "import tools.words"],
}


@pytest.mark.parametrize(("path", "line"), [(path, line) for path, lines in IMPORTS.items() for line in lines])
def test_what_is_imported_counts(root, path, line):
    files = {"flows/more.py": "from .report import B as C\n", "tools/__init__.py": "from tools.words import D\n"}
    for name, text in (files | {"tools/words.py": "from flows.report import B as D\n"}).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    digests = [code_digest(root)]
    (root / path).write_text(f"{(root / path).read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    digests.append(code_digest(root))
    (root / "flows" / "report.py").write_text("B = 2\n", encoding="utf-8")
    digests.append(code_digest(root))
    (root / "flows" / "other.py").write_text("E = 1\n", encoding="utf-8")
    assert len(set(digests)) == 3
    assert code_digest(root) == digests[-1]


def test_files_that_import_each_other_are_read_once(root):
    (root / "model" / "estimator.py").write_text("from model import features\n", encoding="utf-8")
    (root / "model" / "features.py").write_text("from model import estimator\n", encoding="utf-8")
    assert code_digest(root) == code_digest(root)
