"""What the service refuses before it reads: callers, types, paths, sizes; and what it costs to say no."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_server import Server, ask_unknown_paths, metric_lines, read_to_the_end, serve, wait_for
from service_support import ROW, TestClient, bundle_files, compile_model, crown, describe, fit, write_bundle

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
BODY = json.dumps({"rows": [ROW]}).encode()
JSON_TYPE = {"Content-Type": "application/json"}
UNREAD = [
    {"name": "time", "kind": "date", "role": "time"},
    {"name": "그룹", "kind": "text", "role": "group"},
    {"name": "nested", "kind": "text", "role": "ignored"},
]


@pytest.fixture(scope="module")
def model() -> bytes:
    return compile_model(fit("binary"), "binary")


@pytest.fixture
def serving(serve_store: Callable[[Path], TestClient], model: bytes, tmp_path: Path) -> Callable[..., TestClient]:
    """Let the application serve a bundle with these settings and columns beside those of the tests."""
    from ondol_serving.serving import serving as state

    def start(*columns: dict[str, Any], **limits: Any) -> TestClient:
        files = bundle_files("7", "binary", model, settings={"max_rows": 100, "max_body_bytes": 50_000} | limits)
        document = describe()
        document["columns"] += [{"nullable": True, "input": None, "encoding": None} | column for column in columns]
        crown(tmp_path, *write_bundle(tmp_path, files | {"contract.json": json.dumps(document).encode()}))
        client = serve_store(tmp_path)
        assert state.bundle is not None
        return client

    return start


@pytest.fixture
def client(serving: Any) -> TestClient:
    return serving()


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Return a refusal's status and type."""
    content = answer.json()
    assert content["error"] == content["detail"][0]["msg"]
    return answer.status_code, content["detail"][0]["type"]


def logged(store: Path) -> list[dict[str, Any]]:
    files = (store / "log").glob("*.jsonl") if (store / "log").exists() else ()
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


# --- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:3000", "127.0.0.1.evil.example", "localhost.evil.example", "10.1.2.3", "",
     "x@127.0.0.1", "127.0.0.1:3000:1", "127.0.0.1:x", "[::1", "[::1]x", "[::2]", "a" * 5000],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/predict"), ("GET", "/model"), ("GET", "/"), ("GET", "/docs.json")]
)
def test_foreign_host_is_refused(serving: Any, tmp_path: Path, host: str, method: str, path: str) -> None:
    answer = serving().request(method, path, content=BODY, headers=JSON_TYPE | {"Host": host})
    assert refusal(answer) == (421, "foreign_host")
    assert logged(tmp_path) == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:3000", "127.0.0.1:3000", "[::1]:3000", "localhost.", "[::1]"])
