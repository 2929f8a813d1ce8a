"""`ml reproduce`: comparison of figures, search for files, and errors for missing data."""

import math
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pytest
from mlflow.exceptions import MlflowException
from template_support import commit_all, git

from ondol.config import Settings, load_settings
from ondol.errors import UserError
from ondol.evaluation.reproduction import (
    ENTRIES,
    PREDICTIONS,
    Order,
    Origin,
    Worker,
    checked_out,
    compare_all,
    compare_figures,
    figures_of,
    find_origin,
    install,
    other_packages,
    read_recorded,
    require_snapshot,
    retrain_at_commit,
)
from ondol.registry.registry import Registry
from ondol.snapshots.snapshots import Snapshots
from ondol.storage.store import open_store
from ondol.training.provenance import Provenance, project_files, read_machine, read_provenance, tree_digest

MODEL = "model/estimator.py"
BLANK: dict = {"base": None, "patch_digest": None, "packages": {}}
INTERVAL = {"value": 0.8, "low": 0.7, "high": 0.9}
VERDICT = {
    "rows": 100,
    "scores": {
        "candidate": {"roc_auc": INTERVAL, "f1": {"value": 0.5, "low": None, "high": None}},
        "champion": {"roc_auc": INTERVAL},
        "dummy": {"roc_auc": INTERVAL},
    },
    "gains": {"dummy": INTERVAL, "champion": INTERVAL},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project in a folder of its repository, committed."""
    made = tmp_path / "저장소" / "shop"
    (made / "model").mkdir(parents=True)
    (made / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    (made / "이름.txt").write_text("하나", encoding="utf-8")
    (made / ".gitignore").write_text(".ml/\n", encoding="utf-8")
    edit(made, "first")
    commit_all(made.parent)
    return made


@pytest.fixture
def folder(root: Path) -> Path:
    """Where a worktree is put: inside the project, as git ignores it."""
    return root / ".ml" / "reproduce" / "tree"


@pytest.fixture
def settings(root: Path) -> Settings:
    return load_settings(root)


def edit(root: Path, text: str) -> None:
    (root / MODEL).write_text(f"# {text}\n", encoding="utf-8")


def read(root: Path) -> str:
    return (root / MODEL).read_text(encoding="utf-8").removeprefix("# ").strip()


def worktrees(root: Path) -> int:
    return len(git(root, "worktree", "list").splitlines())


def test_every_figure_of_the_version_itself_is_compared():
    assert list(figures_of(80, VERDICT)) == [
        "train_rows",
        "holdout_rows",
        "roc_auc",
        "f1",
        "dummy roc_auc",
        "gain over dummy",
    ]
    assert list(figures_of(80, None)) == ["train_rows"]


def test_equal_figures_are_equal_and_intervals_count():
    figures = figures_of(80, VERDICT)
    assert all(line.equal and line.deviation == 0 for line in compare_figures(figures, figures))
    moved = figures | {"roc_auc": (0.8, 0.7, 0.9 + 3e-9)}
    [other] = [line for line in compare_figures(figures, moved) if not line.equal]
    assert other.name == "roc_auc"
    assert other.deviation == pytest.approx(3e-9)


@pytest.mark.parametrize(
    ("old", "new", "equal"),
    [
        ((0.5,), (0.5 + 9e-10,), True),
        ((0.5,), (0.5 + 2e-9,), False),
        ((5e6,), (5e6 + 1e-3,), True),  # an error in won: relative
        ((5e6,), (5e6 + 1e-2,), False),
        ((0.5, None, None), (0.5, None, None), True),
        ((0.5, None, None), (0.5, 0.4, 0.6), False),
        ((math.nan,), (math.nan,), True),
        ((0.5,), (math.nan,), False),
        ((math.inf,), (math.inf,), True),
    ],
)
def test_tolerance_is_absolute_below_one_and_relative_above(old, new, equal):
    assert [line.equal for line in compare_figures({"m": old}, {"m": new})] == [equal]


def test_figure_that_only_one_side_has_differs():
    lines = compare_figures({"gone": (1.0,)}, {"new": (1.0,)})
    assert [(line.name, line.deviation) for line in lines] == [("gone", math.inf), ("new", math.inf)]


@pytest.mark.parametrize(("deviation", "equal"), [(0.0, True), (1e-6, False), (None, False), (math.nan, False)])
def test_predictions_count(deviation, equal):
    line = compare_all({}, {}, deviation)[-1]
    assert (line.name, line.equal) == (PREDICTIONS, equal)


def test_packages_differ_where_both_have_them_or_where_one_shapes_models():
    recorded = {"numpy": "2.4", "scikit-learn": "1.9", "pytest": "9", "rich": "15"}
    assert other_packages(recorded, {"numpy": "2.5", "rich": "15"}) == ["numpy 2.4 → 2.5", "scikit-learn 1.9 → none"]


def test_record_of_an_older_version_is_read():
    old = Provenance.model_validate({"commit": "c", "base": "c", "patch_digest": None, "packages": {}})
    assert (old.python, old.machine, old.threads) == (None, None, {})


def test_record_names_python_machine_and_threads():
    import sklearn.ensemble  # noqa: F401 - its threads count once it is loaded

    about = read_machine()
    assert about["python"] == ".".join(map(str, sys.version_info[:3]))
    assert about["threads"]["blas"] >= 1
    assert about["threads"]["openmp"] >= 1
    assert about["machine"]


@pytest.fixture
def registry(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """MLflow with version 1 and a recorded run."""
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = Registry(settings)
    with made.run("train", {"holdout": "{}"}) as run:
        for name in ("provenance", "settings"):
            mlflow.log_dict(BLANK | {"commit": "c"}, f"{name}.json")
        made.register(f"runs:/{run}/model", None, run, {})
    return made


def test_record_that_is_not_whole_is_distinguished_from_one_that_cannot_be_reached(registry, monkeypatch):
    import mlflow.artifacts

    assert read_recorded(registry, "1").origin.commit == "c"
    artifacts = Path(unquote(urlsplit(registry.run_of("1").info.artifact_uri).path))

    def fail(*_: object) -> None:
        raise MlflowException("API request failed: connection refused")

    with monkeypatch.context() as away:
        away.setattr(mlflow.artifacts, "load_dict", fail)
        with pytest.raises(UserError, match=r"MLflow cannot be reached at .*artifacts, where the record of version 1"):
            read_recorded(registry, "1")
    with monkeypatch.context() as away:
        away.setattr(registry.client, "get_run", fail)
        with pytest.raises(UserError, match="MLflow cannot be reached at sqlite:"):
            read_recorded(registry, "1")
    (artifacts / "settings.json").write_text("{", encoding="utf-8")
    (artifacts / "provenance.json").unlink()
    with pytest.raises(UserError, match=r"incomplete: .* no provenance.json and no settings.json"):
        read_recorded(registry, "1")


def test_commit_is_checked_out_and_removed_again(root, folder):
    commit = read_provenance(root).commit
    edit(root, "second")
    commit_all(root.parent)
    with checked_out(root, find_origin(root, Provenance(commit=commit, **BLANK), False), folder) as project:
        assert read(project) == "first"
        assert (project / "이름.txt").exists()
        assert git(root, "status", "--porcelain") == ""
    assert not folder.exists()
    assert worktrees(root) == 1


def test_worktree_is_removed_after_any_failure_and_no_hook_runs(root, folder):
    hook = root.parent / ".git" / "hooks" / "post-checkout"
    hook.write_text("#!/bin/sh\ntouch hooked\nexit 1\n", encoding="utf-8")
    hook.chmod(0o755)
    with pytest.raises(KeyboardInterrupt), checked_out(root, Origin(read_provenance(root).commit), folder):
        assert not list(folder.rglob("hooked"))
        raise KeyboardInterrupt
    assert not folder.exists()
    assert worktrees(root) == 1


def test_worktree_of_a_killed_process_is_no_obstacle(root, folder):
    commit = read_provenance(root).commit
    git(root, "worktree", "add", "--detach", str(folder), commit)
    shutil.rmtree(folder)  # git still has it on record
    with checked_out(root, Origin(commit), folder) as project:
        assert read(project) == "first"
    assert worktrees(root) == 1


def test_missing_commit_says_what_to_type(root, folder):
    with pytest.raises(UserError, match=f"`git fetch origin {'0' * 40}`"), checked_out(root, Origin("0" * 40), folder):
        pass


def test_project_without_repository_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no git repository"), checked_out(tmp_path, Origin("c" * 40), tmp_path / "t"):
        pass


def test_project_that_lay_elsewhere_is_reported(root, folder):
    commit = read_provenance(root).commit
    git(root.parent, "mv", "shop", "moved")
    commit_all(root.parent)
    moved = root.parent / "moved"
    with pytest.raises(UserError, match="lay elsewhere"), checked_out(moved, Origin(commit), moved / ".ml" / "t"):
        pass


@pytest.mark.parametrize("source", ["data/rows.csv", "data", "data/*.csv", "data/**/*.csv", "./data/rows.csv"])
def test_data_that_changed_is_not_a_change_of_the_project(root, source):
    (root / "data").mkdir()
    (root / "data" / "rows.csv").write_text("a\n1\n", encoding="utf-8")
    commit_all(root.parent)
    commit = read_provenance(root, source).commit
    (root / "data" / "rows.csv").write_text("a\n1\n2\n", encoding="utf-8")
    assert read_provenance(root, source).commit == commit != "uncommitted"
    assert read_provenance(root, str(root / source)).commit == commit
    assert {read_provenance(root, other).commit for other in ("", "s3://lake/data", "../data", "model", "nowhere")} == {
        "uncommitted"
    }
    edit(root, "second")
    assert {read_provenance(root, one).commit for one in (source, ".", "./", str(root))} == {"uncommitted"}


def test_uncommitted_files_that_still_lie_here_are_copied(root, folder):
    edit(root, "second")
    recorded = read_provenance(root)
    origin = find_origin(root, recorded, False)
    assert (origin.commit, origin.exact) == (None, True)
    assert "not committed" in origin.note
    with checked_out(root, origin, folder) as project:
        assert read(project) == "second"
        assert tree_digest(project) != ""
        assert {p.relative_to(root) for p in project_files(root)} >= {Path(MODEL), Path("이름.txt")}
        assert (project / "이름.txt").read_text(encoding="utf-8") == "하나"
    assert not folder.exists()


def test_files_that_were_committed_after_the_training_are_found_in_their_commit(root):
    edit(root, "second")
    recorded = read_provenance(root)
    commit_all(root.parent)
    wanted = git(root, "rev-parse", "HEAD").strip()
    edit(root, "third")
    commit_all(root.parent)
    edit(root, "fourth")
    origin = find_origin(root, recorded, False)
    assert (origin.commit, origin.exact) == (wanted, True)


def test_lost_files_are_refused_and_the_commit_below_them_is_offered(root):
    edit(root, "second")
    recorded = read_provenance(root)
    edit(root, "third")
    with pytest.raises(UserError, match=r"cannot be reproduced exactly.*no longer here.*`--anyway`"):
        find_origin(root, recorded, False)
    origin = find_origin(root, recorded, True)
    assert (origin.commit, origin.exact) == (recorded.base, False)
    assert "cannot be reproduced exactly" in origin.note


def test_lost_files_without_any_commit_are_refused_even_so(tmp_path):
    (tmp_path / "model").mkdir()
    edit(tmp_path, "first")
    recorded = read_provenance(tmp_path)
    assert find_origin(tmp_path, recorded, False).exact
    edit(tmp_path, "second")
    with pytest.raises(UserError, match="files that were never committed") as error:
        find_origin(tmp_path, recorded, True)
    assert "--anyway" not in str(error.value)


@pytest.mark.parametrize("name", ["flows/train.py", "config.toml", "uv.lock"])
def test_without_git_all_that_trains_is_in_the_digest(tmp_path, name):
    (tmp_path / "model").mkdir()
    edit(tmp_path, "first")
    before = tree_digest(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
    assert tree_digest(tmp_path) != before


def write_snapshot(settings: Settings) -> str:
    batch = pa.RecordBatch.from_pydict({"a": [1, 2, 3]})
    return Snapshots(open_store(settings)).write([batch], "rows.csv", None).digest


def test_snapshot_is_required_whole(settings):
    digest = write_snapshot(settings)
    assert require_snapshot(settings, digest).rows == 3
    path = settings.folder_of(settings.store) / "snapshots" / f"{digest}.json"
    path.rename(path.with_suffix(".gone"))
    with pytest.raises(UserError, match=f"snapshot {digest} .* restore it"):
        require_snapshot(settings, digest)


def test_changed_snapshot_is_refused(settings):
    digest = write_snapshot(settings)
    path = settings.folder_of(settings.store) / "snapshots" / f"{digest}.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="changed or damaged"):
        require_snapshot(settings, digest)


def worker(tmp_path: Path) -> tuple[Worker, list[str]]:
    said: list[str] = []
    return Worker(tmp_path, tmp_path / "logs" / "log", said.append), said


def order(tmp_path: Path) -> Order:
    return Order(settings={}, store=tmp_path, snapshot="s", validation="v", holdout={}, model=tmp_path / "m")


def write_entry(tmp_path: Path, text: str) -> None:
    """Write the program that retrains, as another commit may have it."""
    path = tmp_path / list(ENTRIES.values())[-1]  # no other package of that name is on the path
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")


OLD = Provenance(commit="c", base="c", patch_digest=None, packages={"numpy": "2.5"}, threads={"openmp": 3, "blas": 2})
RETRAINING = """
import json, os, sys
from pathlib import Path
order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
said = {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ML_TRAIN__SEED")}
made = {"train_rows": 7, "packages": said, "unknown": "of a later version", **json.loads(os.environ.get("MORE", "{}"))}
Path(sys.argv[2]).write_text(json.dumps(made), encoding="utf-8")
"""


def test_code_older_than_the_command_is_reported(tmp_path):
    with pytest.raises(UserError, match="older than `ml reproduce`"):
        retrain_at_commit(worker(tmp_path)[0], Path(sys.executable), OLD, order(tmp_path), tmp_path)


def test_retraining_has_the_recorded_threads_and_no_settings_of_today(tmp_path, monkeypatch):
    monkeypatch.setenv("ML_TRAIN__SEED", "7")
    write_entry(tmp_path, RETRAINING)
    outcome = retrain_at_commit(worker(tmp_path)[0], Path(sys.executable), OLD, order(tmp_path), tmp_path)
    assert outcome.train_rows == 7
    assert outcome.packages == {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "2", "ML_TRAIN__SEED": ""}


def test_error_of_the_retraining_is_its_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("MORE", '{"error": "표가 비었습니다."}')
    write_entry(tmp_path, RETRAINING)
    with pytest.raises(UserError, match="cannot be trained again: 표가 비었습니다"):
        retrain_at_commit(worker(tmp_path)[0], Path(sys.executable), OLD, order(tmp_path), tmp_path)


def test_fault_of_the_retraining_names_its_log(tmp_path):
    write_entry(tmp_path, "raise RuntimeError('오류')")
    with pytest.raises(UserError, match=r"RuntimeError: 오류 \(all of it: .*log\)"):
        retrain_at_commit(worker(tmp_path)[0], Path(sys.executable), OLD, order(tmp_path), tmp_path)


def test_command_tells_what_it_says_while_it_runs(tmp_path):
    one, said = worker(tmp_path)
    program = "import time; print('half-way', flush=True); time.sleep(1)"
    assert one.run([sys.executable, "-c", program], {"PATH": "/usr/bin:/bin"})
    assert "half-way" in said
    assert not one.run([sys.executable, "-c", "raise SystemExit(3)"], {"PATH": "/usr/bin:/bin"})


def test_missing_uv_is_reported(tmp_path, monkeypatch):
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"uv, which installs the packages, is not on PATH.*--no-install"):
        install(worker(tmp_path)[0], OLD)


FAKE_UV = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$1 $4" in "venv 3.11.99") exit 2;; esac
[ "$1" != venv ] || mkdir -p "${5:-$4}"
"""


@pytest.mark.parametrize("locked", [True, False])
def test_packages_are_the_locked_ones_or_else_the_recorded_ones(tmp_path, monkeypatch, locked):
    uv, calls = tmp_path / "uv", tmp_path / "calls"
    uv.write_text(FAKE_UV, encoding="utf-8")
    uv.chmod(0o755)
    monkeypatch.setenv("UV", str(uv))
    monkeypatch.setenv("CALLS", str(calls))
    if locked:
        (tmp_path / "uv.lock").touch()
    python = install(worker(tmp_path)[0], OLD.model_copy(update={"python": "3.11.99"}))
    assert python == tmp_path / ".venv" / "bin" / "python"
    first, second, third = calls.read_text(encoding="utf-8").splitlines()
    assert "--python 3.11.99 " in first  # which is not to be had
    assert "--python 3.11 " in second
    assert third.startswith("sync --locked" if locked else "pip install")
    if not locked:
        assert (tmp_path / ".venv" / "recorded.txt").read_text(encoding="utf-8") == "numpy==2.5\n"
