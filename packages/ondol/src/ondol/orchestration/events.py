"""Events and automations of the Prefect server."""

import asyncio
import time
from typing import Any
from uuid import UUID

KEPT_SECONDS = 30.0  # the server saves events every five seconds


def read_triggers() -> list[dict[str, Any]]:
    """Return the triggers of the enabled automations."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        automations = client.read_automations()
    return [one.trigger.model_dump(mode="json") for one in automations if one.enabled]


def send_event(name: str, resource: dict[str, str], payload: dict[str, Any], event_id: UUID) -> None:
    """Send an event and wait until the server has saved it: a killed server loses events that it only received.

    Args:
        name: The name of the event.
        resource: The resource of the event, as Prefect's labels.
        payload: More information, as JSON.
        event_id: The server saves only one event with this id.

    Raises:
        OSError: it could not be sent or was not saved in time; other connection errors are possible.
    """
    from prefect.events import Event
    from prefect.events.clients import get_events_client
    from prefect.events.schemas.events import Resource

    event = Event(event=name, resource=Resource(resource), payload=payload, id=event_id)

    async def emit() -> None:
        async with get_events_client(checkpoint_every=1) as client:  # each event is confirmed before the next
            await client.emit(event)

    asyncio.run(emit())
    end = time.monotonic() + KEPT_SECONDS
    while not _is_kept(event_id):
        if time.monotonic() > end:
            raise TimeoutError(f"the server did not save the event {event_id}")
        time.sleep(0.5)


def _is_kept(event: UUID) -> bool:
    """Return True if the server has saved an event."""
    from prefect.client.orchestration import get_client
    from prefect.events.filters import EventFilter, EventIDFilter

    with get_client(sync_client=True) as client:
        answer = client.request(
            "POST",
            "/events/filter",
            json={"filter": EventFilter(id=EventIDFilter(id=[event])).model_dump(mode="json", exclude_unset=True)},
        )
    return bool(answer.json()["events"])
