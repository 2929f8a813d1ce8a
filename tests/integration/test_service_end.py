"""SIGTERM under load: every request that was predicted and logged is answered."""

import http.client
import json
import threading
import time
from pathlib import Path

import httpx
import pytest
from service_server import serve, wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

BODY = json.dumps({"rows": [ROW]}).encode()


class Caller:
    """Sends one request after another until the service refuses connections."""

    def __init__(self, port: int) -> None:
        self.answered: list[str] = []
        self.port = port
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                while True:
                    connection.request("POST", "/predict", BODY, {"Content-Type": "application/json"})
                    self.answered.append(json.loads(connection.getresponse().read())["request_id"])
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException):  # the server has closed the connection before it read from it
                continue
            finally:
                connection.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_logged_request_is_answered(tmp_path: Path, workers: str) -> None:
    store = tmp_path / "store"
    crown(store, *write_bundle(store, bundle_files("7", "binary", compile_model(fit("binary"), "binary"))))
    with serve(store, tmp_path / "home", ML_SERVICE__WORKERS=workers) as client:
        wait_for(client, "/readyz", 200)
        callers = [Caller(httpx.URL(client.base_url).port or 0) for _ in range(8)]
        while sum(len(caller.answered) for caller in callers) < 500:
            time.sleep(0.05)
    for caller in callers:
        caller.thread.join(30)
    answered = {one for caller in callers for one in caller.answered}
    logged = [line for file in (store / "log").glob("*.jsonl") for line in file.read_bytes().splitlines()]
    assert {json.loads(line)["id"] for line in logged} == answered
    assert len(answered) >= 500
