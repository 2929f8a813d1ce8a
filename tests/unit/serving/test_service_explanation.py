"""The service explains predictions: `POST /explain`, and `"explain": true` in `POST /predict`."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiling_support import boosting, fit, nasty_frame, onehot_features, training
from service_support import TestClient, crown, write_bundle
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ondol.deployment.bundle import json_rows
from ondol.deployment.explanation import build_explanation
from ondol.deployment.onnx import compile_model
from ondol.evaluation.scoring import Scorer

# BentoML uses pathspec and pydantic in ways that these call old.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]
PROBLEMS = ("binary", "multiclass", "regression")
APPROXIMATE = "approximate"


def files_of(kind: str, **changed: Any) -> dict[str, bytes]:
    """Return the files of a bundle of a boosted model, or of one whose explanation is approximate."""
    problem = "binary" if kind == APPROXIMATE else kind
    model = make_pipeline(onehot_features(), PCA(4), LogisticRegression()) if kind == APPROXIMATE else boosting(problem)
    fitted, contract = fit(model, problem, training(problem))
    compiled = compile_model(fitted, contract)
    made = build_explanation(compiled, Scorer.from_onnx(compiled, contract), training(problem).head(100))
    about: dict[str, Any] = {
        "format": 1,
        "version": "7",
        "runtime": "onnx",
        "explanation": made.about,
        "settings": {"max_explained_rows": 10},
        "example": {"rows": json_rows(contract, nasty_frame(1))},
    }
    return {
        **made.files,
        "model.onnx": compiled,
        "contract.json": contract.model_dump_json().encode(),
        "meta.json": json.dumps(about | changed).encode(),
    }


@pytest.fixture(scope="module")
def bundles() -> dict[str, dict[str, bytes]]:
    return {kind: files_of(kind) for kind in (*PROBLEMS, APPROXIMATE)}


@pytest.fixture
def serve(
    tmp_path: Path, bundles: dict[str, dict[str, bytes]], serve_store: Callable[[Path], TestClient]
) -> Callable[[str], TestClient]:
    def start(kind: str) -> TestClient:
        crown(tmp_path / "store", *write_bundle(tmp_path / "store", bundles[kind]))
        return serve_store(tmp_path / "store")

    return start


def rows_of(files: dict[str, bytes], rows: int, seed: int = 3) -> list[dict[str, Any]]:
    from ondol.contract import Contract

    return json_rows(Contract.model_validate_json(files["contract.json"]), nasty_frame(rows, seed, unknown=True))


@pytest.mark.parametrize("kind", [*PROBLEMS, APPROXIMATE])
def test_baseline_and_contributions_give_the_prediction_on_the_scale(kind: str, serve: Any, bundles: Any) -> None:
    """Also of missing values, of texts that training never saw, and of Korean names."""
    rows = rows_of(bundles[kind], 10)
    answer = serve(kind).post("/explain", json={"rows": rows}).json()
    explanation = answer["explanation"]
    assert (answer["model_version"], len(answer["predictions"])) == ("7", len(rows))
    assert set(explanation["contributions"][0]) == {name for row in rows for name in row}  # each column once, by name
    for prediction, contributions in zip(answer["predictions"], explanation["contributions"], strict=True):
        if kind == "multiclass":
            names = ["0", "10", "20"]
            sums = [explanation["baseline"][n] + sum(one[n] for one in contributions.values()) for n in names]
            found = np.exp(sums) / np.exp(sums).sum()
            expected = [prediction["probabilities"][n] for n in names]
        else:
            found = explanation["baseline"] + sum(contributions.values())
            expected = prediction["value"] if kind == "regression" else prediction["probabilities"]["예"]
            found = 1 / (1 + np.exp(-found)) if kind == "binary" else found
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    scales = {"binary": "log-odds", "multiclass": "score", "regression": "value", APPROXIMATE: "probability"}
    assert explanation["scale"] == scales[kind]
    assert explanation["method"] == (APPROXIMATE if kind == APPROXIMATE else "exact")
    assert explanation.get("class") == ("예" if kind in ("binary", APPROXIMATE) else None)


@pytest.mark.parametrize("kind", ["binary", APPROXIMATE])
def test_predict_adds_the_same_explanation_if_it_is_asked_for(kind: str, serve: Any, bundles: Any) -> None:
    client, rows = serve(kind), rows_of(bundles[kind], 6)
    plain = client.post("/predict", json={"rows": rows}).json()
    explained = client.post("/predict", json={"rows": rows, "explain": True}).json()
    alone = client.post("/explain", json={"rows": rows}).json()
    single = client.post("/explain", json={"rows": rows[:1]}).json()
    assert "explanation" not in plain
    assert "explanation" not in client.post("/predict", json={"rows": rows, "explain": False}).json()
    assert plain["predictions"] == explained["predictions"] == alone["predictions"]
    assert explained["explanation"] == alone["explanation"]
    first, one = (answer["explanation"]["contributions"][0] for answer in (alone, single))
    assert first == pytest.approx(one, abs=1e-9)


def test_an_explained_prediction_is_logged_as_any_other_and_an_explanation_alone_is_not(
    serve: Any, bundles: Any, tmp_path: Path
) -> None:
    client, rows = serve("binary"), rows_of(bundles["binary"], 2)
    plain = client.post("/predict", json={"rows": rows})
    explained = client.post("/predict", json={"explain": True, "rows": rows})
    client.post("/explain", json={"rows": rows})
    (file,) = (tmp_path / "store" / "log").iterdir()
    records = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [record["id"] for record in records] == [plain.headers["x-request-id"], explained.headers["x-request-id"]]
    assert records[0]["request"] == records[1]["request"]
    assert records[0]["predictions"] == records[1]["predictions"]


def test_what_cannot_be_explained_is_refused_before_it_is_predicted(serve: Any, bundles: Any, tmp_path: Path) -> None:
    client, rows = serve("binary"), rows_of(bundles["binary"], 11)
    for path in ("/explain", "/predict"):
        answer = client.post(path, json={"rows": rows, "explain": True})
        assert (answer.status_code, answer.json()["detail"][0]["type"]) == (400, "too_many_explained_rows")
        assert "at most 10 rows (max_explained_rows)" in answer.json()["error"]
    wrong = client.post("/predict", json={"rows": rows, "explain": "yes"})
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (400, ["explain"])
    assert client.post("/predict", json={"rows": rows, "explain": None}).status_code == 400
    assert client.post("/explain", json={"rows": [{}]}).status_code == 400
    assert client.get("/explain").status_code == 405
    assert not (tmp_path / "store" / "log").exists()
    assert client.post("/predict", json={"rows": rows}).status_code == 200


def test_a_bundle_from_before_explanations_predicts_and_says_that_it_cannot_explain(
    bundles: Any, tmp_path: Path, serve_store: Any
) -> None:
    old = {name: content for name, content in bundles["binary"].items() if not name.startswith("explanation")}
    meta = json.loads(old["meta.json"])
    del meta["explanation"]
    old["meta.json"] = json.dumps(meta).encode()
    crown(tmp_path / "store", *write_bundle(tmp_path / "store", old))
    client, rows = serve_store(tmp_path / "store"), rows_of(bundles["binary"], 1)
    assert client.post("/predict", json={"rows": rows}).status_code == 200
    for path in ("/explain", "/predict"):
        answer = client.post(path, json={"rows": rows, "explain": True})
        assert (answer.status_code, answer.json()["detail"][0]["type"]) == (409, "no_explanation")
        assert "Version 7 was deployed before" in answer.json()["error"]


def test_a_damaged_explanation_is_refused_with_its_bundle(bundles: Any, tmp_path: Path, serve_store: Any) -> None:
    files = bundles["binary"]
    name, digest = write_bundle(tmp_path / "store", files)
    (tmp_path / "store" / "bundles" / name / "explanation.npz").write_bytes(files["explanation.npz"][:-1] + b"x")
    crown(tmp_path / "store", name, digest)
    assert serve_store(tmp_path / "store").get("/readyz").status_code == 503


def test_explanations_are_counted_and_are_no_predictions(serve: Any, bundles: Any) -> None:
    from prometheus_client import REGISTRY

    def counted(name: str) -> float:
        return REGISTRY.get_sample_value(name, {"model_version": "7"}) or 0.0

    client, rows = serve("binary"), rows_of(bundles["binary"], 3)
    before = counted("ml_explanations_total"), counted("ml_predictions_total")
    client.post("/explain", json={"rows": rows})
    assert (counted("ml_explanations_total"), counted("ml_predictions_total")) == (before[0] + 3, before[1])
    client.post("/predict", json={"rows": rows, "explain": True})
    assert (counted("ml_explanations_total"), counted("ml_predictions_total")) == (before[0] + 6, before[1] + 3)


def test_slow_explanations_take_turns_and_one_that_waits_too_long_is_refused(
    serve: Any, bundles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ondol_serving.serving import serving

    monkeypatch.setenv("ML_SERVICE__MAX_WAIT_SECONDS", "0.2")
    client, rows = serve(APPROXIMATE), rows_of(bundles[APPROXIMATE], 1)
    assert client.post("/explain", json={"rows": rows}).status_code == 200
    monkeypatch.setattr(serving, "explaining", asyncio.Semaphore(0))  # another one never ends
    answer = client.post("/explain", json={"rows": rows})
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (503, "busy")
    assert int(answer.headers["retry-after"]) >= 1
    assert client.post("/predict", json={"rows": rows}).status_code == 200


def test_the_openapi_document_describes_explanations(serve: Any) -> None:
    document = serve("binary").get("/docs.json").json()
    explain, predict = (document["paths"][path]["post"] for path in ("/explain", "/predict"))
    assert explain["requestBody"] == predict["requestBody"]
    assert {"200", "400", "409", "503"} <= explain["responses"].keys()
    assert document["components"]["schemas"]["PredictRequest"]["properties"]["explain"]["type"] == "boolean"
    assert "explanation" in document["components"]["schemas"]["PredictResponse"]["properties"]
