"""Every recipe of docs/how-to works in a rendered project, is short, and still works after an update."""

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import Render
from copier import run_copy, run_update
from docs_support import Block
from e2e.support import Done, Project, make_project, prefect_server, refuse, sample, succeed, wait_for
from template_support import REPOSITORY, commit_all, git, project_environment, run_python

from ondol.ingestion.sample import SampleSource

MOST_FILES = 2
MOST_LINES = 15
LONGER = {"write-a-transformer": 45}
SCRIPTS = {"ask.py"}  # of a caller of the service, and no part of a project: test_docs_commands runs them
HOW_TO = REPOSITORY / "docs" / "how-to"
FENCE = re.compile(r"^ *```(?:python|diff)$", re.MULTILINE)
BLOCK = re.compile(r"^```(?P<kind>python|diff)\n# (?P<path>\S+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def read_recipes() -> dict[str, list[Block]]:
    """Return the blocks of each page that has files of a project, or edits of them."""
    pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted(HOW_TO.glob("*.md"))}
    blocks = {page: [one for one in read_blocks(text) if one.path not in SCRIPTS] for page, text in pages.items()}
    return {page: found for page, found in blocks.items() if found}


def read_blocks(text: str) -> list[Block]:
    """Return the blocks of a page that begin with a path."""
    return [Block(**found.groupdict()) for found in BLOCK.finditer(text)]


RECIPES = read_recipes()


def follow(project: Path, page: str, names: Mapping[str, str] = MappingProxyType({})) -> None:
    """Follow a recipe, with the owner's names instead of the sample's."""
    pattern = rf"\b({'|'.join(map(re.escape, names)) or 'x^'})\b"
    for block in RECIPES[page]:
        replace(block, text=re.sub(pattern, lambda found: names[found[0]], block.text)).apply(project)


