"""The container of a service on an environment's host, replaced by the `docker` command (Docker's or Podman's)."""

import json
import os
import re
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from rich.markup import escape

from ondol.cli.console import console
from ondol.config import Settings, is_address
from ondol.errors import UserError

INSIDE = "3000/tcp"
URL_PORT = re.compile(r"http://[^/]*:(\d+)(?:/|$)")  # an https:// address belongs to a proxy in front of the container
MINUTES = 15
RESTRICTIONS = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
WORKERS = "ML_SERVICE__WORKERS"  # the only setting of the service that is not in the bundle
HOSTS = "ML_SERVICE__HOSTS"  # those of the environment, in addition to those of the bundle
RUNS = ("running", "restarting")
KEPT = "-BEFORE"  # project names have no capital letters


def published_port(settings: Settings, name: str) -> int:
    """Return the port that an environment's container publishes.

    Raises:
        UserError: the container of another environment uses it on the same host.
    """
    host, port = settings.environments[name].host, environment_port(settings, name)
    for other, environment in settings.environments.items():
        if other != name and environment.host == host and environment_port(settings, other) == port:
            raise UserError(
                f"{name} and {other} both publish the port {port} of {host}: give [environments.{name}] a `port` of "
                "its own."
            )
    return port


def environment_port(settings: Settings, name: str) -> int:
    """Return the port of an environment: from its section, from its address, or the setting for all services."""
    environment = settings.environments[name]
    found = URL_PORT.match(environment.url)
    return environment.port or (int(found[1]) if found else settings.service.port)


def published_addresses(inspected: dict[str, Any]) -> list[str]:
    """Return the addresses, `ADDRESS:PORT`, of the host at which an inspected container answers."""
    bindings = (inspected["HostConfig"].get("PortBindings") or {}).get(INSIDE) or []
    return [place(at.get("HostIp") or "0.0.0.0", int(at["HostPort"])) for at in bindings]


def place(address: str, port: int) -> str:
    """Return an address and a port in the form of `docker --publish`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def service_hosts(settings: Settings, name: str) -> str:
    """Return the allowed hosts of an environment's service: those of the settings, and that of its URL."""
    url = urlsplit(settings.environments[name].url)
    return ",".join(
        dict.fromkeys((*settings.service.hosts, *filter(None, [url.hostname, url.netloc.rpartition("@")[2]])))
    )


def mounts(inspected: dict[str, Any], *stores: str) -> bool:
    """Return True if one of these is mounted as the store of an inspected container; Podman adds its own options."""
    wanted = {f"{store}:/store" for store in stores}
    return any(":".join(bind.split(":")[:2]) in wanted for bind in inspected["HostConfig"].get("Binds") or [])


def name_part(environment: str) -> str:
    """Return an environment's name with only the characters that are allowed in a container's name."""
    allowed = re.fullmatch(r"[A-Za-z0-9_.-]+", environment)
    return environment if allowed else f"{zlib.crc32(environment.encode()):08x}"


def access_variables(settings: Settings, reachable: bool) -> dict[str, str]:
    """Return the variables of access control that a container needs: inside, it listens on every address.

    Args:
        settings: The project's.
        reachable: Whether other machines can reach the address that it publishes.
    """
    access = settings.access.model_copy(update={"open": settings.access.open or not reachable})
    return {f"ML_ACCESS__{name.upper()}": str(value) for name, value in access.model_dump(exclude_none=True).items()}


def log_key_variables(settings: Settings) -> tuple[str, ...]:
    """Return the names of the variables that the prediction log needs; they need not be listed in the settings."""
    return ("ML_LOG_KEY",) if settings.log.enabled and settings.log.sensitive == "hash" else ()


