"""The service's part of the loop, in real processes: no acknowledged answer unlogged, no swap that a client notices."""

import json
import math
import os
import signal
import statistics
import threading
import time
from contextlib import suppress
from itertools import count, cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_server import mount_disk, run_clients, serve, until, wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

from ondol.registry.bundles import Bundle
from ondol.registry.champion import move_champion
from ondol.storage.store import Store
from ondol_serving.bundle import load_bundle

CLIENTS = 8


@pytest.fixture(scope="module")
def models() -> list[tuple[str, bytes]]:
    """Three models that answer differently: two classify, one regresses."""
    kinds = [("binary", 0), ("regression", 0), ("binary", 1)]
    return [(problem, compile_model(fit(problem, seed), problem)) for problem, seed in kinds]


class Client(threading.Thread):
    """Sends requests one after another, and records the responses.

    Every tenth closes its connection: the kernel may have given all that are kept open to one worker.
    """

    def __init__(self, base: str, number: int) -> None:
        super().__init__(daemon=True)
        self.base, self.rows = base, [ROW | {"a.b/c?": number, "house age": n} for n in range(1 + number % 4)]
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.lost = 0  # requests that no answer came to
        self.done = threading.Event()

    def run(self) -> None:
        numbers = count()
        with httpx.Client(base_url=self.base, timeout=20) as client:
            while not self.done.is_set():
                last = {"Connection": "close"} if next(numbers) % 10 == 9 else {}
                try:
                    answer = client.post("/predict", json={"rows": self.rows}, headers=last)
                except httpx.TransportError:
                    self.lost += 1
                    time.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    self.answers.append(answer.json())
                else:
                    self.failures.append(answer.text)


