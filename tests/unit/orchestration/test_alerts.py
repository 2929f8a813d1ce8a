"""Alerts: a receiver that is down loses none and gets none twice, and no secret shows."""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from service_server import mount_disk

from ondol.cli.deployment import roll_back
from ondol.config import Settings, load_settings
from ondol.errors import Refused, UserError
from ondol.orchestration.alerts import REFUSED_DAYS, alert, alert_failed_run, refused, send_alerts, waiting
from ondol.orchestration.guard import free_port
from ondol.project import Project
from ondol.registry.bundles import Bundle, write_bundle
from ondol.registry.champion import alert_new_champion, move_champion, require_champion
from ondol.registry.rollout import start_rollout, take_step, withdraw_challenger
from ondol.storage.store import open_store

SECRET = "T0P-5ECRET"


class Receiver:
    """A real webhook; `status` is what it answers, `refuses` what else to single alerts; `asked` counts requests."""

    def __init__(self, port: int) -> None:
        self.port, self.status, self.asked = port, 200, 0
        self.refuses: dict[str, int] = {}
        self.got: list[dict[str, Any]] = []

    @contextmanager
    def up(self) -> Iterator[None]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.asked += 1
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = receiver.refuses.get(body.get("what"), receiver.status)
                if 200 <= status < 300:
                    receiver.got.append(body)
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"http://127.0.0.1:{receiver.port}/login")
                self.end_headers()

            def do_GET(self) -> None:  # where a redirect leads to, with a kind word
                receiver.asked += 1
                self.send_response(200)
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
        done = send_alerts(settings)
        assert (done.sent, done.waiting, done.problem) == (0, 5, "it answers 503")
        receiver.status = 200
        alert(settings, "run-failed", "number 5", "look")
        assert send_alerts(settings).sent == 0
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
        send_alerts(settings)
    assert sorted(receiver.said) == [f"number {number}" for number in range(8)]


def test_slack_gets_text_and_no_markup_of_others(settings: Settings, receiver: Receiver) -> None:
    with receiver.up():
        alert(configure(settings.root, format="slack"), "drift", "a < b & <!channel>", "`ml status`")
    assert receiver.got == [{"text": "*shop*: a &lt; b &amp; &lt;!channel&gt;\n`ml status`"}]


def test_text_of_the_data_mentions_no_user_and_shows_no_picture(settings: Settings, receiver: Receiver) -> None:
    hostile = "@all ![x](http://planted.invalid/x) \x1b[2J\u202e"
    with receiver.up():
        alert(configure(settings.root, format="slack"), "drift", hostile, "look")
    text = receiver.got[0]["text"]
    assert "@all" not in text and "](" not in text and "\x1b" not in text and "\u202e" not in text
    assert text.replace("\u200b", "") == "*shop*: @all ![x](http://planted.invalid/x) \\x1b[2J\\u202e\nlook"


