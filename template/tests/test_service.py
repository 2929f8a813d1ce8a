"""The service, on a small model made here: what it answers, what it refuses."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():  # starlette would rather have httpx2, which BentoML does not bring
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

# BentoML uses pathspec and pydantic in ways that these call old.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROW = {"first number": 2.5, "둘째": 4}
CONTRACT = {
    "format": 1,
    "problem": "regression",
    "target": "y",
    "classes": None,
    "columns": [
        {
            "name": name,
            "kind": kind,
            "role": "feature",
            "nullable": False,
            "minimum": 0,
            "input": f"c{i}",
            "encoding": {"tensor": "float32", "offset": 0.0, "scale": 1.0},
        }
        for i, (name, kind) in enumerate([("first number", "number"), ("둘째", "integer")])
    ],
}


def write_bundle(folder: Path) -> None:
    """Write a bundle whose model adds its two inputs."""
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 1]) for n in ("c0", "c1")]
    output = helper.make_tensor_value_info("value", TensorProto.FLOAT, [None, 1])
    graph = helper.make_graph([helper.make_node("Add", ["c0", "c1"], ["value"])], "sum", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    meta = {"format": 1, "version": "1", "runtime": "onnx", "settings": {"max_rows": 10}}
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "contract.json").write_text(json.dumps(CONTRACT), encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The service in this process, first without a model."""
    from service.service import Service

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ML_BUNDLE", str(tmp_path_factory.mktemp("bundles") / "first"))
        patch.setenv("ML_LOG__ENABLED", "0")
        with TestClient(Service.to_asgi()) as client:  # type: ignore[attr-defined]
            yield client


@pytest.fixture
def model(client: TestClient) -> TestClient:
    """The service with a model."""
    from ondol_serving.serving import serving

    folder = Path(os.environ["ML_BUNDLE"])
    if not folder.exists():
        write_bundle(folder)
    serving.refresh()
    return client


def test_service_without_a_model_is_live_but_not_ready(client: TestClient) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503
    answer = client.post("/predict", json={"rows": [ROW]})
    assert answer.status_code == 503
    assert "There is no model yet" in answer.json()["error"]


def test_service_predicts_every_row(model: TestClient) -> None:
    answer = model.post("/predict", json={"rows": [ROW, ROW | {"둘째": 5}]}).json()
    assert [p["value"] for p in answer["predictions"]] == [6.5, 7.5]
    assert answer["model_version"] == "1"
    assert model.get("/readyz").status_code == 200


@pytest.mark.parametrize("value", ["4", 4.5, -1, True, None])
def test_service_names_the_field_of_a_bad_value(model: TestClient, value: Any) -> None:
    answer = model.post("/predict", json={"rows": [ROW | {"둘째": value}]})
    assert answer.status_code == 400
    assert answer.json()["detail"][0]["loc"] == ["rows", 0, "둘째"]


def test_service_refuses_too_many_rows(model: TestClient) -> None:
    assert model.post("/predict", json={"rows": [ROW] * 11}).status_code == 400


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that `ml client` writes for the contract of this model."""
    from ondol.contract import Contract
    from ondol.setup.client import write_client

    path = tmp_path / "small_client.py"
    path.write_text(write_client(Contract.model_validate(CONTRACT), "small"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a service that runs with this model."""
    write_bundle(tmp_path / "bundle")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {"ML_BUNDLE": str(tmp_path / "bundle"), "ML_STORE": str(tmp_path), "BENTOML_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "bentoml", "serve", "service.service:Service", "--host", "127.0.0.1"]
    root = Path(__file__).parents[1]
    service = subprocess.Popen([*command, "--port", port], cwd=root, env=os.environ | own)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        service.terminate()
        service.wait(30)


def test_client_asks_a_running_service(code: Any, address: str) -> None:
    client = code.Client(address)
    end = time.monotonic() + 60
    while not client.ready():
        assert time.monotonic() < end, "the service did not become ready"
        time.sleep(0.1)
    assert client.model()["version"] == "1"
    assert [one.value for one in client.predict([ROW, ROW | {"둘째": 5}]).predictions] == [6.5, 7.5]
    with pytest.raises(code.ServiceError, match="둘째") as caught:
        client.predict([ROW | {"둘째": -1}])
    assert caught.value.status == 400
