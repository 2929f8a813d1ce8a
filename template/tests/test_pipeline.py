"""The pipeline on some rows of this project's own source, in a copy of the project that is thrown away."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ondol.config import Settings
from ondol.deployment.onnx import check_parity, compile_model
from ondol.training import Fitted

ROOT = Path(__file__).parents[1]
PRIVATE = ("PREFECT_", "MLFLOW_", "BENTOML_", "MPLCONFIGDIR", "ML_")  # no server or folder but the copy's own


@pytest.fixture(scope="module")
def copy(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, its source some rows of the real one."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("flows", "model", "service"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "config.toml", folder)
    pq.write_table(table, folder / "rows.parquet")
    source = folder / "model" / "source.py"
    if source.exists():  # its `prepare` made these rows, and need not do it again
        source.write_text(source.read_text(encoding="utf-8") + "\nprepare = None\n", encoding="utf-8")
    return folder


def run_ml(project: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run `ml` on the copy; whether a model of so few rows is good enough is not asked."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    path = os.pathsep.join([str(project), *filter(None, [os.environ.get("PYTHONPATH")])])
    asked = {"ML_DATA__SOURCE": "rows.parquet", "PYTHONPATH": path, "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "ondol.cli", *words]
    return subprocess.run(command, cwd=project, env=kept | asked, capture_output=True, text=True, timeout=300)


def test_compiled_model_predicts_as_scikit_learn_does(settings: Settings, fitted: Fitted, rows: pd.DataFrame) -> None:
    if settings.deploy.runtime != "onnx":
        pytest.skip("config.toml has the model served by scikit-learn")
    model = compile_model(fitted.pipeline, fitted.contract)
    assert check_parity(model, fitted.pipeline, fitted.contract, rows, settings.deploy.tolerance).verified


def test_pipeline_deploys_a_model_or_says_which_gate_refused_it(copy: Path) -> None:
    done = run_ml(copy, "run")
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    champion = copy / ".ml" / "store" / "champion.json"
    if done.returncode == 0:
        named = json.loads(champion.read_text(encoding="utf-8"))["bundle"]
        assert (copy / ".ml" / "store" / "bundles" / named / "contract.json").is_file()
    else:
        assert "refused" in said, said
        assert not champion.exists()