def test_first_version_is_reported_without_a_rollback_that_cannot_be(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver.up():
        for version in ("1", "2"):
            monkeypatch.setattr("ondol.registry.champion.utc_now", lambda day=version: f"2026-01-0{day}T00:00:00+00:00")
            bundle = Bundle(
                path=settings.folder_of(settings.store) / "bundles" / f"{version}-b", version=version, digest="d"
            )
            move_champion(open_store(settings), bundle, "deploy", "passed its gates")
            alert_new_champion(Project(settings))
    first, second = receiver.got
    assert "Version 1" in first["what"] and "rollback" not in first["todo"]
    assert "in place of version 1" in second["what"] and "ml rollback" in second["todo"]


def test_each_version_is_alerted_once_however_soon_one_follows_the_other(
    settings: Settings, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times in the history are to the second, and a bundle may be put into production again."""
    monkeypatch.setattr("ondol.registry.champion.utc_now", lambda: "2026-01-01T00:00:00+00:00")
    with receiver.up():
        for version in ("1", "2", "1"):
            bundle = Bundle(
                path=settings.folder_of(settings.store) / "bundles" / f"{version}-b", version=version, digest="d"
            )
            move_champion(open_store(settings), bundle, "deploy", "passed its gates")
            alert_new_champion(Project(settings))
            alert_new_champion(Project(settings))
    assert [said.split()[1] for said in receiver.said] == ["1", "2", "1"]


def test_the_end_of_a_rollout_is_alerted_once_with_its_reason(settings: Settings, receiver: Receiver) -> None:
    store, project = open_store(settings), Project(settings)
    for version in ("1", "2"):
        files = {"meta.json": json.dumps({"run_id": version}).encode()}
        made = write_bundle(store, version, files)
        if version == "1":
            move_champion(store, made, "deploy", "passed its gates")
    with receiver.up():
        alert_new_champion(project)
        for end in (withdraw_challenger, take_step):
            champion = require_champion(store)
            end(store, start_rollout(store, made, champion, "ab", (0.5,), "new"), f"실패 1.2% ({end.__name__})")
            alert_new_champion(project)
            alert_new_champion(project)
    assert [one["kind"] for one in receiver.got] == ["retrained", "rollout-withdrawn", "rollout-promoted"]
    _, withdrawn, promoted = receiver.got
    assert withdrawn["what"].startswith("Version 2 was withdrawn, version 1 answers all requests: 실패 1.2%")
    assert promoted["what"].startswith("Version 2 replaced version 1 in production after its rollout: 실패 1.2%")
    assert "ml rollback" in promoted["todo"]


def test_alert_that_is_refused_for_good_does_not_hold_up_the_next(settings: Settings, receiver: Receiver) -> None:
    alert(settings, "drift", "first", "look")
    receiver.status = 400
    with receiver.up():
        send_alerts(settings)
        receiver.status = 200
        alert(settings, "drift", "second", "look")
    assert receiver.said == ["second"]
    assert len(list((settings.folder_of(settings.store) / "alerts" / "refused").glob("*.json"))) == 1


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_answers_of_success_mean_that_it_was_received(settings: Settings, receiver: Receiver, status: int) -> None:
    receiver.status = status
    with receiver.up():
        alert(settings, "drift", "age drifted", "look")
    assert (receiver.said, waiting(settings)) == (["age drifted"], [])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed_and_does_not_count_as_received(
    settings: Settings, receiver: Receiver, status: int
) -> None:
    receiver.status = status
    with receiver.up():
        alert(settings, "drift", "age drifted", "look")
        assert (receiver.asked, receiver.said, len(waiting(settings))) == (1, [], 1)
        assert send_alerts(settings).problem == f"it redirects ({status}): name the address it redirects to"
        receiver.status = 200
        assert send_alerts(settings).sent == 1
    assert receiver.said == ["age drifted"]


@pytest.mark.parametrize("status", [302, 401, 403, 404, 405, 410])
def test_alert_that_is_refused_is_kept_and_does_not_hold_up_the_next(
    settings: Settings, receiver: Receiver, status: int
) -> None:
    receiver.refuses["first"] = status
    with receiver.up():
        alert(settings, "drift", "first", "look")
        alert(settings, "drift", "second", "look")
        assert (receiver.said, len(waiting(settings))) == (["second"], 1)
        del receiver.refuses["first"]
        send_alerts(settings)
    assert receiver.said == ["second", "first"]


def test_alert_that_is_refused_for_a_week_is_put_aside(settings: Settings, receiver: Receiver) -> None:
    receiver.status = 404
    with receiver.up():
        alert(settings, "drift", "first", "look")
        [path] = waiting(settings)
        long_ago = datetime.now(UTC) - timedelta(days=REFUSED_DAYS, minutes=1)
        aside = path.rename(path.with_name(f"{long_ago:%Y%m%dT%H%M%S%f}-{path.name.partition('-')[2]}"))
        send_alerts(settings)
    assert not waiting(settings)
    assert [one.name for one in refused(settings).iterdir()] == [aside.name]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502])
def test_receiver_that_cannot_take_any_now_is_asked_once(settings: Settings, receiver: Receiver, status: int) -> None:
    receiver.status = status
    with receiver.up():
        for number in range(3):
            alert(settings, "drift", f"number {number}", "look")
        receiver.asked = 0
        assert (send_alerts(settings).waiting, receiver.asked) == (3, 1)
        receiver.status = 200
        send_alerts(settings)
    assert receiver.said == [f"number {number}" for number in range(3)]


def test_without_a_webhook_alerts_wait_for_one_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    quiet = configure(tmp_path)
    for number in range(110):
        alert(quiet, "drift", f"number {number}", "look")
    assert len(waiting(quiet)) == 100
    monkeypatch.setenv("ML_ALERTS__WEBHOOK", f"http://127.0.0.1:{receiver.port}/")
    with receiver.up():
        assert send_alerts(load_settings(tmp_path)).sent == 100
    assert receiver.said[0] == "number 10"


@pytest.mark.parametrize("address", ["not an address", f"ftp://{SECRET}@x/", f"http://127.0.0.1:1/{SECRET}", ""])
def test_no_address_makes_an_alert_raise_or_shows_in_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    monkeypatch.setenv("ML_ALERTS__WEBHOOK", address)
    settings = configure(tmp_path)
    with caplog.at_level(logging.DEBUG):
        alert(settings, "drift", "age drifted", "look")
        done = send_alerts(settings)
    assert done.waiting == 1
    shown = f"{caplog.text} {done} {settings!r} {settings.model_dump_json()}"
    assert SECRET not in shown
    for path in settings.folder_of(settings.store).rglob("*"):
        assert not path.is_file() or SECRET not in path.read_text(encoding="utf-8")


def test_disk_that_refuses_does_not_make_an_alert_raise(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    settings.folder_of(settings.store).parent.mkdir(parents=True)
    settings.folder_of(settings.store).write_text("a file where the folder should be", encoding="utf-8")
    alert(settings, "drift", "age drifted", "look")
    assert "could not be kept" in caplog.text


@pytest.fixture
def full(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """The settings' store on a disk without room; removing the yielded file makes some."""
    with mount_disk(tmp_path / "disk", "256k") as disk:
        settings.home.mkdir()
        settings.folder_of(settings.store).symlink_to(disk)
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        with pytest.raises(OSError, match="No space left"):
            (disk / "proof").write_bytes(b"x" * 4096)
        yield filler
    settings.folder_of(settings.store).unlink()


def test_full_disk_is_reported_at_once_and_once(settings: Settings, receiver: Receiver, full: Path) -> None:
    with receiver.up():
        for _ in range(3):
            alert(settings, "log-dropped", "the disk is full", "make room")
        assert receiver.said == ["the disk is full"]
        full.unlink()
        send_alerts(settings)
    assert (receiver.said, waiting(settings)) == (["the disk is full"], [])


def test_alert_on_a_full_disk_waits_in_the_process_for_its_receiver(
    settings: Settings, receiver: Receiver, full: Path
) -> None:
    for number in range(2):
        alert(settings, "run-failed", f"number {number}", "look")
    assert send_alerts(settings).waiting == 2
    with receiver.up():
        assert send_alerts(settings).sent == 2
    assert receiver.said == ["number 0", "number 1"]


def test_alert_on_a_full_disk_is_kept_once_there_is_room(settings: Settings, receiver: Receiver, full: Path) -> None:
    alert(settings, "run-failed", "it failed", "look")
    assert not waiting(settings)
    full.unlink()
    assert send_alerts(settings).waiting == 1
    assert len(waiting(settings)) == 1


def test_what_was_kept_before_the_disk_was_full_is_sent_too(settings: Settings, receiver: Receiver, full: Path) -> None:
    kept = full.read_bytes()
    full.unlink()
    alert(settings, "run-failed", "before", "look")
    with suppress(OSError):
        full.write_bytes(kept)
    with receiver.up():
        alert(settings, "log-dropped", "the disk is full", "make room")
    assert sorted(receiver.said) == ["before", "the disk is full"]


TYPED = {"deployment_id": None, "work_pool_name": None, "parent_task_run_id": None, "id": "1"}
SCHEDULED = TYPED | {"deployment_id": "2"}  # Prefect's worker does not know the name of the run's pool
MISTAKE = UserError('"rows.csv" is not there.')


@pytest.mark.parametrize(
    ("error", "run", "terminal", "kinds"),
    [
        (MISTAKE, TYPED, True, []),
        (MISTAKE, TYPED, False, ["run-failed"]),  # by cron or a workflow
        (MISTAKE, SCHEDULED, True, ["run-failed"]),  # by `ml worker` on a terminal
        (Refused("The candidate is refused by the floor gate."), TYPED, True, ["gate-refused"]),
        (ZeroDivisionError("division by zero"), TYPED, True, ["run-failed"]),
        (None, TYPED, True, ["run-failed"]),
    ],
)
def test_a_mistake_that_is_typed_on_a_terminal_is_not_an_alert(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    run: dict[str, Any],
    terminal: bool,
    kinds: list[str],
) -> None:
    quiet = configure(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.isatty", lambda stream: terminal and stream == 2)
    state = SimpleNamespace(data=error, message="It failed.", name="Failed", is_crashed=lambda: False)
    alert_failed_run(SimpleNamespace(name="predict"), SimpleNamespace(**run), state)  # type: ignore[arg-type]
    assert [json.loads(path.read_bytes())["kind"] for path in waiting(quiet)] == kinds


@pytest.mark.parametrize(("run", "restarted"), [(SCHEDULED, True), (TYPED, False)])
def test_the_alert_of_a_crash_says_that_the_worker_starts_the_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: dict[str, Any], restarted: bool
) -> None:
    quiet = configure(tmp_path)
    monkeypatch.chdir(tmp_path)
    state = SimpleNamespace(data=None, message="Killed.", name="Crashed", is_crashed=lambda: True)
    alert_failed_run(SimpleNamespace(name="pipeline"), SimpleNamespace(**run), state)  # type: ignore[arg-type]
    todo = [json.loads(path.read_bytes())["todo"] for path in waiting(quiet)]
    assert [one.startswith("The worker starts it again") for one in todo] == [restarted]


def test_rollback_does_not_need_the_receiver() -> None:
    """What it calls imports neither Prefect nor MLflow."""
    import subprocess
    import sys

    from template_support import REPOSITORY, repository_environment

    code = "import sys, ondol.orchestration.alerts; assert not {'prefect', 'mlflow'} & set(sys.modules)"
    assert roll_back.__module__ == "ondol.cli.deployment"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=repository_environment(), check=True)
