"""`kill -9` at any point, then `ml run` again: it completes, uses nothing half-written, and keeps the champion.

`killer.py` numbers every change that a command makes to what lasts; the kill comes before, within or after one.
"""

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from marks import slow_but
from template_support import python_path

from e2e.conftest import Make
from e2e.support import KILLER, Done, Project, digest_bundle, refuse, succeed, wait_until_alone

SEED = {"ML_TRAIN__SEED": "1"}  # another model than the champion's
FIRST_RUN = [
    "snapshots.parquet",
    "snapshots.json",
    "snapshots.json",
    "latest.json.json",
    "quarantine.parquet",
    "quarantine.json",
    "latest.json.json",  # the validation that was looked at last, be it refused
    "latest.json.json",
    "mlflow record",
    "mlflow model",
    "mlflow version",
    "mlflow alias challenger",
    "latest.json.json",
    "mlflow verdict",
    "verdicts.json",
    "bundles",
    "bentoml model",
    "smoke test",
    "champion.backup.json.json",
    "champion.json.json",
    "mlflow alias champion",
    "alerts.json",
    "alerts.json",
    "alerts.json",
]
DEPLOY = FIRST_RUN[15:21]
EARLY = [("snapshots.parquet", "within"), ("mlflow version", "after")]
FILES = [i for i, name in enumerate(FIRST_RUN, 1) if "." in name or name == "bundles"]


def kill(project: Project, log: Path, point: int, when: str, *words: str, **environment: str) -> Done:
    """Run a command until the kill; 0 lets it live."""
    log.unlink(missing_ok=True)
    path = {"PYTHONPATH": python_path(project.root, engine=project.root / "vendor")}
    return project.python(str(KILLER), str(log), str(point), when, *words, **path, **environment)


def changes(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines()


def require_whole(project: Project) -> None:
    """Check every file that a reader could take up against its name."""
    for snapshot in (project.store / "snapshots").glob("*.parquet"):
        assert hashlib.sha256(snapshot.read_bytes()).hexdigest() == snapshot.stem
    for bundle in (project.store / "bundles").glob("[0-9]*"):
        assert digest_bundle(bundle).startswith(bundle.name.partition("-")[2])
    if project.champion:
        bundle = project.store / "bundles" / project.champion["bundle"]
        assert digest_bundle(bundle) == project.champion["digest"]


def require_complete(project: Project, **environment: str) -> None:
    """Run again, and check that all is as if nothing had happened."""
    done = project.run(**environment)
    assert not done.stderr
    require_whole(project)
    assert not list(project.store.rglob(".tmp-*"))
    champion = project.champion
    assert champion
    assert project.aliases() == {"champion": champion["version"], "challenger": champion["version"]}
    assert champion["history"][-1]["to"] == champion["bundle"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "changes"


@pytest.fixture(scope="module")
def fresh_once(make: Make) -> Project:
    return make(rows=1_000).save()


@pytest.fixture
def fresh(fresh_once: Project) -> Iterator[Project]:
    yield fresh_once
    fresh_once.restore()


@pytest.fixture(scope="module")
def evaluated_once(make: Make) -> Project:
    """Version 1 is in production, version 2 has passed its gates and is not deployed yet."""
    project = make(rows=1_000)
    project.run()
    for stage in ("ingest", "validate", "train", "evaluate"):
        succeed(project.ml(stage, **SEED))
    return project.save()


@pytest.fixture
def evaluated(evaluated_once: Project) -> Iterator[Project]:
    yield evaluated_once
    evaluated_once.restore()


def test_list_of_changes_is_complete(fresh: Project, log: Path) -> None:
    """Whoever adds a change sees this test fail, and adds its kill below."""
    succeed(kill(fresh, log, 0, "before", "run"))
    assert changes(log) == FIRST_RUN


@pytest.mark.parametrize("name", slow_but(["champion.json.json"], DEPLOY))
def test_killed_between_two_writes_of_deploy(evaluated: Project, log: Path, name: str) -> None:
    before, point = evaluated.champion, DEPLOY.index(name) + 1
    done = kill(evaluated, log, point, "before", "deploy", **SEED)
    assert done.returncode == -signal.SIGKILL
    assert changes(log) == DEPLOY[:point], done.stderr
    require_whole(evaluated)
    if name == "mlflow alias champion":
        assert evaluated.champion and evaluated.champion["version"] == "2"
        assert evaluated.aliases()["champion"] == "1"
    else:
        assert evaluated.champion == before
    assert not wait_until_alone(evaluated.root)
    require_complete(evaluated, **SEED)
    assert evaluated.versions() == ["1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bundles", "champion.json.json"])
def test_killed_while_half_is_written_in_deploy(evaluated: Project, log: Path, name: str) -> None:
    before = evaluated.champion
    assert kill(evaluated, log, DEPLOY.index(name) + 1, "within", "deploy", **SEED).returncode == -signal.SIGKILL
    assert evaluated.champion == before
    require_whole(evaluated)
    require_complete(evaluated, **SEED)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "when"), EARLY)
