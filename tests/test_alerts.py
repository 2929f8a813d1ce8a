"""Alerts: a receiver that is down loses none and gets none twice, and no secret shows."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.alerting import alert, deliver, waiting
from flows.commands.champion import roll_back
from flows.guard import free_port
from flows.settings import Settings, load_settings

SECRET = "T0P-5ECRET"


class Receiver:
    """A real webhook; `status` is what it answers, `pause` how long it takes."""

    def __init__(self, port: int) -> None:
        self.port, self.status, self.pause = port, 200, 0.0
        self.got: list[dict[str, Any]] = []

    @contextmanager
    def up(self) -> Iterator[None]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(receiver.pause)
                if receiver.status == 200:
                    receiver.got.append(body)
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def said(self) -> list[str]:
        return [message["what"] for message in self.got]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver(free_port())


@pytest.fixture
def settings(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("ML_ALERTS__WEBHOOK", f"http://127.0.0.1:{receiver.port}/hooks/{SECRET}")
    return configure(tmp_path)


def configure(root: Path, **alerts: Any) -> Settings:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in alerts.items())
    (root / "config.toml").write_text(f'[project]\nname = "shop"\n\n[alerts]\n{lines}', encoding="utf-8")
    return load_settings(root)


def test_alert_says_what_happened_and_what_to_type(settings: Settings, receiver: Receiver) -> None:
    with receiver.up():
        alert(settings, "drift", "고객 나이가 달라졌습니다.", "`ml status`")
    [message] = receiver.got
    assert message.keys() == {"kind", "project", "what", "todo", "at", "id"}
    assert (message["kind"], message["project"], message["todo"]) == ("drift", "shop", "`ml status`")
    assert message["what"] == "고객 나이가 달라졌습니다."
    assert not waiting(settings)


def test_receiver_that_is_down_loses_none_gets_none_twice_and_keeps_the_order(
    settings: Settings, receiver: Receiver
) -> None:
    for number in range(5):
        alert(settings, "run-failed", f"number {number}", "look")
    assert len(waiting(settings)) == 5
    receiver.status = 503
    with receiver.up():
        done = deliver(settings)
        assert (done.sent, done.waiting, done.problem) == (0, 5, "it answers 503")
        receiver.status = 200
        alert(settings, "run-failed", "number 5", "look")
        assert deliver(settings).sent == 0
    assert receiver.said == [f"number {number}" for number in range(6)]
    assert len({message["id"] for message in receiver.got}) == 6


def test_same_alert_is_one_until_it_may_be_repeated(settings: Settings, receiver: Receiver) -> None:
    with receiver.up():
        for _ in range(3):
            alert(settings, "drift", "age drifted", "look", key="age")
        alert(settings, "drift", "plan drifted", "look", key="plan")
        assert receiver.said == ["age drifted", "plan drifted"]
        always = configure(settings.root, repeat_hours=0)
        alert(always, "drift", "age drifted", "look", key="age")
    assert receiver.said[2:] == ["age drifted"]


def test_same_alert_is_one_while_the_receiver_is_down_too(settings: Settings, receiver: Receiver) -> None:
    for _ in range(3):
        alert(settings, "drift", "age drifted", "look")
    assert len(waiting(settings)) == 1


def test_alerts_of_several_threads_arrive_once_each(settings: Settings, receiver: Receiver) -> None:
    with receiver.up():
        threads = [
            threading.Thread(target=alert, args=(settings, "run-failed", f"number {number}", "look"))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deliver(settings)
    assert sorted(receiver.said) == [f"number {number}" for number in range(8)]


def test_slack_gets_text_and_no_markup_of_others(settings: Settings, receiver: Receiver) -> None:
    with receiver.up():
        alert(configure(settings.root, format="slack"), "drift", "a < b & <!channel>", "`ml status`")
    assert receiver.got == [{"text": "*shop*: a &lt; b &amp; &lt;!channel&gt;\n`ml status`"}]


def test_alert_that_is_refused_for_good_does_not_hold_up_the_next(settings: Settings, receiver: Receiver) -> None:
    alert(settings, "drift", "first", "look")
    receiver.status = 400
    with receiver.up():
        deliver(settings)
        receiver.status = 200
        alert(settings, "drift", "second", "look")
    assert receiver.said == ["second"]
    assert len(list((settings.store_path / "alerts" / "refused").glob("*.json"))) == 1


def test_without_a_webhook_alerts_wait_for_one_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    quiet = configure(tmp_path)
    for number in range(110):
        alert(quiet, "drift", f"number {number}", "look")
    assert len(waiting(quiet)) == 100
    monkeypatch.setenv("ML_ALERTS__WEBHOOK", f"http://127.0.0.1:{receiver.port}/")
    with receiver.up():
        assert deliver(load_settings(tmp_path)).sent == 100
    assert receiver.said[0] == "number 10"


@pytest.mark.parametrize("address", ["not an address", f"ftp://{SECRET}@x/", f"http://127.0.0.1:1/{SECRET}", ""])
def test_no_address_makes_an_alert_raise_or_shows_in_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    monkeypatch.setenv("ML_ALERTS__WEBHOOK", address)
    settings = configure(tmp_path)
    with caplog.at_level(logging.DEBUG):
        alert(settings, "drift", "age drifted", "look")
        done = deliver(settings)
    assert done.waiting == 1
    shown = f"{caplog.text} {done} {settings!r} {settings.model_dump_json()}"
    assert SECRET not in shown
    for path in settings.store_path.rglob("*"):
        assert not path.is_file() or SECRET not in path.read_text(encoding="utf-8")


def test_disk_that_refuses_does_not_make_an_alert_raise(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    settings.store_path.parent.mkdir(parents=True)
    settings.store_path.write_text("a file where the folder should be", encoding="utf-8")
    alert(settings, "drift", "age drifted", "look")
    assert "could not be kept" in caplog.text


def test_rollback_does_not_need_the_receiver() -> None:
    """What it calls imports neither Prefect nor MLflow."""
    import subprocess
    import sys

    from template_support import REPOSITORY

    code = "import sys, flows.alerting; assert not {'prefect', 'mlflow'} & set(sys.modules)"
    assert roll_back.__module__ == "flows.commands.champion"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