def test_names_of_the_loopback_are_answered(serving: Any, host: str) -> None:
    assert serving().post("/predict", content=BODY, headers=JSON_TYPE | {"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("hosts", "host", "answered"),
    [
        (["churn.example.com"], "churn.example.com", True),
        (["churn.example.com"], "Churn.Example.Com:8080", True),
        (["churn.example.com"], "a.churn.example.com", False),
        (["*.example.com"], "a.b.example.com", True),
        (["*.example.com"], "example.com", False),
        (["*.example.com"], "evilexample.com", False),
        (["churn.example.com:8443"], "churn.example.com:8443", True),
        (["churn.example.com:8443"], "churn.example.com:3000", False),
        (["*"], "anything.example", True),
        ([], "churn.example.com", False),
    ],
)
def test_hosts_of_the_settings_are_answered(serving: Any, hosts: list[str], host: str, answered: bool) -> None:
    answer = serving(hosts=hosts).post("/predict", content=BODY, headers=JSON_TYPE | {"Host": host})
    assert answer.status_code == (200 if answered else 421)


def test_environment_names_hosts_as_a_list_with_commas_or_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    from ondol_serving.settings import read_limits

    for text in ("a.example, *.b.example", '["a.example", "*.b.example"]'):
        monkeypatch.setenv("ML_SERVICE__HOSTS", text)
        assert read_limits({"hosts": ["other.example"]}).hosts == ("a.example", "*.b.example")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "http://127.0.0.1:3001", "http://localhost:3000", "http://127.0.0.1",
               "file://", "http://127.0.0.1:3000.evil.example", "x" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("media_type", ["text/plain", "application/json"])
def test_page_of_another_origin_is_refused_and_not_logged(
    serving: Any, tmp_path: Path, origin: str, media_type: str
) -> None:
    headers = {"Content-Type": media_type, "Origin": origin}
    answer = serving().post("/predict", content=BODY, headers=headers)
    assert refusal(answer) == (403, "foreign_origin")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert logged(tmp_path) == []


def test_own_page_is_answered_and_those_of_named_hosts(serving: Any) -> None:
    client = serving(hosts=["public.example", "other.example:8443"])
    for origin in ("http://127.0.0.1:3000", "https://public.example", "https://other.example:8443"):
        assert client.post("/predict", content=BODY, headers=JSON_TYPE | {"Origin": origin}).status_code == 200
    for origin in ("https://public.example:8443", "https://other.example"):
        assert client.post("/predict", content=BODY, headers=JSON_TYPE | {"Origin": origin}).status_code == 403


def test_any_host_does_not_mean_any_page(serving: Any) -> None:
    headers = JSON_TYPE | {"Host": "any.example", "Origin": "http://evil.example"}
    assert serving(hosts=["*"]).post("/predict", content=BODY, headers=headers).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_site_embeds_is_refused_and_a_link_to_the_page_is_followed(serving: Any, site: str) -> None:
    marks = {"Sec-Fetch-Site": site}
    assert serving().get("/model", headers=marks | {"Sec-Fetch-Mode": "no-cors"}).status_code == 403
    assert serving().get("/", headers=marks | {"Sec-Fetch-Mode": "navigate"}).status_code == 200


def test_page_cannot_be_framed(serving: Any) -> None:
    assert serving().get("/").headers["x-frame-options"] == "DENY"


def test_preflight_of_another_origin_allows_nothing(serving: Any) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = serving().options("/predict", headers=headers)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_probes_and_metrics_answer_any_host(serving: Any) -> None:
    for path in ("/livez", "/healthz", "/readyz"):
        assert serving().get(path, headers={"Host": "10.1.2.3:3000"}).status_code == 200


def test_two_hosts_are_refused(serving: Any) -> None:
    headers = [("Host", "127.0.0.1:3000"), ("Host", "127.0.0.1:3000"), ("Content-Type", "application/json")]
    answer = serving().post("/predict", content=BODY, headers=headers)
    assert refusal(answer) == (421, "foreign_host") and "one Host header" in answer.text


# --- what may be sent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "text/plain;application/json", "application/x-www-form-urlencoded",
     "multipart/form-data; boundary=x", "application/vnd.bentoml+pickle", "application/json5",
     "application/xml", "*/*", "application/*"],
)  # fmt: skip
def test_media_type_that_the_route_does_not_declare_is_refused(serving: Any, tmp_path: Path, media_type: str) -> None:
    answer = serving().post("/predict", content=BODY, headers={"Content-Type": media_type})
    assert refusal(answer) == (415, "unsupported_media_type")
    assert logged(tmp_path) == []


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON; charset=utf-8", "application/json;x"])
def test_json_is_taken(serving: Any, media_type: str) -> None:
    assert serving().post("/predict", content=BODY, headers={"Content-Type": media_type}).status_code == 200


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 415), ("br, gzip", 415), ("x", 415), ("identity", 200)])
def test_encoded_body_is_refused(serving: Any, encoding: str, status: int) -> None:
    answer = serving().post("/predict", content=BODY, headers=JSON_TYPE | {"Content-Encoding": encoding})
    assert answer.status_code == status


def test_declared_length_over_the_limit_is_refused_before_the_body_is_read(serving: Any) -> None:
    answer = serving().post("/predict", content=b"{}", headers=JSON_TYPE | {"Content-Length": "50001"})
    assert refusal(answer) == (413, "body_too_large")


