"""The Open Inference Protocol over HTTP: the same numbers as `/predict`, and refusals in one sentence."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_support import ROW, TestClient, bundle_files, compile_model, crown, fit, write_bundle

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
DATATYPES = {
    "house age": "FP64",
    "class": "BYTES",
    "지역": "BYTES",
    "a.b/c?": "INT64",
    "매출 (원)": "INT64",
    "가입일": "BYTES",
    "model_config": "BOOL",
}
INFER = "/v2/models/model/infer"
ROWS = [ROW, ROW | {"house age": None, "class": "고양이", "지역": "부산", "가입일": None, "model_config": False}]


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return {problem: compile_model(fit(problem), problem) for problem in ("binary", "multiclass", "regression")}


@pytest.fixture
def serving(
    serve_store: Callable[[Path], TestClient], models: dict[str, bytes], tmp_path: Path
) -> Callable[..., TestClient]:
    def start(problem: str = "binary", **settings: Any) -> TestClient:
        files = bundle_files("7", problem, models[problem], settings={"max_rows": 100} | settings)
        crown(tmp_path, *write_bundle(tmp_path, files))
        return serve_store(tmp_path)

    return start


@pytest.fixture
def client(serving: Any) -> TestClient:
    made: TestClient = serving()
    return made


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows as the inputs of a request in JSON."""
    inputs = []
    for name, datatype in DATATYPES.items():
        values = [row[name] for row in rows]
        if datatype == "BYTES":
            values = ["" if value is None else value for value in values]
        inputs.append({"name": name, "datatype": datatype, "shape": [len(rows)], "data": values})
    return inputs


