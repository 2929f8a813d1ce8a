"""The Prefect event that asks for training again, sent so that it is known to have arrived."""

import asyncio
import json
import time
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from flows.monitoring.loop import Wanted

EVENT = "ml.retrain"
KEPT_SECONDS = 30.0  # the server writes events down every five seconds


def resource_of(project: str) -> str:
    """Return the resource that the event is about: the project."""
    return f"ml.project.{project}"


def event_id(project: str, window: str) -> UUID:
    """Return the event's id, the same each time that a window's request is sent."""
    return uuid5(NAMESPACE_URL, f"{resource_of(project)}/{window}")


def is_heard(project: str) -> bool:
    """Tell whether the Prefect server has an automation, switched on, that waits for the project's event."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        automations = client.read_automations()
    return any(a.enabled and hears(a.trigger.model_dump(mode="json"), project) for a in automations)


def hears(trigger: dict[str, Any], project: str) -> bool:
    """Tell whether an automation's trigger, at whatever depth, names the event and this project or none."""
    text = json.dumps(trigger)
    about = "ml.project." not in text or f'"{resource_of(project)}"' in text
    return f'"{EVENT}"' in text and about


def send(project: str, wanted: Wanted) -> None:
    """Send the event and wait until the server has written it down: what it has only heard dies with it.

    Raises:
        OSError: it could not be sent, or is not there in time, or whatever else the connection raises.
    """
    from prefect.events import Event
    from prefect.events.clients import get_events_client
    from prefect.events.schemas.events import Resource

    payload = {
        "version": wanted.version,
        "window": wanted.window,
        "windows": list(wanted.windows),
        "reason": wanted.reason,
    }
    resource = {"prefect.resource.id": resource_of(project), "prefect.resource.name": project}
    event = Event(event=EVENT, resource=Resource(resource), payload=payload, id=event_id(project, wanted.window))

    async def emit() -> None:
        async with get_events_client(checkpoint_every=1) as client:  # each event is confirmed before the next
            await client.emit(event)

    asyncio.run(emit())
    end = time.monotonic() + KEPT_SECONDS
    while not _is_kept(event.id):
        if time.monotonic() > end:
            raise TimeoutError(f"the server did not keep the event {event.id}")
        time.sleep(0.5)


def _is_kept(event: UUID) -> bool:
    """Tell whether the server's database has an event."""
    from prefect.client.orchestration import get_client
    from prefect.events.filters import EventFilter, EventIDFilter

    with get_client(sync_client=True) as client:
        answer = client.request(
            "POST",
            "/events/filter",
            json={"filter": EventFilter(id=EventIDFilter(id=[event])).model_dump(mode="json", exclude_unset=True)},
        )
    return bool(answer.json()["events"])
