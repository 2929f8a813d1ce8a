"""The Open Inference Protocol over gRPC, by a real server of two workers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from service_server import serve
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

from ondol.orchestration.guard import free_port
from ondol.registry.bundles import Bundle
from ondol.registry.champion import move_champion
from ondol.registry.keys import add_key
from ondol.registry.rollout import start_rollout
from ondol.storage.store import Store
from ondol_serving.grpc_messages import MESSAGE, SERVICE

ROWS = [ROW, ROW | {"house age": None, "class": "고양이", "지역": "부산", "가입일": None, "model_config": False}]
FIELDS = {"FP64": "fp64_contents", "INT64": "int64_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents"}


class Client:
    """A client whose messages are those of the server."""

    def __init__(self, port: int, key: str | None) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.metadata = [("authorization", f"Bearer {key}")] if key else []

    def ask(self, method: str, **fields: Any) -> Any:
        request, response = MESSAGE[f"{method}Request"], MESSAGE[f"{method}Response"]
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return call(request(**fields), metadata=self.metadata, timeout=20)

    def refusal(self, method: str, **fields: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(method, **fields)
        error: Any = caught.value
        return error.code().name, error.details()

    def inputs(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the inputs for rows, by the datatypes that the model names."""
        made = []
        for one in self.ask("ModelMetadata", name="model").inputs:
            values = [row[one.name] for row in rows]
            if one.datatype == "BYTES":
                values = [("" if value is None else value).encode() for value in values]
            elif one.datatype == "FP64":
                values = [float("nan") if value is None else value for value in values]
            contents = {FIELDS[one.datatype]: values}
            made.append({"name": one.name, "datatype": one.datatype, "shape": [len(rows)], "contents": contents})
        return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    crown(folder, *write_bundle(folder, bundle_files("7", "binary", compile_model(fit("binary"), "binary"))))
    return folder


@pytest.fixture(scope="module")
def key(store: Path) -> str:
    return add_key(Store(store), "grpc", ("predict",), None)[0]


@pytest.fixture(scope="module")
def served(store: Path, key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, int]]:
    port = free_port()
    home = tmp_path_factory.mktemp("home")
    with serve(store, home, ML_SERVICE__WORKERS="2", ML_SERVICE__GRPC_PORT=str(port)) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        yield client, port


@pytest.fixture(scope="module")
def client(served: tuple[httpx.Client, int], key: str) -> Client:
    made = Client(served[1], key)
    grpc.channel_ready_future(made.channel).result(30)
    return made


def test_numbers_are_those_of_predict(served: tuple[httpx.Client, int], client: Client) -> None:
    wanted = served[0].post("/predict", json={"rows": ROWS}).json()["predictions"]
    answer = client.ask("ModelInfer", model_name="model", id="mine", inputs=client.inputs(ROWS))
    label, probabilities = answer.outputs
    assert (answer.id, answer.model_version) == ("mine", "7")
    assert [text.decode() for text in label.contents.bytes_contents] == [one["label"] for one in wanted]
    assert list(probabilities.contents.fp32_contents) == [p for one in wanted for p in one["probabilities"].values()]
    assert (label.shape, probabilities.shape) == ([2], [2, 2])


def test_model_is_described(client: Client) -> None:
    about = client.ask("ModelMetadata", name="model")
    assert ([*about.versions], about.platform) == (["7"], "onnx_onnxv1")
    assert {one.name for one in about.inputs} == set(ROW)
    assert client.ask("ServerMetadata").name == "ondol"


def test_health_needs_no_key(served: tuple[httpx.Client, int]) -> None:
    open_client = Client(served[1], None)
    assert open_client.ask("ServerLive").live and open_client.ask("ServerReady").ready
    assert open_client.ask("ModelReady", name="model").ready
    assert not open_client.ask("ModelReady", name="other").ready


def test_calls_without_a_valid_key_are_refused(served: tuple[httpx.Client, int], key: str) -> None:
    for wrong in (None, key[:-1] + "x"):
        refused = Client(served[1], wrong)
        assert refused.refusal("ModelInfer", model_name="model")[0] == "UNAUTHENTICATED"
        assert refused.refusal("ModelMetadata", name="model")[0] == "UNAUTHENTICATED"


