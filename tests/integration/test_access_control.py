"""Access control of real servers: how they start, and how soon a revoked key stops."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import RedisError
from service_server import TEMPLATE, serve, wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

from ondol.orchestration.guard import free_port
from ondol.registry.keys import add_key, revoke_key
from ondol.storage.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    crown(folder, *write_bundle(folder, bundle_files("7", "binary", compile_model(fit("binary"), "binary"))))
    return Store(folder)


@pytest.fixture(scope="module")
def keys(store: Store) -> dict[str, str]:
    return {scope: add_key(store, scope, (scope,), None)[0] for scope in ("predict", "metrics", "admin")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(store: Store, keys: dict[str, str], home: Path) -> Iterator[httpx.Client]:
    with serve(store.folder, home, ML_SERVICE__WORKERS="2") as served:
        yield served


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def predict(client: httpx.Client, key: str | None) -> int:
    # Its own connection each time: so both workers are asked.
    headers = (bearer(key) if key else {}) | {"Connection": "close"}
    return client.post("/predict", json={"rows": [ROW]}, headers=headers).status_code


def test_metrics_need_a_key_of_their_scope_and_count_refusals(client: httpx.Client, keys: dict[str, str]) -> None:
    def count() -> float:
        begin = 'bentoml_service_request_total{endpoint="/predict",http_response_code="401"'
        lines = client.get("/metrics", headers=bearer(keys["metrics"])).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(begin))

    assert [client.get("/metrics", headers=h).status_code for h in ({}, bearer(keys["predict"]))] == [401, 403]
    assert client.get("/metrics", headers=bearer(keys["admin"])).status_code == 200
    before = count()
    assert predict(client, None) == 401
    time.sleep(0.1)  # the other worker writes its counts
    assert count() == before + 1


def test_a_new_key_is_valid_and_a_revoked_one_is_refused_within_two_seconds(client: httpx.Client, store: Store) -> None:
    text, key = add_key(store, "short", ("predict",), None)
    time.sleep(2.0)
    assert {predict(client, text) for _ in range(10)} == {200}
    revoke_key(store, key.id)
    time.sleep(2.0)
    assert {predict(client, text) for _ in range(10)} == {401}


def test_no_key_is_in_the_output_of_the_service(client: httpx.Client, keys: dict[str, str], home: Path) -> None:
    for key in (keys["predict"], keys["predict"][:-1] + "x"):
        predict(client, key)
    output = (home / "log").read_text(encoding="utf-8")
    assert "Serving model version 7" in output
    assert "ondol_" not in output.replace("ondol_serving", "")


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Run a Redis server that asks for the password "s3cret"; yield its address, and what ends it."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is absent: apt-get install redis-server")
    folder.mkdir()
    port = free_port()
    (folder / "redis.conf").write_text(f'bind 127.0.0.1\nport {port}\nrequirepass s3cret\nsave ""\n', encoding="utf-8")
    process = subprocess.Popen([program, "redis.conf"], cwd=folder, stdout=subprocess.DEVNULL)

    def end() -> None:
        process.terminate()
        process.wait(20)

    try:
        with Redis(port=port, password="s3cret") as client:
            until = time.monotonic() + 20
            while time.monotonic() < until:
                with suppress(RedisError):
                    client.ping()
                    break
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0", end
    finally:
        end()


def test_processes_of_two_hosts_share_a_rate_and_answer_without_redis(
    store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    key = add_key(store, "shared", ("predict",), None)[0]
    with redis_server(tmp_path / "redis") as (address, end), ExitStack() as stack:
        rate = {"ML_ACCESS__RATE": "20/hour", "ML_ACCESS__REDIS": address, "ML_REDIS_PASSWORD": "s3cret"}
        hosts = [
            stack.enter_context(serve(store.folder, tmp_path / name, ML_SERVICE__WORKERS="2", **rate))
            for name in ("one", "two")
        ]
        for host in hosts:
            wait_for(host, "/readyz", 200)
        assert [predict(hosts[at % 2], key) for at in range(30)] == [200] * 20 + [429] * 10
        end()
        assert predict(hosts[0], key) == 200  # each process begins to count by itself
        said = [(tmp_path / name / "log").read_text(encoding="utf-8") for name in ("one", "two")]
        assert "Redis (ML_ACCESS__REDIS) does not answer, so each process limits callers by itself" in said[0]
        assert "s3cret" not in "".join(said)


def start(store: Path, home: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `bentoml serve` for at most ten seconds."""
    command = [sys.executable, "-m", "bentoml", "serve", "service.service:Service", "--port", str(free_port())]
    settings = {"ML_STORE": str(store), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    return subprocess.run(
        ["timeout", "10", *command, *arguments],
        cwd=TEMPLATE,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0"), ()], ids=["named", "the default"])
def test_service_for_other_machines_ends_with_one_sentence_without_access_control(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = start(tmp_path / "store", tmp_path / "home", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    [said] = done.stderr.splitlines()
    assert said.startswith("The service would listen on 0.0.0.0, where other machines can reach it, and has no access")


def test_open_lets_it_start(tmp_path: Path) -> None:
    done = start(tmp_path / "store", tmp_path / "home", "--host", "0.0.0.0", ML_ACCESS__OPEN="true")
    assert done.returncode == 124  # it ran until `timeout` ended it
    assert "Service model initialized" in done.stderr + done.stdout
