"""One of each problem: its pipeline, its service, and the loop from drift to a new model."""

import json

import pytest
from marks import slow_but

from e2e.conftest import Make
from e2e.support import succeed, wait_for


@pytest.mark.parametrize("problem", slow_but(["multiclass", "regression"], ["binary", "multiclass", "regression"]))
def test_service_answers_as_the_batch_does(make: Make, problem: str) -> None:
    project = make(problem=problem)
    project.run()
    succeed(project.ml("predict", "sample://?rows=40&start=100000", "out.jsonl"))
    rows = [json.loads(line) for line in (project.root / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    with project.serve() as client:
        wait_for(client, "/readyz", 200)
        asked = client.get("/model").json()["schema"]["$defs"]["Row"]["properties"]
        body = {"rows": [{name: row[name] for name in asked if row[name] is not None} for row in rows]}
        answer = client.post("/predict", json=body)
        succeed(project.ml("smoke", str(client.base_url)))
    assert answer.status_code == 200, answer.text
    given = [one["value" if problem == "regression" else "label"] for one in answer.json()["predictions"]]
    predicted = [row["prediction"] for row in rows]
    assert len(set(predicted)) > 1
    assert given == (pytest.approx(predicted) if problem == "regression" else predicted)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["multiclass", "regression"])  # the default's: test_simulate.py
def test_loop_closes(make: Make, problem: str) -> None:
    done = succeed(make(rows=None, problem=problem).ml("simulate", "--weeks", "6", timeout=2400))
    assert "the automation retrained" in done.stdout.replace("\n", " ")
