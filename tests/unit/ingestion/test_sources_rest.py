"""APIs are read page by page, with retries, and an error is one sentence."""

import gzip
import json
import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest
from sources_support import Server

from ondol.config import Fetch
from ondol.errors import UserError
from ondol.ingestion import rest as rest_session
from ondol.ingestion import spool
from ondol.ingestion.sources import Reading, SupportsSince, open_source, read_through

ROWS = [{"id": n, "name": f"n{n}"} for n in range(25)]
QUICK = Fetch(timeout_seconds=20, retries=2)
USAGE = "keyUsage=critical,keyCertSign,digitalSignature"
TOKEN = "planted-t0ken/+ü!"


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    started: list[Server] = []

    def start(answer: Callable, **options) -> Server:
        started.append(Server(answer, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that were to be made; none is."""
    made: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=made.append, time=time.time))
    return made


def _table(uri, columns=None, fetch=QUICK):
    source = open_source(uri, Reading(columns, fetch=fetch))
    return read_through(source, lambda batches: pa.Table.from_batches(list(batches)))


def _refusal(uri, columns=None, fetch=QUICK):
    with pytest.raises(UserError) as caught:
        _table(uri, columns, fetch)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    return sentence


def _by_cursor(query, _):
    start = int(query.get("cursor", 0))
    end = start + int(query.get("limit", 10))
    return 200, {}, {"data": {"items": ROWS[start:end]}, "meta": {"next": end if end < len(ROWS) else None}}


CURSOR = "?limit=10#records=data.items&next=meta.next&param=cursor"


def test_pages_by_cursor(serve):
    server = serve(_by_cursor)
    assert _table(server.uri + CURSOR).to_pylist() == ROWS
    assert [path for path, _ in server.asked] == [
        "/v1/customers?limit=10",
        "/v1/customers?limit=10&cursor=10",
        "/v1/customers?limit=10&cursor=20",
    ]


def test_pages_by_address_in_the_body(serve):
    def answer(query, _):
        status, headers, body = _by_cursor(query, 0)
        after = body["meta"]["next"]
        return status, headers, {"items": body["data"]["items"], "next": after and f"/v1/other?cursor={after}"}

    assert _table(serve(answer).uri + "#next=next").to_pylist() == ROWS


@pytest.mark.parametrize(("said", "size"), [("page=p", 10), ("page=p&first=0", 10), ("page=from&first=0&step=10", 10)])
def test_pages_by_number_until_one_is_empty(serve, said, size):
    def answer(query, _):
        start = int(query["from"]) if "from" in query else size * (int(query["p"]) - int("first" not in said))
        return 200, {}, ROWS[start : start + size]

    server = serve(answer)
    assert _table(f"{server.uri}#{said}").to_pylist() == ROWS
    assert len(server.asked) == 4


def test_pages_by_link_header(serve):
    def answer(query, _):
        status, _, body = _by_cursor(query, 0)
        after = body["meta"]["next"]
        return status, {"Link": f'</v1/customers?cursor={after}>; rel="next"'} if after else {}, body["data"]["items"]

    assert _table(serve(answer).uri).to_pylist() == ROWS


def test_one_page_needs_no_key(serve):
    assert _table(serve(lambda *_: (200, {}, {"count": 25, "rows": ROWS})).uri).to_pylist() == ROWS


def test_api_is_asked_once_however_often_its_source_is_read(serve):
    server = serve(_by_cursor)
    source = open_source(server.uri + CURSOR, Reading())
    assert source.schema.names == ["id", "name"]
    assert [sum(batch.num_rows for batch in source.batches()) for _ in range(2)] == [25, 25]
    assert len(server.asked) == 3 and source.fingerprint() is None


@pytest.mark.parametrize("held", [0, 64 << 20])
def test_late_types_and_columns_hold_for_all_rows(serve, monkeypatch, held):
    monkeypatch.setattr(spool, "HELD_BYTES", held)
    monkeypatch.setattr(spool, "BATCH_ROWS", 7)
    late = [{"id": "x", "amount": 2.5, "address": {"city": "서울"}, "drop": [1], "code": 7}]
    first = [{"id": n, "amount": 1, "address": None, "drop": [], "code": 7} for n in range(20)]

    def answer(query, _):
        return 200, {}, {"1": first, "2": late}.get(query["p"], [])

    server = serve(answer)
    table = _table(f"{server.uri}#page=p&drop=drop", {"code": "text"})
    assert table.schema == pa.schema(
        [("id", pa.string()), ("amount", pa.float64()), ("code", pa.string()), ("address.city", pa.string())]
    )
    assert table.num_rows == 21 and table.to_pylist()[-1] == {
        "id": "x",
        "amount": 2.5,
        "code": "7",
        "address.city": "서울",
    }
    assert len(server.asked) == 3


def test_integers_that_a_float_would_round_stay_exact(serve):
    rows = [{"a": 2**53 + 1, "b": 2**64, "c": 2**60}, {"a": 0.5, "b": 1, "c": 1}]
    table = _table(serve(lambda *_: (200, {}, rows)).uri)
    assert table.column("a").to_pylist() == [str(2**53 + 1), "0.5"]
    assert table.column("b").to_pylist() == [str(2**64), "1"]
    assert table.column("c").to_pylist() == [2**60, 1]


@pytest.mark.parametrize(
    ("value", "sent"), [(7, "7"), ("2024-01-31", "2024-01-31"), (datetime(2024, 1, 31, 9), "2024-01-31T09:00:00Z")]
)
def test_watermark_is_sent_on_every_page(serve, value, sent):
    server = serve(_by_cursor)
    source = open_source(f"{server.uri}{CURSOR}&since=updated_after", Reading())
    assert isinstance(source, SupportsSince)
    assert sum(batch.num_rows for batch in source.since("id", value).batches()) == 25
    assert all(parse_qs(urlsplit(path).query)["updated_after"] == [sent] for path, _ in server.asked)


def test_nothing_new_gives_no_rows_and_no_error(serve):
    source = open_source(serve(lambda *_: (200, {}, [])).uri + "#since=after", Reading({"id": "integer"}))
    news = source.since("id", 24)
    assert list(news.batches()) == [] and news.schema == pa.schema([("id", pa.int64())])


def test_rate_limit_waits_as_long_as_it_asks_and_says_so(serve, pauses, caplog):
    def answer(query, number):
        return (429, {"Retry-After": "7"}, {}) if number in (1, 3) else _by_cursor(query, number)

    assert _table(serve(answer).uri + CURSOR).to_pylist() == ROWS
    assert pauses == [7, 7]
    assert [record.getMessage() for record in caplog.records if record.name == "ondol.storage.remote_files"] == [
        "The API answers with 429: trying again in 7.0 s"
    ] * 2


def test_retry_after_may_be_a_date_or_nonsense(serve, pauses):
    times = {1: "Wed, 21 Oct 2015 07:28:00 GMT", 2: "soon"}

    def answer(query, number):
        return (503, {"Retry-After": times[number]}, {}) if number in times else _by_cursor(query, number)

    assert _table(serve(answer).uri + CURSOR).num_rows == 25


def test_unreasonable_pause_is_reported_and_not_made(serve, pauses):
    said = _refusal(serve(lambda *_: (429, {"Retry-After": "90000"}, {})).uri)
    assert "Page 1 of" in said and "more than 10 minutes" in said and pauses == []


def test_passing_failures_are_tried_again(serve, pauses):
    def answer(query, number):
        return (500, {}, b"oops") if number in (2, 3) else _by_cursor(query, number)

    server = serve(answer)
    assert _table(server.uri + CURSOR).to_pylist() == ROWS
    assert len(server.asked) == 5 and pauses == [1.0]  # the first one is at once


@pytest.mark.parametrize("packed", [False, True])
def test_page_that_breaks_off_is_fetched_again(serve, pauses, packed):
    def answer(query, number):
        status, _, body = _by_cursor(query, number)
        if number != 2:
            return status, {}, body
        whole = json.dumps(body).encode()
        encoding = {"Content-Encoding": "gzip"} if packed else {}
        return status, encoding | {"Content-Length": "9999"}, (gzip.compress(whole) if packed else whole)[:30]

    server = serve(answer)
    assert _table(server.uri + CURSOR).to_pylist() == ROWS
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("status", "said", "times"),
    [
        (401, "is refused (401)", 1),
        (403, "is refused (403)", 1),
        (404, "is not there (404)", 1),
        (400, "answered with 400", 1),
        (429, "rate limit", 3),
        (500, "error of the server (500)", 3),
    ],
)
def test_errors_that_stay_are_named_and_only_passing_ones_tried_again(serve, pauses, status, said, times):
    server = serve(lambda *_: (status, {}, {"error": "no"}))
    assert said in _refusal(server.uri)
    assert len(server.asked) == times


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"", "is empty"),
        (b'{"a": ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'[{"a": 1, "a": 2}]', '2 columns named "a"'),
        (b'[{"a.b": 1, "a": {"b": 2}}]', '2 columns named "a.b"'),
        (b'[{"": 1}]', "has no name"),
        (b"[1, 2]", "not an object"),
        (b'[{"a": [1]}]', 'a list in "a"'),
        (b'[{"a": "\\ud800"}]', "not Unicode"),
        (b'{"a": [], "b": []}', "has 2 lists (a, b)"),
        (b'{"error": "x"}', "has no list"),
        (b'"text"', "a text"),
        (b'{"items": [{"a": 1}], "has_more": true}', 'is not the last by its "has_more"'),
        (b'{"items": [{"a": 1}], "meta": {"next_cursor": "x"}}', 'by its "meta.next_cursor"'),
    ],
)
def test_body_that_is_not_a_table_is_refused(serve, body, said):
    assert said in _refusal(serve(lambda *_: (200, {}, body)).uri)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("records=data.itmes", "nothing at records=data.itmes"),
        ("records=meta", "an object at records=meta"),
        ("records=data.items&next=mta.next&param=cursor", 'did you mean "meta"?'),
        ("records=data.items&next=meta.next", "name its query parameter with param=…"),
    ],
)
def test_paths_that_lead_nowhere_are_named(serve, key, said):
    assert said in _refusal(f"{serve(_by_cursor).uri}#{key}")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("recods=x", 'unknown key "recods" after #. Did you mean "records"?'),
        ("records=", "without a value"),
        ("page=a&page=b", "twice"),
        ("page=a&next=b", "both next and page"),
        ("param=a", "param without next"),
        ("page=p&first=x", 'first as "x"'),
        ("header=nothing", "has no name"),
        ("header=Authorization: Bearer hunter2", "Authorization is in plain text"),
        ("header=X-Api-Key: hunter2", "X-Api-Key is in plain text"),
    ],
)
def test_grammar_is_checked_before_anything_is_asked(key, said):
    sentence = _refusal(f"rest+http://127.0.0.1:1/x#{key}")
    assert said in sentence and "hunter2" not in sentence


@pytest.mark.parametrize("uri", ["rest://h/x", "rest+ftp://h/x", "rest+https:///x"])
def test_address_of_no_api_is_refused(uri):
    assert "rest+https://host/path" in _refusal(uri)


def test_same_next_cursor_again_stops(serve):
    server = serve(lambda _, number: (200, {}, {"items": [{"id": number}], "next": "same"}))
    assert "repeats itself" in _refusal(server.uri + "#next=next&param=cursor")
    assert len(server.asked) <= 3


def test_page_number_that_is_ignored_stops(serve):
    server = serve(lambda *_: (200, {}, ROWS))
    assert "Page 2 of" in (said := _refusal(server.uri + "#page=p")) and "page 1 again" in said
    assert len(server.asked) == 2


def test_new_cursors_to_the_same_records_stop(serve):
    server = serve(lambda _, number: (200, {}, {"items": ROWS, "next": f"c{number}"}))
    assert "page 1 again" in _refusal(server.uri + "#next=next&param=cursor")


def test_pages_without_records_are_not_read_forever(serve, monkeypatch):
    monkeypatch.setattr("ondol.ingestion.rest.MOST_EMPTY", 5)
    server = serve(lambda _, number: (200, {}, {"items": [], "next": f"c{number}"}))
    assert "without a record" in _refusal(server.uri + "#next=next&param=cursor")


def test_page_of_other_records_is_refused(serve):
    def answer(query, number):
        return 200, {}, ROWS if number == 1 else [{"code": 7, "message": "oops"}]

    said = _refusal(serve(answer).uri + "#page=p", {"id": "integer"})
    assert "Page 2 of" in said and "none of the contract's columns, but code, message" in said


def test_page_too_large_or_a_bomb_is_refused(serve, monkeypatch):
    monkeypatch.setattr(rest_session, "MOST_BYTES", 1 << 20)
    bomb = gzip.compress(b"[" + b" " * (8 << 20) + b"]")
    server = serve(lambda *_: (200, {"Content-Encoding": "gzip"}, bomb))
    assert "larger than 1 MB" in _refusal(server.uri)


def test_slow_page_is_given_up(serve, pauses):
    def answer(*_):
        time.sleep(3)
        return 200, {}, ROWS

    assert "did not come within 0.3 seconds" in _refusal(serve(answer).uri, fetch=Fetch(timeout_seconds=0.3, retries=1))


def test_host_that_is_not_there_is_reported(pauses, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    assert "no server answers there" in _refusal("rest+http://127.0.0.1:1/x")
    assert "no host has that name" in _refusal("rest+http://nowhere.invalid/x")


def test_certificate_that_does_not_verify_is_reported_at_once(serve, tmp_path, pauses, monkeypatch):
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", USAGE]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    server = serve(_by_cursor, tls=(certificate, key))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    said = _refusal(server.uri + CURSOR)
    assert "certificate that does not verify (self-signed certificate)" in said and pauses == []
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    assert _table(server.uri + CURSOR).to_pylist() == ROWS


@pytest.mark.parametrize("style", ["redirect", "link", "next"])
def test_headers_never_travel_to_another_host(serve, monkeypatch, style):
    monkeypatch.setenv("API_TOKEN", TOKEN.replace("ü", "u"))
    other = serve(lambda *_: (200, {}, ROWS))
    address = f"http://{other.host}/v1/customers"
    answers = {
        "redirect": (302, {"Location": address}, {}),
        "link": (200, {"Link": f'<{address}>; rel="next"'}, ROWS),
        "next": (200, {}, {"items": ROWS, "next": address}),
    }
    server = serve(lambda *_: answers[style])
    ending = "&next=next" if style == "next" else ""
    said = _refusal(f"{server.uri}#header=X-Api-Key: ${{API_TOKEN}}{ending}")
    assert f"another place ({other.host})" in said
    assert len(server.asked) == 1 and other.asked == []


def test_redirect_on_the_same_host_is_followed(serve, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "tok3n")

    def answer(_, number):
        return (301, {"Location": "/v2/customers"}, {}) if number == 1 else (200, {}, ROWS)

    server = serve(answer)
    assert _table(server.uri + "#header=Authorization: Bearer ${API_TOKEN}").num_rows == 25
    assert [headers["Authorization"] for _, headers in server.asked] == ["Bearer tok3n"] * 2


def test_header_is_sent_and_goes_before_netrc(serve, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password other\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("API_TOKEN", "a+b/c%2F")
    server = serve(_by_cursor)
    _table(f"{server.uri}{CURSOR}&header=Authorization: Bearer ${{API_TOKEN}}&header=Accept: application/vnd.api+json")
    for _, headers in server.asked:
        assert headers["Authorization"] == "Bearer a+b/c%2F" and headers["Accept"] == "application/vnd.api+json"


def test_secret_is_in_no_message_or_log(serve, pauses, monkeypatch, caplog):
    monkeypatch.setenv("API_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    ending = "?key=${API_TOKEN}"
    answers = [(500, {}, TOKEN.encode()), (401, {}, {}), (200, {}, TOKEN.encode())]
    said = [_refusal(serve(lambda *_, a=answer: a).uri + ending) for answer in answers]
    monkeypatch.setenv("NO_PROXY", "*")
    said.append(_refusal("rest+http://127.0.0.1:1/x" + ending))
    said.append(_refusal("rest+http://127.0.0.1:1/x#header=X-Key: ${API_TOKEN}\u20ac"))
    everything = " ".join([*said, *(record.getMessage() for record in caplog.records)])
    assert "${API_TOKEN}" in said[0] and "/x?key=" in caplog.text
    for form in (TOKEN, "planted-t0ken"):
        assert form not in everything and form not in caplog.text


def test_secret_in_a_query_that_is_written_again_is_in_no_log(serve, pauses, monkeypatch, caplog):
    monkeypatch.setenv("API_TOKEN", "pl anted!x")
    server = serve(lambda query, number: (500, {}, {}) if number == 2 else (200, {}, ROWS if number == 1 else []))
    with caplog.at_level(logging.DEBUG):
        assert _table(server.uri + "?key=${API_TOKEN}#page=p").num_rows == 25
    assert "key=pl+anted%21x&p=2" in server.asked[1][0]
    assert "Retry" in caplog.text and "anted" not in caplog.text


def test_secret_that_is_not_set_is_named(serve):
    assert "needs NOT_SET_ANYWHERE" in _refusal(serve(_by_cursor).uri + "#header=X-Key: ${NOT_SET_ANYWHERE}")


def test_source_can_be_read_again_after_it_failed(serve, pauses):
    failing = [True]

    def answer(query, number):
        return (404, {}, {}) if failing and "cursor" in query else _by_cursor(query, number)

    source = open_source(serve(answer).uri + CURSOR, Reading(fetch=QUICK))
    with pytest.raises(UserError, match="Page 2"):
        list(source.batches())
    failing.clear()
    assert sum(batch.num_rows for batch in source.batches()) == 25