def read_log(store: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the records of every process; a last line without an end was never acknowledged."""
    records: dict[int, list[dict[str, Any]]] = {}
    for path in sorted((store / "log").glob("*.jsonl")):
        lines = path.read_bytes().split(b"\n")[:-1]
        records.setdefault(int(path.stem.split("-")[-2]), []).extend(json.loads(line) for line in lines)
    return records


def test_kill_of_the_workers_under_load_loses_no_acknowledged_answer(
    models: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    crown(store, *write_bundle(store, bundle_files("1", *models[0])))
    with serve(store, tmp_path / "home", ML_SERVICE__WORKERS="2", ML_LOG__FILE_BYTES="50000") as client:
        wait_for(client, "/readyz", 200)
        with run_clients([Client(str(client.base_url), number) for number in range(CLIENTS)]) as clients:
            until(lambda: all(len(c.answers) > 40 for c in clients) and len(read_log(store)) == 2, "answers of both")
            workers = set(read_log(store))
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            before = [len(c.answers) for c in clients]
            until(lambda: all(len(c.answers) > n for c, n in zip(clients, before, strict=True)), "answers afterwards")
    records = {record["id"]: record for some in read_log(store).values() for record in some}
    answers = [(c.rows, answer) for c in clients for answer in c.answers]
    assert len(workers) == 2 and sum(c.lost for c in clients) > 0
    assert [c.failures for c in clients] == [[]] * CLIENTS
    for rows, answer in answers:
        record = records[answer["request_id"]]
        assert record["request"] == {"rows": rows}
        assert (record["version"], record["predictions"]) == (answer["model_version"], answer["predictions"])


def is_answered(client: httpx.Client) -> bool:
    """Return True if a request on a new connection is answered."""
    try:
        return client.post("/predict", json={"rows": [ROW]}, headers={"Connection": "close"}).status_code == 200
    except httpx.TransportError:
        return False


def test_full_disk_refuses_no_answer_and_the_drops_are_counted(models: list[tuple[str, bytes]], tmp_path: Path) -> None:
    """All files of the service are on that disk, including its metrics files."""
    with mount_disk(tmp_path / "disk", "8m") as disk:
        store, asked = disk / "store", 50
        store.mkdir()
        crown(store, *write_bundle(store, bundle_files("1", *models[0])))
        with serve(store, disk / "home", ML_SERVICE__WORKERS="2") as client:
            until(
                lambda: (disk / "home" / "log").read_text().count("Completed async startup hook") == 2, "both workers"
            )
            ballast = (disk / "ballast").open("wb", buffering=0)
            with suppress(OSError):
                while ballast.write(b"x" * 256):
                    pass
            answered = [is_answered(client) for _ in range(asked)]
            counted = [line for line in client.get("/metrics").text.splitlines() if line.startswith("ml_log_dropped")]
            for file in (disk / "home" / "prometheus_multiproc_dir").glob("counter_*.db"):  # one of each worker
                os.kill(int(file.stem.partition("_")[2]), signal.SIGKILL)
            until(lambda: is_answered(client), "an answer of workers that started on a full disk")
            assert client.get("/metrics").status_code == 200
            ballast.truncate(0)
            answer = client.post("/predict", json={"rows": [ROW]}).json()
            ballast.close()
        kept = [record["id"] for some in read_log(store).values() for record in some]
    assert all(answered)
    assert counted == [f"ml_log_dropped_total {asked:.1f}"]
    assert kept == [answer["request_id"]]


def same(given: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Return True if predictions are equal, except for float32 rounding in batches of different sizes."""
    flat = [(p.get("label"), *(p.get("probabilities") or {"": p.get("value")}).values()) for p in (*given, *expected)]
    pairs = zip(flat[: len(given)], flat[len(given) :], strict=True)
    return all(
        g[0] == e[0] and all(math.isclose(x, y, rel_tol=1e-5, abs_tol=1e-6) for x, y in zip(g[1:], e[1:], strict=True))
        for g, e in pairs
    )


@pytest.mark.slow  # with fewer swaps: test_service_processes.py
@pytest.mark.parametrize("swaps", [10, 100])
def test_promotions_and_rollbacks_under_load_fail_no_request_and_mix_no_models(
    swaps: int, models: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    written = [write_bundle(store, bundle_files(str(v), *model)) for v, model in enumerate(models, start=1)]
    bundles = [Bundle(path=store / "bundles" / n, version=n.split("-")[0], digest=d) for n, d in written]
    offline = {bundle.version: load_bundle(bundle.path, bundle.digest) for bundle in bundles}
    move_champion(Store(store), bundles[0], "deploy", "first")
    seconds: list[float] = []
    with serve(store, tmp_path / "home", ML_SERVICE__WORKERS="2") as client:
        wait_for(client, "/readyz", 200)
        with run_clients([Client(str(client.base_url), number) for number in range(CLIENTS)]) as clients:
            until(lambda: all(c.answers for c in clients) and len(read_log(store)) == 2, "answers of both workers")
            for number, bundle in zip(range(swaps), cycle(bundles[1:] + bundles[:1]), strict=False):
                start = time.monotonic()
                move_champion(Store(store), bundle, "rollback" if number % 2 else "promote", "test")
                until(
                    lambda v=bundle.version: all(c.answers[-1]["model_version"] == v for c in clients),
                    f"swap {number} to {bundle.version}",
                )
                seconds.append(time.monotonic() - start)
    print(f"{swaps} swaps reached all clients in {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s")
    assert [(c.failures, c.lost) for c in clients] == [([], 0)] * CLIENTS
    for asked in clients:
        body = json.dumps({"rows": asked.rows}).encode()
        expected = {v: bundle.predict(bundle.parse(body)) for v, bundle in offline.items()}
        assert all(same(a["predictions"], expected[a["model_version"]]) for a in asked.answers)
        assert not same(expected["1"], expected["3"]), "the models must differ for this to show anything"
    records = read_log(store)
    assert [{record["version"] for record in some} for some in records.values()] == [set(offline)] * 2
    assert sum(map(len, records.values())) == sum(len(c.answers) for c in clients)
    assert "Refused a bundle" not in (tmp_path / "home" / "log").read_text()
