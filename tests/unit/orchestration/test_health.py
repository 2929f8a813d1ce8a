"""Servers that the environment names: which credentials they get, and that no other server does."""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from ondol.config import load_settings
from ondol.errors import UserError
from ondol.orchestration.server import answers, call_prefect
from ondol.registry.registry import connect_mlflow


class Site:
    """A web server of the loopback: what it was asked, and where it redirects to, if anywhere."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.redirect = ""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(dict(self.headers))
                self.send_response(302 if site.redirect else 200)
                if site.redirect:
                    self.send_header("Location", site.redirect + self.path)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def make_site() -> Iterator[Callable[[], Site]]:
    made: list[Site] = []

    def make() -> Site:
        made.append(Site())
        return made[-1]

    yield make
    for site in made:
        site.server.shutdown()
        site.server.server_close()


def test_credentials_for_prefect_are_not_sent_to_where_it_redirects(make_site: Callable[[], Site]) -> None:
    from prefect.settings import temporary_settings

    first, other = make_site(), make_site()
    secrets = {"api.auth_string": "ann:hunter2", "client.custom_headers": {"X-Access": "hunter3"}}
    with temporary_settings(secrets):  # type: ignore[arg-type]
        assert call_prefect("GET", f"{first.url}/api/admin/version", 5.0) is not None
        first.redirect = other.url
        with pytest.raises(UserError, match=rf"redirects to another place \({other.url.removeprefix('http://')}\)"):
            call_prefect("GET", f"{first.url}/api/admin/version", 5.0)
    assert {asked["X-Access"] for asked in first.asked} == {"hunter3"}
    assert other.asked == []


def test_mlflow_that_redirects_to_another_place_is_refused(
    make_site: Callable[[], Site], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = make_site(), make_site()
    first.redirect = other.url
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", first.url)
    with pytest.raises(UserError, match=r"The MLflow server at .* redirects to another place"):
        connect_mlflow(load_settings(tmp_path))


def test_server_that_answers_is_well(make_site: Callable[[], Site]) -> None:
    assert answers(make_site().url)
    assert not answers("http://127.0.0.1:9")
