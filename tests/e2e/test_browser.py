"""The pages of Prefect, MLflow and the service, and the drift report, in a real browser.

`PICTURES=docs/pictures pytest tests/e2e/test_browser.py` makes the pictures of the documentation again.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from conftest import Render
from monitor_support import sample
from template_support import commit_all, git

from e2e.browser import Browser, Page, open_browser
from e2e.support import Project, make_project, succeed
from ondol.demo.traffic import send_rows
from ondol.registry.bundles import open_bundle
from ondol.storage.store import Store

pytestmark = pytest.mark.slow

PICTURES = os.environ.get("PICTURES")
KOREAN = {
    "region": "지역",
    "plan": "요금제",
    "monthly_fee": "월 요금(원)",
    "tenure_months": "가입 개월",
    "satisfaction": "만족도",
    "churned": "해지 여부",
}
STAGES = ("ingest", "validate", "train", "evaluate", "deploy")
# What the pages of Prefect and MLflow ask their own servers for and do not get: icons, and who is logged in.
KNOWN = re.compile(r"404 .*(/favicon\.ico|/ico/undefined\.svg|/users/current)$")


def customers(rows: int, **parameters: float) -> pd.DataFrame:
    """Customers of the sample with Korean names among the columns and labels."""
    frame = sample(rows, **parameters).drop(columns=["next_plan", "next_spend"]).rename(columns=KOREAN)
    return frame.assign(**{"해지 여부": frame["해지 여부"].map({"yes": "해지", "no": "유지"})})


class Shown:
    """A project with running servers, a model, answers to shifted customers, and a window of the monitor."""

    def __init__(self, project: Project, browser: Browser) -> None:
        self.project, self.browser = project, browser

    def address(self, name: str) -> str:
        record = json.loads((self.project.root / ".ml" / "run" / f"{name}.json").read_text(encoding="utf-8"))
        return f"http://127.0.0.1:{record['port']}"

    def prefect(self, path: str, **body: Any) -> list[dict[str, Any]]:
        answer = httpx.post(f"{self.address('prefect')}/api{path}", json=body, timeout=60, trust_env=False)
        return list(answer.raise_for_status().json())

    def flow_run(self, flow: str) -> str:
        """Return the address of the page of the flow's last run that ended well."""
        done = {"state": {"type": {"any_": ["COMPLETED"]}}}
        named = {"name": {"any_": [flow]}}
        [run] = self.prefect("/flow_runs/filter", flow_runs=done, flows=named, sort="START_TIME_DESC", limit=1)
        return f"{self.address('prefect')}/runs/flow-run/{run['id']}"

    def artifact(self, key: str) -> str:
        found = self.prefect("/artifacts/filter", artifacts={"key": {"any_": [key]}}, sort="CREATED_DESC", limit=1)
        return f"{self.address('prefect')}/artifacts/artifact/{found[0]['id']}"

    def link(self, key: str) -> str:
        """Return where a link artifact leads to."""
        [found] = self.prefect("/artifacts/filter", artifacts={"key": {"any_": [key]}})
        [address] = re.findall(r"\]\((http[^)]*)\)", found["data"])
        return str(address)


