"""Workers of `ml tune`: a real kill loses and doubles no trial, and two Dask workers find what one process finds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from ondol.config import Settings
from ondol.contract import Column, Contract
from ondol.errors import UserError
from ondol.selection.comparison import CrossValidation

pytest.importorskip("optuna")
from ondol.tuning.search import Search, open_study
from ondol.tuning.workers import open_workers

pytestmark = pytest.mark.slow  # each process imports scikit-learn
TRIALS = 12
SCRIPT = """
import sys
from pathlib import Path
from test_tune_workers import make_search
from ondol.tuning.workers import open_workers

if __name__ == "__main__":
    search = make_search(Path(sys.argv[1]))
    with open_workers(search.validation, 2) as workers:
        search.run(workers, 10_000)
"""


def make_search(path: Path) -> Search:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=150), "word": rng.choice(list("가나다"), 150)}).astype({"word": "str"})
    frame["y"] = 3 * frame["x"] + rng.normal(size=150)
    kinds: Any = {"x": "number", "word": "text", "y": "number"}
    columns = [Column(name=n, kind=k, role="target" if n == "y" else "feature") for n, k in kinds.items()]
    contract = Contract(problem="regression", target="y", columns=tuple(columns))
    settings = Settings.model_validate(
        {"root": path.parent, "project": {"name": "t"}, "data": {"problem": "regression", "target": "y"}}
    )
    validation = CrossValidation.prepare(settings, contract, frame)
    assert validation is not None
    return Search(open_study(path, "maximize"), validation, [{"kind": "linear"}], True, "key", "data")


def found(search: Search) -> list[Any]:
    return [(one.number, one.state.name, one.value, one.user_attrs["params"]) for one in search.trials]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The trials that one process finds."""
    search = make_search(tmp_path_factory.mktemp("single") / "study.journal")
    with open_workers(search.validation, 1) as workers:
        search.run(workers, TRIALS)
    return found(search)


def test_a_killed_search_continues_without_a_lost_or_a_doubled_trial(tmp_path, single):
    path, script = tmp_path / "study.journal", tmp_path / "search.py"
    script.write_text(SCRIPT, encoding="utf-8")
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *filter(None, sys.path)])
    for size in (1_000, 4_000):
        process = subprocess.Popen([sys.executable, script, path], env=os.environ | {"PYTHONPATH": paths})
        while not (path.exists() and path.stat().st_size > size):
            assert process.poll() is None
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, left = psutil.wait_procs(workers, timeout=30)
        assert not left  # they end with the command
    search = make_search(path)
    with open_workers(search.validation, 2) as opened:
        search.run(opened, TRIALS)
    assert len(found(search)) >= TRIALS and search.finished == len(search.trials)
    assert found(search)[:TRIALS] == single


def test_two_dask_workers_find_what_one_process_finds(tmp_path, single):
    distributed = pytest.importorskip("distributed")
    search = make_search(tmp_path / "study.journal")
    options: Any = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster:
        with open_workers(search.validation, 1, cluster.scheduler_address) as workers:
            assert workers.count == 2
            search.run(workers, TRIALS)
        cluster.scale(0)
        assert found(search) == single


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("ondol.tuning.workers.CONNECT_SECONDS", 1)
    search = make_search(tmp_path / "study.journal")
    with (
        pytest.raises(UserError, match="No Dask scheduler answers at"),
        open_workers(search.validation, 1, "tcp://127.0.0.1:1"),
    ):
        raise AssertionError


def test_a_process_that_ends_is_an_error_that_keeps_the_trials(tmp_path):
    search = make_search(tmp_path / "study.journal")
    with pytest.raises(UserError, match="A process of the search ended"), open_workers(search.validation, 1) as workers:
        before = time.monotonic()

        def kill(progress: Any) -> None:
            assert time.monotonic() - before < 120
            for child in psutil.Process().children():
                if progress.finished and "spawn_main" in " ".join(child.cmdline()):
                    child.kill()

        search.run(workers, 1_000, show=kill)
    assert search.finished
