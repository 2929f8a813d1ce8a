"""A compose file without an engine: the commands of its services as processes of this machine.

Two rules take the place of what an engine would do, wherever the compose file has an address or a path, in the
Dockerfile or in a file that is mounted; health checks included:

- a port that a container listens on is a free port here, and the container's name before it is 127.0.0.1;
- a path of a container is the same path below a folder of that container's own, where a mount is a link to the volume.

Beside that a process gets what its container would: the command, the working directory, the files that the image's
COPY lines name, and the environment of the image and of the compose file, and no other variable.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from template_support import python_path

PORTS = {
    "postgres": 5432,
    "prefect": 4200,
    "mlflow": 5000,
    "service": 3000,
    "prometheus": 9090,
    "worker": 9464,
    "alertmanager": 9093,
}
PATHS = ("alertmanager", "app", "artifacts", "etc/alertmanager", "etc/prometheus", "prometheus", "run/secrets")
PATHS = (*PATHS, "store", "tmp")
VENV = "/opt/venv/bin"  # where the image has its packages; here it is this environment
Service = dict[str, Any]


def read_compose(path: Path, variables: Mapping[str, str]) -> dict[str, Service]:
    """Return the services, each variable replaced as Compose does; in the order in which they may start.

    The secrets of a service are by the path in its container. Like the other mounts, they name a file of the project.

    Raises:
        ValueError: a variable is required and not there.
    """

    def value(found: re.Match[str]) -> str:
        name, operator, text = found.groups()
        if operator == "?" and not variables.get(name):
            raise ValueError(f"{name}: {text}")
        return variables.get(name) or (text if operator == "-" else "")

    def filled(part: Any) -> Any:
        """Variables are replaced after parsing, because a value may contain YAML syntax."""
        if isinstance(part, dict):
            return {key: filled(each) for key, each in part.items()}
        if isinstance(part, list):
            return [filled(each) for each in part]
        if not isinstance(part, str):
            return part
        return re.sub(r"(?<!\$)\$\{(\w+)(?::([?-])([^}]*))?\}", value, part).replace("$$", "$")

    compose = filled(yaml.safe_load(path.read_text(encoding="utf-8")))
    services: dict[str, Service] = compose["services"]
    for service in services.values():
        named = [one if isinstance(one, dict) else {"source": one} for one in service.get("secrets", ())]
        service["secrets"] = {
            one.get("target", f"/run/secrets/{one['source']}"): compose["secrets"][one["source"]]["file"]
            for one in named
        }
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    return {name: services[name] for name in TopologicalSorter(waits).static_order()}


class Dockerfile:
    """The stages of a Dockerfile, and what each adds to its base."""

    def __init__(self, path: Path) -> None:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
        self.stages: dict[str, list[tuple[str, str]]] = {}
        self.base: dict[str, str] = {}
        for line in "\n".join(lines).replace("\\\n", " ").splitlines():
            keyword, _, rest = line.strip().partition(" ")
            if keyword == "FROM":
                base, _, stage = rest.partition(" AS ")
                self.base[stage], self.stages[stage] = base, []
            elif keyword and self.stages:
                self.stages[stage].append((keyword, rest.strip()))

    def lines(self, stage: str) -> Iterator[tuple[str, str]]:
        """Yield the instructions of a stage, those of its base first."""
        if stage in self.stages:
            yield from self.lines(self.base[stage])
            yield from self.stages[stage]

    def command(self, stage: str) -> list[str]:
        return [list(yaml.safe_load(rest)) for keyword, rest in self.lines(stage) if keyword == "CMD"][-1]

    def environment(self, stage: str) -> dict[str, str]:
        """Return the variables of ENV and ARG; a shell expands `${NAME:+text}` in the same way."""
        script = [f"export {rest}" if keyword == "ENV" else rest for keyword, rest in self.lines(stage)
                  if keyword in ("ENV", "ARG")]  # fmt: skip
        names = {word.partition("=")[0] for line in script if line.startswith("export ") for word in shlex.split(line)}
        said = subprocess.run(
            ["bash", "--noprofile", "--norc", "-c", "\n".join([*script, "env -0"])],
            env={},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        pairs = (entry.partition("=") for entry in said.split("\0") if entry)
        return {name: text for name, _, text in pairs if name in names}

    def copied(self, stage: str) -> Iterator[tuple[str, str]]:
        """Yield the files copied from the project, also through another stage, and their targets."""
        for keyword, rest in self.lines(stage):
            if keyword != "COPY":
                continue
            *sources, place = [word for word in rest.split() if not word.startswith("--")]
            origin = re.match(r"--from=(\S+)", rest)
            if origin is None:
                yield from ((source, place) for source in sources)
            elif sources == ["/app"]:
                yield from self.copied(origin[1])


class Containers:
    """The containers of a compose file, each a folder below `root` and, once started, a process."""

    def __init__(self, root: Path, project: Path, services: Mapping[str, Service], ports: Mapping[str, int]) -> None:
        self.root, self.project, self.services, self.ports = root, project, services, ports
        self.dockerfile = Dockerfile(project / "Dockerfile")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def folder(self, name: str) -> Path:
        return self.root / "containers" / name

    def inside(self, name: str, path: str) -> Path:
        """Return where a path of a container is."""
        return self.folder(name) / path.lstrip("/")

    def volume(self, source: str) -> Path:
        """Return the folder of a named volume, or of a relative path."""
        return (self.project / "ops" / source).resolve() if source.startswith(".") else self.root / "volumes" / source

    def make(self, name: str, program: str | None = None) -> None:
        """Create a container's folder: the image's files, a /tmp, and a link for each mount.

        Args:
            name: The service.
            program: What the image of another project calls `name`; it listens on the port that is chosen here.
        """
        folder = self.folder(name)
        for path in ("app", "store", "artifacts", "tmp", "bin"):
            (folder / path).mkdir(parents=True)
        if target := self.services[name].get("build", {}).get("target"):
            for source, place in self.dockerfile.copied(target):
                self._copy(source, folder / "app" / place)
            self._install_scripts(folder)
        if program is not None:
            listen = f"--web.listen-address=127.0.0.1:{self.ports[name]}"
            self._write_script(folder / "bin" / name, f'exec {program} {listen} "$@"')
        for place, source in self.services[name]["secrets"].items():
            link = self.inside(name, place)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.volume(source).resolve(strict=True))
        for mount in self.services[name].get("volumes", ()):
            source, place = mount.split(":")[:2]
            link, there = folder / place.lstrip("/"), self.volume(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            if there.is_file():
                link.write_text(self.localise(name, there.read_text(encoding="utf-8")), encoding="utf-8")
                continue
            there.mkdir(parents=True, exist_ok=True)
            if link.is_dir():
                link.rmdir()
            link.symlink_to(there)

    def _copy(self, source: str, place: Path) -> None:
        path = self.project / source
        if path.is_dir():
            shutil.copytree(path, place)
        elif path.exists():  # a fresh project has no uv.lock; nothing that runs reads it
            shutil.copy(path, place)

    def _install_scripts(self, folder: Path) -> None:
        """Put each workspace member's [project.scripts] on the path, as an editable installation of it does."""
        for member in sorted((folder / "app" / "vendor").glob("*/pyproject.toml")):
            project = tomllib.loads(member.read_text(encoding="utf-8"))["project"]
            for name, entry in project.get("scripts", {}).items():
                module, _, function = entry.partition(":")
                self._write_script(
                    folder / "bin" / name, f'exec python3 -c "from {module} import {function}; {function}()" "$@"'
                )

    def _write_script(self, path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        path.chmod(0o755)

    def localise(self, name: str, text: str) -> str:
        """Return a text of a container with the addresses and the paths of this machine: the two rules above."""
        for other, port in PORTS.items():
            text = re.sub(rf"\b{other}:{port}\b", f"127.0.0.1:{port}", text)
            text = re.sub(rf"(?<!\d){port}(?!\d)", str(self.ports[other]), text)
        text = re.sub(rf"(?<![\w/.])/({'|'.join(PATHS)})(?![\w-])", rf"{self.folder(name)}/\1", text)
        text = text.replace(VENV, str(Path(sys.executable).parent))
        return text.replace("0.0.0.0", "127.0.0.1")

    def environment(self, name: str) -> dict[str, str]:
        service = self.services[name]
        image = self.dockerfile.environment(service["build"]["target"]) if "build" in service else {}
        given = {key: str(value) for key, value in service.get("environment", {}).items()}
        asked = {"PATH": os.environ["PATH"]} | image | given
        folder = self.folder(name)
        here = {
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": python_path(folder / "app", engine=folder / "app" / "vendor"),
        }
        made = {key: self.localise(name, value) for key, value in asked.items()} | here
        return made | {"PATH": f"{folder / 'bin'}:{made['PATH']}"}

    def command(self, name: str) -> list[str]:
        service = self.services[name]
        words = service.get("command") or self.dockerfile.command(service["build"]["target"])
        return [self.localise(name, word) for word in words]

    def start(self, name: str) -> None:
        service = self.services[name]
        # The image of another project has its program as entry point, unless the compose file names one.
        entrypoint = service.get("entrypoint", [] if "build" in service else [name])
        command = [*entrypoint, *self.command(name)]
        self.run(name, command, cwd=self.folder(name) / "app", env=self.environment(name))

    def run(self, name: str, command: list[str], **options: Any) -> None:
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **options
            )

    def healthy(self, name: str) -> bool:
        """Run a service's own health check once."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.execute(name, *words, timeout=60).returncode == 0

    def execute(self, name: str, *words: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run a command in a container, as `docker compose exec` does."""
        return subprocess.run(
            [self.localise(name, word) for word in words],
            cwd=self.folder(name) / "app",
            env=self.environment(name),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def said(self, name: str) -> str:
        return f"{name}: " + self.log(name).read_text(encoding="utf-8", errors="replace")[-3000:]

    def written(self, name: str) -> set[str]:
        """Return the files in a container outside its mounts and /tmp: an image's are the same all the time."""
        folder = self.folder(name)
        found = (Path(at, file) for at, _, files in os.walk(folder) for file in files)  # links are not followed
        names = {path.relative_to(folder).as_posix() for path in found}
        return {name for name in names if not name.startswith("tmp/") and "__pycache__" not in name}
