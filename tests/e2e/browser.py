"""Headless Chromium, controlled by the DevTools protocol: requests, text, errors and pictures of a page."""

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    # A frame in a process of its own would report to another address than its page's.
    "--disable-site-isolation-trials",
    "--disable-features=IsolateOrigins,site-per-process,IsolateSandboxedIframes",
    "--remote-debugging-port=0",
)
WIDTH = 1280
SECONDS = 240.0
QUIET_SECONDS = 1.0


class Page:
    """An open page, with its requests and errors so far."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.numbers = itertools.count(1)
        self.frames: dict[int, str] = {}
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def open(self, address: str, height: int = 900) -> "Page":
        """Open an address in a window of `height`."""
        self.resize(height)
        self.call("Page.navigate", url=address)
        return self

    def resize(self, height: int) -> None:
        size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self.numbers)
        self.connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.connection.recv(SECONDS))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._hear(message["method"], message["params"])

    def run(self, script: str, frame: int | None = None) -> Any:
        """Return the value of an expression in the page, or in one of its frames."""
        where = {} if frame is None else {"contextId": frame}
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, **where)
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def run_everywhere(self, script: str) -> list[Any]:
        """Return the values of an expression in the page and in each frame inside it."""
        self.run("0")  # hear of the frames
        found = []
        for frame in list(self.frames):
            try:
                found.append(self.run(script, frame))
            except AssertionError:  # it has gone meanwhile
                continue
        return found

    @property
    def text(self) -> str:
        """The text of the page and its frames, with single spaces."""
        texts = self.run_everywhere("document.body ? document.body.innerText : ''")
        return " ".join(" ".join(filter(None, texts)).split())

    def await_text(self, *words: str) -> str:
        """Wait until the page contains all the words, and return its text."""
        missing: list[str] = []
        said = ""

        def complete() -> bool:
            nonlocal missing, said
            said = self.text
            missing = [word for word in words if word not in said]
            return not missing

        self._await(complete, lambda: f"{missing} in: {said}\n{self.complaints}")
        return said

    def await_true(self, script: str) -> None:
        """Wait until an expression is true in the page or one of its frames."""
        self._await(lambda: any(self.run_everywhere(script)), lambda: f"{script}: {self.text}\n{self.complaints}")

    def click(self, words: str, selector: str = "a, button, li, label, span, p") -> None:
        """Click the innermost element that says exactly `words`."""
        says = f"element => element.innerText?.trim() === {json.dumps(words)}"
        found = f"[...document.querySelectorAll({json.dumps(selector)})].filter({says})"
        self.await_true(f"{found}.length > 0")
        self.run(f"{found}.at(-1).click()")

    def settle(self) -> None:
        """Wait until there are no more requests, and pictures and fonts are loaded."""
        self.await_true("[...document.images].every(i => i.complete) && document.fonts.status === 'loaded'")
        before = -1
        while before != len(self.requests):
            before = len(self.requests)
            time.sleep(QUIET_SECONDS)
            self.run("0")

    @property
    def strangers(self) -> set[str]:
        """The hosts outside this machine to which the page has sent requests."""
        addresses = [urlsplit(address) for address in self.requests]
        return {a.hostname or "" for a in addresses if a.scheme not in ("data", "blob", "about")} - {"127.0.0.1"}

    def picture(self) -> bytes:
        """Return a screenshot as a small PNG."""
        self.settle()
        shot = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        made = io.BytesIO()
        with Image.open(io.BytesIO(shot)) as image:
            few = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            few.save(made, "PNG", optimize=True)
        return made.getvalue()

    def _hear(self, event: str, said: dict[str, Any]) -> None:
        """Remember frames, requests and complaints."""
        match event:
            case "Runtime.executionContextCreated":
                context = said["context"]
                if context["auxData"].get("isDefault"):
                    self.frames[context["id"]] = context["auxData"]["frameId"]
            case "Runtime.executionContextDestroyed":
                self.frames.pop(said["executionContextId"], None)
            case "Runtime.executionContextsCleared":
                self.frames.clear()
            case "Network.requestWillBeSent" | "Network.webSocketCreated":
                self.requests.append(said["request"]["url"] if "request" in said else said["url"])
            case "Runtime.exceptionThrown":
                details = said["exceptionDetails"]
                thrown = details.get("exception", {})  # without a description, where no Error was thrown
                text = f"{details['text']} {thrown.get('value')} {details.get('url')}"
                self.complaints.append(thrown.get("description", text))
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "assert"):
                words = [str(a.get("value", a.get("description", ""))) for a in said["args"]]
                self.complaints.append(" ".join(words))
            case "Log.entryAdded" if said["entry"]["level"] == "error":
                self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")

    def _await(self, true: Any, what: Any) -> None:
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, f"not in {SECONDS:.0f} s: {what()}"
            time.sleep(0.2)


class Browser:
    """A Chromium that runs."""

    def __init__(self, address: str) -> None:
        self.address = address

    @contextmanager
    def page(self) -> Iterator[Page]:
        """Open an empty page until the block ends."""
        made = (
            httpx.put(f"{self.address}/json/new?about:blank", timeout=SECONDS, trust_env=False)
            .raise_for_status()
            .json()
        )
        with connect(made["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
            yield Page(connection)
        httpx.get(f"{self.address}/json/close/{made['id']}", timeout=SECONDS, trust_env=False)


@contextmanager
def open_browser(folder: Path, *names: str) -> Iterator[Browser]:
    """Run Chromium with `folder` as its home until the block ends; `names` lead to this machine, all others nowhere."""
    if CHROMIUM is None:
        pytest.skip("Chromium is absent: `apt-get install chromium fonts-nanum`")
    here = "".join(f"MAP {name} 127.0.0.1, " for name in names)
    rules = f"--host-resolver-rules={here}MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, rules, f"--user-data-dir={folder / 'profile'}", "about:blank"], stdout=log, stderr=log
        )
    try:
        yield Browser(_await_address(folder, process))
    finally:
        process.terminate()
        process.wait(30)


def _await_address(folder: Path, process: "subprocess.Popen[bytes]") -> str:
    """Return where the browser listens: it writes the port, once it does, into its home."""
    path = folder / "profile" / "DevToolsActivePort"
    end = time.monotonic() + SECONDS
    while not (path.exists() and path.read_text().count("\n")):
        assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text(errors="replace")
        time.sleep(0.1)
    return f"http://127.0.0.1:{path.read_text().split()[0]}"
