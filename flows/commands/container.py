"""The container of a service on an environment's host, moved by the `docker` command (Podman's bears that name too)."""

import subprocess

from flows.errors import UserError
from flows.sections import Environment
from flows.settings import Settings

MINUTES = 15
LEAST_RIGHTS = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


class Container:
    """The one container, named like the project, that serves on a host."""

    def __init__(self, settings: Settings, environment: Environment) -> None:
        """Look at nothing yet.

        Args:
            settings: The project's.
            environment: One with a host.
        """
        self.name = settings.project.name
        self.port = settings.service.port
        self.store = settings.root / environment.store
        self.host = str(environment.host)

    def image(self) -> str | None:
        """Return the image that runs, None where there is no such container."""
        done = self._docker(
            "container", "ls", "--all", "--no-trunc", "--filter", f"name=^{self.name}$", "--format", "{{.Image}}"
        )
        return done.strip() or None

    def replace(self, image: str | None) -> None:
        """Put a container of `image` (None: nothing) in the place of the one that runs; the host pulls it first.

        Raises:
            UserError: the host or the image cannot be reached, or the container does not start.
        """
        if image is not None:
            self._docker("pull", "--quiet", image)
        self._docker("rm", "--force", self.name)
        if image is not None:
            self._docker(*self._run(image))

    def _run(self, image: str) -> list[str]:
        return [
            *("run", "--detach", "--name", self.name, "--restart", "unless-stopped"),
            *LEAST_RIGHTS,
            *("--publish", f"{self.port}:3000"),
            *("--volume", f"{self.store}:/store", "--env", "ML_STORE=/store"),
            image,
        ]

    def _docker(self, *words: str) -> str:
        command = ["docker", "--host", self.host, *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES, check=True)
        except FileNotFoundError:
            raise UserError("The command `docker` is not installed: install Docker's client, or Podman's.") from None
        except subprocess.TimeoutExpired:
            raise UserError(f"`{' '.join(command)}` did not end in {MINUTES} minutes: see the host.") from None
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"`{' '.join(command)}` failed: {said}") from None
        return done.stdout