@pytest.fixture(scope="module")
def trained(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with version 1 in production, saved so that tests can restore it."""
    folder = tmp_path_factory.mktemp("recipes")
    with prefect_server(folder / "prefect", folder / "log") as address:
        project = make_project(render(), folder / "churn", rows=None, PREFECT_API_URL=address)
        project.run()
        yield project.save()


@pytest.fixture
def cook(trained: Project) -> Callable[[str], Project]:
    """Follow a recipe in the restored trained project, and commit the result."""

    def do(page: str) -> Project:
        project = trained.restore()
        follow(project.root, page)
        commit_all(project.root)
        return project

    return do


def mlflow_run(project: Project, version: str) -> tuple[dict[str, str], dict[str, float], dict[str, str]]:
    """Return the parameters and metrics of a version's run, and its text files."""
    run = project._mlflow(f"select run_id from model_versions where version = {version}")[0][0]
    params = dict(project._mlflow(f"select key, value from params where run_uuid = '{run}'"))
    metrics = dict(project._mlflow(f"select key, value from latest_metrics where run_uuid = '{run}'"))
    (folder,) = (project.root / ".ml" / "mlflow" / "artifacts").glob(f"{run}/artifacts")
    files = {p.name: p.read_text(encoding="utf-8") for p in folder.rglob("*.txt")}
    return params, metrics, files


@pytest.mark.parametrize("page", RECIPES)
def test_a_recipe_is_short(page):
    blocks = RECIPES[page]
    assert 1 <= len({block.path for block in blocks}) <= MOST_FILES
    assert sum(len(block.added()) for block in blocks) <= LONGER.get(page, MOST_LINES)


def test_recipes_are_listed_with_their_titles():
    text = (HOW_TO / "index.md").read_text(encoding="utf-8")
    section = text.partition("## Add to a project\n")[2].partition("\n#")[0]
    listed = {page: title for title, page in re.findall(r"\[([^]]+)\]\(([\w-]+)\.md\)", section)}
    titles = {page: (HOW_TO / f"{page}.md").read_text(encoding="utf-8").partition("\n")[0] for page in RECIPES}
    assert {page: f"# {title}" for page, title in listed.items()} == titles


def test_every_python_and_diff_block_of_the_how_to_pages_is_executed():
    for path in HOW_TO.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert len(FENCE.findall(text)) == len(read_blocks(text)), f"{path.name} has a block without a path"


def test_every_recipe_has_a_test_of_what_it_does():
    text = Path(__file__).read_text(encoding="utf-8")
    assert {page for page in RECIPES if not re.search(rf'(cook\(|follow\(project\.root, )"{page}"', text)} == set()


@pytest.mark.parametrize("page", RECIPES)
def test_a_recipe_passes_the_projects_own_lint(render: Render, tmp_path: Path, page: str):
    project = Path(shutil.copytree(render(), tmp_path / "churn"))
    follow(project, page)
    paths = [block.path for block in RECIPES[page] if block.path.endswith(".py")]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(["ruff", *command, "--no-cache", *paths], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_recipes_pass_the_projects_own_types(render: Render, tmp_path: Path):
    project = Path(shutil.copytree(render(), tmp_path / "churn"))
    for page in RECIPES:
        follow(project, page)
    environment = project_environment(project)
    environment["MYPYPATH"] = environment["PYTHONPATH"]  # mypy is installed elsewhere, and looks in its own environment
    done = subprocess.run(["mypy"], cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in RECIPES if any(b.path.startswith("model/") for b in RECIPES[page])])
def test_a_recipe_passes_the_projects_own_tests(render: Render, tmp_path: Path, page: str):
    project = Path(shutil.copytree(render(), tmp_path / "churn"))
    follow(project, page)
    commit_all(project)
    done = run_python(project, "-m", "pytest", "-q", "-n", "0")
    assert done.returncode == 0, done.stdout


def test_recipes_survive_an_update(template: Path, tmp_path: Path):
    git(tmp_path, "clone", "--quiet", str(template), "template")
    source, project = tmp_path / "template", tmp_path / "churn"
    run_copy(str(source), project, defaults=True, quiet=True)
    for page in RECIPES:
        follow(project, page)
    commit_all(project)
    paths = sorted({block.path for blocks in RECIPES.values() for block in blocks})
    before = {path: (project / path).read_text(encoding="utf-8") for path in paths}
    changed = [path for path in paths if release_line(source, path)]
    assert {"config.toml", "prefect.yaml", "flows/train.py", "service/service.py"} <= set(changed)
    commit_all(source, "v0.2.0")
    run_update(project, defaults=True, overwrite=True, quiet=True)
    after = {path: (project / path).read_text(encoding="utf-8") for path in paths}
    merged = [path for path in changed if not path.startswith("model/")]  # which updates leave alone
    assert after == before | {path: f"# A later version.\n{before[path]}" for path in merged}


def release_line(source: Path, path: str) -> bool:
    """Add a line to the template's file, as a later version may; return False where the template has none."""
    for place in (source / path, source / "template" / path, source / "template" / f"{path}.jinja"):
        if place.is_file():
            place.write_text(f"# A later version.\n{place.read_text(encoding='utf-8')}", encoding="utf-8")
            return True
    return False


PROBE = """
import sys
import pyarrow as pa
from ondol.contract import clean, encode
from ondol.evaluation.targets import load_candidate
from ondol.ingestion.sources import Reading, open_source
from ondol.project import open_project

project = open_project()
model = load_candidate(project.settings, project.champion.version)
source = open_source(sys.argv[1], Reading(model.contract.kinds, project.settings.root))
frame, _ = clean(pa.Table.from_batches(list(source.batches())), model.contract.features)
features = model.pipeline[0].set_output(transform="pandas").transform(encode(model.contract, frame))
model.pipeline[0].set_output(transform="default")
features["yes"] = model.pipeline.predict_proba(encode(model.contract, frame))[:, 1]
features.to_parquet("features.parquet")
"""


def changed_rows(rows: int = 400) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Return rows that training never saw, other than its own in kind: as a table, and as the service takes them."""
    made = pa.Table.from_batches(SampleSource(rows=rows, seed=9, drift=1.0).batches())
    made = made.drop_columns(["churned", "next_plan", "next_spend"])
    given = [row | {"signup_month": row["signup_month"].isoformat()} for row in made.to_pylist()]
    return made.to_pandas(), given


def predict_everywhere(project: Project, rows: pd.DataFrame, given: list[dict[str, Any]]) -> pd.DataFrame:
    """Check that batch and service predict like scikit-learn, and return the features."""
    rows.to_parquet(project.root / "new.parquet")
    succeed(project.python("-c", PROBE, "new.parquet"))
    features = pd.read_parquet(project.root / "features.parquet")
    succeed(project.ml("predict", "new.parquet", "answers.csv"))
    batch = pd.read_csv(project.root / "answers.csv")["probability yes"]
    with project.serve() as client:
        answered = client.post("/predict", json={"rows": given})
    assert answered.status_code == 200, answered.text
    served = [one["probabilities"]["yes"] for one in answered.json()["predictions"]]
    np.testing.assert_allclose(batch, features["yes"], atol=1e-5)
    np.testing.assert_allclose(served, features["yes"], atol=1e-5)
    return features


def test_a_derived_column(cook):
    project = cook("add-a-derived-column")
    project.run()
    rows, given = changed_rows()
    rows.loc[0, "tenure_months"] = given[0]["tenure_months"] = 0
    features = predict_everywhere(project, rows, given)
    expected = (rows["total_paid"] / rows["tenure_months"]).where(rows["tenure_months"] > 0)
    np.testing.assert_allclose(features["paid_per_month"], expected, rtol=1e-6)
    assert np.isnan(features["paid_per_month"][0])
    np.testing.assert_array_equal(features["new"], rows["tenure_months"] < 3)
    assert {"total_paid", "tenure_months", "plan"} <= set(features.columns)


@pytest.mark.slow
def test_a_step_between_ingest_and_validate(cook):
    project = cook("change-the-rows-before-validation")
    project.run()
    digest = project.latest["ingest"]
    with project.serve() as client:
        rows, given = changed_rows()
        lacking = client.post("/predict", json={"rows": given[:1]})
        assert (lacking.status_code, lacking.json()["detail"][0]["loc"]) == (400, ["rows", 0, "fibre"])
    rows["fibre"] = rows["region"].isin(["서울", "부산"])
    given = [row | {"fibre": bool(fibre)} for row, fibre in zip(given, rows["fibre"], strict=True)]
    features = predict_everywhere(project, rows, given)
    np.testing.assert_array_equal(features["fibre"].astype(bool), rows["fibre"])
    succeed(project.ml("ingest"))
    assert project.latest["ingest"] == digest
    project.configure("data", source="sample://?rows=2000&seed=5&drift=1")
    succeed(project.ml("ingest"))
    snapshot = pd.read_parquet(project.store / "snapshots" / f"{project.latest['ingest']}.parquet")
    assert len(snapshot) == 2_000 and project.latest["ingest"] != digest
    assert (snapshot["fibre"] == snapshot["region"].isin(["서울", "부산"])).all()
    assert 0 < snapshot["fibre"].mean() < 1
    succeed(project.ml("validate"))


@pytest.mark.slow
def test_a_transformer_with_its_onnx_converter(cook):
    project = cook("write-a-transformer")
    project.run()
    rows, given = changed_rows()
    features = predict_everywhere(project, rows, given)
    snapshot = pd.read_parquet(project.store / "snapshots" / f"{project.latest['ingest']}.parquet")
    least, greatest = snapshot["voice_minutes"].quantile([0.0, 1.0])
    assert least < features["voice_minutes"].min() and features["voice_minutes"].max() < greatest
    assert features["data_gb"].isna().equals(rows["data_gb"].isna())


@pytest.mark.slow
def test_another_estimator(cook):
    project = cook("use-another-estimator")
    project.run()
    params, _, _ = mlflow_run(project, "2")
    assert (params["estimator"], params["estimator.n_estimators"]) == ("RandomForestClassifier", "200")
    assert "2" in project.versions()
    assert project.json("verdicts/2.json")["verdict"]["gates"]


@pytest.mark.slow
def test_a_metric(cook):
    project = cook("add-a-metric")
    project.run()
    verdict = project.json("verdicts/2.json")["verdict"]
    assert verdict["metric"] == "profit"
    value, low, high = (verdict["scores"]["candidate"]["profit"][name] for name in ("value", "low", "high"))
    assert low < value < high
    assert verdict["scores"]["dummy"]["profit"]["value"] < low
    assert mlflow_run(project, "2")[1]["profit"] == value
    assert set(verdict["scores"]["candidate"]) > {"roc_auc", "profit"}


@pytest.mark.slow
def test_a_threshold(cook):
    project = cook("choose-a-threshold")
    project.run()
    verdict = project.json("verdicts/2.json")
    scores = {who: figures["cost"]["value"] for who, figures in verdict["verdict"]["scores"].items()}
    assert verdict["verdict"]["metric"] == "cost"
    assert scores["candidate"] < scores["champion"]  # which decides by 0.5
    params, metrics, _ = mlflow_run(project, "2")
    threshold = float(params["decision.threshold"])
    assert threshold < 0.4 and metrics["out_of_fold_cost"] < metrics["out_of_fold_usual_cost"]
    assert any('The label is "yes" from a probability of' in note for note in verdict["notes"])
    sample(200).to_csv(project.root / "new.csv", index=False)
    succeed(project.ml("predict", "new.csv", "answers.csv"))
    answers = pd.read_csv(project.root / "answers.csv")
    said, chance = answers["prediction"] == "yes", answers["probability yes"]
    assert (said == (chance >= threshold)).all() and (said & (chance < 0.5)).any()


@pytest.mark.slow
def test_a_search_and_a_comparison_of_its_version(cook):
    project = cook("tune-parameters")
    succeed(project.ml("tune", "--trials", "10", "--processes", "1", "--write"))
    written = tomllib.loads((project.root / "config.toml").read_text(encoding="utf-8"))["train"]["params"]
    assert written["kind"] in ("boosting", "linear", "forest")
    (run,) = [one for one, name in project._mlflow("select run_uuid, name from runs") if name.startswith("tune-")]
    below = project._mlflow(f"select count(*) from tags where key = 'mlflow.parentRunId' and value = '{run}'")
    assert 1 <= below[0][0] <= 10
    again = succeed(project.ml("tune", "--trials", "10", "--processes", "1"))  # the written parameters begin no search
    assert "10 trials" in again.out and "MLflow" not in again.out
    project.run()
    compared = succeed(project.ml("compare", "1", "2"))
    assert "better than the first by" in compared.out
    assert (project.root / ".ml/compare/compare-1-2.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_slices(cook):
    project = cook("look-at-slices")
    project.configure("gates", slice_margin=0.05)
    project.run()
    verdict = project.json("verdicts/2.json")
    assert [one["name"] for one in verdict["slices"][:2]] == ["long-standing customers", "premium in 서울"]
    assert all(one["kind"] == "own" and one["rows"] > 30 for one in verdict["slices"][:2])
    gate = next(one for one in verdict["verdict"]["gates"] if one["name"] == "slices")
    assert gate["passed"] and gate["limit"] == 0.05
    path = project.root / "model" / "evaluation.py"
    path.write_text(path.read_text(encoding="utf-8").replace('rows["tenure_months"]', 'rows["gone"]'), encoding="utf-8")
    said = refuse(project.ml("evaluate"))
    assert said.startswith('The slice "long-standing customers" of model/evaluation.py failed: KeyError')


@pytest.mark.slow
def test_a_gate(cook):
    project = cook("add-a-gate")
    project.run()
    own = project.json("verdicts/2.json")["verdict"]["gates"][-1]
    assert (own["name"], own["passed"]) == ("fair_by_plan", True)
    assert 0.6 <= own["figure"] <= 1
    path = project.root / "model" / "evaluation.py"
    path.write_text(path.read_text(encoding="utf-8").replace("0.6", "0.99"), encoding="utf-8")
    said = refuse(project.ml("run"), status=1)
    assert "refused by the fair_by_plan gate" in said and "must be at least 0.99" in said
    path.write_text(path.read_text(encoding="utf-8").replace("return Gate(", "return dict("), encoding="utf-8")
    assert (
        refuse(project.ml("evaluate")) == 'The gate "fair_by_plan" of model/evaluation.py returned dict: return a Gate.'
    )
    assert project.champion["version"] == "2"


@pytest.mark.slow
def test_rare_classes(cook):
    project = cook("handle-rare-classes")
    settings = tomllib.loads(
        re.findall(r"```toml\n(.*?)```", (HOW_TO / "handle-rare-classes.md").read_text("utf-8"), re.S)[0]
    )
    for section, values in settings.items():
        project.configure(section, **values)
    project.ml("run")  # the margin gate may refuse it, since the other version ranks a little better
    verdict = project.json("verdicts/2.json")["verdict"]
    own = verdict["gates"][-1]
    assert (verdict["metric"], own["name"], own["passed"]) == ("average_precision", "finds_positives", True)


@pytest.mark.slow
def test_a_workbook(cook):
    project = cook("read-excel")
    (project.root / "data").mkdir()
    with pd.ExcelWriter(project.root / "data" / "customers.xlsx") as workbook:
        sample(3).to_excel(workbook, sheet_name="안내", index=False)
        sample(500).to_excel(workbook, sheet_name="고객", index=False)
    succeed(project.ml("init", "python://model.source:rows", "--target", "churned"))
    succeed(project.ml("ingest"))
    assert project.json(f"snapshots/{project.latest['ingest']}.json")["rows"] == 500


def run_notebook(project: Project, code: str) -> Done:
    """Run code as a notebook does: in its own folder."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.root / "notebooks",
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_predictions_in_a_notebook(cook):
    project = cook("predict-in-a-notebook")
    rows = sample(20).drop(columns=["churned", "next_plan", "next_spend"])
    rows.loc[3, "plan"] = "gold"
    rows.to_csv(project.root / "new.csv", index=False)
    show = "exec(open('predict.py').read()); print(refused, answers['error'].is_valid().to_pylist().index(True))"
    done = run_notebook(project, show)
    assert succeed(done).stdout.split("\n")[-2] == "1 3"


@pytest.mark.slow
def test_a_source_in_python(cook):
    project = cook("read-from-python")
    project.run()
    digest = project.latest["ingest"]
    record = project.json(f"snapshots/{digest}.json")
    expected = sample(3_000)
    assert record["source"] == "python://model.source:rows"
    assert record["rows"] == int((expected["tenure_months"].astype(int) > 0).sum()) < 3_000
    succeed(project.ml("ingest"))
    assert project.latest["ingest"] == digest
    path = project.root / "model" / "source.py"
    path.write_text(path.read_text(encoding="utf-8").replace("> 0", "> 12"), encoding="utf-8")
    succeed(project.ml("ingest"))
    assert project.latest["ingest"] != digest
    path.write_text(path.read_text(encoding="utf-8").replace("tenure_months", "tenure"), encoding="utf-8")
    assert refuse(project.ml("ingest")) == "\"python://model.source:rows\" failed: KeyError: 'tenure'."


@pytest.mark.slow
def test_parameters_and_files_in_mlflow(cook):
    project = cook("log-more-to-mlflow")
    project.configure("train", seed=7)
    project.run()
    params, _, files = mlflow_run(project, "2")
    names = files["features.txt"].splitlines()
    assert "plan" in names and "tenure_months" in names
    assert (params["team"], params["features"], params["train.seed"]) == ("growth", str(len(names)), "7")


@pytest.mark.slow
def test_a_step(cook):
    project = cook("add-a-step")
    project.run()
    assert not (project.root / "results.db").exists()  # the verdict is reused
    project.configure("train", params={"max_iter": 1})
    for _ in range(2):
        refuse(project.ml("run"), 1)
    with contextlib.closing(sqlite3.connect(project.root / "results.db")) as database:
        ((version, score, refusal),) = database.execute("select version, score, refusal from results")
    assert version == "2" and 0.5 < score < 1 and "margin gate" in refusal


def test_an_endpoint(cook):
    project = cook("add-an-endpoint")
    _, given = changed_rows(200)
    with project.serve() as client:
        predictions = client.post("/predict", json={"rows": given}).json()["predictions"]
        expected = [i for i, one in enumerate(predictions) if one["probabilities"]["yes"] >= 0.3]
        assert 0 < len(expected) < 200
        assert client.post("/leavers", json={"rows": given, "least": 0.3}).json() == expected
        wrong = client.post("/leavers", json={"rows": [given[0] | {"plan": "gold"}]})
        assert wrong.status_code == 400
        assert wrong.json()["detail"][0]["loc"] == ["rows", 0, "plan"]
        assert client.post("/leavers", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
        large = client.post("/leavers", content=b" " * 20_000_000, headers={"Content-Type": "application/json"})
        assert large.status_code == 413
        foreign = client.post("/leavers", json={"rows": given}, headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403
        assert client.get("/leavers").status_code == 405
        document = client.get("/docs.json").json()
        assert document["paths"]["/leavers"]["post"]["requestBody"]
        counted = client.get("/metrics").text
        assert re.search(r'bentoml_service_request_total\{endpoint="/leavers",http_response_code="200",.*\} 1', counted)
    log = project.root.with_name("serve.log")
    assert "Exception" not in log.read_text(encoding="utf-8") and "gold" not in log.read_text(encoding="utf-8")
    (project.store / "champion.json").unlink()
    with project.serve() as client:
        assert client.post("/leavers", json={"rows": given}).status_code == 503
    assert "Exception" not in log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_schedule_and_a_flow(cook):
    project = cook("change-a-schedule")
    follow(project.root, "add-a-flow")
    succeed(project.ml("pool"))
    succeed(project.python("-m", "prefect", "--no-prompt", "deploy", "--all"))
    found = httpx.get(
        f"{project.environment['PREFECT_API_URL']}/deployments/name/predict/customer-churn-predict"
    ).json()
    assert found["parameters"] == {"source": "new.csv", "destination": "answers.csv"}
    (schedule,) = found["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 6 * * *", "Asia/Seoul")
    own = httpx.get(f"{project.environment['PREFECT_API_URL']}/deployments/name/campaign/churn-campaign").json()
    assert own["entrypoint"] == "flows/campaign.py:campaign"
    assert set(own["parameter_openapi_schema"]["properties"]) == {"source", "least"}
    sample(300).drop(columns=["churned", "next_plan", "next_spend"]).to_csv(project.root / "new.csv", index=False)
    done = succeed(project.python("-c", "from flows.campaign import campaign; print(campaign(least=0.3))"))
    calls = pd.read_csv(project.root / "calls.csv")
    assert done.stdout.splitlines()[-1] == str(len(calls))
    assert 0 < len(calls) < 300 and (calls["probability yes"] >= 0.3).all()


def test_a_notebook(cook):
    project = cook("explore-in-a-notebook")
    show = "exec(open('explore.py').read()); print(len(rows), versions, float(metrics.loc['1', 'roc_auc']))"
    done = run_notebook(project, show)
    auc = project.json("verdicts/1.json")["verdict"]["scores"]["candidate"]["roc_auc"]["value"]
    assert succeed(done).stdout.split("\n")[-2] == f"5000 {{'1': '{project.latest['ingest'][:12]}'}} {auc}"


NAMED = ["add-a-derived-column", "change-the-rows-before-validation", "write-a-transformer", "add-a-gate"]
OF_THE_SAME_FILES = ["handle-rare-classes", "read-excel"]  # as add-a-metric and read-from-python
KOREAN = {
    "churned": "해지",
    "data_gb": "데이터",
    "plan": "요금제",
    "region": "지역",
    "tenure_months": "이용개월",
    "total_paid": "누적결제액",
    "voice_minutes": "통화분",
}


@pytest.fixture
def korean(render: Render, tmp_path: Path) -> Project:
    """A project on a table with its own columns and labels."""
    project = make_project(render(), tmp_path / "이탈", rows=None)
    frame = sample().drop(columns=["next_plan", "next_spend"]).rename(columns=KOREAN)
    frame["해지"] = frame["해지"].map({"no": "유지", "yes": "해지함"})
    frame.to_csv(project.root / "고객.csv", index=False)
    succeed(project.ml("init", "고객.csv", "--target", "해지"))
    commit_all(project.root)
    return project


@pytest.mark.slow
def test_recipes_without_columns_are_for_any_table(korean):
    for page in RECIPES.keys() - {*NAMED, *OF_THE_SAME_FILES, "read-from-python"}:
        follow(korean.root, page)
    korean.run()
    params, metrics, files = mlflow_run(korean, "1")
    assert (params["team"], params["estimator"]) == ("growth", "RandomForestClassifier")
    assert "요금제" in files["features.txt"].splitlines() and "profit" in metrics
    new = pd.read_csv(korean.root / "고객.csv", dtype=str, keep_default_na=False).drop(columns=["해지"]).head(300)
    new.to_csv(korean.root / "new.csv", index=False)
    done = succeed(korean.python("-c", "from flows.campaign import campaign; print(campaign(least=0.3))"))
    calls = pd.read_csv(korean.root / "calls.csv")
    assert done.stdout.splitlines()[-1] == str(len(calls))
    assert 0 < len(calls) < 300 and (calls["probability 해지함"] >= 0.3).all()
    rows = korean.json(f"bundles/{korean.champion['bundle']}/meta.json")["example"]["rows"]
    with korean.serve() as client:
        wait_for(client, "/readyz", 200)
        assert client.post("/leavers", json={"rows": rows, "least": 0}).json() == [0]
    succeed(korean.python("notebooks/explore.py"))


@pytest.mark.slow
def test_recipes_with_columns_are_for_those_of_any_table(korean):
    schema = korean.root / "model" / "schema.py"
    text = schema.read_text(encoding="utf-8")
    schema.write_text(re.sub(r"(?m)^(    지역: str = pa\.Field\().*\)$", r"\1)", text), encoding="utf-8")
    for page in NAMED:
        follow(korean.root, page, KOREAN)
    korean.run()
    assert korean.json("verdicts/1.json")["verdict"]["gates"][-1]["name"] == "fair_by_plan"
    pd.read_csv(korean.root / "고객.csv").to_parquet(korean.root / "고객.parquet")
    sources = {"sample://?rows=3000": "고객.parquet", "sample://?rows=5000": "고객.csv"}
    follow(korean.root, "read-from-python", KOREAN | sources)
    path = korean.root / "model" / "source.py"
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\ndef prepare(frame):\n    return frame.assign(fibre=True)\n")
    succeed(korean.ml("ingest"))
    assert korean.json(f"snapshots/{korean.latest['ingest']}.json")["source"] == "python://model.source:rows"
