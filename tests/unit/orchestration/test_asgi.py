"""What Prefect and MLflow answer, and to whom: their applications behind `ondol.orchestration.asgi`."""

import asyncio
import base64
import os
from pathlib import Path
from typing import Any

import pytest

from ondol.config import HOSTS_SETTING, load_settings
from ondol.errors import UserError
from ondol.orchestration import asgi
from ondol.orchestration.asgi import RequireLogin, SameOrigin
from ondol_serving.callers import refuse_caller
from ondol_serving.settings import HOSTS, read_limits

FORMS = [
    "text/plain",
    "text/plain;charset=UTF-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """An application that welcomes everybody."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def ask(
    method: str = "GET",
    path: str = "/api/flows",
    kind: str = "http",
    hosts: tuple[str, ...] = (),
    server: tuple[str, int] | None = None,
    app: Any = None,
    **headers: str,
) -> dict[str, Any]:
    """Return the first message of the answer to a request; header names are written with `_`."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect" if kind == "websocket" else "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:4200"} | headers
    raw = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in given.items() if value]
    scope = {"type": kind, "path": path, "headers": raw, "server": server} | (
        {"method": method} if kind == "http" else {}
    )
    app = app or SameOrigin(hello, hosts, ("/api/health",), json_only=True)
    asyncio.run(app(scope, receive, send))
    return sent[0]


def status(**request: Any) -> int:
    return int(ask(**request)["status"])


@pytest.mark.parametrize("host", ["127.0.0.1:4200", "localhost:4200", "[::1]:4200", "LOCALHOST", "127.0.0.5:80"])
def test_loopback_names_are_answered(host: str) -> None:
    assert status(host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example:4200", "127.0.0.1.evil.example", "10.evil.example:4200", "localhost.evil.example", ""),
        *("evil.example@127.0.0.1:4200", "0.0.0.0:4200", "192.168.0.7:4200", "127.0.0.1:x", "127.0.0.1:4200/x", "["),
    ],
)
def test_other_hosts_are_refused(host: str) -> None:
    assert status(host=host) == 421


def test_hosts_of_the_settings_are_answered_with_and_without_a_port() -> None:
    hosts = ("ml.example.com", "prefect:4200")
    assert [status(host=host, hosts=hosts) for host in ("ml.example.com", "ML.example.com:8443", "prefect:4200")] == [
        200
    ] * 3
    assert [status(host=host, hosts=hosts) for host in ("prefect:80", "x.ml.example.com")] == [421] * 2


def test_names_of_a_domain_are_answered_and_any_host_does_not_mean_any_page() -> None:
    assert [status(host=host, hosts=("*.example.com",)) for host in ("a.example.com", "example.com")] == [200, 421]
    assert [status(host="a.example", origin=o, hosts=("*",)) for o in ("", "http://evil.example")] == [200, 403]


@pytest.mark.parametrize("wrong", ["https://ml.example.com", "ml.example.com/mlflow", "me@ml.example.com", "a b", "**"])
def test_invalid_host_is_refused_in_the_same_sentence_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    (tmp_path / "config.toml").touch()
    said = set()
    for section in ("ports", "service"):
        variable = f"ML_{section.upper()}__HOSTS"
        monkeypatch.setenv(variable, f"good.example,{wrong}")
        with pytest.raises(UserError) as refused:
            load_settings(tmp_path)
        monkeypatch.delenv(variable)
        said.add(str(refused.value).replace(section, "…"))
    assert len(said) == 1 and "NAME:PORT" in said.pop()
    monkeypatch.setenv("ML_PORTS__HOSTS", wrong)
    with pytest.raises(SystemExit, match=r"ML_PORTS__HOSTS is .*: a host is written as NAME"):
        asgi.prefect()
    monkeypatch.setenv("ML_SERVICE__HOSTS", wrong)
    with pytest.raises(ValueError, match=r"ML_SERVICE__HOSTS is .*: a host is written as NAME"):
        read_limits({})


def test_servers_and_service_refuse_a_host_alike() -> None:
    given = ("GET", {b"host": b"evil.example"}, None, ())
    servers, service = (refuse_caller(*given, setting) for setting in (HOSTS_SETTING, HOSTS))
    assert servers and service and servers.message.replace(HOSTS_SETTING, HOSTS) == service.message
    assert servers[:2] == service[:2] == (421, "foreign_host")
    assert status(host="evil.example") == 421


def test_address_at_which_the_request_arrived_is_answered() -> None:
    assert status(host="10.1.2.3:4200", server=("10.1.2.3", 4200)) == 200
    assert status(host="10.1.2.4:4200", server=("10.1.2.3", 4200)) == 421


def test_two_hosts_are_refused() -> None:
    assert status(host="127.0.0.1:4200", Host="evil.example") == 421


def test_probe_is_answered_under_any_host_and_nothing_else_is() -> None:
    assert status(host="10.1.2.3:4200", path="/api/health") == 200
    assert status(host="10.1.2.3:4200", path="/api/health", method="POST") == 421
    assert status(host="10.1.2.3:4200", path="/api/health/x") == 421


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "origin",
    [
        *("http://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:4200", "https://evil.example:4200"),
        *(
            "http://127.0.0.1:4200.evil.example",
            "http://evil.example@127.0.0.1:4200",
            "file://",
            "chrome-extension://abc",
        ),
        *("http://127.0.0.1:4200/", "http://[", "127.0.0.1:4200"),
    ],
)
def test_pages_of_another_origin_are_refused(method: str, origin: str) -> None:
    assert status(method=method, origin=origin) == 403


def test_own_pages_are_answered_under_each_name() -> None:
    for host in ("127.0.0.1:4200", "localhost:14200", "[::1]:4200"):
        assert status(method="POST", host=host, origin=f"http://{host}") == 200


def test_own_page_behind_a_proxy_that_replaces_the_host_is_answered() -> None:
    assert status(host="127.0.0.1:4200", origin="https://ml.example.com", hosts=("ml.example.com",)) == 200
    assert status(host="127.0.0.1:4200", origin="https://ml.example.com:8443", hosts=("ml.example.com",)) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_site_asks_for_without_an_origin_is_refused_but_a_link_is_followed(site: str) -> None:
    image = {"sec_fetch_site": site, "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}
    frame = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}
    link = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert [status(**said) for said in (image, frame, link)] == [403, 403, 200]
    assert status(method="POST", **link) == 403


@pytest.mark.parametrize("kind", FORMS)
def test_bodies_that_a_form_can_send_are_refused(kind: str) -> None:
    assert status(method="POST", content_type=kind, content_length="2") == 415
    assert status(method="PUT", content_type=kind, transfer_encoding="chunked") == 415


def test_untyped_body_is_refused_and_an_empty_one_is_not() -> None:
    assert status(method="POST", content_length="2") == 415
    assert status(method="POST", content_length="0") == 200
    assert status(method="POST") == 200


def test_programs_send_json() -> None:
    assert status(method="POST", content_type="application/json", content_length="2") == 200


@pytest.mark.parametrize(
    "headers, answer",
    [
        ({"origin": "http://127.0.0.1:4200"}, "websocket.accept"),
        ({}, "websocket.accept"),
        ({"origin": "http://evil.example"}, "websocket.close"),
        ({"origin": "null"}, "websocket.close"),
        ({"host": "evil.example:4200", "origin": "http://evil.example:4200"}, "websocket.close"),
    ],
)
def test_websockets_follow_the_same_rules(headers: dict[str, str], answer: str) -> None:
    assert ask(kind="websocket", path="/api/events/in", **headers)["type"] == answer


def test_answers_cannot_be_framed_by_other_sites() -> None:
    assert (b"content-security-policy", b"frame-ancestors 'self'") in ask()["headers"]
    assert (b"content-security-policy", b"frame-ancestors 'self'") in ask(host="evil.example")["headers"]


LOGIN = "ml:p@ss: 비밀"
GUARDED = RequireLogin(hello, LOGIN, ("/health",))


def basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


@pytest.mark.parametrize(
    "path", ["/", "/health/x", "/version", "/api/2.0/mlflow/runs/search", "/ajax-api/x", "//health"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_every_path_asks_for_the_login(path: str, method: str) -> None:
    refused = ask(method, path, app=GUARDED)
    assert refused["status"] == 401
    assert (b"www-authenticate", b'Basic realm="Ondol", charset="UTF-8"') in refused["headers"]
    assert status(method=method, path=path, app=GUARDED, authorization=basic(LOGIN)) == 200


@pytest.mark.parametrize(
    "shown",
    [
        *(basic(one) for one in ("ml:", "ml:p@ss", "x" + LOGIN, LOGIN + " ", LOGIN.replace("ml", "admin"), "")),
        *("Basic", "Basic !", f"Bearer {basic(LOGIN)[6:]}", basic(LOGIN)[6:], f"{basic(LOGIN)} x", "비밀"),
    ],
)
def test_another_login_is_refused(shown: str) -> None:
    assert status(app=GUARDED, authorization=shown) == 401
    assert ask(kind="websocket", app=GUARDED, authorization=shown)["type"] == "websocket.close"


def test_login_is_read_from_a_header_that_is_there_once() -> None:
    assert status(app=GUARDED, authorization=basic(LOGIN).replace("Basic", "basic")) == 200
    assert status(app=GUARDED, authorization=basic(LOGIN), Authorization="Basic eDp5") == 401
    assert ask(kind="websocket", app=GUARDED, authorization=basic(LOGIN))["type"] == "websocket.accept"


def test_probes_need_no_login() -> None:
    assert [status(method=method, path="/health", app=GUARDED) for method in ("GET", "HEAD", "POST")] == [200, 200, 401]


def test_secrets_of_a_container_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PGPASSWORD", "PREFECT_SERVER_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    asgi.read_secrets()
    assert "PGPASSWORD" not in os.environ
    (tmp_path / ".env").write_text(f"PREFECT_SERVER_API_AUTH_STRING='{LOGIN}'\n", encoding="utf-8")
    (tmp_path / "password").write_text(" ${HOME}비밀'\" \n", encoding="utf-8")
    monkeypatch.setenv("PGPASSWORD_FILE", str(tmp_path / "password"))
    asgi.read_secrets()
    assert os.environ["PREFECT_SERVER_API_AUTH_STRING"] == LOGIN
    assert os.environ["PGPASSWORD"] == " ${HOME}비밀'\" "


def handle(app: Any, body: tuple[bytes, ...] = (b"",)) -> tuple[list[int], bytes]:
    """Return the statuses and the body that a client of `RetryLocked(app)` receives for a POST in these parts."""
    parts = [{"type": "http.request", "body": part, "more_body": part is not body[-1]} for part in body]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(asgi.RetryLocked(app)({"type": "http", "path": "/api/flow_runs/"}, receive, send))
    return [m["status"] for m in sent if "status" in m], b"".join(m.get("body", b"") for m in sent)


class Locked:
    """An application that answers 503 a number of times, as Prefect does, and then with the body it was sent."""

    def __init__(self, times: int) -> None:
        self.times, self.asked = times, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer; Starlette raises the error after it was answered."""
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.asked += 1
        scope["path_params"] = {}  # as Starlette's router does
        locked = self.asked <= self.times
        await send({"type": "http.response.start", "status": 503 if locked else 201, "headers": []})
        await send({"type": "http.response.body", "body": b"Service Unavailable" if locked else body})
        if locked:
            raise RuntimeError("database is locked")


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_request_that_meets_a_locked_database_is_handled_again_with_its_body(times):
    app = Locked(times)
    assert handle(app, (b'{"name"', b': "\xed\x9a\x8c"}')) == ([201], b'{"name": "\xed\x9a\x8c"}')
    assert app.asked == times + 1


def test_a_database_that_stays_locked_is_reported_to_the_client(monkeypatch):
    monkeypatch.setattr(asgi, "RETRY_SECONDS", (0.0, 0.0))
    app = Locked(100)
    with pytest.raises(RuntimeError, match="locked"):
        handle(app)
    assert app.asked == 3


def test_other_errors_are_passed_on_at_once():
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        handle(broken)
