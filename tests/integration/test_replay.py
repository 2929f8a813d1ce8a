"""`ml replay` in a project: real versions of the registry and of bundles, and a log in the service's form."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from e2e.support import Project as Commands
from e2e.support import make_project, succeed
from monitor_support import typed_sample, write_log

from ondol.config import load_settings
from ondol.errors import Refused, UserError
from ondol.evaluation.gates import Gate
from ondol.evaluation.scoring import Scorer
from ondol.monitoring.replay import replay_log
from ondol.project import Project
from ondol.registry.bundles import open_bundle
from ondol.registry.champion import require_champion

ROWS = 500


@pytest.fixture(scope="module")
def commands(render: Callable[..., Path], prefect: str, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """A project with version 1 in production, and version 2, which differs and was never deployed."""
    made = make_project(render(), tmp_path_factory.mktemp("replayed") / "churn", PREFECT_API_URL=prefect)
    made.run()
    made.configure("train", params={"max_iter": 5, "learning_rate": 0.5})
    succeed(made.ml("train"))
    return made


@pytest.fixture
def project(commands: Commands) -> Project:
    """The project with an empty log."""
    settings = load_settings(commands.root)
    for path in (settings.folder_of(settings.store) / "log").glob("*"):
        path.unlink()
    return Project(settings)


def log(project: Project, rows: int = ROWS, hours: float = 1.0, **changes: object) -> pd.DataFrame:
    """Log the champion's answers to rows that no model has seen."""
    bundle = open_bundle(project.store, require_champion(project.store).bundle)
    frame = typed_sample(bundle.contract, rows, start=60_000)
    write_log(project.store.folder, bundle, frame.assign(**changes), datetime.now(UTC) - timedelta(hours=hours), 2)
    return frame


