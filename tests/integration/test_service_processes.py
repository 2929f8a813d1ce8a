"""The service as users run it: real `bentoml serve` processes on the loopback interface."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_server import serve, wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return {problem: compile_model(fit(problem), problem) for problem in ("binary", "regression")}


def ask(client: httpx.Client, row: dict[str, Any] = ROW) -> httpx.Response:
    return client.post("/predict", json={"rows": [row]})


def wait_for_version(client: httpx.Client, version: str) -> None:
    import time

    end = time.monotonic() + 20
    while ask(client).json().get("model_version") != version:
        assert time.monotonic() < end, f"version {version} was not taken up"
        time.sleep(0.1)


def test_service_becomes_ready_when_there_is_a_champion_and_refuses_a_corrupted_next(
    models: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with serve(store, tmp_path / "home") as client:
        assert client.get("/readyz").status_code == 503
        assert ask(client).status_code == 503
        assert ask(client).json()["error"].startswith("There is no model yet")
        name, digest = write_bundle(store, bundle_files("1", "binary", models["binary"]))
        crown(store, name, digest)
        wait_for(client, "/readyz", 200)
        assert ask(client).json()["model_version"] == "1"

        crown(store, write_bundle(store, bundle_files("2", "binary", models["binary"]))[0], "0" * 64)
        log = tmp_path / "home" / "log"
        for _ in range(100):
            if "Refused a bundle" in log.read_text():
                break
            threading.Event().wait(0.1)
        assert "version 1 stays in production" in log.read_text()
        assert ask(client).json()["model_version"] == "1"

        crown(store, *write_bundle(store, bundle_files("3", "regression", models["regression"])))
        wait_for_version(client, "3")
        assert set(ask(client).json()["predictions"][0]) == {"value"}
    assert "Traceback" not in log.read_text()


def test_metrics_count_predictions_and_unknown_categories_of_all_workers(
    models: dict[str, bytes], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    crown(store, *write_bundle(store, bundle_files("1", "binary", models["binary"])))
    with serve(store, tmp_path / "home", ML_SERVICE__WORKERS="2") as client:
        wait_for(client, "/readyz", 200)
        base = str(client.base_url)
        for _ in range(10):  # each on a connection of its own, so that both workers get some
            body = {"rows": [ROW | {"class": "never seen"}, ROW]}
            assert httpx.post(f"{base}/predict", json=body, timeout=20).status_code == 200
        refused = ask(client, ROW | {"class": 3})
        assert refused.status_code == 400
        metrics = client.get("/metrics").text.splitlines()
    assert 'ml_unknown_categories_total{column="class"} 10.0' in metrics
    assert 'ml_predictions_total{model_version="1"} 20.0' in metrics
    assert any(line.startswith("bentoml_service_request_total") and 'code="400"' in line for line in metrics)


def test_oversized_chunked_body_is_refused_by_the_real_server(models: dict[str, bytes], tmp_path: Path) -> None:
    store = tmp_path / "store"
    crown(store, *write_bundle(store, bundle_files("1", "binary", models["binary"])))
    with serve(store, tmp_path / "home") as client:
        wait_for(client, "/readyz", 200)
        chunks = iter([b" " * 30_000] * 3)
        answer = client.post("/predict", content=chunks)
        assert answer.status_code == 413
        assert "50000 bytes" in answer.json()["error"]
        assert ask(client).status_code == 200


def test_swaps_under_load_lose_and_mix_no_answer(models: dict[str, bytes], tmp_path: Path) -> None:
    """Odd versions classify, even ones regress: an answer of one with the number of the other would show."""
    store = tmp_path / "store"
    names = {
        str(v): write_bundle(store, bundle_files(str(v), problem, models[problem]))
        for v, problem in enumerate(["regression", "binary"] * 2, start=0)
    }
    crown(store, *names["1"])
    wrong: list[str] = []
    seen: set[str] = set()
    done = threading.Event()

    def load(base: str) -> None:
        with httpx.Client(base_url=base, timeout=20) as client:
            while not done.is_set():
                answer = ask(client)
                content = answer.json()
                version = content.get("model_version", "none")
                seen.add(version)
                kind = "label" if int(version) % 2 else "value"
                if answer.status_code != 200 or kind not in content["predictions"][0]:
                    wrong.append(answer.text)

    with serve(store, tmp_path / "home", ML_SERVICE__WORKERS="2") as client:
        wait_for(client, "/readyz", 200)
        threads = [threading.Thread(target=load, args=(str(client.base_url),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in ("2", "3", "0"):
            crown(store, *names[version])
            wait_for_version(client, version)
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert {"1", "2", "3"} <= seen