@pytest.mark.parametrize("value", [None, 1, "text", [1, {"a": ["b"]}], {"deep": {"er": [1, 2, {}]}}, float("nan")])
def test_row_is_accepted_as_in_the_file_and_unread_columns_are_not_logged(
    serving: Any, tmp_path: Path, value: Any
) -> None:
    client = serving(*UNREAD)
    row = ROW | {"고객 번호": "c-1"} | dict.fromkeys(("target", "time", "그룹", "nested"), value)
    answers = [client.post("/predict", content=json.dumps({"rows": [r]})) for r in (ROW, row)]
    assert [a.status_code for a in answers] == [200, 200]
    assert answers[0].json()["predictions"] == answers[1].json()["predictions"]
    assert logged(tmp_path)[-1]["request"] == {"rows": [ROW | {"고객 번호": "c-1"}]}


def test_column_that_no_contract_has_is_an_error(serving: Any) -> None:
    answer = serving(*UNREAD).post("/predict", json={"rows": [ROW | {"nested": 1, "none such": 1}]})
    assert [e["loc"] for e in answer.json()["detail"]] == [["rows", 0, "none such"]]


def test_openapi_shows_what_is_not_read(serving: Any) -> None:
    document = serving(*UNREAD).get("/docs.json").json()
    row = document["components"]["schemas"]["Row"]
    assert row["properties"]["nested"]["description"] == "Not read (ignored)."
    assert "type" not in row["properties"]["nested"] and "nested" not in row["required"]


# --- what an invalid body costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"rows":[{' + b",".join(b'"k%d":1' % i for i in range(6_000)) + b"}]}",
        b'{"rows":[' + b",".join([b"{}"] * 15_000) + b"]}",
        b'{"rows":[' + b",".join([b"0"] * 20_000) + b"]}",
        b"{" + b",".join([b'"rows":[]'] * 5_000) + b"}",
        b'{"rows":[{"\xea\xb3\xa0\xea\xb0\x9d \xeb\xb2\x88\xed\x98\xb8":[' + b",".join([b"[]"] * 15_000) + b"]}]}",
        b'{"rows":[' + b",".join([b"[" * 50 + b"]" * 50] * 400) + b"]}",
        b'{"rows":[{"\\"":"\\\\"' + b",[]" * 15_000,
    ],
    ids=["unknown keys", "rows", "numbers", "keys twice", "in an id", "deep", "after escapes"],
)
def test_body_of_more_values_than_a_valid_one_has_is_refused_before_it_is_parsed(
    serving: Any, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    from ondol_serving import request

    client = serving(max_body_bytes=100_000)
    monkeypatch.setattr(request, "from_json", lambda *_: pytest.fail("it was parsed"))
    answer = client.post("/predict", content=body)
    assert answer.status_code == 400
    assert answer.json()["detail"][0]["type"] == "too_long"
    assert answer.json()["error"].startswith("rows: A request may hold at most 100 rows (max_rows), and no more than")


def test_largest_valid_request_is_answered_with_any_texts(serving: Any) -> None:
    """Commas, brackets and quotes in texts are not values."""
    row = ROW | {"class": ',[{"\\' * 20}
    assert serving(max_body_bytes=100_000).post("/predict", json={"rows": [row] * 100}).status_code == 200


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('",[]{}\\:a가\n'), max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.sampled_from('",\\:a'), max_size=3), inner),
    max_leaves=20,
)


