"""Starts and stops the servers that are compared, each one process that answers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ondol.registry.bundles import write_bundle
from ondol.registry.champion import move_champion
from ondol.registry.keys import add_key
from ondol.registry.rollout import start_rollout
from ondol.storage.store import Store

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    """A server to start: `{port}` in `command` is replaced by a free one."""

    name: str
    command: list[str]
    ready: str
    environment: dict[str, str] = field(default_factory=dict)
    path: str = "/predict"
    body: str = "body.json"
    authorization: str = ""


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    server: Server
    url: str
    seconds_to_ready: float
    process: int


def list_servers(work: Path) -> list[Server]:
    """Return every server, reading its model and body from `work`."""
    model = {"ML_BUNDLE": str(work / "bundle"), "ML_STORE": str(work / "store")}
    fast = {"BENCH_PIPELINE": str(work / "pipeline.joblib")}
    uvicorn = _python("uvicorn", "serving.fastapi_app:app", "--port", "{port}", "--no-access-log")
    bare = _python("uvicorn", "serving.bare:app", "--port", "{port}", "--no-access-log", "--lifespan", "off")
    mlflow = _python("mlflow", "models", "serve", "-m", str(work / "mlflow"), "--port", "{port}")
    mlflow += ["--env-manager", "local", "--workers", "1"]
    batched = _bento("serving.batched_service:Batched")
    keyed = model | {"ML_STORE": str(work / "store-with-keys")}
    key, _ = add_key(Store(work / "store-with-keys"), "bench", ("predict",), None)
    return [
        Server("service", _bento("service.service:Service"), "/readyz", model),
        Server(
            "service, with a key", _bento("service.service:Service"), "/readyz", keyed, authorization=f"Bearer {key}"
        ),
        Server("service, with a shadow", _bento("service.service:Service"), "/readyz", write_shadow_store(work)),
        Server("bare ASGI callable", bare, "/", model),
        Server("fastapi", uvicorn, "/docs", fast),
        Server("fastapi, OMP_NUM_THREADS=1", uvicorn, "/docs", fast | {"OMP_NUM_THREADS": "1"}),
        Server("mlflow models serve", mlflow, "/ping", path="/invocations", body="mlflow.json"),
        Server("empty BentoML", _bento("serving.empty_service:Empty"), "/readyz", model),
        Server("service, BentoML's batching", batched, "/readyz", model),
        Server("empty, BentoML's batching", batched, "/readyz", model | {"BENCH_EMPTY": "1"}),
    ]


def write_shadow_store(work: Path) -> dict[str, str]:
    """Put the model into a store, and try it as a shadow of itself; return the variables of its service."""
    store = Store(work / "store-with-shadow")
    model = {path.name: path.read_bytes() for path in (work / "bundle").iterdir()}
    meta = json.loads(model["meta.json"])
    bundles = [
        write_bundle(store, version, model | {"meta.json": json.dumps(meta | {"version": version}).encode()})
        for version in ("1", "2")
    ]
    champion = move_champion(store, bundles[0], "deploy", "benchmark")
    start_rollout(store, bundles[1], champion, "shadow", (0.0,), "benchmark")
    return {"ML_STORE": str(store.folder)}


def list_logging(work: Path) -> list[Server]:
    """Return the service without its log and with it."""
    model = {"ML_BUNDLE": str(work / "bundle"), "ML_STORE": str(work / "store")}
    command = _bento("service.service:Service")
    switches = {"log off": "0", "log on": "1"}
    return [Server(name, command, "/readyz", model | {"ML_LOG__ENABLED": on}) for name, on in switches.items()]


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _bento(service: str) -> list[str]:
    return _python("bentoml", "serve", service, "--host", "127.0.0.1", "--port", "{port}")


@contextmanager
def run_server(server: Server, work: Path) -> Iterator[Running]:
    """Start a server, wait until it is ready, stop it when the block ends."""
    port = find_port()
    environment = os.environ | {
        "BENTOML_HOME": str(work / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # mlflow looks for uvicorn
        "PYTHONPATH": os.pathsep.join(
            str(ROOT / name) for name in ("template", "packages/ondol/src", "packages/ondol-serving/src", "benchmarks")
        ),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [part.replace("{port}", str(port)) for part in server.command]
    start = time.perf_counter()
    with (work / f"{server.name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=work,
            env=environment | server.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: mlflow leaves its child behind
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url + server.ready, work / f"{server.name}.log")
            ready = time.perf_counter() - start
            yield Running(server, url + server.path, ready, process.pid)
        finally:
            _stop(process)


def find_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def check_answer(running: Running, work: Path) -> object:
    """Send the body once and return the answer, so that a server that only returns errors is not measured."""
    body = (work / running.server.body).read_bytes()
    headers = {"Content-Type": "application/json", "Authorization": running.server.authorization}
    request = urllib.request.Request(running.url, body, {name: value for name, value in headers.items() if value})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def _stop(process: "subprocess.Popen[bytes]") -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the server did not become ready; its output is:\n{log.read_text()[-2000:]}")
