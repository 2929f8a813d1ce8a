"""`ml client` writes a typed client: type checkers find mistakes of its callers, and it asks a service rightly."""

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ondol.contract import Column, Contract
from ondol.setup.client import write_client

REPOSITORY = Path(__file__).parents[3]
FEATURES = (
    Column(name="house age", kind="number", nullable=True, minimum=0),
    Column(name="지역", kind="text", categories=("서울", '부"산', "it's", "a\\b", "한\n줄")),
    Column(name="class", kind="integer", categories=(1, 2)),
    Column(name="a.b/c?", kind="integer", exclusive_maximum=10),
    Column(name="가입일", kind="date"),
    Column(name="waited", kind="duration", nullable=True),
    Column(name="ok", kind="boolean", role="sensitive"),
    Column(name="note\"'\\ \x7f", kind="text", nullable=True),
    Column(name="level", kind="number", categories=(0.5, 1.0)),
    Column(name="고객 번호", kind="text", role="id"),
    Column(name="time", kind="date", role="time"),
)
CONTRACTS = {
    "korean": Contract(
        problem="binary",
        target="이탈",
        columns=(*FEATURES, Column(name="이탈", kind="text", role="target", categories=("예", "아니오"))),
    ),
    "regression": Contract(
        problem="regression",
        target="y",
        columns=(
            Column(name="date", kind="date"),
            Column(name="x", kind="number"),
            Column(name="y", kind="number", role="target"),
        ),
    ),
    "multiclass": Contract(
        problem="multiclass",
        target="y",
        columns=(
            Column(name="x" * 130, kind="text", categories=tuple(f"value {i}" for i in range(90))),
            Column(name="y", kind="integer", role="target"),
        ),
    ),
}
ROW = {
    "house age": float("nan"),
    "지역": "서울",
    "class": np.int64(1),
    "a.b/c?": np.float64(3.0),
    "가입일": datetime(2024, 1, 2, 3, 4, tzinfo=UTC),
    "waited": timedelta(minutes=1),
    "ok": np.True_,
    "note\"'\\ \x7f": None,
    "level": 0.5,
    "time": pd.NaT,
    "고객 번호": date(2024, 1, 2),
}
SENT = ROW | {
    "house age": None,
    "class": 1,
    "a.b/c?": 3.0,
    "가입일": "2024-01-02T03:04:00+00:00",
    "waited": 60.0,
    "ok": True,
    "time": None,
    "고객 번호": "2024-01-02",
}
ANSWER: dict[str, Any] = {
    "request_id": "r1",
    "model_version": "3",
    "role": "champion",
    "predictions": [{"label": "예", "probabilities": {"예": 0.75, "아니오": 0.25}}],
}
Reply = tuple[int, Any, dict[str, str]]