def structure(value: Any) -> int:
    """Return how many commas and opening brackets a value has in JSON, outside of texts."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(0, len(value) - 1) + sum(map(structure, inner))


@settings(max_examples=200, deadline=None)
@given(value=JSON_VALUE, ascii_only=st.booleans(), block=st.integers(1, 9))
def test_values_are_counted_exactly(value: Any, ascii_only: bool, block: int) -> None:
    from ondol_serving import request

    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request, "BLOCK", block)
        found = request.count_values(body, structure(value))
        rough = body.count(b",") + body.count(b"[") + body.count(b"{")
    assert found == structure(value) or found == rough <= structure(value)


def test_error_of_a_large_request_is_small(serving: Any) -> None:
    bodies = [
        {"rows": [ROW | {"k" * 20_000: 1}]},
        {"rows": [ROW | {f"{i}{'k' * 300}": 1 for i in range(120)}]},
        {"rows": [dict.fromkeys(ROW, "x" * 50)] * 80},
        {"rows": [{}] * 100},
        {"rows": [None] * 100},
        {"r" * 20_000: 1},
        {f"r{i}": 1 for i in range(3_000)},
    ]
    for body in bodies:
        answer = serving().post("/predict", json=body)
        assert answer.status_code == 400
        assert len(answer.content) < 50_000 and len(answer.json()["detail"]) <= 50
        assert "k" * 300 not in answer.text and "r" * 300 not in answer.text


def test_wide_message_of_a_closed_set_is_cut(serving: Any) -> None:
    from ondol_serving.request import LONGEST_MESSAGE

    names = [f"category {i}" for i in range(2_000)]
    text = {"tensor": "string", "missing": "<missing>", "known": names}
    # Beside the features of the model, of which it is none: the row is refused before the model is asked.
    wide = {"name": "wide", "kind": "text", "role": "feature", "categories": names, "input": "c1", "encoding": text}
    from ondol_serving.contract import read_contract
    from ondol_serving.request import Reader, compile_request

    document = describe()
    document["columns"].append({"nullable": False} | wide)
    contract = read_contract(document)
    reader = Reader(contract, compile_request(contract, 5), 5)
    with pytest.raises(ValueError, match="wide") as caught:
        reader.read(json.dumps({"rows": [ROW | {"wide": "none"}]}).encode())
    [error] = caught.value.errors()  # type: ignore[attr-defined]
    assert len(error["msg"]) <= LONGEST_MESSAGE + 1


def test_errors_of_several_rows_are_reported_together(serving: Any) -> None:
    rows = [ROW, ROW | {"a.b/c?": "x", "unknown": 1}, ROW, {}]
    answer = serving().post("/predict", json={"rows": rows})
    places = [tuple(e["loc"]) for e in answer.json()["detail"]]
    assert places[:2] == [("rows", 1, "a.b/c?"), ("rows", 1, "unknown")]
    assert {place[1] for place in places[2:]} == {3}


@pytest.mark.parametrize("length", [99, 4_000])
def test_long_text_of_a_date_is_not_a_date(serving: Any, length: int) -> None:
    answer = serving().post("/predict", json={"rows": [ROW | {"가입일": "PT" + "1" * length}]})
    assert answer.json()["detail"][0]["loc"] == ["rows", 0, "가입일"]


# --- how much at a time ----------------------------------------------------------------------------------------------


class Clock:
    """The time that `ondol_serving.admission` sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ondol_serving import admission

        self.now = 100.0
        monkeypatch.setattr(admission, "perf_counter", lambda: self.now)


def test_more_than_can_be_served_in_time_is_refused_at_once_with_when_to_try_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ondol_serving.admission import Busy, Load
    from ondol_serving.settings import Limits

    async def ask() -> tuple[int, int]:
        clock, load = Clock(monkeypatch), Load()
        for _ in range(40):  # half a second each, one after another
            work = load.begin(500, Limits())
            clock.now += 0.5
            work.end()
        at_work = []
        with pytest.raises(Busy) as caught:
            for _ in range(100):
                at_work.append(load.begin(500, Limits()))
        for work in at_work:
            clock.now += 0.5
            work.end()
        load.begin(500, Limits()).end()
        return len(at_work), caught.value.retry_after

    admitted, retry_after = asyncio.run(ask())
    assert 4 <= admitted <= 6
    assert 2 <= retry_after <= 4


@pytest.mark.parametrize(
    ("seconds", "slow", "limit", "room"),
    [
        (0.00005, False, None, 100),
        (0.0002, False, None, 51),
        (0.002, False, None, 32),
        (0.0002, True, None, 100),
        (0.5, True, None, 32),
        (0.0001, False, 7, 7),
        (0.5, False, 500, 500),
    ],
)
def test_number_of_requests_in_progress_follows_the_recent_speed_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, seconds: float, slow: bool, limit: int | None, room: int
) -> None:
    from ondol_serving.admission import Busy, Load
    from ondol_serving.settings import Limits

    async def ask() -> None:
        clock, load = Clock(monkeypatch), Load()
        limits = Limits(max_concurrency=limit, max_wait_seconds=1000)
        for _ in range(int(6 / seconds) if seconds < 0.1 else 60):
            work = load.begin(1, limits, slow)
            clock.now += seconds
            work.end()
        at_work = []
        while load.has_room(limits, slow):
            at_work.append(load.begin(1, limits, slow))
        assert abs(len(at_work) - room) <= 1
        with pytest.raises(Busy):
            load.begin(1, limits, slow)
        at_work.pop().end()
        load.begin(1, limits, slow)

    asyncio.run(ask())


