"""A project with a proxy in its environment: the proxy gets requests to other hosts, and none to this machine."""

from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest import Render
from proxies_support import Recorder

from e2e.support import make_project, refuse, succeed

pytestmark = pytest.mark.slow

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Recorder,), {"asked": asked}))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_commands_and_servers_work_and_the_proxy_sees_nothing_of_them(
    render: Render, tmp_path: Path, proxy: tuple[str, list[str]]
) -> None:
    address, asked = proxy
    named = dict.fromkeys([*NAMES, *map(str.lower, NAMES)], address)
    project = make_project(render(), tmp_path / "shop", 500, **named).choose_ports()
    project.run()
    with project.brought_down():
        succeed(project.ml("up"))
        succeed(project.ml("predict", "sample://?rows=20", "out.csv"))
        assert "has stopped" not in succeed(project.ml("status")).stdout
    assert asked == []
    refuse(project.ml("predict", "http://rows.example/t.csv", "out.csv"))  # an empty answer
    assert set(asked) == {"GET http://rows.example/t.csv"}
