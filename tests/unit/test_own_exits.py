"""`sys.exit` in the project's own code: a mistake of that code, in one sentence, wherever it is called."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from template_support import repository_environment

from ondol.cli import pipeline
from ondol.errors import UserError
from ondol.evaluation.gates import apply_own_gates
from ondol.evaluation.metrics import Metric, score_metrics
from ondol.ingestion.python import change_rows
from ondol.ingestion.sources import Reading, open_source
from ondol.project import import_code
from ondol.training.pipeline import build_pipeline

SAID = r"it calls sys\.exit\('no plan'\), which ends the process"


def leave(*_: Any, **__: Any) -> Any:
    sys.exit("no plan")


@contextmanager
def one_sentence(before: str, after: str = r"\.$") -> Iterator[None]:
    with pytest.raises(UserError, match=f"^{before}{SAID}{after}"):
        yield


def fill(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> None:
    module = ModuleType(f"model.{name}")
    module.__dict__.update(values)
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
    ("code", "said"), [("'no plan'", SAID), ("3", r"it calls sys\.exit\(3\),"), ("", r"it calls sys\.exit\(\),")]
)
def test_a_module_that_exits_cannot_be_imported(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text(f"import sys\n\nsys.exit({code})\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"^leaving.py cannot be imported: {said}"):
        import_code("leaving")
    with pytest.raises(UserError, match=rf'^"python://leaving:rows": leaving\.py cannot be imported: {said}'):
        open_source("python://leaving:rows", Reading({}, tmp_path))


def test_the_line_of_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").touch()
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "leaving.py").write_text("import sys\n\nsys.exit('no plan')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "flows")
    monkeypatch.chdir(tmp_path)
    with one_sentence("leaving.py cannot be imported: ", r" \(flows/leaving.py, line 3\)\.$"):
        import_code("leaving")


def test_a_function_of_rows_that_exits_has_failed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n", encoding="utf-8")
    reading = Reading({"a": "integer"}, tmp_path)
    with one_sentence('"leave" in model/source.py failed: '):
        change_rows(open_source("t.csv", reading), leave, reading).fingerprint()


def test_an_estimator_that_exits_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    fill(monkeypatch, "features", build_features=leave)
    fill(monkeypatch, "estimator", build_estimator=leave)
    settings: Any = SimpleNamespace(data=SimpleNamespace(problem="binary"), train=SimpleNamespace(seed=0))
    with one_sentence("The model of model/estimator.py and model/features.py cannot be built: "):
        build_pipeline(settings, {})


def test_a_metric_or_a_gate_that_exits_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    fill(monkeypatch, "evaluation", METRICS={"hits": Metric(True, score=leave)}, GATES=[leave])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    y, nothing = np.array([0, 1] * 50), SimpleNamespace()
    with one_sentence('The metric "hits" of model/evaluation.py failed: '):
        score_metrics("binary", y, np.full((100, 2), 0.5))
    with one_sentence('The gate "leave" of model/evaluation.py failed: '):
        apply_own_gates(nothing, nothing)  # type: ignore[arg-type]


def test_a_flow_that_exits_has_failed() -> None:
    with one_sentence("The flow train failed: "), pipeline.ended_by_exit("train"):
        leave()


@pytest.mark.parametrize(
    ("code", "status", "said"), [("'no plan'", 1, "Error: no plan"), ("3", 3, ""), ("None", 0, ""), ("", 0, "")]
)
def test_a_command_that_exits_with_a_text_prints_it(code: str, status: int, said: str) -> None:
    program = f"import sys\nfrom ondol.cli import app\napp.app = lambda **_: sys.exit({code})\napp.main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=repository_environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (status, said)
