"""Names, labels, ids and values that are markup, paths, escapes or worse: every stage works, and no page runs them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from conftest import Render
from nasty_support import MARKUP, NAMES, make_nasty
from template_support import commit_all

from e2e.browser import Browser, Page, open_browser
from e2e.support import Done, Project, make_project, succeed
from ondol.config import Monitor
from ondol.monitoring import drift
from ondol.monitoring.drift import Sides
from ondol.monitoring.windows import Window

pytestmark = pytest.mark.slow

TARGET = "y"
ROWS, SENT = 900, 400
PLANTED = "document.documentElement.dataset.planted || ''"
HARMFUL = re.compile("[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\\[[0-9;]*m)")


class Planted:
    """A project on which all commands were run once, with their output."""

    def __init__(self, project: Project, browser: Browser) -> None:
        self.project, self.browser = project, browser
        self.said: list[str] = []

    def ml(self, *words: str) -> Done:
        done = succeed(self.project.ml(*words))
        self.said.append(done.stdout + done.stderr)
        return done

    def address(self, name: str) -> str:
        record = json.loads((self.project.root / ".ml" / "run" / f"{name}.json").read_text(encoding="utf-8"))
        return f"http://127.0.0.1:{record['port']}"

    def prefect(self, path: str, **body: Any) -> list[dict[str, Any]]:
        answer = httpx.post(f"{self.address('prefect')}/api{path}", json=body, timeout=60, trust_env=False)
        return list(answer.raise_for_status().json())

    @property
    def windows(self) -> list[Window]:
        paths = sorted((self.project.store / "windows").glob("*.json"))
        return [Window.model_validate_json(path.read_bytes()) for path in paths]

    def send(self, frame: pd.DataFrame) -> None:
        """Send the rows to the service, and write their labels."""
        path = self.project.root / "labels.csv"
        rows = frame.drop(columns=["id", TARGET]).to_dict("records")
        for begin in range(0, len(rows), 100):
            part = rows[begin : begin + 100]
            answer = httpx.post(
                f"{self.address('service')}/predict", json={"rows": part}, timeout=60, trust_env=False
            ).raise_for_status()
            assert len(answer.json()["predictions"]) == len(part)
            labels = pd.DataFrame({"request_id": answer.headers["x-request-id"], "row": range(len(part))})
            labels[TARGET] = frame[TARGET].iloc[begin : begin + 100].to_numpy()
            labels.to_csv(path, mode="a", header=not path.exists(), index=False)


@pytest.fixture(scope="module")
def planted(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    folder = tmp_path_factory.mktemp("planted")
    rendered = render(project_name=MARKUP[4], project_slug="planted", description=f"{MARKUP[0]} {MARKUP[5]}")
    project = make_project(rendered, folder / "planted", None).choose_ports()
    with open_browser(folder / "chromium") as browser, project.brought_down():
        made = Planted(project, browser)
        play(made)
        yield made


def play(made: Planted) -> None:
    """Bring all up, train, answer rows as in training and rows that moved, and monitor both with labels."""
    project = made.project
    make_nasty(ROWS).to_csv(project.root / "rows.csv", index=False)
    made.ml("init", "rows.csv", "--target", TARGET)
    project.configure("monitor", labels="labels.csv")
    project.configure("retrain", windows=1, of=1, cooldown_hours=0)
    commit_all(project.root)
    made.ml("run")
    made.ml("up")
    for number, moved in enumerate((0.0, 1.5)):
        made.send(make_nasty(SENT, start=10_000 * (number + 1), moved=moved))
        made.ml("monitor")
    for words in (
        ("status",),
        ("loop", "show"),
        ("report",),
        ("data", "log"),
        ("quarantine", "list"),
        ("environments",),
    ):
        made.ml(*words)
    made.ml("predict", "rows.csv", "predicted.csv")


def test_every_stage_takes_any_column_name(planted: Planted) -> None:
    predicted = pd.read_csv(planted.project.root / "predicted.csv", nrows=5)
    assert len(NAMES) + len(MARKUP) <= len(predicted.columns)
    first, second = planted.windows
    assert (first.verdict, second.verdict) == ("ok", "worse")
    assert {column.name for column in second.columns} == {*NAMES, *MARKUP, "text"}
    assert second.performance is not None and second.performance.rows == SENT
    assert first.run_id and second.run_id and not second.notes


def test_drift_is_alerted_with_names_escaped(planted: Planted) -> None:
    outbox = (planted.project.store / "alerts" / "outbox").glob("*.json")
    told = [json.loads(path.read_bytes()) for path in outbox]
    (drift,) = [message["what"] for message in told if message["kind"] == "drift"]
    assert "performance lost" in drift and not HARMFUL.search(drift)


def test_nothing_of_the_data_controls_the_terminal_or_a_log(planted: Planted) -> None:
    assert any("\\x1b[2Jclear" in said for said in planted.said)  # it was shown
    logs = [path.read_text(encoding="utf-8") for path in (planted.project.root / ".ml" / "logs").glob("*.log*")]
    for said in [*planted.said, *logs]:
        assert not HARMFUL.search(said), HARMFUL.search(said)
    runs = planted.prefect("/logs/filter", limit=200)
    assert runs and not [one["message"] for one in runs if HARMFUL.search(one["message"])]


def test_names_are_printed_as_they_are(planted: Planted) -> None:
    """Text that looks like console markup or an emoji code is not interpreted."""
    said = "\n".join(planted.said)
    assert "[red]" in said and "[link=x]y[/link]" in said


def look_at(planted: Planted, address: str, *steps: str, words: tuple[str, ...] = ()) -> str:
    """Open a page, wait for words, run the steps, and check that nothing of the data ran or fetched anything."""
    with planted.browser.page() as page:
        page.open(address, 2000)
        page.await_text(*words)
        page.settle()
        for step in steps:
            page.run(step)
            page.settle()
        require_harmless(page, address)
        return page.text


def require_harmless(page: Page, address: str) -> None:
    assert not any(page.run_everywhere(PLANTED)), address
    assert not page.strangers - {""}, (address, page.strangers)  # a file has no host
    links = page.run_everywhere(
        "[...document.querySelectorAll('a')].map(a => a.getAttribute('href') || a.href.baseVal || '')"
    )
    assert not [link for group in links for link in group if "planted" in link and ".invalid" in link], address
    assert not [link for group in links for link in group if link.startswith("javascript:")], address


def test_the_drift_report_runs_nothing(planted: Planted) -> None:
    for window in planted.windows:
        path = planted.project.store / "windows" / f"{window.id}.html"
        text = path.read_text(encoding="utf-8")
        assert not [markup for markup in MARKUP if "<" in markup and markup in text]
        opened = (
            "[...document.querySelectorAll('button[aria-label*=xpand], table button')].slice(0, 12).map(b => b.click())"
        )
        look_at(planted, path.as_uri(), opened, words=("Drifted Columns",))


@pytest.mark.parametrize("kept", ["nothing", "labels", "policy"])
def test_labels_and_policy_of_the_report_hold_each_alone(kept: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Without both, the planted script runs: so this test would see it."""
    if kept != "labels":
        monkeypatch.setattr(drift, "label_all", lambda texts: {text: text for text in texts})
    if kept != "policy":
        monkeypatch.setattr(drift, "confine", lambda html: html)
    random = np.random.default_rng(0)
    reference, window = (
        pd.DataFrame({name: random.normal(size=100) for name in MARKUP} | {"text": random.choice(MARKUP, 100)})
        for _ in range(2)
    )
    kinds: dict[str, Any] = dict.fromkeys(MARKUP, "number") | {"text": "category"}
    sides = Sides(reference, window, kinds, frozenset(), {})
    path = tmp_path / "report.html"
    path.write_text(drift.compare_sides(sides, MARKUP[0], Monitor()).html, encoding="utf-8")
    with open_browser(tmp_path / "chromium") as browser, browser.page() as page:
        page.open(path.as_uri(), 2000)
        page.settle()
        assert any(page.run_everywhere(PLANTED)) == (kept == "nothing")
        assert kept == "nothing" or "Drifted Columns" in page.text


