"""The name, the environment and the state of a service's container on its host."""

import re
import zlib
from typing import Any
from urllib.parse import urlsplit

from ondol.config import Settings
from ondol.errors import UserError

INSIDE = "3000/tcp"
PORT_OF_AN_ADDRESS = re.compile(r"http://[^/]*:(\d+)(?:/|$)")  # an https:// address is that of a proxy in front of it


def free_port(settings: Settings, name: str) -> int:
    """Return the port that an environment's container publishes.

    Raises:
        UserError: another environment's container has it on the same host.
    """
    host, port = settings.environments[name].host, port_of(settings, name)
    for other, environment in settings.environments.items():
        if other != name and environment.host == host and port_of(settings, other) == port:
            raise UserError(
                f"{name} and {other} both publish the port {port} of {host}: give [environments.{name}] a `port` of "
                "its own."
            )
    return port


def port_of(settings: Settings, name: str) -> int:
    """Return the port that is said for an environment, in its section, in its address or for all services."""
    environment = settings.environments[name]
    said = PORT_OF_AN_ADDRESS.match(environment.url)
    return environment.port or (int(said[1]) if said else settings.service.port)


def published(made: dict[str, Any]) -> list[str]:
    """Return the addresses, `ADDRESS:PORT`, of the host at which an inspected container answers."""
    places = (made["HostConfig"].get("PortBindings") or {}).get(INSIDE) or []
    return [place(at.get("HostIp") or "0.0.0.0", int(at["HostPort"])) for at in places]


def place(address: str, port: int) -> str:
    """Return an address and a port as `docker --publish` takes them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def names_of(settings: Settings, name: str) -> str:
    """Return the hosts by which an environment's service is asked: the settings', and that of its address."""
    url = urlsplit(settings.environments[name].url)
    return ",".join(
        dict.fromkeys((*settings.service.hosts, *filter(None, [url.hostname, url.netloc.rpartition("@")[2]])))
    )


def mounts(made: dict[str, Any], *stores: str) -> bool:
    """Tell whether an inspected container has one of these as its store; Podman adds options to what was asked for."""
    wanted = {f"{store}:/store" for store in stores}
    return any(":".join(bind.split(":")[:2]) in wanted for bind in made["HostConfig"].get("Binds") or [])


def in_a_name(environment: str) -> str:
    """Return an environment's name as a container's may hold it."""
    allowed = re.fullmatch(r"[A-Za-z0-9_.-]+", environment)
    return environment if allowed else f"{zlib.crc32(environment.encode()):08x}"


def key_of_the_log(settings: Settings) -> tuple[str, ...]:
    """Return the names of the variables that the log asks for without being listed."""
    return ("ML_LOG_KEY",) if settings.log.enabled and settings.log.sensitive == "hash" else ()
