"""`ml serve`: the BentoML service on whatever `champion.json` names."""

import os
import socket
import sys

from flows.commands.console import console, open_project
from flows.errors import UserError
from flows.store.champion import read_champion


def serve_champion(port: int | None) -> None:
    """Become the service process; ready as soon as there is a champion.

    Raises:
        UserError: the port is taken.
    """
    settings = open_project()
    host, chosen = settings.service.host, port or settings.service.port
    _require_free(host, chosen)
    champion = read_champion(settings.store_path)
    serving = f"version {champion.version}" if champion else "no model yet: `ml run` deploys one"
    console.print(f"Serving [bold]{settings.project.name}[/] ({serving}) on http://{host}:{chosen}. Stop with Ctrl-C.")
    sys.stdout.flush()
    os.environ |= {"ML_STORE": str(settings.store_path)}
    limits = settings.service.model_dump(include={"workers", "max_rows", "max_body_bytes"})
    for section, values in (("SERVICE", limits), ("LOG", settings.log.model_dump())):
        os.environ |= {f"ML_{section}__{name.upper()}": str(value) for name, value in values.items()}
    os.chdir(settings.root)
    command = [sys.executable, "-m", "bentoml", "serve", "service.service:Service"]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(chosen)])


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"Port {port} on {host} is not free ({error.strerror}): `ml serve --port {port + 1}` takes another."
            ) from None