def test_requests_that_arrive_together_take_room_before_they_begin() -> None:
    from ondol_serving.admission import Load
    from ondol_serving.settings import Limits

    async def ask() -> None:
        load, limits = Load(), Limits(max_concurrency=2)
        load.arrive()
        assert load.has_room(limits)
        load.arrive()
        assert not load.has_room(limits)
        await asyncio.sleep(0)  # the next turn of the event loop, in which they begin
        work = [load.begin(10, limits), load.begin(10, limits)]
        assert not load.has_room(limits)
        work[0].end()
        assert load.has_room(limits)

    asyncio.run(ask())


def test_a_lone_request_is_never_refused_however_slow_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from ondol_serving.admission import Load
    from ondol_serving.settings import Limits

    async def ask() -> None:
        clock, load = Clock(monkeypatch), Load()
        for _ in range(5):
            work = load.begin(500, Limits(max_wait_seconds=0.1))
            clock.now += 60
            work.end()

    asyncio.run(ask())


def test_large_requests_wait_for_a_turn_and_not_for_longer_than_is_set() -> None:
    from ondol_serving.admission import HEAVY_AT_ONCE, HEAVY_BYTES, Busy, Load
    from ondol_serving.settings import Limits

    async def ask() -> None:
        load = Load()

        async def take_turn(max_wait: float) -> Any:
            work = load.begin(HEAVY_BYTES + 1, Limits(max_wait_seconds=max_wait))
            await work.wait()
            return work

        at_work = [await take_turn(9.0) for _ in range(HEAVY_AT_ONCE)]
        with pytest.raises(Busy):
            await take_turn(0.05)
        small = load.begin(10, Limits())
        assert not small.waits
        waiting = asyncio.create_task(take_turn(9.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        at_work[0].end()
        at_work[0].end()  # as when the answer begins, and again when it has been sent
        for work in (await waiting, small, *at_work[1:]):
            work.end()
        assert load.wait_seconds() == 0
        assert not load.turns.locked()

    asyncio.run(ask())


# --- one real server: raw sockets ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    settings = {"max_rows": 100, "max_body_bytes": 300_000, "max_bytes_in_flight": 1_000_000, "body_seconds": 1}
    crown(folder, *write_bundle(folder, bundle_files("1", "binary", model, settings=settings)))
    with serve(folder, folder / "home") as client:
        wait_for(client, "/readyz", 200)
        yield Server(client)
    assert "Traceback" not in (folder / "home" / "log").read_text()


@pytest.mark.parametrize(
    "headers",
    [("Content-Length: 100",), ("Transfer-Encoding: chunked",), ("Content-Length: 9", "Expect: 100-continue")],
)
def test_stalled_body_is_answered_408(server: Server, headers: tuple[str, ...]) -> None:
    said = server.say(
        server.head("Content-Type: application/json", *headers), b"1\r\n{\r\n" if "chunked" in headers[0] else b"{"
    )
    assert b"HTTP/1.1 408 " in said
    assert b"body_seconds" in said


def test_bodies_in_flight_are_limited_and_small_requests_are_still_answered(server: Server) -> None:
    stalled = []
    try:
        for _ in range(8):
            connection = server.connect()
            connection.sendall(server.head("Content-Type: application/json", "Content-Length: 300000") + b" " * 200_000)
            stalled.append(connection)
        assert server.client.post("/predict", json={"rows": [ROW]}).status_code == 200
        answers = [read_to_the_end(connection) if i else b"" for i, connection in enumerate(stalled)]
        busy = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503 ")]
        assert busy and len(busy) < 8
        assert all(re.search(rb"retry-after: \d", answer) for answer in busy)
    finally:
        for connection in stalled:
            connection.close()
    end = time.monotonic() + 20
    while server.client.post("/predict", content=b" " * 250_000 + BODY).status_code != 200:
        assert time.monotonic() < end, "what was in flight was never given back"


def test_client_that_leaves_in_its_body_leaves_nothing_behind(server: Server) -> None:
    before = server.client.get("/metrics").text
    for _ in range(20):
        with server.connect() as connection:
            connection.sendall(server.head("Content-Type: application/json", "Content-Length: 300000") + b" " * 150_000)
    assert server.client.post("/predict", json={"rows": [ROW]}).status_code == 200
    assert "/predict" in before


@pytest.mark.parametrize("origin", [(), ("Origin: http://evil.example",), ("Origin: http://127.0.0.1",)])
@pytest.mark.parametrize("path", ["/", "/predict", "/none"])
def test_no_websocket_is_answered(server: Server, origin: tuple[str, ...], path: str) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    said = server.say(server.head(*upgrade, key, *origin, request=f"GET {path}"))
    assert not said.startswith(b"HTTP/1.1 101")
    assert re.match(rb"HTTP/1\.1 (403|404|426) ", said)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /?" + b"q" * 9_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", b"414"),
        (b"GET /" + b"p" * 9_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"421"),
        (b"GET / HTTP/1.0\r\n\r\n", b"421"),
        (b"GET /livez HTTP/1.0\r\n\r\n", b"200"),
        (b"BREW /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"400"),
    ],
)
def test_head_that_is_too_long_or_names_no_host_is_refused(server: Server, head: bytes, status: bytes) -> None:
    assert server.say(head).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/predict", "POST"), ("DELETE", "/predict", "POST"), ("POST", "/livez", "GET, HEAD")],
)
def test_another_method_than_the_route_has_is_refused(serving: Any, method: str, path: str, allowed: str) -> None:
    answer = serving().request(method, path)
    assert refusal(answer) == (405, "method_not_allowed") and answer.headers["Allow"] == allowed


