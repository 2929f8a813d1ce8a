"""Web pages of other origins, in a real browser, against the service: none is answered, its own page goes on."""

import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from service_server import serve, wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

from e2e.browser import CHROMIUM, Browser, Page, open_browser
from e2e.test_foreign_pages import FOREIGN, WAYS, Blank

pytestmark = pytest.mark.slow


class Attacked:
    """A service, its prediction log, a browser, and an empty page at another port."""

    def __init__(self, port: int, store: Path, browser: Browser, elsewhere: int) -> None:
        self.port, self.store, self.browser, self.elsewhere = port, store, browser, elsewhere

    def logged(self) -> int:
        return sum(file.read_bytes().count(b"\n") for file in (self.store / "log").glob("*.jsonl"))

    def ask(self, page: Page) -> dict[str, Any]:
        """Let a page ask for a prediction in every way that it has, and return how each seemed to end."""
        known = {"API": f"http://127.0.0.1:{self.port}", "PATH": "/predict", "ORDER": {"rows": [ROW]}, "READ": "/model"}
        known["SOCKETS"] = ["/predict", "/"]
        constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in known.items())
        return dict(page.run(f"(async () => {{ {constants}{WAYS} }})()"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    if CHROMIUM is None:
        pytest.skip("Chromium is absent: `apt-get install chromium`")
    folder = tmp_path_factory.mktemp("foreign")
    store = folder / "store"
    crown(store, *write_bundle(store, bundle_files("1", "binary", compile_model(fit("binary"), "binary"))))
    elsewhere = ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    Thread(target=elsewhere.serve_forever, daemon=True).start()
    try:
        with (
            serve(store, folder / "home") as client,
            open_browser(folder / "chromium", FOREIGN, "localhost") as browser,
        ):
            wait_for(client, "/readyz", 200)
            yield Attacked(client.base_url.port or 0, store, browser, elsewhere.server_address[1])
    finally:
        elsewhere.shutdown()
        elsewhere.server_close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", FOREIGN])
def test_page_of_another_origin_gets_and_leaves_no_prediction(attacked: Attacked, name: str) -> None:
    before = attacked.logged()
    with attacked.browser.page() as page:
        page.open(f"http://{name}:{attacked.elsewhere}/")
        page.await_true("document.title === 'elsewhere'")
        seemed = attacked.ask(page)
    assert {seemed[way] for way in ("json", "read", "/predict", "/")} == {"failed"}
    assert attacked.logged() == before


def test_name_that_is_rebound_to_this_machine_gets_neither_page_nor_prediction(attacked: Attacked) -> None:
    before = attacked.logged()
    with attacked.browser.page() as page:
        page.open(f"http://{FOREIGN}:{attacked.port}/")
        page.await_text("does not answer for the host")
        status = page.run(
            "fetch('/predict', {method: 'POST', headers: {'Content-Type': 'application/json'},"
            f" body: {json.dumps(json.dumps({'rows': [ROW]}))}}}).then(answer => answer.status)"
        )
    assert status == 421
    assert attacked.logged() == before


def test_page_of_another_origin_cannot_frame_the_page(attacked: Attacked) -> None:
    with attacked.browser.page() as page:
        page.open(f"http://127.0.0.1:{attacked.elsewhere}/")
        page.await_true("document.title === 'elsewhere'")
        page.run(
            "new Promise(done => { const frame = document.createElement('iframe'); frame.onload = () => done(0);"
            f" frame.src = 'http://127.0.0.1:{attacked.port}/'; document.body.append(frame); }})"
        )
        page.settle()
        assert "predict" not in page.text


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_own_page_asks_and_is_answered_under_both_names(attacked: Attacked, name: str) -> None:
    before = attacked.logged()
    with attacked.browser.page() as page:
        page.open(f"http://{name}:{attacked.port}/")
        page.await_text("/predict", "sample")
        page.run("document.querySelector('.opblock-post .opblock-summary-control').click()")
        page.click("Try it out", "button")
        page.click("Execute", "button")
        page.await_text("request_id", "probabilities")
        assert page.complaints == []
    assert attacked.logged() == before + 1
