"""More requests than a real service may have in progress: the excess is refused, the rest is answered."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from service_server import serve, wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

from ondol.orchestration.guard import free_port
from ondol_serving.batching import MANY_ROWS
from ondol_serving.grpc_messages import MESSAGE, SERVICE

ROWS = [ROW] * (2 * MANY_ROWS)  # predicted in a thread: the event loop can refuse others meanwhile
CLIENTS, REQUESTS = 16, 25


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    files = bundle_files("7", "binary", compile_model(fit("binary"), "binary"), settings={"max_concurrency": 1})
    crown(folder, *write_bundle(folder, files))
    return folder


@pytest.fixture(scope="module")
def served(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, int]]:
    port, home = free_port(), tmp_path_factory.mktemp("home")
    with serve(store, home, ML_SERVICE__GRPC_PORT=str(port)) as client:
        wait_for(client, "/readyz", 200)
        yield client, port
    assert "Traceback" not in (home / "log").read_text()


def records(store: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (store / "log").glob("*.jsonl"))


def read_total(client: httpx.Client, endpoint: str, status: int) -> float:
    """Return how many answers with that status the metrics count."""
    time.sleep(0.1)  # they are written some milliseconds later
    wanted = (f'endpoint="{endpoint}"', f'http_response_code="{status}"')
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("bentoml_service_request_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in found if all(one in line for one in wanted))


def ask_at_once(ask: Any) -> list[Any]:
    """Return the answers to many clients, each of which sends its requests one after another."""

    def send(_: int) -> list[Any]:
        return [ask() for _ in range(REQUESTS)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [answer for answers in pool.map(send, range(CLIENTS)) for answer in answers]


def test_excess_is_refused_and_the_rest_is_answered_and_logged(served: tuple[httpx.Client, int], store: Path) -> None:
    client, _ = served
    predicted = client.post("/predict", json={"rows": ROWS}).json()["predictions"]
    before, counted = records(store), [read_total(client, "/predict", status) for status in (200, 503)]
    local, opened = threading.local(), ExitStack()
    body = json.dumps({"rows": ROWS})

    def ask() -> httpx.Response:
        if not hasattr(local, "client"):
            local.client = opened.enter_context(httpx.Client(base_url=client.base_url, timeout=20))
        return local.client.post("/predict", content=body)

    done = threading.Event()
    pages: set[tuple[str, int]] = set()

    def look() -> None:
        while not done.is_set():
            pages.update((page, client.get(page).status_code) for page in ("/livez", "/readyz", "/metrics", "/model"))

    looking = threading.Thread(target=look)
    looking.start()
    with opened:
        try:
            answers = ask_at_once(ask)
        finally:
            done.set()
            looking.join()
    assert {status for _, status in pages} == {200}
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 503}
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["predictions"] == predicted
        else:
            assert answer.headers["Retry-After"] == "1"
            assert answer.json()["detail"][0]["type"] == "busy"
    assert [read_total(client, "/predict", s) - b for s, b in zip((200, 503), counted, strict=True)] == [
        counts[200],
        counts[503],
    ]
    assert records(store) - before == counts[200]
    assert client.post("/predict", json={"rows": ROWS}).status_code == 200


def test_excess_over_grpc_is_refused_with_when_to_try_again(served: tuple[httpx.Client, int]) -> None:
    client, port = served
    types = {one["name"]: one["datatype"] for one in client.get("/v2/models/model").json()["inputs"]}
    fields = {"FP64": "fp64_contents", "INT64": "int64_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents"}
    inputs = []
    for name, value in ROW.items():
        values = [value.encode() if isinstance(value, str) else value] * len(ROWS)
        contents = {fields[types[name]]: values}
        inputs.append({"name": name, "datatype": types[name], "shape": [len(ROWS)], "contents": contents})
    request = MESSAGE["ModelInferRequest"](model_name="model", inputs=inputs).SerializeToString()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    infer, live = (channel.unary_unary(f"/{SERVICE}/{name}") for name in ("ModelInfer", "ServerLive"))
    refusals: list[Any] = []

    def ask() -> str:
        assert live(b"", timeout=20)  # is never refused
        try:
            infer(request, timeout=20)
        except grpc.RpcError as error:
            refusals.append(error)
            return "UNAVAILABLE" if error.code() is grpc.StatusCode.UNAVAILABLE else repr(error)
        return "OK"

    assert set(ask_at_once(ask)) == {"OK", "UNAVAILABLE"}
    assert dict(refusals[0].trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    assert infer(request, timeout=20)
    channel.close()
