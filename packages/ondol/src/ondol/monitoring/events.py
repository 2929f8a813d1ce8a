"""The Prefect event that asks for training again, sent so that it is known to have arrived."""

import json
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from ondol.monitoring.loop import Wanted
from ondol.orchestration.events import read_triggers, send_event

EVENT = "ml.retrain"


def resource_of(project: str) -> str:
    """Return the resource that the event is about: the project."""
    return f"ml.project.{project}"


def event_id(project: str, window: str) -> UUID:
    """Return the event's id, the same each time that a window's request is sent."""
    return uuid5(NAMESPACE_URL, f"{resource_of(project)}/{window}")


def is_heard(project: str) -> bool:
    """Tell whether the Prefect server has an automation, switched on, that waits for the project's event."""
    return any(hears(trigger, project) for trigger in read_triggers())


def hears(trigger: dict[str, Any], project: str) -> bool:
    """Tell whether an automation's trigger, at whatever depth, names the event and this project or none."""
    text = json.dumps(trigger)
    about = "ml.project." not in text or f'"{resource_of(project)}"' in text
    return f'"{EVENT}"' in text and about


def send(project: str, wanted: Wanted) -> None:
    """Send the event; see `ondol.orchestration.events.send_event`."""
    payload = {
        "version": wanted.version,
        "window": wanted.window,
        "windows": list(wanted.windows),
        "reason": wanted.reason,
    }
    resource = {"prefect.resource.id": resource_of(project), "prefect.resource.name": project}
    send_event(EVENT, resource, payload, event_id(project, wanted.window))
