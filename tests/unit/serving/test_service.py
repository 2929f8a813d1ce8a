"""The service in process: types, limits, encodings, predictions."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_support import (
    ROW,
    TEMPLATE,
    TestClient,
    bundle_files,
    compile_model,
    crown,
    encoded_frame,
    fit,
    write_bundle,
)

# BentoML uses pathspec and pydantic in ways that these call old.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROBLEMS = ("binary", "multiclass", "regression")


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return {problem: compile_model(fit(problem), problem) for problem in PROBLEMS}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def client(models: dict[str, bytes], store: Path, serve_store: Callable[[Path], TestClient]) -> TestClient:
    crown(store, *write_bundle(store, bundle_files("7", "binary", models["binary"])))
    return serve_store(store)


def errors(client: TestClient, row: dict[str, Any]) -> list[tuple[Any, ...]]:
    answer = client.post("/predict", json={"rows": [row]})
    assert answer.status_code == 400, answer.text
    return [tuple(e["loc"]) for e in answer.json()["detail"]]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_predictions_equal_scikit_learn_on_the_same_encoding(
    problem: str, models: dict[str, bytes], store: Path, serve_store: Any
) -> None:
    crown(store, *write_bundle(store, bundle_files("7", problem, models[problem])))
    frame, pipeline = encoded_frame(60, seed=3), fit(problem)
    rows = [
        {
            "house age": None if np.isnan(r["house age"]) else float(r["house age"]),
            "class": None if r["class"] == "<missing>" else r["class"],
            "지역": r["지역"],
            "a.b/c?": int(r["a.b/c?"]),
            "매출 (원)": 3_000_000_000 + 10 * int(r["매출 (원)"]),
            "가입일": (datetime(2020, 1, 1) + timedelta(days=r["가입일"])).isoformat(),
            "model_config": bool(r["model_config"]),
        }
        for r in frame.to_dict("records")
    ]
    client = serve_store(store)
    many = client.post("/predict", json={"rows": rows}).json()["predictions"]
    single = [client.post("/predict", json={"rows": [r]}).json()["predictions"][0] for r in rows[:5]]
    if problem == "regression":
        assert np.allclose([p["value"] for p in many], pipeline.predict(frame), atol=1e-5)
        assert np.allclose([p["value"] for p in many[:5]], [p["value"] for p in single], atol=1e-6)
        return
    expected = pipeline.predict_proba(frame)
    names = ["no", "yes"] if problem == "binary" else ["1", "2", "3"]
    assert np.allclose([[p["probabilities"][n] for n in names] for p in many], expected, atol=1e-5)
    assert [str(p["label"]) for p in many] == [names[i] for i in expected.argmax(axis=1)]
    assert [p["label"] for p in single] == [p["label"] for p in many[:5]]


def test_answer_names_version_and_request(client: TestClient) -> None:
    first, second = (client.post("/predict", json={"rows": [ROW]}) for _ in range(2))
    assert first.json()["model_version"] == "7"
    assert first.json()["request_id"] == first.headers["x-request-id"] != second.json()["request_id"]


def test_answered_requests_are_logged_with_their_model_and_refused_ones_are_not(
    client: TestClient, store: Path
) -> None:
    answers = [client.post("/predict", json={"rows": [ROW | {"a.b/c?": value}]}) for value in (1, "no", 2)]
    (file,) = (store / "log").iterdir()
    records = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [r["id"] for r in records] == [a.headers["x-request-id"] for a in answers if a.status_code == 200]
    assert [r["request"]["rows"][0]["a.b/c?"] for r in records] == [1, 2]
    assert records[0]["predictions"] == answers[0].json()["predictions"]
    assert (records[0]["version"], records[0]["bundle"]) == ("7", next((store / "bundles").iterdir()).name)
    assert 0 < records[0]["ms"] < 60_000


def test_log_can_be_switched_off_by_the_bundle(models: dict[str, bytes], store: Path, serve_store: Any) -> None:
    files = bundle_files("7", "binary", models["binary"], settings={"log": {"enabled": False}})
    crown(store, *write_bundle(store, files))
    assert serve_store(store).post("/predict", json={"rows": [ROW]}).status_code == 200
    assert not (store / "log").exists()


def test_model_page_tells_version_data_commit_metrics_and_schema(client: TestClient) -> None:
    about = client.get("/model").json()
    assert (about["version"], about["data_digest"], about["commit"]) == ("7", "d1", "uncommitted")
    assert about["metrics"]["roc_auc"]["value"] == 0.8
    assert "house age" in about["schema"]["$defs"]["Row"]["properties"]


def test_card_is_html_for_a_browser_and_markdown_otherwise(
    models: dict[str, bytes], store: Path, serve_store: Any
) -> None:
    files = bundle_files("7", "binary", models["binary"])
    crown(store, *write_bundle(store, files | {"card.md": "# 모델".encode(), "card.html": b"<h1>card</h1>"}))
    client = serve_store(store)
    page = client.get("/model/card", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.text == "<h1>card</h1>" and page.headers["content-type"].startswith("text/html")
    text = client.get("/model/card")
    assert text.text == "# 모델" and text.headers["content-type"].startswith("text/markdown")
    assert text.headers["vary"] == "Accept"


def test_bundle_without_a_card_is_served_and_its_card_is_not_found(client: TestClient) -> None:
    answer = client.get("/model/card")
    assert answer.status_code == 404 and "before there were model cards" in answer.json()["error"]
    assert client.post("/predict", json={"rows": [ROW]}).status_code == 200


def test_openapi_shows_the_types_of_the_bundle(client: TestClient) -> None:
    document = client.get("/docs.json").json()
    row = document["components"]["schemas"]["Row"]
    assert row["properties"]["지역"]["enum"] == ["서울", "부산"]
    assert "a.b/c?" in row["required"] and "class" not in row["required"]
    assert row["additionalProperties"] is False
    largest = 3.4028234e38  # of float32
    assert row["properties"]["a.b/c?"] == {"type": "integer", "minimum": 0, "maximum": largest, "title": "A.B/C?"}
    assert "/model" in document["paths"]
    assert document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("house age", "12"),
        ("house age", True),
        ("house age", -0.5),
        ("house age", 200),
        ("house age", [1]),
        ("class", 3),
        ("class", {"a": 1}),
        ("지역", "제주"),
        ("지역", None),
        ("지역", ""),
        ("a.b/c?", 1.5),
        ("a.b/c?", 1_000_000_000.5),
        ("a.b/c?", "1"),
        ("a.b/c?", "abc"),
        ("a.b/c?", True),
        ("a.b/c?", None),
        ("a.b/c?", -1),
        ("a.b/c?", 10**60),
        ("매출 (원)", 1e300),
        ("가입일", "yesterday"),
        ("가입일", 1_600_000_000),
        ("가입일", "2021-13-01"),
        ("가입일", "0001-01-01T00:00:00+10:00"),
        ("model_config", 1),
        ("model_config", "true"),
    ],
)
def test_bad_value_is_refused_and_its_field_named(client: TestClient, name: str, value: Any) -> None:
    assert errors(client, ROW | {name: value}) == [("rows", 0, name)]


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_number_that_is_not_finite_is_refused(client: TestClient, token: str) -> None:
    body = json.dumps({"rows": [ROW | {"house age": 0}]}).replace('"house age": 0', f'"house age": {token}')
    answer = client.post("/predict", content=body)
    assert answer.status_code == 400
    assert answer.json()["detail"][0]["loc"] == ["rows", 0, "house age"]


def test_missing_field_and_unknown_field_are_named(client: TestClient) -> None:
    row = {k: v for k, v in ROW.items() if k != "지역"} | {"f0": 1}
    assert errors(client, row) == [("rows", 0, "지역"), ("rows", 0, "f0")]


def test_error_says_what_is_wrong_in_one_sentence_without_the_value(client: TestClient) -> None:
    answer = client.post("/predict", json={"rows": [ROW, ROW | {"a.b/c?": "secret"}]})
    assert answer.json()["error"] == "rows.1.a.b/c?: Input should be a valid integer"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"rows": []}',
        b'{"rows": [1]}',
        b'{"rows": {}}',
        b"\xff",
        b'{"rows": null}',
    ],
)
def test_body_that_is_not_a_request_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/predict", content=body)
    assert answer.status_code == 400
    assert answer.json()["detail"]


def test_nullable_fields_may_be_left_out_and_the_id_is_ignored(client: TestClient) -> None:
    nullable = ("house age", "class", "가입일")
    absent = {k: v for k, v in ROW.items() if k not in nullable}
    bodies = [absent, absent | dict.fromkeys(nullable), absent | {"class": "", "고객 번호": {"any": 1}}]
    answers = [client.post("/predict", json={"rows": [row]}).json()["predictions"] for row in bodies]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    "moment",
    ["2021-02-03T04:05:06Z", "2021-02-03T13:05:06+09:00", "2021-02-03 04:05:06", "2021-02-03T04:05:06.000"],
)
def test_dates_are_read_in_utc(client: TestClient, moment: str) -> None:
    expected = client.post("/predict", json={"rows": [ROW]}).json()["predictions"]
    assert client.post("/predict", json={"rows": [ROW | {"가입일": moment}]}).json()["predictions"] == expected


def test_closed_sets_of_numbers_are_closed() -> None:
    from pydantic import ValidationError

    from ondol_serving.contract import read_contract
    from ondol_serving.request import compile_request

    encoding = {"tensor": "float32", "offset": 0.0, "scale": 1.0}
    column = {"name": "n", "kind": "integer", "role": "feature", "nullable": True, "categories": [1, 2]}
    document = {
        "problem": "regression",
        "target": "y",
        "columns": [column | {"input": "c0", "encoding": encoding}],
    }
    request = compile_request(read_contract(document), 5)
    assert request.model_validate_json('{"rows": [{"n": 1}, {"n": 2.0}, {"n": null}]}')
    with pytest.raises(ValidationError, match="should be one of 1, 2"):
        request.model_validate_json('{"rows": [{"n": 3}]}')


def test_closed_sets_of_booleans_are_closed() -> None:
    from pydantic import ValidationError

    from ondol_serving.contract import read_contract
    from ondol_serving.request import compile_request

    encoding = {"tensor": "float32", "offset": 0.0, "scale": 1.0}
    column = {"name": "ok", "kind": "boolean", "role": "feature", "nullable": True, "categories": [True]}
    column |= {"input": "c0", "encoding": encoding}
    request = compile_request(read_contract({"problem": "regression", "target": "y", "columns": [column]}), 5)
    assert request.model_validate_json('{"rows": [{"ok": true}, {"ok": null}, {}]}')
    for value in ("false", "1", '"true"'):
        with pytest.raises(ValidationError, match=r"should be one of true|valid boolean"):
            request.model_validate_json(f'{{"rows": [{{"ok": {value}}}]}}')
    shown = request.model_json_schema()["$defs"]["Row"]["properties"]["ok"]["anyOf"][0]
    assert shown == {"type": "boolean", "enum": [True]}


def test_refused_bundle_is_tried_again_and_taken_up_once_it_loads(
    models: dict[str, bytes], store: Path, serve_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cause may lie outside the bundle: it is the same folder, name and digest that loads later."""
    import ondol_serving.serving as module

    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    crown(store, *write_bundle(store, bundle_files("7", "binary", models["binary"])))
    client = serve_store(store)
    load, causes = module.load_bundle, [MemoryError(), OSError("too many open files"), None, None]
    cause: Exception | None = causes[0]

    def fail(*arguments: Any) -> Any:
        # The service looks by itself twice a second as well: what it finds must not depend on how often it looks.
        if cause is not None:
            raise module.BundleError(str(cause))
        return load(*arguments)

    monkeypatch.setattr(module, "load_bundle", fail)
    crown(store, *write_bundle(store, bundle_files("8", "binary", models["binary"])))
    versions = []
    for cause in causes:  # noqa: B007 (`fail` reads it)
        module.serving.refresh()
        versions.append(client.post("/predict", json={"rows": [ROW]}).json()["model_version"])
    assert versions == ["7", "7", "8", "8"]