def test_mlflows_pages_run_nothing(planted: Planted) -> None:
    base = planted.address("mlflow")
    window = planted.windows[-1]
    api = httpx.get(f"{base}/ajax-api/2.0/mlflow/runs/get", params={"run_id": window.run_id}, trust_env=False).json()
    experiment = api["run"]["info"]["experiment_id"]
    run = f"{base}/#/experiments/{experiment}/runs/{window.run_id}"
    for address, words in (
        (run, "rows_per_hour"),
        (f"{run}/artifacts/report.html", "Drifted Columns"),
        (f"{run}/artifacts/window.json", "drift_share"),
        (f"{base}/#/models/planted/versions/1", "Version 1"),
    ):
        look_at(planted, address, words=(words,))
    version = httpx.get(
        f"{base}/ajax-api/2.0/mlflow/model-versions/get", params={"name": "planted", "version": "1"}, trust_env=False
    ).json()["model_version"]
    found = httpx.get(
        f"{base}/ajax-api/2.0/mlflow/runs/get", params={"run_id": version["run_id"]}, trust_env=False
    ).json()["run"]["info"]["experiment_id"]
    look_at(planted, f"{base}/#/experiments/{found}/runs/{version['run_id']}", words=("roc_auc", "Finished"))


def test_prefects_artifacts_and_runs_run_nothing(planted: Planted) -> None:
    base = planted.address("prefect")
    artifacts = planted.prefect("/artifacts/filter", limit=200)
    newest = {artifact["key"]: artifact["id"] for artifact in sorted(artifacts, key=lambda one: one["created"])}
    assert {"monitor", "drift-by-column", "plot-drift-by-column", "drift-report", "summary", "gates"} <= set(newest)
    words = {"monitor": "columns drifted", "drift-by-column": "[link](http://planted.invalid/b)", "gates": "margin"}
    for key, artifact in newest.items():
        look_at(planted, f"{base}/artifacts/artifact/{artifact}", words=(key, words.get(key, key)))
    for run in planted.prefect("/flow_runs/filter", limit=20):
        look_at(planted, f"{base}/runs/flow-run/{run['id']}", words=(run["name"], "Logs"))
    look_at(planted, f"{base}/events", words=("Event Feed",))


def test_the_services_pages_run_nothing(planted: Planted) -> None:
    base = planted.address("service")
    opened = "[...document.querySelectorAll('.opblock-summary-control, .model-box-control')].map(b => b.click())"
    look_at(planted, base, opened, opened, words=("/predict", "/model"))
    look_at(planted, f"{base}/docs.json", words=("openapi",))
    for path in ("/model", "/predict"):
        answer = httpx.get(f"{base}{path}", trust_env=False)
        assert "html" not in answer.headers.get("content-type", "")


def test_markup_in_an_answer_is_data_in_a_csv(planted: Planted) -> None:
    """A spreadsheet may treat a cell that begins with = as a formula: the file contains the unchanged prediction."""
    text = (planted.project.root / "predicted.csv").read_text(encoding="utf-8")
    assert '"=1+1"' in text.splitlines()[0] or '"=1+1"' in text[:20_000]
    assert set(pd.read_csv(Path(planted.project.root / "predicted.csv"))["prediction 2"].dropna()) <= {*MARKUP}