def load(folder: Path, contract: Contract) -> Any:
    """Import the client of a contract."""
    path = folder / "churn_client.py"
    path.write_text(write_client(contract, "churn"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("churn_client", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["churn_client"] = module  # for dataclasses
    spec.loader.exec_module(module)
    return module


def check(*command: str) -> str:
    """Return what a tool prints of a file, empty if it finds nothing."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("name", CONTRACTS)
def test_client_passes_the_checks_of_a_project(tmp_path: Path, name: str) -> None:
    load(tmp_path, CONTRACTS[name])
    path, settings = str(tmp_path / "churn_client.py"), f"--config={REPOSITORY / 'pyproject.toml'}"
    assert check("ruff", "check", settings, path) == ""
    assert check("ruff", "format", "--check", settings, path) == ""
    assert check("mypy", "--strict", "--config-file=", "--cache-dir=/dev/null", path) == ""


def test_client_imports_only_the_standard_library(tmp_path: Path) -> None:
    load(tmp_path, CONTRACTS["korean"])
    done = subprocess.run([sys.executable, "-I", "-S", tmp_path / "churn_client.py"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_type_checker_finds_wrong_rows(tmp_path: Path) -> None:
    load(tmp_path, CONTRACTS["korean"])
    right = {"지역": "서울", "class": 1, "a.b/c?": 3, "가입일": "2024-01-02", "ok": True, "level": 0.5}
    sound = [right, right | {"house age": None, "waited": 3, "time": [], "고객 번호": 7}]
    wrong = [
        right | {"지역": "대구"},
        right | {"class": 3},
        right | {"a.b/c?": "3"},
        right | {"a.b/c?": None},
        right | {"stranger": 1},
        {name: value for name, value in right.items() if name != "ok"},
    ]
    lines = ["from churn_client import Row", *(f"row{i}: Row = {row!r}" for i, row in enumerate([*sound, *wrong]))]
    (tmp_path / "program.py").write_text("\n".join(lines), encoding="utf-8")
    found = check("mypy", "--strict", "--config-file=", "--cache-dir=/dev/null", str(tmp_path / "program.py"))
    marked = {int(line.split(":")[1]) for line in found.splitlines() if "error:" in line}
    assert marked == set(range(2 + len(sound), 2 + len(sound) + len(wrong))), found


@contextmanager
def answering(replies: list[Reply]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a server that gives `replies` in turn; yield its address and the requests that it got."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            got.append({"path": self.path, "body": body, **{k.lower(): v for k, v in self.headers.items()}})
            status, content, headers = replies.pop(0)
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(raw))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def code(tmp_path: Path) -> Any:
    return load(tmp_path, CONTRACTS["korean"])


@pytest.fixture
def waits(code: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between two tries, which are not waited for."""
    waited: list[float] = []
    monkeypatch.setattr(code.time, "sleep", waited.append)
    return waited


def busy(after: str) -> Reply:
    return 503, {"error": "busy", "detail": []}, {"Retry-After": after}


def test_rows_are_sent_as_json_and_predictions_are_typed(code: Any) -> None:
    with answering([(200, ANSWER, {})]) as (url, got):
        answer = code.Client(f"{url}/", key="ondol_key").predict([ROW])
    assert json.loads(got[0]["body"]) == {"rows": [SENT]}
    assert (got[0]["path"], got[0]["authorization"]) == ("/predict", "Bearer ondol_key")
    assert answer.predictions == [code.Prediction("예", {"예": 0.75, "아니오": 0.25})]
    assert (answer.request_id, answer.model_version, answer.role) == ("r1", "3", "champion")


def test_a_rollout_key_is_sent_as_utf_8_with_rows_and_with_a_table(code: Any) -> None:
    with answering([(200, ANSWER, {}), (200, b"table", {}), (200, ANSWER, {})]) as (url, got):
        client = code.Client(url)
        client.predict([ROW], rollout_key="세션 1")
        client.predict_arrow(b"table", rollout_key="세션 1")
        client.predict([ROW])
    keys = [one.get("x-rollout-key") for one in got]
    assert keys == ["세션 1".encode().decode("latin-1")] * 2 + [None]


def test_services_of_other_versions_are_understood(code: Any) -> None:
    later = ANSWER | {"new": 1, "predictions": [one | {"new": [1]} for one in ANSWER["predictions"]]}
    earlier = {name: value for name, value in ANSWER.items() if name != "role"}
    with answering([(200, ANSWER, {}), (200, later, {}), (200, earlier, {})]) as (url, _):
        client = code.Client(url)
        first, second, third = (client.predict([ROW]) for _ in range(3))
    assert first == second == third


def test_a_busy_service_is_asked_again_after_the_time_that_it_names(code: Any, waits: list[float]) -> None:
    replies = [busy("2"), (429, {"error": "too many", "detail": []}, {"Retry-After": "1"}), (200, ANSWER, {})]
    with answering(replies) as (url, _):
        assert code.Client(url).predict([ROW]).model_version == "3"
    assert waits == [2.0, 1.0]


@pytest.mark.parametrize(
    ("replies", "tries"),
    [
        ([busy("1")] * 4, 4),
        ([busy("60")], 1),
        ([(503, {"error": "There is no model yet", "detail": []}, {})], 1),
        ([(400, {"error": "rows.0.x: wrong", "detail": [{"loc": ["rows", 0, "x"]}]}, {})], 1),
        ([(502, b"<html>", {})], 1),
    ],
)
def test_other_refusals_are_errors(code: Any, waits: list[float], replies: list[Reply], tries: int) -> None:
    status = replies[0][0]
    with answering(list(replies)) as (url, got), pytest.raises(code.ServiceError) as caught:
        code.Client(url, retries=3).predict([ROW])
    assert (caught.value.status, len(got)) == (status, tries)
    assert caught.value.detail == ([{"loc": ["rows", 0, "x"]}] if status == 400 else [])


def test_ready_is_false_without_a_model_and_without_a_service(code: Any) -> None:
    with answering([(200, b"\n", {}), (503, {"error": "no model"}, {})]) as (url, _):
        client = code.Client(url)
        assert client.ready()
        assert not client.ready()
    assert not client.ready()


def test_check_finds_a_client_that_is_not_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    from ondol.cli import contract as command
    from ondol.config import Settings
    from ondol.errors import UserError

    contracts = iter([CONTRACTS["regression"], CONTRACTS["regression"], CONTRACTS["multiclass"]])
    monkeypatch.setattr(command, "start_command", lambda: Settings(root=tmp_path))
    monkeypatch.setattr(command, "load_contract", lambda settings: next(contracts))
    with pytest.raises(UserError, match="ml client"):
        command.make_client(path := tmp_path / "mine.py", check=True)
    contracts = iter([CONTRACTS["regression"], CONTRACTS["regression"], CONTRACTS["multiclass"]])
    command.make_client(path, check=False)
    command.make_client(path, check=True)
    with pytest.raises(typer.Exit):
        command.make_client(path, check=True)
    assert "not up to date" in capsys.readouterr().out
    path.write_text("print()\n", encoding="utf-8")
    contracts = iter([CONTRACTS["regression"]])
    with pytest.raises(UserError, match="--out"):
        command.make_client(path, check=False)
