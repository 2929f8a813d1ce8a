"""A service.py of the project's own: what it overrides is used, and its middleware is around every route."""

from collections.abc import Iterator

import httpx
import pytest
from service_server import serve
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

SERVICE = """
from typing import Any

import bentoml
from ondol_serving import ModelService, service
from ondol_serving.endpoint import PredictRequest, PredictResponse


class Marked:
    def __init__(self, app: Any, mark: bytes) -> None:
        self.app, self.mark = app, mark

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-mark", self.mark))
            await send(message)

        await self.app(scope, receive, send_marked)


@service
class Service(ModelService):
    @bentoml.api(input_spec=PredictRequest, output_spec=PredictResponse)
    async def predict(self, request: Any, /) -> Any:
        if len(request.rows) == 2:
            raise RuntimeError("two rows")
        return await super().predict.local(request) if len(request.rows) == 1 else refuse()

    async def __is_ready__(self) -> bool:
        return False

    @bentoml.api
    async def double(self, rows: list[dict[str, Any]]) -> list[Any]:
        return await self.predict_rows(rows * 2)


def refuse() -> Any:
    from starlette.responses import PlainTextResponse

    return PlainTextResponse("one row at a time", 400)


Service.add_asgi_middleware(Marked, mark=b"ours")
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "service").mkdir()
    (folder / "service" / "service.py").write_text(SERVICE, encoding="utf-8")
    model = compile_model(fit("binary"), "binary")
    crown(folder / "store", *write_bundle(folder / "store", bundle_files("7", "binary", model)))
    with serve(folder / "store", folder / "home", project=folder) as served:
        yield served


def test_an_overridden_predict_answers(client: httpx.Client) -> None:
    answer = client.post("/predict", json={"rows": [ROW]})
    assert answer.status_code == 200, answer.text
    assert (answer.status_code, answer.json()["model_version"]) == (200, "7")
    assert client.post("/predict", json={"rows": [ROW] * 3}).text == "one row at a time"


def test_an_overridden_readiness_answers(client: httpx.Client) -> None:
    assert (client.get("/livez").status_code, client.get("/readyz").status_code) == (200, 503)


@pytest.mark.parametrize("path", ["/livez", "/model", "/", "/metrics", "/docs.json"])
def test_a_middleware_of_the_project_is_around_every_route(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["x-mark"]) == (200, "ours")


def test_every_answer_is_counted_by_route_and_status(client: httpx.Client) -> None:
    def counts(path: str, status: int) -> float:
        begin = f'bentoml_service_request_total{{endpoint="{path}",http_response_code="{status}"'
        return sum(
            float(line.split()[-1]) for line in client.get("/metrics").text.splitlines() if line.startswith(begin)
        )

    before = {key: counts(*key) for key in (("/double", 200), ("/predict", 500), ("/livez", 200))}
    assert len(client.post("/double", json={"rows": [ROW]}).json()) == 2
    assert client.post("/predict", json={"rows": [ROW] * 2}).status_code == 500
    client.get("/livez")
    assert {key: counts(*key) - count for key, count in before.items()} == dict.fromkeys(before, 1)
