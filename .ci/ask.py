"""Serves the champion of the project in the working directory, asks it for one prediction, and stops it."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SECONDS = 60.0


def main() -> int:
    """Serve, ask, print the answer; return the exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = ["uv", "run", "ml", "serve", "--port", str(port)]
    print("\n$", *command, flush=True)
    service = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_until_ready(service, f"{url}/readyz")
        ask(f"{url}/predict")
    finally:
        service.terminate()
        service.wait(30)
    return 0


def wait_until_ready(service: "subprocess.Popen[bytes]", url: str) -> None:
    """Poll until the service answers 200, or end the program where it does not."""
    deadline = time.monotonic() + SECONDS
    while service.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    sys.exit("The service did not become ready: see what it printed above.")


def ask(url: str) -> None:
    """Post the example row of the model in production and print the answer."""
    store = Path(".ml/store")
    bundle = json.loads((store / "champion.json").read_text(encoding="utf-8"))["bundle"]
    meta = json.loads((store / "bundles" / bundle / "meta.json").read_text(encoding="utf-8"))
    body = json.dumps({"rows": meta["example"]["rows"][:1]}, ensure_ascii=False)
    print(f"\n$ curl -s {url} -H 'Content-Type: application/json' -d '{body}'")
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(json.dumps(json.load(answer), ensure_ascii=False, indent=2), flush=True)


if __name__ == "__main__":
    sys.exit(main())
