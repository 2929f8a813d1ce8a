"""A container host for the tests: `stand_in_docker.py` takes the place of the `docker` command."""

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("stand_in_docker.py")


class DockerHost:
    """A host without containers whose registry has the images `churn:1` and `churn:2`."""

    def __init__(self, folder: Path, name: str, *registry: str) -> None:
        """Make the host in `folder`, which may hold others."""
        self.address = f"ssh://{name}"
        self.place = folder / f"{name}.json"
        command = folder / "bin" / "docker"
        command.parent.mkdir(exist_ok=True)
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {SCRIPT} "$@"\n', encoding="utf-8")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        self.environment = {"PATH": f"{command.parent}:{os.environ['PATH']}", "DOCKER_STATE": str(folder)}
        self.write(registry=["churn:1", "churn:2", *registry], images=[], containers={}, refused=[], log=[])

    @property
    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.place.read_text(encoding="utf-8")))

    def write(self, **changes: Any) -> None:
        state = (self.state if self.place.exists() else {}) | changes
        self.place.write_text(json.dumps(state), encoding="utf-8")

    def have(
        self, name: str, image: str = "churn:1", state: str = "running", store: str = "/srv/churn", **env: str
    ) -> dict[str, Any]:
        """Let there be a container, as `docker run` would have made it; return all of them."""
        about = {"state": state, "image": image, "binds": [f"{store}:/store"], "port": "127.0.0.1:3000"}
        made = {name: about | {"env": {"ML_SERVICE__WORKERS": "1", **env}}}
        self.write(containers=self.containers | made, images=[*self.state["images"], image])
        return self.containers

    @property
    def containers(self) -> dict[str, Any]:
        return dict(self.state["containers"])

    @property
    def running(self) -> dict[str, str]:
        return {name: c["image"] for name, c in self.containers.items() if c["state"] == "running"}

    def commands(self) -> list[str]:
        """The received commands in order: the first word of each."""
        return [words[0] for words in self.state["log"]]