@pytest.fixture(scope="module")
def shown(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("browser")
    rendered = render(project_name="고객 이탈 예측", project_slug="customer-churn")
    project = make_project(rendered, folder / "customer-churn", None).choose_ports()
    with open_browser(folder / "chromium") as browser, project.brought_down():
        made = Shown(project, browser)
        play(made)
        yield made


def play(made: Shown) -> None:
    """Start the servers, train, send shifted customers, write their labels, and monitor."""
    project = made.project
    customers(3_000).to_csv(project.root / "고객.csv", index=False)
    succeed(project.ml("init", "고객.csv", "--target", "해지 여부"))
    moved = customers(1_200, start=50_000, drift=1.0, shift=1.0)
    moved[["customer_id", "해지 여부"]].to_csv(project.root / "labels.csv", index=False)
    project.configure("monitor", labels="labels.csv")
    commit_all(project.root)
    succeed(project.ml("up"))
    project.run()
    send_rows(made.address("service"), moved, 1, project.root.with_name("answers"))
    succeed(project.ml("monitor"))


@pytest.fixture
def page(shown: Shown) -> Iterator[Page]:
    """An empty page, which at the end has sent no request to other hosts and has logged no error."""
    with shown.browser.page() as opened:
        yield opened
        opened.settle()
        assert not opened.strangers
        assert not [said for said in opened.complaints if not KNOWN.search(said)]


def keep(page: Page, name: str, height: int | None = None) -> None:
    """Save the picture if pictures are requested."""
    if PICTURES:
        if height:
            page.resize(height)
        folder = Path(PICTURES)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(page.picture())


def await_picture(page: Page) -> None:
    """Wait until a picture of a plot's size is shown."""
    page.await_true("[...document.images].some(i => i.naturalWidth > 300 && i.getBoundingClientRect().width > 300)")


def fits(page: Page) -> bool:
    """Return True if nothing is wider than the window."""
    return bool(page.run("document.documentElement.scrollWidth <= window.innerWidth"))


def test_run_of_the_pipeline_is_read_in_prefect(shown: Shown, page: Page) -> None:
    data = shown.project.latest["ingest"][:12]
    page.open(shown.flow_run("pipeline"))
    page.await_text(f"pipeline version 1, data {data}", "Completed")
    page.await_true("document.querySelector('canvas')?.width > 300")
    keep(page, "prefect-run", 780)
    page.click("Subflow Runs")
    page.await_text(f"ingest data {data}", *(f"{stage} version 1, data {data}" for stage in STAGES[2:]))


@pytest.mark.parametrize(
    "flow, tasks",
    [
        ("ingest", ["read_source", "apply_corrections"]),
        ("evaluate", ["score_holdout", "evaluate_candidate", "log_verdict", "check_gates"]),
        ("monitor", ["detect_drift", "measure_performance", "log_window", "save_window", "decide_retraining"]),
    ],
)
def test_tasks_of_a_stage_are_listed_as_completed(shown: Shown, page: Page, flow: str, tasks: list[str]) -> None:
    page.open(shown.flow_run(flow))
    page.click("Task Runs")
    said = page.await_text(*(f"{task}-" for task in tasks))
    assert [task for task in tasks if re.search(rf"\b{task}-\w+ Completed", said)] == tasks


def test_artifacts_of_a_run_say_in_the_list_what_they_are(shown: Shown, page: Page) -> None:
    page.open(shown.flow_run("evaluate"), 1300)
    page.click("Artifacts")
    page.await_text("Version 1 passed on", "held-out rows.", "MLflow run of version 1", "plot-roc", "2 rows")


def test_verdict_is_read_in_prefect(shown: Shown, page: Page) -> None:
    metric = shown.project.json("verdicts/1.json")["verdict"]["scores"]["candidate"]["roc_auc"]
    page.open(shown.flow_run("pipeline"))
    page.click("Artifacts")
    page.await_text("summary", "Version 1 passed on")
    page.open(shown.artifact("summary"))
    page.await_text("Version 1 passed on", f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]")
    page.await_text("floor passed: roc_auc", "margin passed: no champion to compare with")
    assert "**" not in page.text and "| ---" not in page.text
    assert fits(page)
    keep(page, "prefect-summary", 760)


def test_gates_are_a_table_in_prefect(shown: Shown, page: Page) -> None:
    page.open(shown.artifact("gates"))
    page.await_text("gate figure limit ruling explanation", "floor", "passed", "no champion to compare with")
    assert page.run("document.querySelectorAll('table tbody tr').length") == 2


@pytest.mark.parametrize("key", ["plot-roc", "plot-confusion-matrix", "plot-drift-by-column"])
def test_pictures_are_displayed_in_prefect(shown: Shown, page: Page, key: str) -> None:
    page.open(shown.artifact(key))
    await_picture(page)
    assert "base64" not in page.text
    assert fits(page)


def test_window_is_read_in_prefect(shown: Shown, page: Page) -> None:
    page.open(shown.artifact("monitor"))
    page.await_text("Version 1, 1,200 rows from", "performance lost", "columns drifted", "labelled rows", "가입 개월")
    assert fits(page)
    page.open(shown.artifact("drift-by-column"))
    said = page.await_text("18 rows", "column drifted distance limit missing unseen", "월 요금(원) yes", "지역 yes")
    assert "probability yes" in said
    keep(page, "prefect-drift", 760)
    page.open(shown.artifact("plot-reference-and-window"))
    await_picture(page)
    keep(page, "prefect-window", 800)


def test_version_is_read_in_mlflow(shown: Shown, page: Page) -> None:
    page.open(f"{shown.address('mlflow')}/#/models/customer-churn/versions/1")
    page.await_text("Version 1", "@ champion", "Version 1 passed on", "roc_auc", "floor passed")
    page.await_text("data_digest", shown.project.latest["ingest"], git(shown.project.root, "rev-parse", "HEAD").strip())
    close_assistant(page)
    keep(page, "mlflow-version", 1000)
    inputs = open_bundle(Store(shown.project.store), (shown.project.champion or {})["bundle"]).contract.inputs
    page.click(f"Inputs ({len(inputs)})", "td, span, div, p")
    page.await_text(*(name for name, *_ in inputs))


def test_training_run_is_read_in_mlflow(shown: Shown, page: Page) -> None:
    page.open(shown.link("mlflow-run"))
    page.await_text("roc_auc_low", "log_loss", "해지 여부", "HistGradientBoostingClassifier", "Finished")
    page.open(shown.link("mlflow-run") + "/artifacts/plots/roc.png")
    page.await_text("calibration.png", "confusion-matrix.png")
    await_picture(page)


def test_drift_report_is_read_where_prefects_link_leads(shown: Shown, page: Page) -> None:
    page.open(shown.artifact("drift-report"))
    page.await_text("Drift report of window")
    page.open(shown.link("drift-report"), 1100)
    page.await_text("Drift in column 'probability'", "Drifted Columns", "월 요금(원)", "가입 개월", "Detected")
    page.await_true("document.querySelectorAll('svg.main-svg').length > 0")
    close_assistant(page)
    keep(page, "drift-report", 1100)


def test_service_documents_its_fields_and_answers_from_its_page(shown: Shown, page: Page) -> None:
    page.open(shown.address("service"), 1200)
    page.await_text("customer-churn", "Predictions of the champion.", "/predict", "/model")
    page.run("document.querySelector('.opblock-post .opblock-summary-control').click()")
    page.await_text("월 요금(원)", "만족도")
    page.click("Try it out")
    page.click("Execute")
    page.await_true(
        "document.querySelector('.live-responses-table tbody .response-col_status')?.innerText.startsWith('200')"
    )
    answered = page.run("document.querySelector('.live-responses-table').innerText")
    assert '"model_version": "1"' in answered
    assert '"해지"' in answered
    page.run("document.querySelector('.live-responses-table').scrollIntoView({block: 'end'})")
    keep(page, "service")


def close_assistant(page: Page) -> None:
    """Close the assistant that MLflow opens beside the page."""
    page.run("document.querySelector('[data-component-id$=\"chat_panel.close\"]')?.click()")