def in_binary(inputs: list[dict[str, Any]], **more: Any) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request whose inputs are in binary form."""
    content, described = b"", []
    for one in inputs:
        if one["datatype"] == "BYTES":
            raw = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in one["data"])
        else:
            dtype = {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}[one["datatype"]]
            raw = np.array([math.nan if v is None else v for v in one["data"]], dtype=dtype).tobytes()
        content += raw
        named = {name: value for name, value in one.items() if name != "data"}
        described.append(named | {"parameters": {"binary_data_size": len(raw)}})
    header = json.dumps({"inputs": described, **more}).encode()
    return header + content, {
        "Inference-Header-Content-Length": str(len(header)),
        "Content-Type": "application/octet-stream",
    }


def outputs_of(answer: Any) -> dict[str, Any]:
    """Return the values of an answer in JSON, by output."""
    assert answer.status_code == 200, answer.text
    return {one["name"]: one["data"] for one in answer.json()["outputs"]}


def predictions(client: TestClient, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.post("/predict", json={"rows": rows}).json()["predictions"]
    return found


@pytest.mark.parametrize("problem", ["binary", "multiclass", "regression"])
def test_numbers_are_those_of_predict(serving: Any, problem: str) -> None:
    client = serving(problem)
    wanted = predictions(client, ROWS)
    answer = client.post(INFER, json={"inputs": tensors(ROWS), "id": "mine"})
    found = outputs_of(answer)
    assert (answer.json()["id"], answer.json()["model_version"]) == ("mine", "7")
    if problem == "regression":
        assert found == {"value": [one["value"] for one in wanted]}
    else:
        assert found["label"] == [str(one["label"]) for one in wanted]
        assert found["probabilities"] == [p for one in wanted for p in one["probabilities"].values()]
    described = {one["name"]: one["shape"] for one in client.get("/v2/models/model").json()["outputs"]}
    for one in answer.json()["outputs"]:
        assert one["shape"] == [2, *described[one["name"]][1:]]


def test_binary_tensors_give_the_same_numbers(client: TestClient) -> None:
    wanted = predictions(client, ROWS)
    body, headers = in_binary(tensors(ROWS), parameters={"binary_data_output": True})
    answer = client.post(INFER, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    header, content = json.loads(answer.content[:length]), answer.content[length:]
    sizes = {one["name"]: one["parameters"]["binary_data_size"] for one in header["outputs"]}
    label, probabilities = content[: sizes["label"]], content[sizes["label"] :]
    assert label == b"".join(struct.pack("<I", len(one["label"])) + one["label"].encode() for one in wanted)
    assert np.frombuffer(probabilities, "<f4").tolist() == [p for one in wanted for p in one["probabilities"].values()]


def test_outputs_are_those_that_are_asked_for_in_their_form(client: TestClient) -> None:
    only = client.post(INFER, json={"inputs": tensors(ROWS), "outputs": [{"name": "label"}]})
    assert outputs_of(only).keys() == {"label"}
    mixed = [{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "label"}]
    answer = client.post(INFER, json={"inputs": tensors(ROWS), "outputs": mixed})
    length = int(answer.headers["inference-header-content-length"])
    assert [set(one) >= {"data"} for one in json.loads(answer.content[:length])["outputs"]] == [False, True]
    assert len(answer.content) - length == 2 * 2 * 4


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT8", "INT64", "UINT16"])
def test_numbers_may_have_another_datatype(client: TestClient, datatype: str) -> None:
    inputs = tensors([ROW])
    next(one for one in inputs if one["name"] == "a.b/c?")["datatype"] = datatype
    assert client.post(INFER, json={"inputs": inputs}).status_code == 200


def test_columns_that_may_be_missing_may_be_absent_and_shapes_may_have_a_second_axis(client: TestClient) -> None:
    inputs = [one | {"shape": [1, 1], "data": [one["data"]]} for one in tensors([ROW]) if one["name"] != "house age"]
    wanted = predictions(client, [ROW | {"house age": None}])
    assert outputs_of(client.post(INFER, json={"inputs": inputs}))["label"] == [wanted[0]["label"]]


def test_answers_are_logged_as_those_of_predict(client: TestClient, tmp_path: Path) -> None:
    answer = client.post(INFER, json={"inputs": tensors(ROWS)})
    [line] = [line for file in (tmp_path / "log").glob("*.jsonl") for line in file.read_bytes().splitlines()]
    record = json.loads(line)
    assert record["id"] == answer.headers["x-request-id"] == answer.json()["id"]
    assert record["request"] == {"rows": [{n: row[n] for n in DATATYPES} for row in ROWS]}
    assert len(record["predictions"]) == 2


def test_metadata_names_inputs_with_their_datatypes(client: TestClient) -> None:
    about = client.get("/v2/models/model").json()
    assert {one["name"]: one["datatype"] for one in about["inputs"]} == DATATYPES
    assert (about["versions"], about["platform"]) == (["7"], "onnx_onnxv1")
    assert client.get("/v2").json() == {"name": "ondol", "version": "2", "extensions": ["binary_tensor_data"]}


@pytest.mark.parametrize(
    "path", ["/v2/health/live", "/v2/health/ready", "/v2/models/model/ready", "/v2/models/model/versions/7/ready"]
)
def test_health(client: TestClient, path: str) -> None:
    assert client.get(path, headers={"Host": "10.1.2.3"}).status_code == 200


def test_version_may_be_named(client: TestClient) -> None:
    answer = client.post("/v2/models/model/versions/7/infer", json={"inputs": tensors([ROW])})
    assert outputs_of(answer).keys() == {"label", "probabilities"}


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v2/models/other", 404, "unknown_model"),
        ("POST", "/v2/models/other/infer", 404, "unknown_model"),
        ("GET", "/v2/models/model/versions/8", 404, "unknown_version"),
        ("GET", "/v2/models/model/infer", 405, "method_not_allowed"),
        ("GET", "/v2/models", 404, "not_found"),
        ("GET", "/v2/models/model/versions/7/other", 404, "not_found"),
    ],
)
def test_wrong_path_is_refused(client: TestClient, method: str, path: str, status: int, kind: str) -> None:
    answer = client.request(method, path, json={"inputs": tensors([ROW])} if method == "POST" else None)
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (status, kind)


def replaced(**changes: Any) -> dict[str, Any]:
    """Return a request whose first input is changed; None leaves an entry out."""
    [first, *rest] = tensors([ROW])
    return {"inputs": [{n: v for n, v in (first | changes).items() if v is not None}, *rest]}


@pytest.mark.parametrize(
    ("request_body", "said"),
    [
        ([], "The request cannot be read"),
        ({}, "The request cannot be read: KeyError: 'inputs'"),
        ({"inputs": []}, "The request has no inputs"),
        ({"inputs": 3}, "The request cannot be read"),
        (replaced(datatype="TEXT"), "The datatype of 'house age' is 'TEXT': use BYTES or one of BOOL, INT8"),
        (replaced(datatype=None), "The request cannot be read: KeyError: 'datatype'"),
        (replaced(shape=[1, 2]), "The shape of 'house age' is [1, 2]: a column has the shape [rows] or [rows, 1]"),
        (replaced(shape=[2]), "'house age' has 1 values, and its shape says 2"),
        (replaced(shape=[101]), "A request may hold at most 100 rows (max_rows)"),
        (replaced(data=None), "The request cannot be read: KeyError: 'data'"),
        (replaced(shape=[2], data=[1.0, 2.0]), "The inputs differ in their number of rows"),
        ({"inputs": tensors([ROW]) * 2}, "An input is there twice"),
        (
            {"inputs": tensors([ROW]), "outputs": [{"name": "score"}]},
            "The model has no output 'score'",
        ),
        *(
            (
                replaced(parameters={"binary_data_size": size}),
                "The binary_data_size of 'house age' is not a size",
            )
            for size in (8, -1, "x", 1.5, True, math.inf)
        ),
        *((replaced(shape=[rows]), "The shape of 'house age' is [") for rows in (-1, 1.0, True, "1", math.inf)),
        (replaced(name="nothing"), "The model has no input 'nothing'"),
        (replaced(name="x" * 5000), "The model has no input 'xxx"),
        (replaced(name=["class"]), "The"),
    ],
)
def test_wrong_request_is_refused(client: TestClient, request_body: Any, said: str) -> None:
    answer = client.post(INFER, content=json.dumps(request_body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith(said), answer.text
    assert len(answer.text) < 2_000


@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}])
def test_body_of_another_type_or_encoding_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    body = json.dumps({"inputs": tensors([ROW])})
    given = {"Content-Type": "application/json"} | headers
    assert client.post(INFER, content=body, headers=given).status_code == 415


def test_more_bytes_than_the_tensors_have_are_refused(client: TestClient) -> None:
    body, headers = in_binary(tensors([ROW]))
    assert client.post(INFER, content=body + b"x", headers=headers).status_code == 400


def test_a_refused_output_is_neither_predicted_nor_logged(client: TestClient, tmp_path: Path) -> None:
    client.post(INFER, json={"inputs": tensors([ROW]), "outputs": [{"name": "score"}]})
    assert list(tmp_path.glob("log/*")) == []


@pytest.mark.parametrize("path", ["/v2/models/other/ready", "/v2/models/model/versions/8/ready"])
def test_readiness_names_nothing(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()) == (404, {"ready": False})


@pytest.mark.parametrize("length", ["x", "-1", "100000", "9" * 5000])
def test_wrong_length_of_the_header_is_refused(client: TestClient, length: str) -> None:
    body, headers = in_binary(tensors([ROW]))
    answer = client.post(INFER, content=body, headers=headers | {"Inference-Header-Content-Length": length})
    assert (answer.status_code, answer.json()["detail"][0]["type"]) == (400, "invalid_inference_request")


@pytest.mark.parametrize("raw", [b"\x01", b"\xff\xff\xff\xffx", b"\x01\x00\x00\x00\xff"])
def test_binary_texts_that_cannot_be_read_are_refused(client: TestClient, raw: bytes) -> None:
    inputs = [{"name": "class", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}]
    header = json.dumps({"inputs": inputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    answer = client.post(INFER, content=header + raw, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"].startswith("The request cannot be read")


@pytest.mark.parametrize("value", [math.inf, 1e300, "text", -1])
def test_values_that_break_the_contract_are_refused_with_their_place(client: TestClient, value: Any) -> None:
    body = json.dumps(replaced(data=[value]))
    answer = client.post(INFER, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["detail"][0]["loc"] == ["rows", 0, "house age"]


def test_without_a_model_there_is_503(client: TestClient, tmp_path: Path) -> None:
    from ondol_serving.serving import serving as state

    state.forget()
    (tmp_path / "champion.json").write_text('{"bundle": null}')
    for answer in (
        client.post(INFER, json={"inputs": tensors([ROW])}),
        client.get("/v2/models/model"),
        client.get("/v2/health/ready"),
    ):
        assert answer.status_code == 503
    assert client.get("/v2/health/live").status_code == 200
