"""Who may use the service: keys, tokens, scopes and rates."""

import asyncio
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from redis import Redis
from redis.exceptions import RedisError
from service_support import ROW, TestClient, bundle_files, compile_model, crown, fit, write_bundle

from ondol.config import load_settings
from ondol.errors import UserError
from ondol.registry.keys import add_key, read_keys, revoke_key
from ondol.storage.files import Damaged
from ondol.storage.store import Store
from ondol_serving import access as module
from ondol_serving.access import Access, SharedBuckets, find_listening_host, require_access_control
from ondol_serving.errors import RequestRefused
from ondol_serving.keys import KEYS_FILE, SCOPES, find_key
from ondol_serving.settings import AccessRules

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROUTES = [
    ("POST", "/predict", "predict"),
    ("GET", "/model", None),
    ("GET", "/", None),
    ("GET", "/docs.json", None),
    ("GET", "/schema.json", None),
    ("GET", "/static_content/swagger-ui.css", None),
    ("GET", "/v2", None),
    ("GET", "/v2/models/model", None),
    ("GET", "/v2/models/model/versions/7", None),
]
HEALTH = ["/livez", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v2/models/model/ready"]
TRICKS = ["//predict", "/predict/", "/PREDICT", "/predict%00", "/predict%0A", "/./predict", "/predict;a", "/%2Fpredict"]
ISSUER, AUDIENCE = "https://issuer.example", "churn"


@pytest.fixture(scope="module")
def model() -> bytes:
    return compile_model(fit("binary"), "binary")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def controlled(
    serve_store: Callable[[Path], TestClient], model: bytes, store: Store, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TestClient]:
    """Let the application serve a model with these settings of access control, and the keys of the store."""
    from ondol_serving.serving import serving as state

    crown(store.folder, *write_bundle(store.folder, bundle_files("7", "binary", model)))
    monkeypatch.setenv("ML_STORE", str(store.folder))  # `Access` reads it
    before = state.access

    def start(**rules: str) -> TestClient:
        for name, value in rules.items():
            monkeypatch.setenv(f"ML_ACCESS__{name.upper()}", value)
        state.access = Access()
        return serve_store(store.folder)

    monkeypatch.setattr(state, "access", before)  # restored at the end
    return start


def ask(client: TestClient, method: str, path: str, **headers: str) -> Any:
    body = json.dumps({"rows": [ROW]}).encode() if method == "POST" else None
    given = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
    if body:
        given["Content-Type"] = b"application/json"
    return client.request(method, path, content=body, headers=given)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# --- keys ------------------------------------------------------------------------------------------------------------


def test_only_the_hash_of_a_key_is_stored(store: Store) -> None:
    text, key = add_key(store, "청구 서비스", ("predict",), None)
    content = (store.folder / KEYS_FILE).read_text(encoding="utf-8")
    assert text not in content and text.split("_", 2)[2] not in content
    assert find_key(read_keys(store), text) == key == read_keys(store)[0]
    assert key.name == "청구 서비스"


def test_engine_and_service_name_the_same_file() -> None:
    from ondol.storage.files import KEYS_FILE as OF_THE_ENGINE

    assert KEYS_FILE == OF_THE_ENGINE


def test_two_keys_are_valid_at_once_until_one_is_revoked(store: Store) -> None:
    old, old_key = add_key(store, "billing", ("predict",), None)
    new, new_key = add_key(store, "billing", ("predict", "metrics"), 30)
    assert (find_key(read_keys(store), old), find_key(read_keys(store), new)) == (old_key, new_key)
    revoke_key(store, old_key.id)
    assert (find_key(read_keys(store), old), find_key(read_keys(store), new)) == (None, new_key)
    with pytest.raises(UserError, match="is revoked already, since"):
        revoke_key(store, old_key.id)
    with pytest.raises(UserError, match="There is no key 00000000"):
        revoke_key(store, "00000000")


def test_expired_key_is_not_found(store: Store) -> None:
    text, _ = add_key(store, "billing", ("predict",), 0)
    assert find_key(read_keys(store), text) is None


def test_keys_with_a_time_without_a_zone_are_damaged(store: Store) -> None:
    add_key(store, "billing", ("predict",), 30)
    path = store.folder / KEYS_FILE
    path.write_text(path.read_text(encoding="utf-8").replace("+00:00", ""), encoding="utf-8")
    with pytest.raises(Damaged, match="has a time without a zone"):
        read_keys(store)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"keys": {}}', '{"keys": [{"id": "1"}]}', '{"keys": [1]}'])
