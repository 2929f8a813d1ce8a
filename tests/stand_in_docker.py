"""Replaces `docker --host HOST …` in tests: each host is a JSON file, and it refuses what a real one refuses.

The file is called like the last part of the host's address. It holds `registry` and `images` (names), `containers`
(state, image, environment, mounts and port of each), `refused` (commands that fail) and `log` (the commands that came).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def fail(sentence: str) -> None:
    sys.exit(f"Error response from daemon: {sentence}")


class Host:
    """The container host: a method for each command."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state, self.containers, self.images = state, state["containers"], state["images"]

    def pull(self, *words: str) -> None:
        if words[-1] not in self.state["registry"]:
            fail("manifest unknown")
        self.images.append(words[-1])

    def container(self, verb: str, *words: str) -> None:
        if verb == "ls":
            for name, container in self.containers.items():
                print(name, container["state"])
        elif words[-1] in self.containers:
            made = self.containers[words[-1]]
            config = {"Image": made["image"], "Env": [f"{k}={v}" for k, v in made["env"].items()]}
            address, _, port = made["port"].rpartition(":")
            ports = {"3000/tcp": [{"HostIp": address.strip("[]"), "HostPort": port}]}
            print(json.dumps({"Config": config, "HostConfig": {"Binds": made["binds"], "PortBindings": ports}}))
        else:
            fail(f"No such container: {words[-1]}")

    def rename(self, old: str, new: str) -> None:
        if old not in self.containers or new in self.containers:
            fail(f"cannot rename {old} to {new}")
        self.containers[new] = self.containers.pop(old)

    def stop(self, name: str) -> None:
        self.containers[name]["state"] = "exited"

    def start(self, name: str) -> None:
        self.require_free_port(name)
        self.containers[name]["state"] = "running"

    def rm(self, *words: str) -> None:
        if self.containers.pop(words[-1], None) is None:
            fail(f"No such container: {words[-1]}")

    def run(self, *words: str) -> None:
        name, image = words[words.index("--name") + 1], words[-1]
        if name in self.containers:
            fail(f"The container name {name} is already in use")
        if "never" not in words or image not in self.images:
            fail(f"No such image: {image}")
        given = [words[i + 1] for i, word in enumerate(words) if word == "--env"]
        pairs = (text.partition("=") if "=" in text else (text, "", os.environ.get(text)) for text in given)
        env = {key: value for key, _, value in pairs if value is not None}
        binds = [words[i + 1] for i, word in enumerate(words) if word == "--volume"]
        port = words[words.index("--publish") + 1].removesuffix(":3000")
        self.containers[name] = {"state": "created", "image": image, "env": env, "binds": binds, "port": port}
        self.require_free_port(name)
        self.containers[name]["state"] = "running"

    def require_free_port(self, name: str) -> None:
        others = [c for other, c in self.containers.items() if other != name and c["state"] == "running"]
        if self.containers[name]["port"] in [c["port"] for c in others]:
            fail("port is already allocated")


def main() -> None:
    _, host, command, *words = sys.argv[1:]
    place = Path(os.environ["DOCKER_STATE"]) / f"{host.rpartition('/')[2]}.json"
    if not place.exists():
        sys.exit(f"Cannot connect to the Docker daemon at {host}")
    state = json.loads(place.read_text(encoding="utf-8"))
    state["log"].append([command, *words])
    try:
        if command in state["refused"]:
            fail(f"no {command} today")
        getattr(Host(state), command)(*words)
    finally:
        place.write_text(json.dumps(state), encoding="utf-8")


if __name__ == "__main__":
    main()
