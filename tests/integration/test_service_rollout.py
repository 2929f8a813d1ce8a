"""A rollout in real processes under load: who is answered by which version, and what a killed process leaves."""

import json
import os
import random
import signal
import statistics
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from service_server import run_clients, serve, until, wait_for
from service_support import ROW, bundle_files, compile_model, fit, write_bundle

from ondol.registry import rollout as record
from ondol.registry.bundles import Bundle
from ondol.registry.champion import move_champion, require_champion
from ondol.storage.store import Store
from ondol_serving.bundle import load_bundle

CLIENTS = 8
CUSTOMERS = 5  # of each client


class Answer(NamedTuple):
    """What a customer got, between two times in seconds since 1970."""

    customer: int
    sent: float
    received: float
    content: dict[str, Any]


@pytest.fixture(scope="module")
def models() -> list[bytes]:
    """Three models that answer differently."""
    return [compile_model(fit("binary", seed), "binary") for seed in range(3)]


class Client(threading.Thread):
    """Asks for its customers in turn; every tenth request opens another connection, which may reach another worker."""

    def __init__(self, base: str, number: int) -> None:
        super().__init__(daemon=True)
        self.base = base
        self.customers = range(number * CUSTOMERS, (number + 1) * CUSTOMERS)
        self.answers: list[Answer] = []
        self.failures: list[str] = []
        self.lost = 0
        self.done = threading.Event()

    def run(self) -> None:
        numbers = count()
        with httpx.Client(base_url=self.base, timeout=20) as client:
            while not self.done.is_set():
                number = next(numbers)
                customer = self.customers[number % CUSTOMERS]
                last = {"Connection": "close"} if number % 10 == 9 else {}
                body = {"rows": [ROW | {"고객 번호": f"고객 {customer}", "a.b/c?": customer}]}
                sent = time.time()
                try:
                    answer = client.post("/predict", json=body, headers=last)
                except httpx.TransportError:
                    self.lost += 1
                    time.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    self.answers.append(Answer(customer, sent, time.time(), answer.json()))
                else:
                    self.failures.append(answer.text)


def write_versions(store: Path, models: list[bytes]) -> list[Bundle]:
    bundles = []
    for number, model in enumerate(models, start=1):
        name, digest = write_bundle(store, bundle_files(str(number), "binary", model))
        bundles.append(Bundle(path=store / "bundles" / name, version=str(number), digest=digest))
    return bundles


def offline(bundles: list[Bundle]) -> dict[tuple[str, int], float]:
    """Return the probability of `yes` by version and customer."""
    found = {}
    for bundle in bundles:
        loaded = load_bundle(bundle.path, bundle.digest)
        for customer in range(CLIENTS * CUSTOMERS):
            body = json.dumps({"rows": [ROW | {"a.b/c?": customer}]}).encode()
            found[bundle.version, customer] = loaded.predict(loaded.parse(body))[0]["probabilities"]["yes"]
    return found


def read_log(store: Path) -> dict[str, dict[str, Any]]:
    """Return the records of answers by request id; a last line without an end was never acknowledged."""
    records = [
        json.loads(line)
        for path in sorted((store / "log").glob("*.jsonl"))
        for line in path.read_bytes().split(b"\n")[:-1]
    ]
    return {one["id"]: one for one in records if one["role"] != "shadow" and "error" not in one}


def require_right(answers: list[Answer], bundles: list[Bundle], store: Path) -> None:
    """Check that each answer is that of its version, and is in the log with version and role."""
    expected, logged = offline(bundles), read_log(store)
    assert len({round(expected[bundle.version, 0], 4) for bundle in bundles}) == len(bundles), "the models must differ"
    for answer in answers:
        content, line = answer.content, logged[answer.content["request_id"]]
        wanted = expected[content["model_version"], answer.customer]
        assert content["predictions"][0]["probabilities"]["yes"] == pytest.approx(wanted, abs=1e-6)
        names = ("version", "role", "predictions")
        assert [line[name] for name in names] == [content["model_version"], content["role"], content["predictions"]]


def require_constant(answers: list[Answer], changes: list[float], slack: float) -> int:
    """Check that no customer changes version between two changes; return how many pairs of both were seen."""
    seen: dict[tuple[int, int], set[str]] = {}
    for answer in answers:
        step = sum(at <= answer.sent for at in changes)
        settled = not changes or step == 0 or answer.sent >= changes[step - 1] + slack
        if settled and (step == len(changes) or answer.received < changes[step]):
            seen.setdefault((answer.customer, step), set()).add(answer.content["model_version"])
    assert all(len(versions) == 1 for versions in seen.values())
    return len(seen)