def test_damaged_keys_are_one_sentence(store: Store, content: str) -> None:
    (store.folder / KEYS_FILE).write_text(content)
    with pytest.raises(Damaged, match=r"access\.json was changed or damaged .*: restore it from a backup"):
        read_keys(store)


# --- routes ----------------------------------------------------------------------------------------------------------


def test_without_keys_nothing_is_asked_for(controlled: Any) -> None:
    client = controlled()
    assert [ask(client, method, path).status_code for method, path, _ in ROUTES] == [200] * len(ROUTES)


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_each_route_needs_a_valid_key_of_its_scope(
    controlled: Any, store: Store, method: str, path: str, scope: str | None
) -> None:
    keys = {name: add_key(store, name, (name,), None)[0] for name in SCOPES}
    expired, _ = add_key(store, "expired", ("admin",), 0)
    revoked, key = add_key(store, "revoked", ("admin",), None)
    revoke_key(store, key.id)
    client = controlled()
    wrong = [keys["admin"][:-1] + "x", "ondol_00000000_" + "a" * 43, expired, revoked, "x", "é" * 50, "a.b.c"]
    assert ask(client, method, path).status_code == 401
    assert {ask(client, method, path, **bearer(text)).status_code for text in wrong} == {401}
    allowed = {name for name, text in keys.items() if ask(client, method, path, **bearer(text)).status_code == 200}
    assert allowed == (set(keys) if scope is None else {scope, "admin"})
    assert {ask(client, method, path, **bearer(keys[name])).status_code for name in keys.keys() - allowed} <= {403}


@pytest.mark.parametrize("path", HEALTH)
def test_health_checks_need_no_key(controlled: Any, store: Store, path: str) -> None:
    add_key(store, "billing", ("predict",), None)
    assert ask(controlled(), "GET", path).status_code == 200


