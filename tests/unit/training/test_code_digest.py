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


def test_an_edited_train_flow_counts_and_what_it_imports(root):
    digests = [code_digest(root)]
    (root / "flows" / "train.py").write_text(f"{FLOW}\nfrom flows.report import B\n", encoding="utf-8")
    digests.append(code_digest(root))
    (root / "flows" / "report.py").write_text("B = 2\n", encoding="utf-8")
    digests.append(code_digest(root))
    (root / "model" / "estimator.py").write_text("A = 2\n", encoding="utf-8")
    assert len({*digests, code_digest(root)}) == 4
