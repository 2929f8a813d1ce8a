"""Buckets and web servers as sources: the same tables as local files, also with failing connections."""

import datetime
import functools
import gzip
import http.server
import ipaddress
import ssl
import threading

import pyarrow as pa
import pytest

from ondol import redaction as secrets
from ondol.config import Dialect, Fetch
from ondol.errors import UserError
from ondol.ingestion.sources import Reading, open_source, read_through
from ondol.storage import remote_files as waiting

BIG = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * 7919 % 10007) for i in range(60_000))


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(waiting, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(secrets, "_names", {})
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


def _open(root, uri, **fetch):
    return open_source(uri, Reading(None, root, Fetch(**({"timeout_seconds": 20, "retries": 2} | fetch))))


def _table(root, uri, **fetch):
    return read_through(_open(root, uri, **fetch), lambda batches: pa.Table.from_batches(list(batches)))


def _refusal(root, uri, **fetch):
    with pytest.raises(UserError) as caught:
        _table(root, uri, **fetch)
    assert not _left(root)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    return sentence


def _left(root):
    return [path for path in (root / ".ml").rglob("*") if path.is_file()]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as `site.answer` says; counts what was asked."""

    def __init__(self, site, *args):
        self.site = site
        super().__init__(*args)

    def do_GET(self):
        self.site.asked.append(dict(self.headers))
        self.site.answer(self)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass

    def send(self, body, status=200, announce=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(announce or len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Site:
    """A web server on the loopback."""

    def __init__(self, context=None):
        self.asked = []
        self.answer = lambda request: request.send(BIG, ETag='"1"')
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, self))
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None  # a client may hang up
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        scheme = "https" if context else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site():
    made = Site()
    yield made
    made.stop()


@pytest.fixture
def other_site():
    made = Site()
    yield made
    made.stop()


def test_web_file_is_read_and_its_copy_removed(tmp_path, site):
    source = _open(tmp_path, f"{site.url}/t.csv")
    assert read_through(source, lambda b: pa.Table.from_batches(list(b))).num_rows == 60_000
    assert not _left(tmp_path)
    site.answer = lambda request: request.send(gzip.compress(BIG), ETag='"1"')
    assert _table(tmp_path, f"{site.url}/t.csv.gz").num_rows == 60_000


def test_how_a_remote_table_is_written_is_found_and_obeyed(tmp_path, site):
    body = "이름;값\n김철수;1,5\n박영희;2,5\n".encode("cp949")
    site.answer = lambda request: request.send(body, ETag='"1"')
    found = open_source(f"{site.url}/t.csv", Reading(root=tmp_path, expected=("값",)))
    assert found.dialect.model_dump(exclude_defaults=True) == {"encoding": "cp949", "delimiter": ";"}
    told = Dialect(encoding="cp949", delimiter=";", decimal=",")
    kinds = {"이름": "text", "값": "number"}
    source = open_source(f"{site.url}/t.csv", Reading(kinds, tmp_path, dialect=told))
    table = read_through(source, lambda batches: pa.Table.from_batches(list(batches)))
    assert table.to_pydict() == {"이름": ["김철수", "박영희"], "값": [1.5, 2.5]}
    assert source.fingerprint() != open_source(f"{site.url}/t.csv", Reading(kinds, tmp_path)).fingerprint()


def test_copy_is_removed_where_reading_ends_early_or_never_begins(tmp_path, site):
    source = _open(tmp_path, f"{site.url}/t.csv")
    batches = source.batches()
    next(batches)
    assert _left(tmp_path)
    batches.close()
    assert not _left(tmp_path)
    assert source.schema.names == ["a", "b"] and _left(tmp_path)
    del source, batches
    assert not _left(tmp_path)


def test_strong_tag_makes_the_fingerprint_and_a_weak_one_none(tmp_path, site):
    def sign(tag):
        site.answer = lambda request: request.send(b"a,b\n1,2\n", **({"ETag": tag} if tag else {}))
        return _open(tmp_path, f"{site.url}/t.csv").fingerprint()

    assert sign('"1"') == sign('"1"') != sign('"2"')
    assert sign('W/"1"') is None and sign(None) is None
    assert _table(tmp_path, f"{site.url}/t.csv").num_rows == 1


def _serve_ranges(request, content, cuts):
    """Send the rest that is asked for, half of it while there are `cuts`."""
    wanted = request.headers.get("Range")
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
    rest = content[start:]
    body = rest[: len(rest) // 2] if cuts and cuts.pop() else rest
    more = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
    request.send(body, 206 if start else 200, announce=len(rest), ETag='"1"', **more)


def test_cut_connection_is_taken_up_where_it_was_cut(tmp_path, site):
    cuts = [True, True]
    # What the client has not read when the connection breaks is lost, at most its buffer: a half is far more.
    content = BIG + b"1,2\n" * 2_000_000
    site.answer = lambda request: _serve_ranges(request, content, cuts if len(site.asked) > 1 else [])
    assert _table(tmp_path, f"{site.url}/t.csv").num_rows == 2_060_000
    assert cuts == []
    assert [asked["If-Range"] for asked in site.asked if "Range" in asked] == ['"1"', '"1"']


def test_cut_connection_to_a_server_without_ranges_begins_again(tmp_path, site):
    cuts = [True]

    def answer(request):
        cut = len(site.asked) > 1 and cuts and cuts.pop()
        request.send(BIG[:99] if cut else BIG, announce=len(BIG), ETag='"1"')

    site.answer = answer
    assert _table(tmp_path, f"{site.url}/t.csv").num_rows == 60_000
    assert cuts == []


def test_connection_that_is_always_cut_is_reported(tmp_path, site):
    site.answer = lambda request: request.send(BIG[:99], announce=len(BIG))
    assert "connection was lost" in _refusal(tmp_path, f"{site.url}/t.csv")


def test_temporary_failures_are_tried_again_and_permanent_ones_reported(tmp_path, site, caplog):
    def answer(request):
        request.send(b"", 503) if len(site.asked) < 3 else request.send(BIG)

    site.answer = answer
    assert _table(tmp_path, f"{site.url}/t.csv").num_rows == 60_000
    told = [record.getMessage() for record in caplog.records if record.name == "ondol.storage.remote_files"]
    assert [words.rpartition(" in ")[0] for words in told] == [
        f'"{site.url}/t.csv" cannot be read, the server reports an error: trying again'
    ] * 2
    site.answer = lambda request: request.send(b"", 500)
    assert "the server reports an error" in _refusal(tmp_path, f"{site.url}/t.csv")


@pytest.mark.parametrize(("status", "said"), [(404, "does not exist"), (401, "denied"), (403, "denied"), (418, "418")])
def test_status_is_reported_at_once(tmp_path, site, status, said):
    site.answer = lambda request: request.send(b"", status)
    assert said in _refusal(tmp_path, f"{site.url}/t.csv")
    assert len(site.asked) == 1


def test_file_that_changes_while_it_is_read_is_noticed(tmp_path, site):
    site.answer = lambda request: request.send(BIG, ETag=f'"{len(site.asked)}"')
    assert "changed while it was read" in _refusal(tmp_path, f"{site.url}/t.csv")


def test_server_that_never_answers_is_given_up(tmp_path, site):
    free = threading.Event()
    site.answer = lambda request: free.wait(60)
    try:
        assert "in time" in _refusal(tmp_path, f"{site.url}/t.csv", timeout_seconds=0.3, retries=1)
    finally:
        free.set()


def test_unreachable_host_is_reported(tmp_path):
    assert "cannot be reached" in _refusal(tmp_path, "http://127.0.0.1:1/t.csv")
    assert "cannot be reached" in _refusal(tmp_path, "https://no-such-host.invalid/t.csv", retries=0)


def test_message_about_a_remote_file_shows_its_address(tmp_path, site):
    site.answer = lambda request: request.send(b"<!doctype html><html></html>")
    sentence = _refusal(tmp_path, f"{site.url}/t.csv")
    assert f"{site.url}/t.csv" in sentence and "web page" in sentence and ".ml" not in sentence


def test_header_is_sent_and_its_secret_never_shown(tmp_path, site, monkeypatch):
    monkeypatch.setenv("PLANTED", "hunter+2/=&")
    uri = f"{site.url}/t.csv#header=Authorization: Bearer ${{PLANTED}}&header=X-Team: churn"
    source = _open(tmp_path, uri)
    assert site.asked[0]["Authorization"] == "Bearer hunter+2/=&"
    assert site.asked[0]["X-Team"] == "churn"
    assert source.uri == uri and "hunter" not in repr(source)
    site.answer = lambda request: request.send(b"", 401)
    assert "hunter" not in _refusal(tmp_path, uri)


def _elsewhere(scheme_of, other):
    return {
        "port": other.url,
        "name": other.url.replace("127.0.0.1", "localhost"),
        "scheme": other.url.replace("http:", "https:"),
        "login": other.url.replace("//", "//ann:pw@"),
    }[scheme_of]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["port", "name", "scheme", "login"])
def test_header_is_never_sent_to_where_a_redirect_leads(tmp_path, site, other_site, monkeypatch, status, where):
    monkeypatch.setenv("PLANTED", "hunter2!")
    address = _elsewhere(where, other_site)
    site.answer = lambda request: request.send(b"", status, Location=f"{address}/t.csv")
    sentence = _refusal(tmp_path, f"{site.url}/t.csv#header=X-Api-Key: ${{PLANTED}}")
    host = address.rpartition("/")[2].rpartition("@")[2]
    assert f"leads to another place ({host})" in sentence and "hunter2!" not in sentence
    assert len(site.asked) == 1 and other_site.asked == []


@pytest.mark.parametrize("uri", ["{}/t.csv?key=${{PLANTED}}", "{login}/t.csv"])
def test_secret_of_the_address_is_never_sent_to_where_a_redirect_leads(tmp_path, site, other_site, monkeypatch, uri):
    monkeypatch.setenv("PLANTED", "hunter2!")
    site.answer = lambda request: request.send(b"", 302, Location=other_site.url + request.path)
    login = site.url.replace("//", "//ann:${PLANTED}@")
    assert "leads to another place" in _refusal(tmp_path, uri.format(site.url, login=login))
    assert other_site.asked == []


def test_second_redirect_is_held_against_the_address_that_was_written(tmp_path, site, other_site, monkeypatch):
    monkeypatch.setenv("PLANTED", "hunter2!")

    def answer(request):
        away = request.path == "/again.csv"
        request.send(b"", 302, Location=f"{other_site.url}/t.csv" if away else "/again.csv")

    site.answer = answer
    assert "leads to another place" in _refusal(tmp_path, f"{site.url}/t.csv#header=X-Api-Key: ${{PLANTED}}")
    assert [asked["X-Api-Key"] for asked in site.asked] == ["hunter2!"] * 2 and other_site.asked == []


def test_redirect_on_the_same_host_keeps_the_header(tmp_path, site, monkeypatch):
    monkeypatch.setenv("PLANTED", "hunter2!")

    def answer(request):
        request.send(b"", 302, Location="/there.csv") if request.path == "/t.csv" else request.send(BIG, ETag='"1"')

    site.answer = answer
    assert _table(tmp_path, f"{site.url}/t.csv#header=X-Api-Key: ${{PLANTED}}").num_rows == 60_000
    assert {asked["X-Api-Key"] for asked in site.asked} == {"hunter2!"}


def test_redirect_elsewhere_is_followed_without_a_secret_and_without_the_login_for_every_host(
    tmp_path, site, other_site, monkeypatch
):
    (tmp_path / "netrc").write_text("default login ann password hunter2\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    site.answer = lambda request: request.send(b"", 302, Location=f"{other_site.url}/t.csv")
    assert _table(tmp_path, f"{site.url}/t.csv#header=Accept: text/csv").num_rows == 60_000
    assert "Authorization" in site.asked[0]
    assert not [asked for asked in other_site.asked if "Authorization" in asked]


def test_header_goes_before_netrc(tmp_path, site, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password other\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("PLANTED", "hunter2!")
    _table(tmp_path, f"{site.url}/t.csv#header=Authorization: Bearer ${{PLANTED}}")
    assert {asked["Authorization"] for asked in site.asked} == {"Bearer hunter2!"}


def test_header_in_plain_text_is_refused_and_not_repeated(tmp_path, site):
    sentence = _refusal(tmp_path, f"{site.url}/t.csv#header=Authorization: Bearer hunter2")
    assert "plain text" in sentence and "hunter2" not in sentence and not site.asked
    assert "#header=" in _refusal(tmp_path, f"{site.url}/t.csv#records=data")


def test_certificate_that_does_not_verify_is_reported(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_make_certificate(tmp_path))
    secure = Site(context)
    try:
        assert "certificate does not verify" in _refusal(tmp_path, f"{secure.url}/t.csv")
    finally:
        secure.stop()


def _make_certificate(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "server.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_object_folder_and_pattern_of_a_bucket_are_tables(tmp_path, bucket):
    bucket(Key="in/2024-02.csv.gz", Body=gzip.compress(b"a,b\n2,x\n"))
    bucket(Key="in/2024-01.csv", Body=b"a,b\n1,x\n")
    bucket(Key="in/more/2025-01.csv", Body=b"a,b\n3,x\n")
    bucket(Key="in/_SUCCESS", Body=b"")
    for uri, values in {
        "s3://lake/in/2024-01.csv": ["1"],
        "s3://lake/in": ["1", "2", "3"],
        "s3://lake/in/": ["1", "2", "3"],
        "s3://lake/in/2024-*": ["1", "2"],
        "s3://lake/**/*.csv": ["1", "3"],
    }.items():
        assert _table(tmp_path, uri).column("a").to_pylist() == values, uri
    assert not _left(tmp_path)


def test_bucket_tells_whether_its_files_changed(tmp_path, bucket):
    def sign():
        return _open(tmp_path, "s3://lake/in").fingerprint()

    bucket(Key="in/1.csv", Body=b"a,b\n1,2\n")
    seen = [sign()]
    assert sign() == seen[0] is not None
    bucket(Key="in/1.csv", Body=b"a,b\n1,3\n")
    seen.append(sign())
    bucket(Key="in/2.csv", Body=b"a,b\n1,3\n")
    seen.append(sign())
    assert len(set(seen)) == 3 and not _left(tmp_path)


def test_object_that_changes_while_it_is_read_is_noticed(tmp_path, bucket):
    bucket(Key="t.csv", Body=BIG)
    source = _open(tmp_path, "s3://lake/t.csv")
    bucket(Key="t.csv", Body=BIG + b"1,2\n")
    with pytest.raises(UserError, match="changed while it was read"):
        source.schema  # noqa: B018 - asking is the act


def test_large_object_comes_in_ranges_and_whole(tmp_path, bucket, monkeypatch):
    from ondol.storage import remote_files as buckets

    monkeypatch.setattr(buckets, "CHUNK", 100_000)
    bucket(Key="t.csv", Body=BIG)
    assert _table(tmp_path, "s3://lake/t.csv").num_rows == 60_000


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://lake/no.csv", "does not exist"),
        ("s3://no-such-lake/t.csv", "bucket does not exist"),
        ("s3://lake/*.csv", "names no file"),
    ],
)
def test_missing_bucket_and_key_are_reported(tmp_path, bucket, uri, said):
    sentence = _refusal(tmp_path, uri)
    assert said in sentence and uri in sentence


def test_missing_credentials_are_reported(tmp_path, bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert "no credentials" in _refusal(tmp_path, "s3://lake/t.csv")


def test_denied_failing_and_unreachable_stores_are_reported(tmp_path, bucket, site, monkeypatch):
    error = "<Error><Code>{}</Code><Message>planted-password</Message></Error>"
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    site.answer = lambda request: request.send(error.format("AccessDenied").encode(), 403)
    sentence = _refusal(tmp_path, "s3://lake/t.csv")
    assert "denied" in sentence and "planted" not in sentence
    site.answer = lambda request: request.send(error.format("InternalError").encode(), 500)
    sentence = _refusal(tmp_path, "s3://lake/*.csv")
    assert "the server reports an error" in sentence and "planted" not in sentence
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "cannot be reached" in _refusal(tmp_path, "s3://lake/t.csv")


@pytest.mark.parametrize(
    ("uri", "package", "extra"), [("gs://lake/t.csv", "gcsfs", "gcs"), ("az://lake/t.csv", "adlfs", "azure")]
)
def test_missing_library_of_a_store_is_named(tmp_path, monkeypatch, uri, package, extra):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert f'by {package}, which is not installed: run `uv add "ondol[{extra}]"`' in _refusal(tmp_path, uri)