@pytest.mark.parametrize("path", [*TRICKS, "/v2/models/model/infer", "/v2/models/model/versions/7/infer"])
@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "OPTIONS"])
def test_no_other_way_leads_to_a_prediction(controlled: Any, store: Store, method: str, path: str) -> None:
    add_key(store, "billing", ("predict",), None)
    client = controlled()
    answer = client.request(
        method, path, content=json.dumps({"rows": [ROW]}), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (401, 404, 405)


def test_repeated_credentials_are_refused(controlled: Any, store: Store) -> None:
    text, _ = add_key(store, "billing", ("predict",), None)
    client = controlled()
    given = [(b"Authorization", f"Bearer {text}".encode())] * 2 + [(b"Content-Type", b"application/json")]
    body = json.dumps({"rows": [ROW]}).encode()
    assert client.request("POST", "/predict", content=body, headers=given).status_code == 401
    mixed = {"Authorization": f"Bearer {text}", "X-API-Key": "of the gateway", "Content-Type": "application/json"}
    assert client.request("POST", "/predict", content=body, headers=mixed).status_code == 200


def test_key_is_read_from_other_headers_too(controlled: Any, store: Store) -> None:
    import base64

    text, _ = add_key(store, "billing", ("predict",), None)
    client = controlled()
    basic = base64.b64encode(f"anyone:{text}".encode()).decode()
    assert ask(client, "POST", "/predict", X_API_Key=text).status_code == 200
    assert ask(client, "POST", "/predict", Authorization=f"basic {basic}").status_code == 200
    refused = ask(client, "POST", "/predict", Authorization="Basic ???")
    assert (refused.status_code, refused.json()["detail"][0]["type"]) == (401, "no_key")
    assert refused.headers["www-authenticate"] == 'Bearer realm="model", Basic realm="model"'


def test_revoked_key_stops_when_the_file_is_read_again(controlled: Any, store: Store) -> None:
    from ondol_serving.serving import serving as state

    text, key = add_key(store, "billing", ("predict",), None)
    client = controlled()
    assert ask(client, "POST", "/predict", **bearer(text)).status_code == 200
    revoke_key(store, key.id)
    state.access.refresh()
    assert ask(client, "POST", "/predict", **bearer(text)).status_code == 401


@pytest.mark.parametrize("damage", ["missing", "empty", "not json"])
def test_keys_that_cannot_be_read_again_stay_valid_and_open_nothing(
    controlled: Any, store: Store, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    from ondol_serving.serving import serving as state

    text, _ = add_key(store, "billing", ("predict",), None)
    client = controlled()
    path = store.folder / KEYS_FILE
    path.unlink()
    if damage != "missing":
        path.write_text("" if damage == "empty" else "{")
    state._access_complaint = ""
    with caplog.at_level(logging.ERROR):
        state._refresh_access()
    assert "keys" in caplog.text and "access.json" in caplog.text
    assert ask(client, "POST", "/predict").status_code == 401
    assert ask(client, "POST", "/predict", **bearer(text)).status_code == 200


def test_a_damaged_file_at_the_start_is_refused_and_not_taken_for_no_keys(store: Store, controlled: Any) -> None:
    (store.folder / KEYS_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"access\.json was changed or damaged \(.*\): restore it"):
        controlled()


def test_no_key_is_in_a_log_or_an_answer(controlled: Any, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    text, _ = add_key(store, "billing", ("metrics",), None)
    client = controlled()
    with caplog.at_level(logging.DEBUG):
        answers = [ask(client, "POST", "/predict", **bearer(sent)) for sent in (text, text[:-1] + "x")]
    logged = (
        "".join(path.read_text() for path in (store.folder / "log").glob("*"))
        if (store.folder / "log").exists()
        else ""
    )
    for content in (caplog.text, logged, *(answer.text for answer in answers), str(answers[0].headers)):
        assert text not in content and text[:-1] not in content


# --- rates -----------------------------------------------------------------------------------------------------------


class Clock:
    """The time that `ondol_serving.access` sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def test_rate_is_of_each_caller_and_fills_again(controlled: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (add_key(store, name, ("predict",), None)[0] for name in ("one", "other"))
    client, clock = controlled(rate="3/minute"), Clock(monkeypatch)
    assert [ask(client, "POST", "/predict", **bearer(one)).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = ask(client, "POST", "/predict", **bearer(one))
    assert refused.headers["retry-after"] == "20"
    assert refused.json()["error"] == "This caller has sent more than 3 requests in 60 s: try again in 20 s"
    assert ask(client, "POST", "/predict", **bearer(other)).status_code == 200
    clock.now += 20.0
    assert [ask(client, "POST", "/predict", **bearer(one)).status_code for _ in range(2)] == [200, 429]


def test_rate_without_keys_is_of_an_address(controlled: Any) -> None:
    client = controlled(rate="2/hour")
    assert [ask(client, "POST", "/predict").status_code for _ in range(3)] == [200, 200, 429]
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("rate", ["0/second", "x/second", "3/day", "3", "-1/second"])
def test_a_rate_that_cannot_be_read_is_refused(controlled: Any, rate: str) -> None:
    with pytest.raises(ValueError, match=r'setting ML_ACCESS__RATE is .*: a rate is written as "100/second"'):
        controlled(rate=rate)


def test_callers_are_forgotten_beyond_a_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ML_STORE", str(tmp_path))
    monkeypatch.setenv("ML_ACCESS__RATE", "5/second")
    monkeypatch.setattr(module, "CALLERS_KEPT", 10)
    control = Access()
    for number in range(100):
        control._take(str(number))
    assert len(control._buckets) == 10


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a Redis server."""
    address = "redis://127.0.0.1:6379/9"
    try:
        Redis.from_url(address).ping()
    except RedisError:
        pytest.skip("no Redis server runs on this machine")
    return address


async def close(shared: SharedBuckets) -> None:
    await shared._script.registered_client.connection_pool.disconnect()


def take(rules: dict[str, str], names: list[str], processes: int = 1) -> list[float | None]:
    """Return the seconds that each request has to wait; processes of a service get them in turn."""

    async def take_all() -> list[float | None]:
        shared = [SharedBuckets(AccessRules.model_validate(rules)) for _ in range(processes)]
        waits = [await shared[at % processes].take(name) for at, name in enumerate(names)]
        for one in shared:
            await close(one)
        return waits

    return asyncio.run(take_all())


def admit(requests: int, client: str = "10.0.0.1") -> list[tuple[int, str]]:
    """Return the status of each request of a caller in one process, and after how many seconds it may try again."""

    async def admit_all() -> list[tuple[int, str]]:
        control, answers = Access(), []
        for _ in range(requests):
            try:
                await control.admit("/predict", {}, client)
                answers.append((200, ""))
            except RequestRefused as refused:
                answers.append((refused.answer.status_code, refused.answer.headers["Retry-After"]))
        assert control._shared is not None
        await close(control._shared)
        return answers

    return asyncio.run(admit_all())


def test_processes_share_a_rate_by_redis(redis: str) -> None:
    one, other = f"jwt:가-{uuid4()}", f"10.0.0.1 {uuid4()}"
    rules = {"rate": "6/hour", "redis": redis}
    waits = take(rules, [one] * 8, processes=3)
    assert waits[:6] == [0.0] * 6 and all(0 < (wait or 0) <= 600 for wait in waits[6:])
    assert take(rules, [other, one])[0] == 0.0  # each caller has a bucket, which outlives a process


@pytest.mark.parametrize(("left", "seconds", "free"), [(0.5, 720, 1), (0.0, 1_000_000, 3), (2.5, 0, 2)])
def test_buckets_in_redis_fill_continuously_up_to_the_rate(redis: str, left: float, seconds: float, free: int) -> None:
    """Three requests in an hour are one in 1,200 seconds."""
    name = str(uuid4())
    with Redis.from_url(redis) as client:
        now = client.time()[0]
        client.hset(f"ondol:rate:{name}", mapping={"left": left, "since": now - seconds})
        waits = take({"rate": "3/hour", "redis": redis}, [name] * (free + 1))
        assert waits[:free] == [0.0] * free and 0 < (waits[free] or 0) <= 1200
        assert 0 < client.ttl(f"ondol:rate:{name}") <= 3600  # when it is full again, Redis forgets it


def test_requests_beyond_a_shared_rate_are_refused(redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STORE": str(tmp_path), "ACCESS__RATE": "3/hour", "ACCESS__REDIS": redis}.items():
        monkeypatch.setenv(f"ML_{name}", value)
    client = str(uuid4())
    assert [status for status, _ in admit(2, client) + admit(2, client)] == [200, 200, 200, 429]
    [(status, after)] = admit(1, client)
    assert status == 429 and 0 < int(after) <= 1200


def test_without_an_answer_of_redis_each_process_limits_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ML_STORE", str(tmp_path))
    monkeypatch.setenv("ML_ACCESS__RATE", "3/hour")
    monkeypatch.setenv("ML_REDIS_PASSWORD", "s3cret")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts connections and never answers
        monkeypatch.setenv("ML_ACCESS__REDIS", f"redis://127.0.0.1:{silent.getsockname()[1]}")
        with caplog.at_level(logging.WARNING, "bentoml.service"):
            assert [status for status, _ in admit(4)] == [200, 200, 200, 429]
    [said] = [record.getMessage() for record in caplog.records]  # it is asked once
    assert said.startswith("Redis (ML_ACCESS__REDIS) does not answer, so each process limits callers by itself: ")
    assert "s3cret" not in said


def test_redis_is_asked_again_after_a_while(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def take_again() -> list[float | None]:
        rules = AccessRules.model_validate({"rate": "3/hour", "redis": "redis://127.0.0.1:1"})
        shared, name = SharedBuckets(rules), str(uuid4())
        waits = [await shared.take(name)]
        shared._script = SharedBuckets(rules.model_copy(update={"redis": redis}))._script  # Redis is back
        for _ in range(2):
            waits.append(await shared.take(name))
            clock.now += module.REDIS_RETRY_SECONDS
        await close(shared)
        return waits

    clock = Clock(monkeypatch)
    assert asyncio.run(take_again()) == [None, None, 0.0]


@pytest.mark.parametrize(
    "address",
    ["redis://:s3cret@10.0.0.5", "redis://me:s3@cret@10.0.0.5/0", "http://10.0.0.5", "10.0.0.5:6379", "redis://h?db=1"],
)
def test_an_address_of_redis_with_a_password_is_refused(
    address: str, controlled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"ML_ACCESS__REDIS is .*a password is set by ML_REDIS_PASSWORD") as refused:
        controlled(rate="5/second", redis=address)
    (tmp_path / "config.toml").touch()
    with pytest.raises(UserError, match="a password is set by ML_REDIS_PASSWORD") as refused_too:
        load_settings(tmp_path)
    assert "s3cret" not in f"{refused.value} {refused_too.value}"


def test_redis_without_its_library_is_one_sentence(controlled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ValueError, match=r"needs a library: run `uv add --group service 'ondol-serving\[redis\]'`"):
        controlled(rate="5/second", redis="redis://127.0.0.1:6379")


# --- tokens ----------------------------------------------------------------------------------------------------------


class Issuer:
    """A server of public keys, and the private keys that belong to them."""

    def __init__(self) -> None:
        self.keys = {"first": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.reads = 0
        self.is_down = False
        self.content: bytes | None = None
        issuer = self

        class Jwks(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.reads += 1
                public = [
                    json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"}
                    for kid, key in issuer.keys.items()
                ]
                body = issuer.content or json.dumps({"keys": public}).encode()
                self.send_response(500 if issuer.is_down else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Jwks)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def sign(self, kid: str = "first", key: Any = None, algorithm: str = "RS256", **claims: Any) -> str:
        content = {
            "sub": "billing",
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": datetime.now(UTC) + timedelta(minutes=5),
            "scope": "predict profile",
        }
        content = {name: value for name, value in (content | claims).items() if value is not None}
        return jwt.encode(content, key or self.keys[kid], algorithm, headers={"kid": kid})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    started = Issuer()
    yield started
    started.server.shutdown()
    started.server.server_close()


@pytest.fixture
def by_token(controlled: Any, issuer: Issuer) -> TestClient:
    client: TestClient = controlled(jwks=issuer.url, issuer=ISSUER, audience=AUDIENCE)
    return client


def test_valid_token_is_verified_once(by_token: TestClient, issuer: Issuer) -> None:
    token = issuer.sign()
    assert [ask(by_token, "POST", "/predict", **bearer(token)).status_code for _ in range(3)] == [200] * 3
    assert issuer.reads == 1
    assert ask(by_token, "POST", "/predict", **bearer(issuer.sign(scope="profile"))).status_code == 403
    assert ask(by_token, "POST", "/predict").status_code == 401


@pytest.mark.parametrize("claim", [{"scope": None, "scp": ["predict"]}, {"scope": None, "scopes": "predict"}])
def test_scopes_are_read_from_other_claims_too(by_token: TestClient, issuer: Issuer, claim: dict[str, Any]) -> None:
    assert ask(by_token, "POST", "/predict", **bearer(issuer.sign(**claim))).status_code == 200


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": datetime.now(UTC) - timedelta(minutes=5)},
        {"exp": None},
        {"sub": None},
        {"iss": "https://other.example"},
        {"aud": "other"},
        {"nbf": datetime.now(UTC) + timedelta(days=1)},
    ],
    ids=lambda claims: next(iter(claims)),
)
def test_token_with_a_wrong_claim_is_refused(by_token: TestClient, issuer: Issuer, claims: dict[str, Any]) -> None:
    assert ask(by_token, "POST", "/predict", **bearer(issuer.sign(**claims))).status_code == 401


def test_token_that_another_key_or_no_key_signed_is_refused(by_token: TestClient, issuer: Issuer) -> None:
    foreign = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    unsigned = jwt.encode({"sub": "x"}, None, "none", headers={"kid": "first"})
    by_secret = jwt.encode({"sub": "x"}, "s" * 40, "HS256", headers={"kid": "first"})
    for token in (issuer.sign(key=foreign), unsigned, by_secret, "a.b.c", "..", "e30.e30.e30"):
        assert ask(by_token, "POST", "/predict", **bearer(token)).status_code == 401, token


def test_token_ends_at_its_time_although_it_was_verified(by_token: TestClient, issuer: Issuer) -> None:
    token = issuer.sign(exp=datetime.now(UTC) + timedelta(seconds=2))
    assert ask(by_token, "POST", "/predict", **bearer(token)).status_code == 200
    time.sleep(3)
    assert ask(by_token, "POST", "/predict", **bearer(token)).status_code == 401


def state_tokens() -> Any:
    from ondol_serving.serving import serving as state

    return state.access._tokens


def test_new_key_of_the_issuer_is_found_but_unknown_ones_do_not_flood_it(by_token: TestClient, issuer: Issuer) -> None:
    ask(by_token, "POST", "/predict", **bearer(issuer.sign()))
    issuer.keys["second"] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert ask(by_token, "POST", "/predict", **bearer(issuer.sign("second"))).status_code == 401
    state_tokens()._tried -= module.RETRY_SECONDS
    assert ask(by_token, "POST", "/predict", **bearer(issuer.sign("second"))).status_code == 200
    reads = issuer.reads
    for _ in range(5):
        token = issuer.sign("first", key=issuer.keys["second"])
        unknown = jwt.encode({"sub": "x"}, issuer.keys["first"], "RS256", headers={"kid": "unknown"})
        assert {ask(by_token, "POST", "/predict", **bearer(t)).status_code for t in (token, unknown)} == {401}
    assert issuer.reads == reads


@pytest.mark.parametrize("content", [None, b"<html>", b"[]", b"{}", b'{"keys": []}'])
def test_issuer_that_is_down_or_answers_something_else_is_answered_503(
    by_token: TestClient, issuer: Issuer, content: bytes | None
) -> None:
    issuer.is_down, issuer.content = content is None, content
    for _ in range(3):
        answer = ask(by_token, "POST", "/predict", **bearer(issuer.sign()))
        assert (answer.status_code, answer.json()["detail"][0]["type"]) == (503, "no_issuer")
    assert issuer.reads == 1


def test_keys_that_were_read_stay_valid_while_the_issuer_is_down(by_token: TestClient, issuer: Issuer) -> None:
    ask(by_token, "POST", "/predict", **bearer(issuer.sign()))
    issuer.is_down = True
    state_tokens()._read -= module.REREAD_SECONDS + 1
    state_tokens()._tried -= module.REREAD_SECONDS + 1
    assert ask(by_token, "POST", "/predict", **bearer(issuer.sign(sub="another"))).status_code == 200


def test_tokens_need_an_audience_and_open_only_what_their_scopes_name(controlled: Any, issuer: Issuer) -> None:
    with pytest.raises(ValueError, match="ML_ACCESS__AUDIENCE is None: tokens need an audience"):
        controlled(jwks=issuer.url)
    client = controlled(jwks=issuer.url, audience=AUDIENCE)
    assert ask(client, "GET", "/model", **bearer(issuer.sign(scope="openid profile"))).status_code == 403
    assert ask(client, "GET", "/model", **bearer(issuer.sign(scope="openid predict"))).status_code == 200


def test_keys_are_valid_beside_tokens(controlled: Any, store: Store, issuer: Issuer) -> None:
    text, _ = add_key(store, "billing", ("predict",), None)
    client = controlled(jwks=issuer.url, audience=AUDIENCE)
    answers = [ask(client, "POST", "/predict", **bearer(one)).status_code for one in (text, issuer.sign(iss="any"))]
    assert answers == [200, 200]


# --- the start -------------------------------------------------------------------------------------------------------

SERVE = ["/opt/venv/bin/bentoml", "serve", "service.service:Service"]


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        ([*SERVE, "--host", "0.0.0.0", "--port", "3000"], "0.0.0.0"),
        ([*SERVE, "--host=10.0.0.5"], "10.0.0.5"),
        (SERVE, "0.0.0.0"),  # BentoML's default
        ([*SERVE, "--host", "127.0.0.1"], "127.0.0.1"),
        (["/opt/venv/bin/pytest"], None),
        (["/opt/venv/bin/ml", "serve"], None),
        ([""], None),
    ],
)
def test_address_is_found_in_the_arguments_of_bentoml(arguments: list[str], host: str | None) -> None:
    assert find_listening_host(arguments) == host


def test_address_of_the_environment_comes_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOST", "127.0.0.1")
    assert find_listening_host(SERVE) == "127.0.0.1"
    assert find_listening_host([*SERVE, "--host", "0.0.0.0"]) == "0.0.0.0"


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "::", "churn.example.com"])
def test_service_for_other_machines_refuses_to_start_without_access_control(
    store: Store, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("ML_STORE", str(store.folder))
    monkeypatch.setattr(module.sys, "argv", [*SERVE, "--host", host])
    with pytest.raises(
        SystemExit, match=f"^The service would listen on {host}, where other machines can reach it"
    ) as end:
        require_access_control()
    assert "`ml keys create NAME`" in str(end.value) and "ML_ACCESS__OPEN=true" in str(end.value)
    monkeypatch.setenv("ML_ACCESS__OPEN", "true")
    require_access_control()
    monkeypatch.delenv("ML_ACCESS__OPEN")
    monkeypatch.setenv("ML_ACCESS__JWKS", "https://issuer.example/jwks")
    monkeypatch.setenv("ML_ACCESS__AUDIENCE", "churn")
    require_access_control()
    monkeypatch.delenv("ML_ACCESS__JWKS")
    add_key(store, "billing", ("predict",), None)
    require_access_control()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_service_of_this_machine_starts(store: Store, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("ML_STORE", str(store.folder))
    monkeypatch.setattr(module.sys, "argv", [*SERVE, "--host", host])
    require_access_control()
    monkeypatch.setenv("ML_ACCESS__RATE", "fast")
    with pytest.raises(SystemExit, match=r"^Access control cannot be set up: .*ML_ACCESS__RATE is 'fast'"):
        require_access_control()


def test_explanations_need_their_own_scope_also_in_predict(controlled: Any, store: Store) -> None:
    keys = {name: add_key(store, name, (name,), None)[0] for name in SCOPES}
    both = add_key(store, "both", ("predict", "explain"), None)[0]
    client = controlled()
    plain, explained = {"rows": [ROW]}, {"rows": [ROW], "explain": True}

    def status(path: str, body: dict[str, Any], key: str) -> int:
        return int(client.post(path, json=body, headers=bearer(key)).status_code)

    # The bundle of these tests has no explanation, and says so to those who may have one.
    assert {name for name, key in keys.items() if status("/explain", plain, key) == 409} == {"explain", "admin"}
    assert {name for name, key in keys.items() if status("/explain", plain, key) == 403} == {"predict", "metrics"}
    assert status("/predict", plain, keys["predict"]) == 200
    assert status("/predict", explained, keys["predict"]) == 403
    assert status("/predict", explained, keys["explain"]) == 403
    assert status("/predict", explained, both) == 409
    assert client.post("/explain", json=plain).status_code == 401
