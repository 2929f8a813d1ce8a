"""Starting the service: a home for each process, and a warning if other machines can reach its address."""

import os
import re
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from service_server import wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle
from template_support import python_path

from ondol.cli import deployment as serve
from ondol.cli import doctor
from ondol.config import Settings, load_settings
from ondol.deployment import smoke
from ondol.deployment.smoke import SmokeService
from ondol.errors import UserError
from ondol.orchestration.guard import Child, free_port
from ondol.project import Project
from ondol.registry.bundles import new_bento_home
from ondol.registry.keys import add_key
from ondol.storage.store import open_store

# BentoML uses pathspec and pydantic in ways that these call old.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TEMPLATE = Path(__file__).parents[2] / "template"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a project; the variables that `serve_champion` sets for the service end with the test."""
    for name in [name for name in os.environ if name.startswith(("ML_", "BENTOML_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "config.toml").write_text('[project]\nname = "shop"\n', encoding="utf-8")
    before = set(os.environ)
    yield load_settings(tmp_path)
    for name in set(os.environ) - before:
        del os.environ[name]


def homes(settings: Settings) -> set[Path]:
    return {path for path in (settings.home / "bentoml" / "processes").iterdir() if path.is_dir()}


def test_home_lives_as_long_as_its_process_and_is_removed_at_the_next_start(settings: Settings) -> None:
    (first, held), (second, _) = new_bento_home(settings), new_bento_home(settings)
    assert homes(settings) == {Path(first["BENTOML_HOME"]), Path(second["BENTOML_HOME"])}
    (Path(first["BENTOML_HOME"]) / "prometheus_multiproc_dir").mkdir()
    (settings.home / "bentoml" / "models" / "mine").mkdir()
    assert (Path(second["BENTOML_HOME"]) / "models" / "mine").is_dir()
    for file in held:
        os.close(file)
    third, _ = new_bento_home(settings)
    assert homes(settings) == {Path(second["BENTOML_HOME"]), Path(third["BENTOML_HOME"])}
    assert (settings.home / "bentoml" / "models" / "mine").is_dir()


def test_process_without_a_folder_of_its_own_starts_all_the_same(settings: Settings) -> None:
    (settings.home / "bentoml").mkdir(parents=True)
    (settings.home / "bentoml" / "processes").write_text("a file in the folder's place")
    assert new_bento_home(settings) == ({}, [])


@pytest.fixture
def started(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []

    def execv(_: str, command: list[str]) -> None:
        commands.append(command)

    monkeypatch.setattr(serve.os, "execv", execv)
    monkeypatch.setattr(serve, "start_command", lambda **_: load_settings(settings.root))
    for name in (
        "ML_STORE",
        "BENTOML_HOME",
        *(f"ML_LOG__{n}" for n in ("ENABLED", "SENSITIVE", "FILE_BYTES", "KEEP_BYTES")),
    ):
        monkeypatch.setenv(name, "")
    for name in (
        "WORKERS",
        "HOSTS",
        "MAX_ROWS",
        "MAX_BODY_BYTES",
        "MAX_BYTES_IN_FLIGHT",
        "BODY_SECONDS",
        "MAX_WAIT_SECONDS",
    ):
        monkeypatch.setenv(f"ML_SERVICE__{name}", "")
    monkeypatch.chdir(settings.root)
    return commands


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_service_is_started_at_its_address(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    monkeypatch.setenv("ML_SERVICE__HOST", host)
    monkeypatch.setenv("ML_SERVICE__HOSTS", "churn.example.com")
    monkeypatch.setenv("ML_ACCESS__OPEN", "true")
    serve.serve_champion(port := free_port())
    assert re.search(r"http://(\[::1?\]|[0-9.]+):\d+", capsys.readouterr().out)
    assert started[0][started[0].index("--host") + 1] == host
    # With its port: a page of another port of this machine is of another origin.
    assert os.environ["ML_SERVICE__HOSTS"] == f"churn.example.com,{f'[{host}]' if ':' in host else host}:{port}"
    assert Path(os.environ["BENTOML_HOME"]).parent.name == "processes"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_service_for_other_machines_needs_access_control(
    settings: Settings, started: list[list[str]], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("ML_SERVICE__HOST", host)
    monkeypatch.setattr(serve, "_require_free", lambda *_: None)  # not every machine has the address
    with pytest.raises(UserError) as caught:
        serve.serve_champion(free_port())
    assert str(caught.value).startswith(f"[service] host is {host}, where other machines can reach the service, and it")
    assert started == []
    add_key(open_store(settings), "billing", ("predict",), None)
    serve.serve_champion(free_port())
    assert len(started) == 1


@pytest.mark.parametrize("host", ["localhost", "churn.example.com", "1.2.3", ""])
def test_host_that_is_not_an_address_is_refused_in_one_sentence(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    (Path.cwd() / "config.toml").write_text(f'[service]\nhost = "{host}"\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"^\[service\] host is .* such as 127.0.0.1\.$"):
        serve.serve_champion(free_port())
    assert started == []


def test_a_bundle_that_is_named_must_be_there(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ML_BUNDLE", "handed/over")
    with pytest.raises(UserError, match=r"^ML_BUNDLE is handed/over, and there is no meta\.json in it: set it to "):
        serve.serve_champion(free_port())
    assert (started, capsys.readouterr().out) == ([], "")
    (Path.cwd() / "handed" / "over").mkdir(parents=True)
    (Path.cwd() / "handed" / "over" / "meta.json").touch()
    serve.serve_champion(free_port())
    assert "the bundle handed/over, by ML_BUNDLE" in capsys.readouterr().out
    assert len(started) == 1


BROKEN = {
    "syntax": ("\ndef (", "service/service.py cannot be imported: SyntaxError: invalid syntax (service.py, line 2)."),
    "import": (
        "\n\nimport no_such_package\n",
        "service/service.py cannot be imported: ModuleNotFoundError: No module named 'no_such_package' "
        "(service/service.py, line 3).",
    ),
    "exit": (
        "import sys\nsys.exit(3)\n",
        "service/service.py cannot be imported: it calls sys.exit(3), which ends the process (service/service.py, "
        "line 2).",
    ),
    "base": (
        "from ondol_serving import service\n\n\n@service\nclass Service: ...\n",
        "service/service.py cannot be imported: TypeError: Service does not inherit ModelService, which answers POST "
        "/predict (service/service.py, line 4).",
    ),
    "none": (
        "class Service: ...\n",
        "service/service.py has no service named Service: a class of this name, decorated by @service.",
    ),
}


def write_service(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn this folder into a project with this `service/service.py`, which is not imported yet."""
    Path("service").mkdir()
    Path("service", "__init__.py").touch()
    Path("service", "service.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(Path.cwd())
    for name in ("service", "service.service"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("case", BROKEN)
def test_mistakes_in_service_py_are_one_sentence_and_nothing_is_started(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    text, said = BROKEN[case]
    write_service(text, monkeypatch)
    if case != "exit":  # the file is read and not imported
        with pytest.raises(UserError) as caught, smoke.smoke_service(Project(load_settings())):
            pytest.fail("the service is started")
        assert str(caught.value) == said
        with pytest.raises(UserError) as caught:
            serve.serve_champion(free_port())
        assert (str(caught.value), started, capsys.readouterr().out) == (said, [], "")
    for name in ("service", "service.service"):
        sys.modules.pop(name, None)
    checks = dict(doctor._checks())
    with pytest.raises(UserError) as caught:
        checks["endpoints"](load_settings())
    assert str(caught.value) == said


def test_a_mistake_in_service_py_that_ends_it_is_the_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (TEMPLATE / "service" / "service.py").read_text(encoding="utf-8")
    monkeypatch.chdir(settings.root)
    monkeypatch.setenv("PYTHONPATH", python_path(TEMPLATE))
    write_service(f"{text}\n1 / 0\n", monkeypatch)
    with smoke.smoke_service(Project(settings)) as service, pytest.raises(UserError) as caught:
        service.wait()
    place = f"(service/service.py, line {text.count(chr(10)) + 2})"
    assert str(caught.value) == f"service/service.py cannot be imported: ZeroDivisionError: division by zero {place}."


def test_counts_of_a_service_outlive_the_smoke_test_beside_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both once counted in one folder, which BentoML empties at every start."""
    monkeypatch.setenv("BENTOML_HOME", str(settings.home / "bentoml"))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    monkeypatch.setenv("PYTHONPATH", python_path(TEMPLATE))
    crown(
        settings.folder_of(settings.store),
        *write_bundle(
            settings.folder_of(settings.store), bundle_files("1", "binary", compile_model(fit("binary"), "binary"))
        ),
    )
    port = free_port()
    home, held = new_bento_home(settings)
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "service.service:Service",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = os.environ | home | {"ML_STORE": str(settings.folder_of(settings.store))}
    child = Child(command, environment, tmp_path, tmp_path / "ondol_serving.log", held)
    for file in held:
        os.close(file)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            wait_for(client, "/readyz", 200)
            for _ in range(3):
                assert client.post("/predict", json={"rows": [ROW]}).status_code == 200
            counted = 'ml_predictions_total{model_version="1"} 3.0'
            assert counted in client.get("/metrics").text
            smoke = SmokeService(settings)
            try:
                smoke.offer(next((settings.folder_of(settings.store) / "bundles").iterdir()))
                smoke.predict({"rows": [ROW] * 2})
            finally:
                smoke.child.stop()
            assert counted in client.get("/metrics").text
            assert client.post("/predict", json={"rows": [ROW]}).status_code == 200
            assert 'ml_predictions_total{model_version="1"} 4.0' in client.get("/metrics").text
    finally:
        child.stop()


def test_smoke_test_asks_a_busy_service_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(503, {"Retry-After": "1"}, b"{}"), (200, {}, b'{"predictions": []}')])

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, headers, body = next(answers)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    monkeypatch.setattr(smoke.time, "sleep", lambda _: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert smoke.request_prediction(f"http://127.0.0.1:{server.server_address[1]}", {"rows": []}) == {
            "predictions": []
        }
        server.shutdown()