def test_unknown_paths_share_one_label(server: Server) -> None:
    ask_unknown_paths(server, 104)
    before = metric_lines(server)
    ask_unknown_paths(server, 312)
    assert metric_lines(server) == before
    assert not [line for line in before if "/predict/" in line or "xxx" in line]
    assert any(line.startswith("ml_unknown_paths_total") for line in before)


def test_pages_and_mounted_files_are_still_there(server: Server) -> None:
    page = server.client.get("/")
    assert page.status_code == 200
    for path in set(re.findall(r'(?:src|href)="\./([^"]+)"', page.text)):
        assert server.client.get(f"/{path}").status_code == 200, path
    assert server.client.get("/docs.json").status_code == server.client.get("/schema.json").status_code == 200


# --- connections -----------------------------------------------------------------------------------------------------


async def answer_at_once(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def run_protocol() -> Iterator[int]:
    """Run an application that reads no body behind our protocol; yield its port."""
    from ondol_serving.protocol import HttpProtocol

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(answer_at_once, http=HttpProtocol, ws="none", lifespan="off", log_level="critical")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not running.started:
                time.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(20)


def test_connection_is_ended_that_leaves_something_unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    from ondol_serving import protocol

    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "_find_refusal", None)
    with run_protocol() as port:

        def say(*pieces: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                for piece in pieces:
                    try:
                        connection.sendall(piece)
                    except (BrokenPipeError, ConnectionResetError):
                        break
                return read_to_the_end(connection)

        whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        assert say(b"") == b""
        assert say(b"GET / HT").startswith(b"HTTP/1.1 408 ")
        after = say(whole, b"GET / HTTP/1.1\r\nX: y")
        assert after.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in after
        assert say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{").count(b"HTTP/1.1") == 1
        endless = [b"GET / HTTP/1.1\r\nX: "] + [b"x" * 60_000] * 40
        assert b"HTTP/1.1 200" not in say(*endless)
        # A connection that continues is not ended.
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            for _ in range(4):
                connection.sendall(whole)
                assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
                time.sleep(0.2)


def test_request_that_is_refused_at_its_head_is_answered_late_and_its_body_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ondol_serving import protocol

    asked: list[tuple[bytes, bytes]] = []

    def find(method: bytes, target: bytes) -> bytes | None:
        asked.append((method, target))
        return b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy" if method == b"POST" else None

    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "REFUSAL_SECONDS", 0.2)
    monkeypatch.setattr(protocol, "_find_refusal", find)
    get = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
    last = get.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    def post(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
        lines = [b"POST /y?z HTTP/1.1", b"Host: x", b"Content-Length: %d" % (len(body) if length is None else length)]
        return b"\r\n".join([*lines, *headers, b"", body])

    with run_protocol() as port:

        def say(*pieces: bytes) -> list[bytes]:
            """Send the pieces, each after the answer to the one before; return the statuses until the end."""
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                said = b""
                for piece in pieces:
                    connection.sendall(piece)
                    said += connection.recv(10_000)
                said += read_to_the_end(connection)
            return re.findall(rb"HTTP/1.1 (\d+)", said)

        assert say(get, post(b"{}"), get, post(b"{}"), last) == [b"200", b"503", b"200", b"503", b"200"]
        assert asked[:2] == [(b"GET", b"/x"), (b"POST", b"/y?z")]
        assert say(post(b"{}", b"Connection: close")) == [b"503"]
        assert say(post(b"x" * 300_000), last) == [b"503", b"200"]
        assert say(post(b"{}") + post(b"{}") + last) == [b"503", b"503", b"200"]  # sent without waiting
        started = time.monotonic()
        assert say(post(b"{", length=9)) == [b"503"]  # and the connection is ended, since the rest does not come
        assert time.monotonic() - started > 0.5
        with socket.create_connection(("127.0.0.1", port), 30) as left:
            left.sendall(post(b"{}"))
        time.sleep(0.3)
        leaving = socket.create_connection(("127.0.0.1", port), 30)
        leaving.sendall(post(b"{}"))
        time.sleep(0.05)
    with leaving:  # the server stops: it answers before it closes
        assert read_to_the_end(leaving).startswith(b"HTTP/1.1 503 ")


# --- OpenAPI ---------------------------------------------------------------------------------------------------------

CELL = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["서울", "2021-02-03", 3.5e38, -3.5e38, 1e300, 10**400, "", " ", [], {}])
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_answers_are_those_that_openapi_declares(client: TestClient, data: st.DataObject) -> None:
    document = client.get("/docs.json").json()
    row = {name: data.draw(CELL) if data.draw(st.booleans()) else value for name, value in ROW.items()}
    row |= data.draw(st.dictionaries(st.sampled_from(["고객 번호", "target", "none such"]), CELL, max_size=2))
    body = data.draw(
        st.sampled_from([{"rows": [row]}, {"rows": [ROW, row]}, {"rows": row}, {}, [], {"rows": [], "x": 1}])
    )
    headers = JSON_TYPE | data.draw(
        st.sampled_from([{}, {}, {}, {"Content-Type": "text/plain"}, {"Host": "evil.example"}, {"Origin": "null"}])
    )
    content = json.dumps(body) + " " * data.draw(st.sampled_from([0, 0, 0, 60_000]))
    answer = client.post("/predict", content=content, headers=headers)
    operation = document["paths"]["/predict"]["post"]
    declared = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
    assert answer.headers["content-type"].partition(";")[0] == "application/json"
    jsonschema.validate(answer.json(), declared | {"components": document["components"]})
    if answer.status_code == 200:
        request = operation["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, request | {"components": document["components"]})


def test_openapi_declares_each_refusal_and_the_largest_numbers(serving: Any) -> None:
    document = serving().get("/docs.json").json()
    responses = document["paths"]["/predict"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "403", "408", "409", "413", "415", "421", "429", "500", "503"}
    assert document["components"]["schemas"]["Error"]["properties"]["detail"]["type"] == "array"
    row = document["components"]["schemas"]["Row"]["properties"]
    numbers = [
        s for shown in row.values() for s in (shown, *shown.get("anyOf", ())) if s.get("type") in ("number", "integer")
    ]
    assert len(numbers) == 3
    for shown in numbers:
        low = shown.get("minimum", shown.get("exclusiveMinimum"))
        high = shown.get("maximum", shown.get("exclusiveMaximum"))
        assert low > -3.5e39 and high < 3.5e39  # one of them has the scale 10


def test_service_and_project_have_the_same_default_limits() -> None:
    from ondol.config import Service
    from ondol_serving.settings import Limits

    assert (
        Service().model_dump(exclude={"host", "port", "workers", "grpc_port", "certificate", "certificate_key"})
        == Limits().model_dump()
    )
