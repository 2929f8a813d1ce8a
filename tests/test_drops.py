"""Answers that the log dropped are alerted once, as many as there were since the last look."""

import http.server
import json
import threading

import pytest

from flows.drops import read_count, tell_of_drops
from flows.settings import load_settings


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
    paths = sorted((settings.store_path / "alerts" / "outbox").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8"))["what"] for path in paths]


def test_nothing_dropped_alerts_nobody(settings):
    Metrics.text = "# HELP ml_log_dropped_total …\nml_log_dropped_total 0.0\n"
    assert tell_of_drops(settings) == 0
    assert said(settings) == []


def test_drops_are_told_once_and_later_ones_again(settings):
    Metrics.text = 'ml_log_dropped_total{pid="1"} 3.0\nml_log_dropped_total{pid="2"} 4.0\n'
    assert [tell_of_drops(settings), tell_of_drops(settings)] == [7, 0]
    Metrics.text = "ml_log_dropped_total 2.0\n"  # started again
    assert tell_of_drops(settings) == 2
    assert [what.partition(" answers")[0] for what in said(settings)] == [
        "The service could not log 7",
        "The service could not log 2",
    ]


def test_service_elsewhere_says_nothing():
    assert read_count("http://127.0.0.1:9/metrics") is None
