"""`ml serve`: the BentoML service with the version that `champion.json` names."""

import ipaddress
import os
import socket
import sys

from rich.markup import escape

from ondol.cli.console import console, open_project
from ondol.cli.follow import start_follower
from ondol.config import Settings, is_address
from ondol.errors import UserError
from ondol.orchestration.processes import is_loopback
from ondol.registry.bundles import new_bento_home, open_bundle
from ondol.registry.champion import read_champion
from ondol.storage.reach import look_again


def serve_champion(port: int | None) -> None:
    """Become the service process; ready as soon as there is a champion.

    Raises:
        UserError: the port is taken, the host is no address, or what is to be served is damaged.
    """
    settings = open_project(stored=False)
    host, chosen = settings.service.host, port or settings.service.port
    _require_free(host, chosen)
    place = f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}"
    if is_address(settings.store):
        _bring(settings)
        start_follower(settings)
    champion = read_champion(settings.store_path)
    if champion and not is_address(settings.store):  # of a bucket, what is here serves though the bucket is away
        open_bundle(settings.store_path, champion.bundle)
    serving = f"version {champion.version}" if champion else "no model yet: `ml run` deploys one"
    console.print(
        f"Serving [bold]{escape(settings.project.name)}[/] ({serving}) on http://{escape(place)}. Stop with Ctrl-C."
    )
    if not is_loopback(host):
        console.print(
            f"[yellow]Other machines can reach {escape(place)}, and the service does not ask who they are: put a proxy "
            "that does so in front of it, or set \\[service] host to 127.0.0.1.[/]",
            soft_wrap=True,
        )
    sys.stdout.flush()
    os.environ |= {"ML_STORE": str(settings.store_path)}
    limits = settings.service.model_dump(exclude={"host", "port"}) | {
        "hosts": ",".join((*settings.service.hosts, place))
    }
    for section, values in (("SERVICE", limits), ("LOG", settings.log.model_dump())):
        os.environ |= {f"ML_{section}__{name.upper()}": str(value) for name, value in values.items()}
    environment, held = new_bento_home(settings)
    os.environ |= environment
    for file in held:
        os.set_inheritable(file, True)
    os.chdir(settings.root)
    command = [sys.executable, "-m", "bentoml", "serve", "service.service:Service"]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(chosen)])


def _bring(settings: Settings) -> None:
    """Bring what serves; where the store does not answer, what was brought before goes on serving."""
    try:
        look_again(settings.store_path / "champion.json")
    except UserError as error:
        console.print(f"[yellow]{escape(str(error))}[/] The service begins with what is here.", soft_wrap=True)


def _require_free(host: str, port: int) -> None:
    try:
        family = socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6
    except ValueError:
        raise UserError(f"[service] host is {host}: give the address to listen on, such as 127.0.0.1.") from None
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"Port {port} on {host} is not free ({error.strerror}): `ml serve --port {port + 1}` takes another."
            ) from None
