"""The typed client and tables of Arrow, against a real server of two workers with access control."""

import importlib.util
import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from service_server import serve
from service_support import ROW, bundle_files, compile_model, crown, describe, fit, write_bundle

from ondol.contract import Contract
from ondol.registry.keys import add_key
from ondol.setup.client import write_client
from ondol.storage.store import Store

ROWS = [ROW, ROW | {"house age": None, "class": "고양이", "지역": "부산", "가입일": None, "model_config": False}]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The client's code, the address of the service, and a key."""
    folder = tmp_path_factory.mktemp("client")
    store = folder / "store"
    crown(store, *write_bundle(store, bundle_files("7", "binary", compile_model(fit("binary"), "binary"))))
    key, _ = add_key(Store(store), "client", ("predict",), None)
    contract = Contract.model_validate(describe())
    path = folder / "sample_client.py"
    path.write_text(write_client(contract, "sample"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("sample_client", path)
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules["sample_client"] = code
    spec.loader.exec_module(code)
    with serve(store, folder / "home", ML_SERVICE__WORKERS="2") as client:
        yield SimpleNamespace(code=code, url=str(client.base_url), key=key, http=client)


def test_client_gets_the_predictions_of_the_service(at: Any) -> None:
    client = at.code.Client(at.url, key=at.key)
    assert client.ready()
    assert client.model()["version"] == "7"
    answer = client.predict(ROWS)
    headers = {"Authorization": f"Bearer {at.key}"}
    wanted = at.http.post("/predict", json={"rows": ROWS}, headers=headers).json()["predictions"]
    assert [(one.label, one.probabilities) for one in answer.predictions] == [
        (one["label"], one["probabilities"]) for one in wanted
    ]


def test_client_names_the_field_of_a_refusal(at: Any) -> None:
    with pytest.raises(at.code.ServiceError) as caught:
        at.code.Client(at.url, key=at.key).predict([ROW | {"지역": "대구"}])
    assert (caught.value.status, caught.value.detail[0]["loc"]) == (400, ["rows", 0, "지역"])
    with pytest.raises(at.code.ServiceError) as caught:
        at.code.Client(at.url).predict(ROWS)
    assert caught.value.status == 401


def test_table_is_predicted_with_a_key_only(at: Any) -> None:
    table = pa.table({name: [row[name] for row in ROWS] for name in ROW})
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    client = at.code.Client(at.url, key=at.key)
    found = pa.ipc.open_stream(client.predict_arrow(stream.getvalue())).read_all()
    assert found["label"].to_pylist() == [one.label for one in client.predict(ROWS).predictions]
    with pytest.raises(at.code.ServiceError, match="401"):
        at.code.Client(at.url).predict_arrow(stream.getvalue())