def test_killed_in_a_stage_of_the_first_run(fresh: Project, log: Path, name: str, when: str) -> None:
    point = FIRST_RUN.index(name) + 1
    assert kill(fresh, log, point, when, "run").returncode == -signal.SIGKILL
    assert changes(log)[-1] == name
    assert fresh.champion is None
    require_whole(fresh)
    require_complete(fresh)
    assert fresh.champion and fresh.champion["version"] == "1"
    assert "Nothing changed" in fresh.run().stdout


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", range(1, len(FIRST_RUN) + 1), ids=lambda n: FIRST_RUN[n - 1])
def test_killed_at_every_change_of_the_first_run(fresh: Project, log: Path, point: int, when: str) -> None:
    assert kill(fresh, log, point, when, "run").returncode == -signal.SIGKILL
    assert len(changes(log)) == point
    require_whole(fresh)
    assert not wait_until_alone(fresh.root)
    require_complete(fresh)


@pytest.mark.slow
@pytest.mark.parametrize("point", FILES, ids=lambda n: FIRST_RUN[n - 1])
def test_killed_while_half_of_any_file_is_written(fresh: Project, log: Path, point: int) -> None:
    assert kill(fresh, log, point, "within", "run").returncode == -signal.SIGKILL
    require_whole(fresh)
    require_complete(fresh)


@pytest.mark.slow
def test_killed_at_every_change_with_a_champion_in_production(evaluated: Project, log: Path) -> None:
    """New rows and a new model: the champion is the old or the new one at every moment."""
    evaluated.configure("data", source="sample://?rows=1200")
    point = 0
    while True:
        point += 1
        evaluated.restore()
        evaluated.configure("data", source="sample://?rows=1200")
        done = kill(evaluated, log, point, "before", "run")
        if done.returncode == 0:
            break
        assert evaluated.champion and evaluated.champion["version"] in ("1", "3")
        require_whole(evaluated)
        require_complete(evaluated)
    assert point == len(FIRST_RUN) + 1


@pytest.mark.parametrize("name", slow_but(["smoke test"], ["mlflow model", "smoke test"]))
def test_servers_of_a_killed_run_end_with_it(fresh: Project, log: Path, name: str) -> None:
    """The embedded Prefect server and the smoke test's service."""
    home = {k: v for k, v in fresh.environment.items() if k != "PREFECT_API_URL"}
    embedded = Project(fresh.root)
    embedded.environment = home
    point = FIRST_RUN.index(name) + 1
    assert kill(embedded, log, point, "after", "run").returncode == -signal.SIGKILL
    assert not wait_until_alone(fresh.root)
    require_complete(embedded)
    assert not wait_until_alone(fresh.root)


def test_killed_rollback_is_finished_by_the_next_command(evaluated: Project, log: Path) -> None:
    succeed(evaluated.ml("deploy", **SEED))
    assert kill(evaluated, log, 3, "before", "rollback", "--why", "night").returncode == -signal.SIGKILL
    assert changes(log) == ["champion.backup.json.json", "champion.json.json", "mlflow alias champion"]
    assert evaluated.champion and evaluated.champion["version"] == "1"
    assert evaluated.aliases()["champion"] == "2"
    assert "was taken out of production" in refuse(evaluated.ml("run", **SEED), status=1)
    assert evaluated.champion and evaluated.champion["version"] == "1"
    assert evaluated.aliases()["champion"] == "1"