def test_service_says_once_that_the_bundle_named_for_it_is_missing(
    models: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ondol_serving.serving import Serving

    monkeypatch.setenv("ML_BUNDLE", str(tmp_path / "bundle"))
    monkeypatch.setattr("ondol_serving.serving.log", logging.getLogger("plain"))
    state = Serving()
    for _ in range(3):
        state.refresh()
    said = f"ML_BUNDLE is {tmp_path / 'bundle'}, and there is no meta.json in it: the service waits for one"
    assert caplog.messages == [said]
    name, _ = write_bundle(tmp_path, bundle_files("7", "binary", models["binary"]))
    (tmp_path / "bundle").symlink_to(tmp_path / "bundles" / name)
    state.refresh()
    assert state.bundle is not None and state.bundle.version == "7"
    (tmp_path / "bundle").unlink()
    state.refresh()
    assert caplog.messages == [said] and state.bundle is not None


def test_refused_bundle_is_not_read_again_at_once_and_the_old_one_can_be_named_meanwhile(
    models: dict[str, bytes], store: Path, serve_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ondol_serving.serving as module

    files = bundle_files("7", "binary", models["binary"])
    good, bad = write_bundle(store, files), write_bundle(store, files | {"model.onnx": b"broken"})
    crown(store, *good)
    client, load, loads = serve_store(store), module.load_bundle, []

    def count(folder: Path, digest: str) -> Any:
        loads.append(folder.name)
        return load(folder, digest)

    monkeypatch.setattr(module, "load_bundle", count)
    for name in (bad, bad, good, good, bad):
        crown(store, *name)
        module.serving.refresh()
        assert client.post("/predict", json={"rows": [ROW]}).json()["model_version"] == "7"
    assert loads == [bad[0], bad[0]]


def test_rows_are_counted_once_when_a_batch_fails_and_each_request_is_tried_alone(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from ondol_serving.batching import Batcher
    from ondol_serving.bundle import Bundle
    from ondol_serving.metrics import counters
    from ondol_serving.serving import serving as state

    assert state.bundle is not None
    bundle, predict = state.bundle, Bundle.predict
    rows = bundle.parse(json.dumps({"rows": [ROW | {"class": "never seen"}]}).encode())

    def fail_together(self: Bundle, rows: Any) -> Any:
        if len(rows) > 1:
            raise RuntimeError("too many")
        return predict(self, rows)

    async def ask() -> list[Any]:
        batcher = Batcher()
        return await asyncio.gather(*(batcher.predict(bundle, rows) for _ in range(3)))

    def counts() -> tuple[float, float]:
        predicted, unknown = counters().predictions.labels(bundle.version), counters().unknown.labels("class")
        return predicted._value.get(), unknown._value.get()

    monkeypatch.setattr(Bundle, "predict", fail_together)
    before = counts()
    assert len(asyncio.run(ask())) == 3
    assert counts() == (before[0] + 3, before[1] + 3)


@pytest.mark.parametrize("rows", [1, 70])
def test_an_error_after_the_model_is_answered_and_ends_the_work(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    from ondol_serving.metrics import counters
    from ondol_serving.serving import serving as state

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(counters(), "count", fail)
        answer = client.post("/predict", json={"rows": [ROW] * rows})
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "An unexpected error has occurred, please check the server log."},
    )
    assert state.load.wait_seconds() == 0
    assert client.post("/predict", json={"rows": [ROW] * rows}).status_code == 200


def test_refusal_of_a_bundle_is_logged_once(store: Path, serve_store: Any) -> None:
    import logging

    from ondol_serving.serving import serving as state

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bentoml.service").addHandler(handler)
    store.mkdir()
    (store / "champion.json").write_text("{")
    serve_store(store)
    state.refresh()
    logging.getLogger("bentoml.service").removeHandler(handler)
    assert len(lines) == 1 and "champion.json cannot be understood" in lines[0]


def test_whole_float_counts_as_integer(client: TestClient) -> None:
    assert client.post("/predict", json={"rows": [ROW | {"a.b/c?": 3.0}]}).status_code == 200


def test_too_many_rows_name_the_limit(client: TestClient) -> None:
    answer = client.post("/predict", json={"rows": [ROW] * 101})
    assert answer.status_code == 400
    assert answer.json()["error"] == "rows: A request may hold at most 100 rows (max_rows)"
    assert client.post("/predict", json={"rows": [ROW] * 100}).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_oversized_body_is_refused_whether_its_length_is_declared_or_not(client: TestClient, chunked: bool) -> None:
    body = b" " * 60_000
    answer = client.post("/predict", content=iter([body[:30_000], body[30_000:]]) if chunked else body)
    assert answer.status_code == 413
    assert "50000 bytes (max_body_bytes)" in answer.json()["error"]


def test_environment_overrides_the_limits_of_the_bundle(
    models: dict[str, bytes], store: Path, monkeypatch: pytest.MonkeyPatch, serve_store: Any
) -> None:
    crown(store, *write_bundle(store, bundle_files("7", "binary", models["binary"])))
    monkeypatch.setenv("ML_SERVICE__MAX_ROWS", "2")
    client = serve_store(store)
    assert client.post("/predict", json={"rows": [ROW] * 3}).status_code == 400


def test_without_a_champion_the_service_is_live_but_not_ready(store: Path, serve_store: Any) -> None:
    client = serve_store(store)
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503
    for answer in (client.post("/predict", json={"rows": [ROW]}), client.get("/model")):
        assert answer.status_code == 503
        assert answer.json()["error"].startswith("There is no model yet")
    assert client.get("/docs.json").json()["paths"]["/predict"]


def test_altered_bundle_is_refused(models: dict[str, bytes], store: Path, serve_store: Any) -> None:
    name, digest = write_bundle(store, bundle_files("7", "binary", models["binary"]))
    crown(store, name, digest)
    with (store / "bundles" / name / "model.onnx").open("ab") as file:
        file.write(b"x")
    client = serve_store(store)
    assert client.get("/readyz").status_code == 503


@pytest.mark.parametrize(
    "broken",
    [
        {"model.onnx": b"not a model"},
        {"contract.json": b"{}"},
        {"contract.json": b"[]"},
        {"meta.json": b'{"format": 2, "version": "8"}'},
        {"meta.json": json.dumps({"format": 1, "version": "8", "example": {"rows": [{"no": 1}]}}).encode()},
    ],
)
def test_bundle_that_cannot_be_loaded_leaves_the_old_one_serving(
    broken: dict[str, bytes], models: dict[str, bytes], store: Path, serve_store: Any
) -> None:
    from ondol_serving.serving import serving as state

    files = bundle_files("7", "binary", models["binary"])
    crown(store, *write_bundle(store, files))
    client = serve_store(store)
    crown(
        store,
        *write_bundle(store, files | {"meta.json": files["meta.json"].replace(b'"7"', b'"8"')} | broken),
    )
    state.refresh()
    assert client.post("/predict", json={"rows": [ROW]}).json()["model_version"] == "7"
    crown(store, *write_bundle(store, bundle_files("9", "regression", models["regression"])))
    state.refresh()
    assert client.post("/predict", json={"rows": [ROW]}).json()["model_version"] == "9"


def test_broken_champion_file_leaves_the_old_one_serving(
    models: dict[str, bytes], store: Path, serve_store: Any
) -> None:
    from ondol_serving.serving import serving as state

    crown(store, *write_bundle(store, bundle_files("7", "binary", models["binary"])))
    client = serve_store(store)
    for text in ("{", "[]", "{}", ""):
        (store / "champion.json").write_text(text)
        state.refresh()
        assert client.post("/predict", json={"rows": [ROW]}).status_code == 200


def test_champion_file_that_is_missing_for_a_moment_leaves_the_old_one_serving(client: TestClient, store: Path) -> None:
    from ondol_serving.serving import serving as state

    (store / "champion.json").rename(store / "elsewhere")
    state.refresh()
    assert client.get("/readyz").status_code == 200
    assert client.post("/predict", json={"rows": [ROW]}).json()["model_version"] == "7"


def test_champion_file_that_says_nothing_takes_the_model_out_until_one_is_named(
    client: TestClient, store: Path
) -> None:
    from ondol.registry.champion import read_champion, write_champion
    from ondol.storage.store import Store
    from ondol_serving.serving import serving as state

    named = (store / "champion.json").read_text(encoding="utf-8")
    write_champion(Store(store), None)
    state.refresh()
    assert read_champion(Store(store)) is None
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503
    for answer in (client.post("/predict", json={"rows": [ROW]}), client.get("/model")):
        assert answer.status_code == 503
    (store / "champion.json").write_text(named, encoding="utf-8")
    state.refresh()
    assert client.post("/predict", json={"rows": [ROW]}).json()["model_version"] == "7"


def test_request_that_came_before_the_model_was_taken_out_is_answered(
    client: TestClient, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was admitted, and the endpoint has not read it yet."""
    from ondol.registry.champion import write_champion
    from ondol.storage.store import Store
    from ondol_serving import application
    from ondol_serving.serving import serving as state

    read = application.read_body

    async def read_and_take_out(*arguments: Any) -> Any:
        found = await read(*arguments)
        write_champion(Store(store), None)
        state.refresh()
        return found

    monkeypatch.setattr(application, "read_body", read_and_take_out)
    answer = client.post("/predict", json={"rows": [ROW]})
    assert (answer.status_code, answer.json()["model_version"]) == (200, "7")
    assert client.get("/readyz").status_code == 503


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (None, "as it was"),
        ('{"bundle": null}\n', "nothing"),
        ("", "broken"),
        ("{", "broken"),
        ("null", "broken"),
        ("[]", "broken"),
        ("{}", "broken"),
        ('{"bundle": null, "digest": "d"}', "broken"),
        ('{"bundle": 7, "digest": "d"}', "broken"),
        ('{"version": "1", "run_id": "r", "bundle": "1-d", "digest": "d", "since": "now"}', "1-d"),
    ],
)
def test_service_and_flows_read_one_meaning_out_of_the_champion_file(
    text: str | None, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the file is absent do they differ: flows begin, a service keeps its model."""
    from ondol.registry.champion import read_champion
    from ondol.storage.files import Damaged
    from ondol.storage.store import Store
    from ondol_serving.bundle import BundleError
    from ondol_serving.serving import NothingInProduction, locate_bundle

    def service() -> str:
        try:
            return locate_bundle()[0].name
        except FileNotFoundError:
            return "as it was"
        except NothingInProduction:
            return "nothing"
        except BundleError:
            return "broken"

    def flows() -> str:
        try:
            champion = read_champion(Store(tmp_path))
        except Damaged:
            return "broken"
        return champion.bundle if champion else "nothing"

    if text is not None:
        (tmp_path / "champion.json").write_text(text, encoding="utf-8")
    monkeypatch.setenv("ML_STORE", str(tmp_path))
    assert service() == meant
    assert flows() == ("nothing" if text is None else meant)


def test_unknown_category_of_an_open_set_is_predicted_and_counted(client: TestClient) -> None:
    from ondol_serving.metrics import counters

    def count() -> float:
        return counters().unknown.labels("class")._value.get()

    before = count()
    rows = [ROW | {"class": value} for value in ("never seen", "new", None, "또 다른")]
    assert client.post("/predict", json={"rows": rows}).status_code == 200
    assert count() == before + 2


def test_sklearn_bundle_gives_the_numbers_of_scikit_learn(store: Path, serve_store: Any) -> None:
    pipeline = fit("binary")
    content = skops.io.dumps(pipeline)
    trusted = skops.io.get_untrusted_types(data=content)
    crown(store, *write_bundle(store, bundle_files("7", "binary", content, runtime="sklearn", trusted=trusted)))
    frame = encoded_frame(1)
    frame.loc[0] = [12.5, "new", "서울", 3, 1, 399.1702, 1]
    client = serve_store(store)
    answer = client.post("/predict", json={"rows": [ROW]}).json()["predictions"][0]
    assert answer["probabilities"]["yes"] == pytest.approx(pipeline.predict_proba(frame)[0, 1], abs=1e-5)


def test_the_model_shows_how_its_labels_are_decided(models: dict[str, bytes], store: Path, serve_store: Any) -> None:
    files = bundle_files("7", "binary", models["binary"])
    rule = {"threshold": 0.25, "costs": [[0.0, 1.0], [3.0, 0.0]]}
    files["contract.json"] = json.dumps(json.loads(files["contract.json"]) | {"decision": rule}).encode()
    crown(store, *write_bundle(store, files))
    assert serve_store(store).get("/model").json()["decision"] == rule
    crown(store, *write_bundle(store, bundle_files("8", "binary", models["binary"])))
    assert "decision" not in serve_store(store).get("/model").json()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda trusted: ["model.features.Mine", *trusted], r"^its model needs model\.features\.Mine, .* converter"),
        (lambda trusted: trusted[1:], "cannot be loaded: UntrustedTypesFoundException"),
    ],
    ids=["of another package", "not in the list"],
)
def test_sklearn_bundle_with_a_type_that_is_not_trusted_is_refused(
    change: Callable[[list[str]], list[str]], error: str, store: Path
) -> None:
    from ondol_serving.bundle import BundleError, load_bundle

    content = skops.io.dumps(fit("binary"))
    trusted = skops.io.get_untrusted_types(data=content)
    files = bundle_files("7", "binary", content, runtime="sklearn", trusted=change(trusted))
    name, digest = write_bundle(store, files)
    with pytest.raises(BundleError, match=error):
        load_bundle(store / "bundles" / name, digest)


