"""Real servers for the tests of the service."""

import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import pytest

from ondol.orchestration.guard import free_port

TEMPLATE = Path(__file__).parents[1] / "template"


@contextmanager
def serve(
    store: Path, home: Path, project: Path = TEMPLATE, certificate: Path | None = None, **environment: str
) -> Iterator[httpx.Client]:
    """Run a real `bentoml serve` of a project on the store until the block ends; its output is in `home`/log."""
    port = free_port()
    home.mkdir(parents=True, exist_ok=True)
    settings = {"ML_STORE": str(store), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "serve", "service.service:Service"]
    if certificate:  # with its private key beside it
        command += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(certificate.with_suffix(".key"))]
        command += ["--ssl-version", str(int(ssl.PROTOCOL_TLS_SERVER))]
    trusted: Any = ssl.create_default_context(cafile=certificate) if certificate else True
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=project,
            env=os.environ | settings | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            scheme = "https" if certificate else "http"
            with httpx.Client(base_url=f"{scheme}://127.0.0.1:{port}", timeout=20, verify=trusted) as client:
                wait_for(client, "/livez", 200)
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@contextmanager
def mount_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system until the block ends; skip the test where this user may not."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def wait_for(client: httpx.Client, path: str, status: int, seconds: float = 120) -> None:
    """Poll until `path` answers `status`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if client.get(path).status_code == status:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{path} did not answer {status} in {seconds} s")


class Client(Protocol):
    """A thread that sends requests until `done` is set."""

    done: threading.Event

    def start(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...


T = TypeVar("T", bound=Client)


@contextmanager
def run_clients(clients: list[T]) -> Iterator[list[T]]:
    """Have clients send until the block ends."""
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.done.set()
        for client in clients:
            client.join(30)


def until(condition: Any, what: str, seconds: float = 60.0) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.01)


class Server:
    """A real service, and its responses to raw bytes."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.port = client.base_url.port or 0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 30)

    def say(self, *pieces: bytes) -> bytes:
        """Send the pieces and return all that is answered until the server ends the connection."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return read_to_the_end(connection)

    def head(self, *headers: str, request: str = "POST /predict", host: str = "127.0.0.1") -> bytes:
        return "\r\n".join([f"{request} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


def read_to_the_end(connection: socket.socket) -> bytes:
    said = b""
    try:
        while piece := connection.recv(65_536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def unknown_paths(count: int) -> Iterator[tuple[str, str]]:
    forms = ("/{}", "/predict/{}", "/static_content/{}", "/docs.json/{}", "/%EA%B3%A0{}", "//{}", "/{}/livez",
             "/model{}", "/static_content/../{}", "/livez{}",
             "/metrics/{}", "/predict;{}", "/" + "x" * 300 + "{}")  # fmt: skip
    methods = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "PROPFIND")
    for number in range(count):
        yield methods[number % len(methods)], forms[number % len(forms)].format(number)


def ask_unknown_paths(server: Server, count: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)  # sends a path as it is
    for method, path in unknown_paths(count):
        connection.request(method, path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (403, 404, 405), (method, path, answer.status)
    connection.close()


def metric_lines(server: Server) -> list[str]:
    return [line.rpartition(" ")[0] for line in server.client.get("/metrics").text.splitlines()]