def test_answers_of_a_version_that_was_never_deployed_are_compared(project: Project) -> None:
    from ondol.evaluation.targets import load_candidate

    frame = log(project)
    found = replay_log(project, "2", days=1)
    champion = Scorer.open(open_bundle(project.store, require_champion(project.store).bundle).path)
    candidate = load_candidate(project.settings, "2")
    from ondol.contract import encode

    before = champion.predict(frame)
    after = candidate.pipeline.predict_proba(encode(candidate.contract, frame))
    differs = before.argmax(axis=1) != after.argmax(axis=1)
    assert (found.rows, found.requests, found.refused) == (ROWS, ROWS // 2, 0)
    assert 0 < found.differing == differs.sum()
    assert found.distances[1.0] == pytest.approx(abs(before - after).max(), abs=1e-6)
    shown = found.slices[0]
    inside = frame[shown.column].astype(str) == shown.value
    assert (shown.rows, shown.share) == (inside.sum(), pytest.approx(differs[inside].mean()))


def test_requests_of_another_time_or_bundle_are_left_out(project: Project) -> None:
    log(project, 100)
    log(project, 100, hours=30)
    bundle = open_bundle(project.store, require_champion(project.store).bundle)
    other = bundle.model_copy(update={"path": bundle.path})
    path = project.store.folder / "log" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-other-1-1.jsonl"
    lines = [
        line.replace(bundle.name, "9-abcdef012345")
        for file in sorted((project.store.folder / "log").glob("*"))[-1:]
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert other.name == bundle.name
    found = replay_log(project, "2", days=1)
    assert (found.rows, found.others) == (100, 50)
    assert replay_log(project, "2", days=2).rows == 200


def test_rows_that_a_version_refuses_are_counted_with_the_reason(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondol.monitoring import replay

    log(project)
    opened = replay.open_scorer(project, "2")
    columns = tuple(
        column.model_copy(update={"maximum": 40}) if column.name == "age" else column
        for column in opened.contract.columns
    )
    narrow = Scorer(opened.contract.model_copy(update={"columns": columns}), opened.run)
    monkeypatch.setattr(replay, "open_scorer", lambda *_: narrow)
    found = replay_log(project, "2", days=1)
    assert 0 < found.refused < found.rows
    assert found.reasons and all("age" in reason for reason in found.reasons)


def test_command_prints_what_differs(commands: Commands, project: Project) -> None:
    log(project)
    done = succeed(commands.ml("replay", "2", "--days", "1"))
    assert "## Version 2 on the requests that version 1 answered" in done.stdout
    assert "500 rows of 250 requests since" in done.stdout
    assert "rows would be answered otherwise" in done.stdout
    assert "| column" in done.stdout


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("1", "Version 1 is in production: its answers are those of the log."),
        ("2", "Version 1 has answered nothing in the last 1 days: give more --days."),
        ("77", "77"),
    ],
)
def test_what_cannot_be_replayed_is_one_sentence(commands: Commands, project: Project, version: str, said: str) -> None:
    done = commands.ml("replay", version, "--days", "1")
    assert done.returncode != 0
    assert said in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_a_sensitive_feature_cannot_be_replayed(project: Project) -> None:
    from ondol.monitoring.replay import require_logged

    contract = Scorer.open(open_bundle(project.store, require_champion(project.store).bundle).path).contract
    columns = tuple(
        column.model_copy(update={"role": "sensitive"}) if column.name == "age" else column
        for column in contract.columns
    )
    with pytest.raises(UserError, match=r"Version 2 needs 'age', which is sensitive, and the log leaves out it"):
        require_logged(project, contract.model_copy(update={"columns": columns}), "2")


def test_texts_and_numbers_of_a_column_are_read_together() -> None:
    from ondol.monitoring.replay import _to_array

    assert _to_array(["2024-01-31", 20240131, None]).to_pylist() == ["2024-01-31", "20240131", None]
    assert _to_array([1, 2.5, None]).to_pylist() == [1.0, 2.5, None]
    assert json.dumps(_to_array([True, None]).to_pylist()) == "[true, null]"


# --- the gate --------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluate(commands: Commands, project: Project) -> Callable[..., Project]:
    """Evaluate version 2 with gates that pass it, except for the replay; return the project."""

    def run(share: float) -> Project:
        commands.configure("gates", margin=1.0, minimum=0.0, replay_days=1, replay_share=share)
        settings = load_settings(commands.root)
        for record in (settings.folder_of(settings.store) / "verdicts").glob("2.json"):
            record.unlink()  # of another test
        succeed(commands.ml("evaluate", "2"))
        return Project(settings)

    return run


def decision(project: Project) -> Gate:
    record = project.verdicts.find("2")
    assert record is not None
    gate = record.gate("replay")
    assert gate is not None
    assert gate.passed == (not record.refusal)
    return gate


def test_gate_refuses_a_version_that_answers_too_many_rows_otherwise(
    commands: Commands, evaluate: Callable[..., Project]
) -> None:
    project = evaluate(0.001)
    before = (project.store.folder / "champion.json").read_bytes()
    skipped = commands.ml("deploy", "2")
    assert skipped.returncode == 2
    assert (
        "No requests were replayed through version 2 ([gates] replay_days): run `ml replay 2` first." in skipped.stderr
    )
    log(project)
    differing = replay_log(project, "2", 1).differing
    replayed = commands.ml("replay", "2")
    assert replayed.returncode == 1 and "Traceback" not in replayed.stderr
    assert f"**{differing:,} of 500 rows would be answered otherwise**" in replayed.stdout
    refusal = (
        f"The candidate is refused by the replay gate ({differing:,} of 500 rows that champion version 1 answered in "
        f"the last 1 days are answered otherwise ({differing / 500:.1%}), and at most 0.1% are allowed"
    )
    assert refusal in replayed.stderr
    assert decision(project).figure == differing / 500
    refused = commands.ml("deploy", "2")
    assert refused.returncode == 1 and refusal in refused.stderr
    again = commands.ml("evaluate", "2")
    assert again.returncode == 1 and refusal in again.stderr
    report = commands.ml("report")
    assert "refused by the replay gate" in report.stdout
    assert (project.store.folder / "champion.json").read_bytes() == before


def test_gate_refuses_a_version_that_refuses_a_row_which_the_champion_answered(
    evaluate: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondol.monitoring import replay

    project = evaluate(1.0)
    log(project)
    opened = replay.open_scorer(project, "2")
    columns = tuple(
        column.model_copy(update={"maximum": 40}) if column.name == "age" else column
        for column in opened.contract.columns
    )
    narrow = Scorer(opened.contract.model_copy(update={"columns": columns}), opened.run)
    monkeypatch.setattr(replay, "open_scorer", lambda *_: narrow)
    with pytest.raises(
        Refused, match=r"replay gate \(\d+ of 500 rows that champion version 1 answered .* are refused.*age"
    ):
        replay.check_replay(project, "2")
    assert not decision(project).passed


def test_gate_passes_a_version_within_the_share_and_it_may_be_deployed(evaluate: Callable[..., Project]) -> None:
    from ondol.deployment.deploy import check_deployable
    from ondol.monitoring.replay import check_replay

    project = evaluate(0.9)
    log(project)
    gate = check_replay(project, "2")
    assert gate == decision(project)
    assert gate.passed and gate.figure is not None and 0 < gate.figure <= gate.limit == 0.9
    check_deployable(project, project.champion, "2", breaking=False)


def test_gate_passes_and_says_so_if_there_is_nothing_to_compare(evaluate: Callable[..., Project]) -> None:
    from ondol.monitoring.replay import apply_replay, check_replay

    project = evaluate(0.0)
    gate = check_replay(project, "2")
    assert gate and gate.passed and gate.sentence == "champion version 1 has answered nothing in the last 1 days"
    first, found = apply_replay(project, None, "2")
    assert first.passed and first.sentence == "no champion to compare with" and found is None


def test_pipeline_ends_at_the_gate(commands: Commands, project: Project) -> None:
    commands.configure("gates", margin=1.0, minimum=0.0, replay_days=1, replay_share=0.0)
    commands.configure("train", params={"max_iter": 4, "learning_rate": 0.5})
    log(project)
    before = (project.store.folder / "champion.json").read_bytes()
    done = commands.ml("run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "The candidate is refused by the replay gate" in done.stderr
    assert (project.store.folder / "champion.json").read_bytes() == before