def test_onnx_service_imports_nothing_of_training(models: dict[str, bytes], store: Path) -> None:
    crown(store, *write_bundle(store, bundle_files("7", "binary", models["binary"])))
    script = """
import json, sys, warnings
warnings.simplefilter("ignore")
from starlette.testclient import TestClient
from service.service import Service
with TestClient(Service.to_asgi()) as client:
    assert client.post("/predict", content=sys.argv[1]).status_code == 200
heavy = {"pandas", "sklearn", "mlflow", "prefect", "scipy", "pyarrow", "ondol", "flows", "model"}
print(json.dumps(sorted(heavy & {name.partition(".")[0] for name in sys.modules})))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, json.dumps({"rows": [ROW]})],
        cwd=TEMPLATE,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(store),
            "ML_STORE": str(store),
            "BENTOML_DO_NOT_TRACK": "True",
            "PYTHONPATH": os.environ["PYTHONPATH"],
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout.splitlines()[-1]) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_is_answered_or_refused_never_an_error(client: TestClient, data: st.DataObject) -> None:
    row = dict(ROW)
    for name in data.draw(st.lists(st.sampled_from([*ROW, "고객 번호"]), max_size=3)):
        row[name] = data.draw(JSON)
    body = (
        {"rows": data.draw(st.lists(st.just(row) | JSON, max_size=3))} if data.draw(st.booleans()) else {"rows": [row]}
    )
    answer = client.post("/predict", json=body)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        assert len(answer.json()["predictions"]) == len(body["rows"])


def test_documentation_page_loads_nothing_from_others(app: TestClient) -> None:
    page = app.get("/")
    assert page.status_code == 200
    assert "swagger-ui-bundle.js" in page.text
    assert "google" not in page.text
    about = app.get("/docs.json").json()["info"]
    assert about["description"].startswith("Predictions of the champion.")
    assert "http" not in json.dumps(about)


def test_a_row_whose_numbers_overflow_gets_no_label(store: Path) -> None:
    from types import SimpleNamespace

    from ondol_serving.bundle import Bundle

    given = (np.array([0, 1]), np.array([[np.nan, np.nan], [0.25, 0.75]], dtype=np.float32))
    fake: Any = SimpleNamespace(
        contract=SimpleNamespace(classes=("no", "yes")),
        class_names=("no", "yes"),
    )
    first, second = Bundle.describe(fake, *given)
    assert first == {"label": None, "probabilities": {"no": None, "yes": None}}
    assert second == {"label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}}
