"""Web pages of other origins, in a real browser, against the service: none is answered, its own page still works."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_server import serve, wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

from e2e.browser import Browser, Page, open_browser
from e2e.test_foreign_pages import FOREIGN, WAYS, serve_blank

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
    folder = tmp_path_factory.mktemp("foreign")
    store = folder / "store"
    crown(store, *write_bundle(store, bundle_files("1", "binary", compile_model(fit("binary"), "binary"))))
    with (
        open_browser(folder / "chromium", FOREIGN, "localhost") as browser,
        serve_blank() as elsewhere,
        serve(store, folder / "home") as client,
    ):
        wait_for(client, "/readyz", 200)
        yield Attacked(client.base_url.port or 0, store, browser, elsewhere)


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
