"""The model card answers the questions of an auditor, from it alone, and shows data as text."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from ondol.config import CardText, Settings
from ondol.contract import Column, Contract
from ondol.evaluation.card import Records, make_card
from ondol.evaluation.evaluate import calibration_table, importance_table
from ondol.evaluation.gates import StoredVerdict, apply_gates
from ondol.evaluation.metrics import Interval
from ondol.evaluation.page import write_html, write_markdown
from ondol.evaluation.slices import Slice
from ondol.registry.champion import Champion, HistoryEntry
from ondol.snapshots.snapshots import Snapshot
from ondol.training.support import describe_support
from ondol.validation.results import Validation

ROWS = 400
EVIL = "<script>alert(1)</script>|`x`"
# Each question with what must be found in the card, within its section.
QUESTIONS = {
    "1. What is it for, and what must it not be used for?": (
        "Intended use",
        ["Offers by phone", "Decisions on prices"],
    ),
    "2. Who is responsible for it?": ("Intended use", ["analytics@example.com"]),
    "3. On which data, from where and from when, was it trained?": (
        "Data",
        ["lake/customers.parquet", "abc123", "320", "2024-01-01", "by time", "지역"],
    ),
    "4. By which code and packages was it made, and can it be made again?": (
        "Code and packages",
        ["deadbeef", "scikit-learn 1.7.0", "3.11.7", "ml reproduce 3"],
    ),
    "5. How good is it, and how certain is that?": (
        "Metrics",
        ["roc_auc", "95%", r"0\.\d{4} \\?\[0\.\d{4}, 0\.\d{4}\]"],
    ),
    "6. What had to be met before it was deployed, and was it?": ("Gates", ["floor", "passed", "margin", "limit"]),
    "7. For whom is it worse?": ("Slices and fairness", ["지역 is 제주", "31.0%", "12.0%"]),
    "8. Can its probabilities be taken as they are?": ("Calibration", ["probability of yes", "observed", "differ by"]),
    "9. Which columns does it rely on?": ("Importance", ["age", "0.2000"]),
    "10. Where must it not be trusted, and what was in production when, with which drift?": (
        "Limits",
        ["18 to 89", "missing", "Drift of a column is measured"],
    ),
}


def make_records(name: str = "지역") -> Records:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            name: pd.Series(rng.choice(["서울", "제주", EVIL], ROWS), dtype="str"),
            "age": rng.integers(18, 90, ROWS),
            "at": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(ROWS), "D"),
            "y": pd.Series(rng.choice(["no", "yes"], ROWS), dtype="str"),
        }
    )
    contract = Contract(
        problem="binary",
        target="y",
        classes=("no", "yes"),
        columns=(
            Column(name=name, kind="text", role="sensitive"),
            Column(name="age", kind="integer"),
            Column(name="at", kind="date", role="time"),
            Column(name="y", kind="text", role="target"),
        ),
    )
    y = (frame["y"] == "yes").to_numpy().astype(int)
    good = np.clip(0.3 * y + rng.uniform(0.1, 0.6, ROWS), 0, 1)
    candidate, dummy = np.column_stack([1 - good, good]), np.tile([0.5, 0.5], (ROWS, 1))
    limits = SimpleNamespace(metric=None, minimum=None, margin=0.01, confidence=0.95, resamples=50)
    verdict = StoredVerdict(
        key="k",
        version="3",
        run_id="run3",
        champion=None,
        verdict=apply_gates("binary", y, candidate, None, dummy, limits),
        slices=[Slice(name=f"{name} is 제주", kind="weak", rows=90, error=0.31, rest=0.12, low=0.1, high=0.28)],
    )
    at = "2026-03-01T00:00:00+00:00"
    change = HistoryEntry.model_validate(
        {"at": at, "who": "minji", "action": "deploy", "from": None, "to": "3-aa", "why": "a complaint"}
    )
    return Records(
        version="3",
        run_id="run3",
        tags={"git_commit": "deadbeef", "holdout": '{"split": {"by": "time", "holdout": 0.2}}'},
        metrics={"train_rows": 320.0},
        params={"estimator": "HistGradientBoostingClassifier", "train.seed": "0"},
        documents={
            "provenance.json": {"packages": {"scikit-learn": "1.7.0"}, "python": "3.11.7", "machine": "Linux"},
            "basis.json": {"confidence": 0.95},
            "support.json": describe_support(contract, frame).model_dump(mode="json"),
            "calibration.json": calibration_table("binary", y, candidate),
            "importance.json": importance_table({"age": Interval(0.2, 0.1, 0.3)}),
        },
        plots={"calibration": b"png"},
        contract=contract,
        snapshot=Snapshot(
            digest="abc123",
            rows=ROWS,
            columns=(),
            source="s3://key:secret@lake/customers.parquet",
            created="2026-02-28",
        ),
        validation=Validation(id="v", snapshot="abc123", rows=ROWS, bad=0, reasons={}),
        verdict=verdict,
        champion=Champion(version="3", run_id="run3", bundle="3-aa", digest="d", since=change.at, history=(change,)),
    )


def make_project(tmp_path: Any, **card: str) -> Any:
    settings = Settings(root=tmp_path, card=CardText(**card))
    return SimpleNamespace(settings=settings)


def described(tmp_path: Any) -> Any:
    return make_project(
        tmp_path,
        use="Offers by phone",
        not_for="Decisions on prices",
        owner="analytics@example.com",
        license="apache-2.0",
    )


def section(markdown: str, title: str) -> str:
    return markdown.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("question", QUESTIONS)
def test_card_answers_the_question_of_an_auditor(tmp_path, question):
    title, answers = QUESTIONS[question]
    found = section(write_markdown(make_card(described(tmp_path), make_records(), (), private=True)), title)
    for answer in answers:
        assert answer in found or re.search(answer, found), answer


def test_history_is_complete_for_the_owner_and_without_names_for_callers(tmp_path):
    ours = section(write_markdown(make_card(described(tmp_path), make_records(), (), private=True)), "Production")
    theirs = section(write_markdown(make_card(described(tmp_path), make_records(), (), private=False)), "Production")
    assert "minji" in ours and "a complaint" in ours and "2026-03-01" in ours
    assert "minji" not in theirs and "a complaint" not in theirs and "2026-03-01" in theirs


def test_drift_since_deployment_is_in_the_card(tmp_path):
    page = make_card(described(tmp_path), make_records(), ["In 2 of 5 windows the data had drifted."], private=True)
    assert "In 2 of 5 windows" in section(write_markdown(page), "Production")


def test_card_without_a_described_use_says_how_to_describe_it(tmp_path):
    found = section(
        write_markdown(make_card(make_project(tmp_path), make_records(), (), private=False)), "Intended use"
    )
    assert "Not described" in found and "`not_for`" in found and "config.toml" in found


def test_card_of_a_version_without_an_evaluation_or_newer_records(tmp_path):
    old = replace(make_records(), verdict=None, documents={}, plots={}, validation=None, champion=None)
    page = make_card(make_project(tmp_path), old, (), private=False)
    assert "was not evaluated" in section(write_markdown(page), "Metrics")
    assert "earlier release" in section(write_markdown(page), "Limits")
    assert "<h1>" in write_html(page)


def test_text_of_the_data_is_escaped_and_secrets_are_left_out(tmp_path):
    page = make_card(described(tmp_path), make_records(EVIL), (), private=True)
    html, markdown = write_html(page), write_markdown(page)
    assert "<script" not in html and "<script" not in markdown.split("---", 2)[2]
    assert "&lt;script&gt;" in html
    assert "secret" not in html + markdown
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)


def test_front_matter_is_that_of_hugging_face(tmp_path):
    front = yaml.safe_load(write_markdown(make_card(described(tmp_path), make_records(), (), False)).split("---")[1])
    assert (front["license"], front["pipeline_tag"]) == ("apache-2.0", "tabular-classification")
    result = front["model-index"][0]["results"][0]
    assert result["dataset"]["revision"] == "abc123"
    assert {metric["type"] for metric in result["metrics"]} >= {"roc_auc", "brier"}


def test_support_leaves_out_rare_texts_and_extreme_numbers():
    frame = pd.DataFrame(
        {
            "name": pd.Series(["common"] * 996 + ["Kim"] * 4, dtype="str"),
            "pay": np.r_[np.linspace(1, 100, 999), 1e9],
            "y": np.arange(1_000.0),
        }
    )
    columns = (Column(name="name", kind="text"), Column(name="pay", kind="number"))
    contract = Contract(
        problem="regression", target="y", columns=(*columns, Column(name="y", kind="number", role="target"))
    )
    found = describe_support(contract, frame)
    assert list(found.columns[0].common) == ["common"]
    assert found.columns[0].distinct == 2
    assert float(found.columns[1].high or 0) <= 100


@pytest.mark.parametrize("problem", ["binary", "multiclass", "regression"])
def test_calibration_compares_predictions_with_outcomes(problem):
    rng = np.random.default_rng(0)
    chance = rng.random(5_000)
    if problem == "regression":
        y, prediction = chance + rng.normal(0, 0.1, 5_000), chance
    else:
        y = (rng.random(5_000) < chance).astype(int)
        prediction = np.column_stack([1 - chance, chance])
    rows = calibration_table(problem, y, prediction)["data"]
    assert len(rows) == 10 and sum(row[2] for row in rows) == 5_000
    assert max(abs(predicted - observed) for predicted, observed, _ in rows) < 0.08
