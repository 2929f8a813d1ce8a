"""Real servers for the tests of the service."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ondol.orchestration.guard import free_port

TEMPLATE = Path(__file__).parents[1] / "template"


@contextmanager
def serve(store: Path, home: Path, **environment: str) -> Iterator[httpx.Client]:
    """Run a real `bentoml serve` on the store until the block ends; its output is in `home`/log."""
    port = free_port()
    home.mkdir(parents=True, exist_ok=True)
    settings = {"ML_STORE": str(store), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", "serve", "service.service:Service"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=TEMPLATE,
            env=os.environ | settings | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
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
