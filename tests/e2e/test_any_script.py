"""Columns and labels in any script, with spaces, punctuation and Python keywords, all the way to an answer."""

import json

import numpy as np
import pandas as pd
import pytest

from e2e.conftest import Make
from e2e.support import Project, succeed, wait_for

ROWS = 900


def odd_table() -> pd.DataFrame:
    """A table whose target follows from its columns, with any column names."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "고객 번호": [f"고객-{i:05d}" for i in range(ROWS)],
            "월 요금(원)": draw.integers(10_000, 90_000, ROWS) * 1_000 + 7,
            "class": draw.choice(["기본", "고급", "최고"], ROWS),
            "a b": draw.normal(size=ROWS).round(3),
            "a_b": draw.normal(size=ROWS).round(3),
            "a-b": draw.integers(0, 50, ROWS),
            "validate": draw.choice(["예", "아니오"], ROWS),
            "{{x}}": draw.normal(size=ROWS).round(3),
            'quo"te': draw.normal(size=ROWS).round(3),
            "가입일": pd.date_range("2019-01-01", periods=ROWS, freq="D").strftime("%Y-%m-%d"),
        }
    )
    score = frame["a b"] + 2 * (frame["class"] == "최고") - frame["a-b"] / 25
    return frame.assign(**{"해지 여부?": np.where(score > score.median(), "해지함", "유지")})


@pytest.fixture(scope="module")
def odd(make: Make) -> Project:
    project = make(rows=None)
    odd_table().to_csv(project.root / "고객 표.csv", index=False)
    succeed(project.ml("init", "고객 표.csv", "--target", "해지 여부?"))
    project.run()
    return project


def test_service_and_batch_answer_alike_under_the_real_names(odd: Project) -> None:
    rows = odd_table().drop(columns="해지 여부?").head(50)
    rows.to_csv(odd.root / "새 행.csv", index=False)
    succeed(odd.ml("predict", "새 행.csv", "답.parquet"))
    batch = pd.read_parquet(odd.root / "답.parquet")
    with odd.serve() as client:
        wait_for(client, "/readyz", 200)
        body = {"rows": json.loads(rows.to_json(orient="records"))}
        answer = client.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        given = answer.json()["predictions"]
        wrong = client.post("/predict", json={"rows": [body["rows"][0] | {"월 요금(원)": "비싸다"}]})
    assert set(given[0]["probabilities"]) == {"유지", "해지함"}
    assert [one["label"] for one in given] == batch["prediction"].tolist()
    column = next(name for name in batch.columns if name.startswith("probability") and "해지함" in name)
    np.testing.assert_allclose([one["probabilities"]["해지함"] for one in given], batch[column], atol=1e-6)
    assert 400 <= wrong.status_code < 500
    assert "월 요금(원)" in json.dumps(wrong.json(), ensure_ascii=False)


def test_running_init_again_changes_nothing_and_says_so(odd: Project) -> None:
    before = (odd.root / "model" / "schema.py").read_bytes()
    succeed(odd.ml("init", "고객 표.csv", "--target", "해지 여부?"))
    assert (odd.root / "model" / "schema.py").read_bytes() == before