@pytest.mark.parametrize("changes", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_changes_under_load_fail_no_request_and_move_no_caller_within_a_step(
    changes: int, models: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares grow, and challengers are withdrawn, promoted and rolled back, in random order."""
    monkeypatch.setattr(record, "NOTICE_SECONDS", 1.5)
    monkeypatch.setattr(record, "LOADING_SECONDS", 2.5)
    folder, draw = tmp_path / "store", random.Random(0)
    store, bundles = Store(folder), write_versions(folder, models)
    move_champion(store, bundles[0], "deploy", "first")
    moments: list[float] = []  # when what is answered may change
    done: dict[str, int] = {}
    with serve(folder, tmp_path / "home", ML_SERVICE__WORKERS="2") as client:
        wait_for(client, "/readyz", 200)
        with run_clients([Client(str(client.base_url), number) for number in range(CLIENTS)]) as clients:
            until(lambda: all(one.answers for one in clients), "answers")
            for _ in range(changes):
                rollout, champion = record.running_rollout(store), require_champion(store)
                actions = ["step", "step", "step", "withdraw"] if rollout else ["start", "start", "rollback"]
                action = draw.choice(actions)
                done[action] = done.get(action, 0) + 1
                if action == "start":
                    other = draw.choice([one for one in bundles if one.name != champion.bundle])
                    plan = draw.choice([(0.05, 0.25, 0.5, 1.0), (0.5,), (1.0,)])
                    strategy: Any = {4: "canary", 1: "ab" if plan == (0.5,) else "blue-green"}[len(plan)]
                    rollout = record.start_rollout(store, other, champion, strategy, plan, "test")
                    at = rollout.since.timestamp()
                elif action == "step" and rollout:
                    ended = record.take_step(store, rollout, "test")
                    at = time.time() if ended.outcome else ended.since.timestamp()
                elif action == "withdraw" and rollout:
                    record.withdraw_challenger(store, rollout, "test")
                    at = time.time()
                else:
                    other = draw.choice([one for one in bundles if one.name != champion.bundle])
                    move_champion(store, other, "rollback", "test")
                    at = time.time()
                moments.append(at - 0.05)
                time.sleep(max(0.0, at - time.time()) + 1.5)
            answers = [answer for one in clients for answer in one.answers]
    assert [(one.failures, one.lost) for one in clients] == [([], 0)] * CLIENTS
    require_right(answers, bundles, folder)
    steps = require_constant(answers, moments, slack=1.0)
    roles = {(answer.content["model_version"], answer.content["role"]) for answer in answers}
    assert {role for _, role in roles} == {"champion", "challenger"}
    assert steps > changes * CLIENTS * CUSTOMERS / 2
    print(f"{len(answers):,} answers, {done}, {steps:,} pairs of customer and step, each with one version")


def test_kill_of_the_workers_in_a_rollout_loses_no_answer_and_it_goes_on_where_it_was(
    models: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "LOADING_SECONDS", 2.0)
    folder = tmp_path / "store"
    store, bundles = Store(folder), write_versions(folder, models[:2])
    move_champion(store, bundles[0], "deploy", "first")
    with serve(folder, tmp_path / "home", ML_SERVICE__WORKERS="2") as client:
        wait_for(client, "/readyz", 200)
        rollout = record.start_rollout(store, bundles[1], require_champion(store), "ab", (0.5,), "test")
        time.sleep(max(0.0, rollout.since.timestamp() - time.time()) + 0.5)
        with run_clients([Client(str(client.base_url), number) for number in range(CLIENTS)]) as clients:
            until(lambda: all(len(one.answers) > 40 for one in clients), "answers")
            workers = {int(path.stem.split("-")[-2]) for path in (folder / "log").glob("*.jsonl")}
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            before = [len(one.answers) for one in clients]
            until(
                lambda: all(len(one.answers) > n + 40 for one, n in zip(clients, before, strict=True)),
                "answers afterwards",
            )
    answers = [answer for one in clients for answer in one.answers]
    assert len(workers) == 2 and [one.failures for one in clients] == [[]] * CLIENTS
    require_right(answers, bundles, folder)
    require_constant(answers, [], slack=0.0)
    assert {answer.content["model_version"] for answer in answers} == {"1", "2"}
    assert record.running_rollout(store) == rollout


def test_a_service_that_starts_in_a_rollout_takes_part_in_it(
    models: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "LOADING_SECONDS", 0.0)
    folder = tmp_path / "store"
    store, bundles = Store(folder), write_versions(folder, models[:2])
    move_champion(store, bundles[0], "deploy", "first")
    record.start_rollout(store, bundles[1], require_champion(store), "ab", (0.5,), "test")
    found: list[set[tuple[int, str]]] = []
    for start in range(2):
        with serve(folder, tmp_path / f"home{start}") as client:
            wait_for(client, "/readyz", 200)
            bodies = {n: {"rows": [ROW | {"고객 번호": f"고객 {n}"}]} for n in range(40)}
            found.append(
                {(n, client.post("/predict", json=body).json()["model_version"]) for n, body in bodies.items()}
            )
    assert found[0] == found[1]
    shares = statistics.mean(version == "2" for _, version in found[0])
    assert 0.2 < shares < 0.8
