"""The event that asks for training again, with a real Prefect server."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monitor_support import START

from ondol.config import Settings
from ondol.monitoring.retraining import (
    EVENT,
    NO_AUTOMATION,
    TrainingRequest,
    event_id,
    has_automation,
    pause,
    read_loop,
    resource_of,
    save_training_request,
    send_training_request,
)
from ondol.orchestration import events
from ondol.orchestration.guard import Child, free_port
from ondol.orchestration.server import EMBEDDED, PREFECT, Server
from ondol.project import Project
from ondol.registry.champion import Champion
from ondol.storage.store import open_store

CHAMPION = Champion(version="1", run_id="r", bundle="1-b", digest="d", since=START.isoformat())
WANTED = TrainingRequest(
    window="w2", windows=("w1", "w2"), version="1", bundle="1-b", reason="드리프트", requested_at=START.isoformat()
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server of these tests' own, which this process talks to."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    folder = tmp_path_factory.mktemp("prefect")
    url = f"http://127.0.0.1:{free_port()}/api"
    command = [
        sys.executable,
        *PREFECT,
        "--host",
        "127.0.0.1",
        "--port",
        url.split(":")[2][:-4],
        "--log-level",
        "error",
    ]
    child = Child(command, os.environ | EMBEDDED | {"PREFECT_HOME": str(folder)}, folder, folder / "server.log")
    try:
        Server(child, url).wait()
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
    finally:
        child.stop()


@pytest.fixture
def settings(server: str, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """A separate project for each test, with a shared server."""
    name = request.node.name.replace("_", "-")
    return Settings(root=tmp_path, project={"name": name})  # type: ignore[arg-type]


def listen(project: str) -> None:
    """Make an automation that waits for the project's event, as `prefect.yaml` does."""
    from prefect.client.orchestration import get_client
    from prefect.events.actions import DoNothing
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    trigger = EventTrigger(
        expect={EVENT}, match={"prefect.resource.id": resource_of(project)}, posture=Posture.Reactive, threshold=1
    )
    core = AutomationCore(name=f"retrain {project}", trigger=trigger, actions=[DoNothing()])
    with get_client(sync_client=True) as client:
        client.create_automation(core)


def received(project: str) -> list[dict[str, Any]]:
    """The events of the project that the server keeps."""
    from prefect.client.orchestration import get_client

    body = {"filter": {"event": {"name": [EVENT]}}, "limit": 50}
    about = resource_of(project)
    for _ in range(100):
        with get_client(sync_client=True) as client:
            answer = client.request("POST", "/events/filter", json=body)
        found = [e for e in answer.json()["events"] if e["resource"]["prefect.resource.id"] == about]
        if found:
            return found
        time.sleep(0.2)
    return []


def test_a_request_stays_open_until_somebody_listens_and_arrives_once(settings):
    store, project = open_store(settings), settings.project.name
    save_training_request(store, WANTED)
    assert send_training_request(Project(settings), CHAMPION) == NO_AUTOMATION
    assert read_loop(store).wanted.emitted_at is None
    listen("another")
    assert not has_automation(project)
    listen(project)
    assert send_training_request(Project(settings), CHAMPION) == ""
    assert read_loop(store).wanted.emitted_at
    (event,) = received(project)
    assert event["id"] == str(event_id(project, "w2"))
    assert event["payload"] == {"version": "1", "window": "w2", "windows": ["w1", "w2"], "reason": "드리프트"}
    save_training_request(store, WANTED)  # as if the monitor had been killed before it could note the arrival
    assert send_training_request(Project(settings), CHAMPION) == ""
    assert read_loop(store).wanted.emitted_at
    assert len(received(project)) == 1  # the event keeps its id, and the server keeps it once


def test_a_request_of_an_old_champion_or_in_a_pause_is_not_sent(settings):
    store, project = open_store(settings), settings.project.name
    save_training_request(store, WANTED)
    listen(project)
    assert send_training_request(Project(settings), CHAMPION.model_copy(update={"bundle": "2-c"})) == ""
    pause(store, "a test")
    assert send_training_request(Project(settings), CHAMPION) == ""
    assert read_loop(store).wanted.emitted_at is None


def test_a_server_that_is_gone_leaves_the_request_open(settings):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    save_training_request(open_store(settings), WANTED)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        assert "could not be sent" in send_training_request(Project(settings), CHAMPION)
    assert read_loop(open_store(settings)).wanted.emitted_at is None


def test_a_request_that_the_server_has_heard_and_not_kept_stays_open(settings, monkeypatch):
    """As where it is killed before it writes events down."""
    save_training_request(open_store(settings), WANTED)
    listen(settings.project.name)
    monkeypatch.setattr(events, "_is_kept", lambda event: False)
    monkeypatch.setattr(events, "KEPT_SECONDS", 0.1)
    assert "could not be sent" in send_training_request(Project(settings), CHAMPION)
    assert read_loop(open_store(settings)).wanted.emitted_at is None
