"""Proxies that the environment names: which of them each library takes for what is on this machine, and elsewhere."""

import subprocess
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from proxies_support import Recorder
from template_support import REPOSITORY, clean_environment, repository_environment

from ondol.config import keep_loopback_direct

ELSEWHERE = "http://rows.example/t.csv"  # only the proxy knows it
CALLS = """
import asyncio, sys
from contextlib import suppress
from pathlib import Path
from ondol.config import load_settings
load_settings(Path(sys.argv[1]))
import aiohttp, httpx, requests, urllib.request
from websockets.sync.client import connect

async def fetch(url):
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as answer:
        return await answer.read()

for url in sys.argv[2:]:
    for call in (
        lambda: httpx.get(url),
        lambda: requests.get(url, timeout=20),
        lambda: urllib.request.urlopen(url, timeout=20).read(),
        lambda: asyncio.run(fetch(url)),
    ):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, url)
with suppress(Exception):
    connect(sys.argv[2].replace("http", "ws"))
"""


@pytest.fixture
def two() -> Iterator[list[tuple[str, list[str]]]]:
    """A proxy and a server: the address of each, and what it was asked."""
    servers, made = [], []
    for _ in range(2):
        asked: list[str] = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Recorder,), {"asked": asked}))
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        made.append((f"127.0.0.1:{server.server_address[1]}", asked))
    yield made
    for server in servers:
        server.shutdown()
        server.server_close()


def call(folder: Path, *urls: str, **environment: str) -> str:
    """Ask for the addresses by each library, in a process that has read the settings; return what failed."""
    (folder / "config.toml").touch()
    done = subprocess.run(
        [sys.executable, "-c", CALLS, str(folder), *urls],
        cwd=REPOSITORY,
        env=repository_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "names, exceptions",
    [
        (("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), {}),
        (("http_proxy", "https_proxy", "all_proxy"), {"NO_PROXY": "intern.example,[::1]"}),
        (("HTTP_PROXY", "http_proxy"), {"no_proxy": "intern.example", "NO_PROXY": "127.0.0.1"}),
    ],
)
def test_every_library_asks_this_machine_directly_and_others_through_the_proxy(
    two: list[tuple[str, list[str]]], tmp_path: Path, names: tuple[str, ...], exceptions: dict[str, str]
) -> None:
    (proxy, seen), (server, asked) = two
    urls = (f"http://{server}/", f"http://{server.replace('127.0.0.1', 'localhost')}/", ELSEWHERE)
    assert call(tmp_path, *urls, **dict.fromkeys(names, f"http://{proxy}"), **exceptions) == ""
    assert seen == [f"GET {ELSEWHERE}"] * 4
    assert asked == ["GET /"] * 9  # four libraries by two names, and a WebSocket


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks://127.0.0.1:9", "http://["])
def test_proxy_that_no_library_can_use_does_not_keep_it_from_this_machine(
    two: list[tuple[str, list[str]]], tmp_path: Path, proxy: str
) -> None:
    server, asked = two[1]
    assert call(tmp_path, f"http://{server}/", ALL_PROXY=proxy, http_proxy=proxy, HTTPS_PROXY=proxy) == ""
    assert asked == ["GET /"] * 5


def test_dotenv_names_the_proxy_as_the_environment_does(two: list[tuple[str, list[str]]], tmp_path: Path) -> None:
    (proxy, seen), (server, _) = two
    (tmp_path / ".env").write_text(f"HTTP_PROXY=http://{proxy}\n", encoding="utf-8")
    assert call(tmp_path, f"http://{server}/", ELSEWHERE) == ""
    assert set(seen) == {f"GET {ELSEWHERE}"}


def test_nothing_is_set_where_there_is_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {name: value for name, value in clean_environment().items() if not name.lower().endswith("_proxy")}
    monkeypatch.setattr("os.environ", said | {"HTTP_PROXY": ""})
    keep_loopback_direct()
    assert "NO_PROXY" not in said


def test_exceptions_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, wanted in (("*", "*"), ("a.example, 10.0.0.0/8", "a.example,10.0.0.0/8,localhost,127.0.0.1,::1")):
        environment = {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": said}
        monkeypatch.setattr("os.environ", environment)
        for _ in range(2):
            keep_loopback_direct()
            assert (environment["NO_PROXY"], environment["no_proxy"]) == (wanted, wanted)