class Container:
    """The container of an environment on its host, named after the project and the environment."""

    def __init__(self, settings: Settings, environment: str) -> None:
        """Read the settings; the host is not contacted yet.

        Args:
            settings: The project's.
            environment: The name of one with a host.

        Raises:
            UserError: another environment has the same host and port.
        """
        chosen = settings.environments[environment]
        self.project = settings.project.name
        self.name = f"{self.project}-{name_part(environment)}"
        self.kept = f"{self.name}{KEPT}"
        self.place = place(str(chosen.address), published_port(settings, environment))
        self.is_reachable = not chosen.address.is_loopback
        self.store = f"{self.name}-store" if is_address(chosen.store) else str(settings.root / chosen.store)
        self.host = str(chosen.host)
        self.environment = environment
        access = access_variables(settings, self.is_reachable)
        self.variables = tuple(
            dict.fromkeys((*chosen.variables, *log_key_variables(settings), WORKERS, HOSTS, *access))
        )
        self.values = os.environ | access
        self.values |= {WORKERS: str(settings.service.workers), HOSTS: service_hosts(settings, environment)}
        self.open = settings.access.open or settings.access.jwks is not None or not self.is_reachable

    def image(self) -> str | None:
        """Return the image of the running container; None if none runs."""
        states = self._states()
        name = self.name if self.name in states else self.project
        runs = states.get(name) in RUNS and (name == self.name or self._is_ours(name))
        return str(self._inspect(name)["Config"]["Image"]) if runs else None

    @contextmanager
    def replaced(self, image: str) -> Iterator[None]:
        """Run `image` instead of the current image; if the block fails, run the previous one again.

        The old container is stopped and kept until the block has succeeded, so restoring it needs no image registry.

        Raises:
            UserError: the host, the image or a variable is missing, or the container does not start.
        """
        self._require_variables()
        self.put_back()
        state = self._states().get(self.name)
        if state in RUNS and self._is_as_wanted(image):
            yield
            return
        self._docker("pull", "--quiet", image)
        try:
            self._replace(image, state)
            yield
        except BaseException as error:
            self._undo(error, state)
            raise
        if state:
            self._remove_kept()

    def put_back(self) -> None:
        """Restore the container after a release that was killed; do nothing if no release was killed."""
        self._take_over()
        self._put_back(had=True, ran=True)

    def _take_over(self) -> None:
        """Rename a container of an older template version, whose name lacks the environment, if it has this store."""
        there = self._states()
        for end in ("", KEPT):
            old, new = f"{self.project}{end}", f"{self.name}{end}"
            if old in there and new not in there and self._is_ours(old):
                self._docker("rename", old, new)

    def _replace(self, image: str, state: str | None) -> None:
        """Replace the container by one of `image`, which was pulled before."""
        if state:
            self._docker("rename", self.name, self.kept)
        if state in RUNS:
            self._docker("stop", self.kept)
        self._docker(*self._run(image))

    def _undo(self, error: BaseException, state: str | None) -> None:
        try:
            self._put_back(had=state is not None, ran=state in RUNS)
        except UserError as second:
            raise UserError(
                f"{error} And the previous container could not be restored: {second} See {self.kept} and {self.name} "
                f"on {self.host}; the next release restores it first."
            ) from error

    def _put_back(self, had: bool, ran: bool) -> None:
        """Restore the previous container of the host, running or stopped as before."""
        there = self._states()
        if self.name in there and (self.kept in there or not had):
            self._docker("rm", "--force", self.name)
        if self.kept not in there:
            return
        self._docker("rename", self.kept, self.name)
        if ran:
            self._docker("start", self.name)
        image = self._inspect(self.name)["Config"]["Image"]
        console.print(
            f"[yellow]A release failed: {escape(image)} {'runs' if ran else 'is'} again on {escape(str(self.host))}.[/]"
        )

    def _remove_kept(self) -> None:
        try:
            self._docker("rm", "--force", self.kept)
        except UserError as error:  # the release was verified and is kept
            console.print(
                f"[yellow]Remove {escape(self.kept)} by hand before the next release: {escape(str(error))}[/]"
            )

    def _states(self) -> dict[str, str]:
        """Return the states of the service's containers, by name."""
        output = self._docker(
            *("container", "ls", "--all", "--filter", f"name={self.project}", "--format", "{{.Names}} {{.State}}")
        )
        found = dict(line.split(maxsplit=1) for line in output.splitlines())
        ours = (self.name, self.kept, self.project, f"{self.project}{KEPT}")
        return {name: state for name, state in found.items() if name in ours}

    def _inspect(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self._docker("container", "inspect", "--format", "{{json .}}", name)))

    def _is_ours(self, name: str) -> bool:
        """Return True if a container without an environment in its name has this store, by its old or its new name."""
        return mounts(self._inspect(name), self.store, f"{self.project}-store")

    def _is_as_wanted(self, image: str) -> bool:
        inspected = self._inspect(self.name)
        wanted = [f"{name}={self.values[name]}" for name in self.variables]
        alike = inspected["Config"]["Image"] == image and set(wanted) <= set(inspected["Config"]["Env"])
        return alike and mounts(inspected, self.store) and published_addresses(inspected) == [self.place]

    def _require_variables(self) -> None:
        missing = [name for name in self.variables if not self.values.get(name)]
        if missing:
            raise UserError(
                f"{' and '.join(missing)} must be set here and are passed to the service in {self.environment}: see "
                f"`variables` in [environments.{self.environment}], and [log] sensitive, which asks for ML_LOG_KEY."
            )

    def _run(self, image: str) -> list[str]:
        """Return the arguments that start a container; secrets are passed by name, and `docker` reads their values."""
        return [
            *("run", "--detach", "--pull", "never", "--name", self.name, "--restart", "unless-stopped"),
            *RESTRICTIONS,
            *("--publish", f"{self.place}:3000"),
            *(word for name in self.variables for word in ("--env", name)),
            *("--volume", f"{self.store}:/store", "--env", "ML_STORE=/store"),
            image,
        ]

    def _docker(self, *words: str) -> str:
        command = ["docker", "--host", self.host, *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=60 * MINUTES, check=True, env=self.values
            )
        except FileNotFoundError:
            raise UserError("The command `docker` is not installed: install Docker's client, or Podman's.") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"`{' '.join(command)}` did not finish within {MINUTES} minutes: see the host.") from None
        except subprocess.CalledProcessError as error:
            message = (error.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"`{' '.join(command)}` failed: {message}") from None
        return done.stdout
