"""Answers that the log dropped are alerted once, as many as there were since the last look."""

import http.server
import json
import threading

import pytest

from ondol.config import load_settings
from ondol.monitoring.log import alert_dropped_records, read_count
from ondol.project import Project


class Metrics(http.server.BaseHTTPRequestHandler):
    text = ""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(type(self).text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address
        server.shutdown()


@pytest.fixture
def settings(tmp_path, address):
    host, port = address
    text = f'[project]\nname = "dev"\n[service]\nhost = "{host}"\nport = {port}\n[alerts]\nrepeat_hours = 0\n'
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    return load_settings(tmp_path)


def said(settings):
    paths = sorted((settings.folder_of(settings.store) / "alerts" / "outbox").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8"))["what"] for path in paths]


def test_nothing_dropped_sends_no_alert(settings):
    Metrics.text = "# HELP ml_log_dropped_total …\nml_log_dropped_total 0.0\n"
    assert alert_dropped_records(Project(settings)) == 0
    assert said(settings) == []


def test_drops_are_reported_once_and_later_ones_again(settings):
    Metrics.text = 'ml_log_dropped_total{pid="1"} 3.0\nml_log_dropped_total{pid="2"} 4.0\n'
    assert [alert_dropped_records(Project(settings)), alert_dropped_records(Project(settings))] == [7, 0]
    Metrics.text = "ml_log_dropped_total 2.0\n"  # started again
    assert alert_dropped_records(Project(settings)) == 2
    here = f"http://{settings.service.host}:{settings.service.port}"
    assert [what.partition(" answers")[0] for what in said(settings)] == [
        f"The service at {here} could not log 7",
        f"The service at {here} could not log 2",
    ]


def test_services_of_the_environments_are_asked_too(settings, address):
    place = f"http://{address[0]}:{address[1]}"
    silent = {"ML_ENVIRONMENTS__OTHER__URL": "http://127.0.0.1:9", "ML_ENVIRONMENTS__OTHER__STORE": "other"}
    elsewhere = load_settings_with(settings.root, silent | {"ML_SERVICE__PORT": "9"} | named("production", place))
    Metrics.text = "ml_log_dropped_total 5.0\n"
    assert [alert_dropped_records(Project(elsewhere)), alert_dropped_records(Project(elsewhere))] == [5, 0]
    assert said(elsewhere) == [f"The service at {place} could not log 5 answers (all were given): its disk is full."]


def named(name, url):
    return {f"ML_ENVIRONMENTS__{name.upper()}__URL": url, f"ML_ENVIRONMENTS__{name.upper()}__STORE": name}


def load_settings_with(root, environment):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return load_settings(root)


def test_service_elsewhere_says_nothing():
    assert read_count("http://127.0.0.1:9/metrics") is None