def test_scope_is_checked(served: tuple[httpx.Client, int], store: Path) -> None:
    import time

    metrics, _ = add_key(Store(store), "prometheus", ("metrics",), None)
    time.sleep(2.0)
    assert Client(served[1], metrics).refusal("ModelInfer", model_name="model")[0] == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"model_name": "other"}, "NOT_FOUND", "There is no such model"),
        ({"model_name": "model", "model_version": "8"}, "NOT_FOUND", "Version 7 is in production"),
        ({"model_name": "model"}, "INVALID_ARGUMENT", "The request has no inputs"),
        ({"inputs": 0}, "INVALID_ARGUMENT", "'house age' has 0 values, and its shape says 1"),
        ({"shape": [2, 2]}, "INVALID_ARGUMENT", "The shape of 'house age' is [2, 2]"),
        ({"datatype": "TEXT"}, "INVALID_ARGUMENT", "The datatype of 'house age' is 'TEXT'"),
        ({"contents": {"fp64_contents": [-1.0]}}, "INVALID_ARGUMENT", "rows.0.house age: Input should be greater"),
        ({"raw_input_contents": [b"x"]}, "INVALID_ARGUMENT", "raw_input_contents and inputs differ in their number"),
        ({"raw": b"x"}, "INVALID_ARGUMENT", "'house age' cannot be read: ValueError"),
        ({"outputs": [{"name": "score"}]}, "INVALID_ARGUMENT", "The model has no output 'score'"),
    ],
)
def test_wrong_request_is_refused(client: Client, fields: dict[str, Any], code: str, said: str) -> None:
    """What is not a field of a request changes its first input."""
    request: dict[str, Any] = {"model_name": "model"}
    if "model_name" not in fields:
        request["inputs"] = client.inputs([ROW])
    for name, value in fields.items():
        if name == "inputs":
            request["inputs"][0]["contents"] = {}
        elif name == "raw":
            request["raw_input_contents"] = [value] * len(request["inputs"])
        elif name in ("shape", "datatype", "contents"):
            request["inputs"][0][name] = value
        else:
            request[name] = value
    refused = client.refusal("ModelInfer", **request)
    assert refused[0] == code and refused[1].startswith(said), refused


def test_calls_are_counted_and_logged(served: tuple[httpx.Client, int], client: Client, store: Path) -> None:
    import time

    admin, _ = add_key(Store(store), "admin", ("admin",), None)
    time.sleep(2.0)

    def count(status: int) -> float:
        begin = f'bentoml_service_request_total{{endpoint="/{SERVICE}/ModelInfer",http_response_code="{status}"'
        text = served[0].get("/metrics", headers={"Authorization": f"Bearer {admin}"}).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(begin))

    before = count(200), count(404)
    answer = client.ask("ModelInfer", model_name="model", inputs=client.inputs(ROWS))
    client.refusal("ModelInfer", model_name="other")
    time.sleep(0.2)
    assert (count(200), count(404)) == (before[0] + 1, before[1] + 1)
    lines = [line for file in (store / "log").glob("*.jsonl") for line in file.read_text("utf-8").splitlines()]
    assert sum(answer.id in line for line in lines) == 1


def test_a_rollout_chooses_by_the_metadata_and_a_named_version_answers_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ondol.registry.rollout.LOADING_SECONDS", 0.0)
    store, bundles = Store(tmp_path / "store"), []
    for seed, version in enumerate(("7", "8")):
        files = bundle_files(version, "binary", compile_model(fit("binary", seed), "binary"))
        name, digest = write_bundle(store.folder, files)
        bundles.append(Bundle(path=store.folder / "bundles" / name, version=version, digest=digest))
    champion = move_champion(store, bundles[0], "deploy", "first")
    start_rollout(store, bundles[1], champion, "ab", (0.5,), "test")
    port = free_port()
    with serve(store.folder, tmp_path / "home", ML_SERVICE__GRPC_PORT=str(port)):
        client = Client(port, None)
        grpc.channel_ready_future(client.channel).result(30)
        inputs = client.inputs(ROWS)
        found = {}
        for number in range(30):
            client.metadata = [("x-rollout-key", f"session {number}")]
            answers = [client.ask("ModelInfer", model_name="model", inputs=inputs) for _ in range(2)]
            found[number] = {(one.model_version, one.parameters[0].value.string_param) for one in answers}
        named = client.ask("ModelInfer", model_name="model", model_version="8", inputs=inputs)
        versions = [*client.ask("ModelMetadata", name="model").versions]
    assert set.union(*found.values()) == {("7", "champion"), ("8", "challenger")}
    assert all(len(one) == 1 for one in found.values())
    assert (named.model_version, versions) == ("8", ["7", "8"])
