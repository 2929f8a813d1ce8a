"""Attacks on a real service, many at a time: nothing fails, nothing grows, and none costs much."""

import http.client
import json
import random
import socket
import statistics
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from service_server import Server, ask_unknown_paths, metric_lines, mount_disk, serve, wait_for
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
DECOMPOSED = unicodedata.normalize("NFD", "한국어")
MARKS = "\u0301\u0323" * 15 + "a"  # the longest run that is normalized, in the order that takes longest
COUNT = 5_000
LARGE = 4_800_000
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def model() -> bytes:
    return compile_model(fit("binary"), "binary")


@contextmanager
def run(folder: Path, model: bytes, **limits: Any) -> Iterator[Server]:
    crown(folder, *write_bundle(folder, bundle_files("1", "binary", model, settings=limits)))
    with serve(folder, folder / "home", ML_LOG__KEEP_BYTES="1000000") as client:
        wait_for(client, "/readyz", 200)
        yield Server(client)
    assert "Traceback" not in (folder / "home" / "log").read_text()


@pytest.fixture(scope="module")
def server(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run(tmp_path_factory.mktemp("attacked"), model) as made:
        yield made


def worker(server: Server) -> psutil.Process:
    """The process that answers: the one of the service's processes that loaded the model."""
    mine = [p for p in psutil.Process().children(recursive=True) if f"{server.port}" in " ".join(p.cmdline())]
    [parent] = [p for p in mine if "serve" in p.cmdline()]
    return max(parent.children(recursive=True), key=lambda p: p.memory_info().rss)


def memory(server: Server) -> float:
    return float(worker(server).memory_info().rss / 2**20)


def post(server: Server, body: bytes, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", "/predict", body, JSON_TYPE | headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def malformed(count: int) -> Iterator[bytes]:
    """Yield malformed requests, the same in every run."""
    chance = random.Random(0)
    whole = json.dumps({"rows": [ROW, ROW]}).encode()
    tokens = [b"NaN", b"-Infinity", b"1e999", b"\\ud800", b"\xff", b"\x00", b"[" * 50, b"}" * 3, b'"__proto__":1,',
              b"null", b"1" * 400, b'"rows":', b"true", b"-", b'"', b"\\", b"0x1",
              b"\xef\xbb\xbf", b" " * 40, b"{" * 200]  # fmt: skip
    for _ in range(count):
        body = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(body) + 1)
            match chance.randrange(4):
                case 0:
                    body[place : place + 1] = chance.randbytes(1)
                case 1:
                    del body[place : place + chance.randint(1, 30)]
                case 2:
                    body[place:place] = chance.choice(tokens)
                case _:
                    body = body[:place] or body
        yield bytes(body)


def test_malformed_bodies_and_unknown_paths_fail_nothing_and_leave_nothing(server: Server) -> None:
    def attack(count: int) -> "Counter[int]":
        with httpx.Client(base_url=server.client.base_url, headers=JSON_TYPE, timeout=60) as client:
            found = Counter(client.post("/predict", content=body).status_code for body in malformed(count))
        ask_unknown_paths(server, count)
        return found

    attack(500)  # what is allocated once
    before, lines = memory(server), metric_lines(server)
    statuses = attack(COUNT)
    assert set(statuses) <= {200, 400} and statuses[400] > COUNT / 2
    assert metric_lines(server) == lines
    assert memory(server) < before + 10
    assert server.client.post("/predict", json={"rows": [ROW]}).status_code == 200


def test_what_is_not_http_fails_nothing_and_leaves_nothing(server: Server) -> None:
    chance = random.Random(0)
    start = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    forms = [
        start,
        start + b"Content-Length: -1\r\n\r\n",
        start + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        start + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"GET / HTTP/9.9\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"\x16\x03\x01",
        b"A" * 20_000 + b" / HTTP/1.1\r\n\r\n",
    ]
    before, lines = memory(server), metric_lines(server)
    for number in range(500):
        with socket.create_connection(("127.0.0.1", server.port), 30) as connection, suppress(OSError):
            connection.sendall(forms[number % len(forms)] + chance.randbytes(chance.randrange(200)))
    assert server.client.post("/predict", json={"rows": [ROW]}).status_code == 200
    assert memory(server) < before + 10
    new = set(metric_lines(server)) - set(lines)
    assert not [line for line in new if '/predict"' not in line and "ml_" not in line]


def row_of(cells: bytes) -> bytes:
    return b'{"rows":[{' + cells + b"}]}"


WRONG: list[str] = []  # no column takes a list
ID = '"고객 번호":'.encode()
ROW_BYTES = len(json.dumps(ROW).encode()) + 2


def invalid_bodies(size: int) -> dict[str, bytes]:
    """Return a body of about that many bytes of each kind that might cost much."""
    rows = max(1, min(1000, size // ROW_BYTES))

    def many(piece: bytes) -> bytes:
        return b",".join([piece] * max(1, size // (len(piece) + 1) - 10))

    return {
        "unknown keys": row_of(b",".join(b'"k%d":1' % i for i in range(size // 12))),
        "unknown keys of many rows": json.dumps(
            {"rows": [ROW | {f"k{i}": 1 for i in range(350)}] * max(1, size // 5_000)}
        ).encode(),
        "a key many times": row_of(many(b'"k":1')),
        "a field many times": row_of(many(b'"a.b/c?":1')),
        "keys of the request": b"{" + b",".join(b'"k%d":1' % i for i in range(size // 12)) + b"}",
        "rows many times": b"{" + many(b'"rows":[]') + b"}",
        "empty rows": b'{"rows":[' + many(b"{}") + b"]}",
        "numbers for rows": b'{"rows":[' + many(b"0") + b"]}",
        "texts for rows": b'{"rows":[' + many(b'""') + b"]}",
        "nested lists": b'{"rows":[' + many(b"[" * 100 + b"]" * 100) + b"]}",
        "deep lists": b'{"rows":[' + b"[" * size,
        "deep objects": b'{"a":' * (size // 5),
        "an id of lists": row_of(ID + b"[" + many(b"[[]]") + b"]"),
        "a long integer": row_of(b'"a.b/c?":' + b"1" * size),
        "long integers": row_of(ID + b"[" + many(b"1" * 4299) + b"]"),
        "a long fraction": row_of(b'"house age":0.' + b"1" * size),
        "a long exponent": row_of(b'"house age":1e' + b"1" * size),
        "a long text for a number": row_of(b'"house age":"' + b"1" * size + b'"'),
        "a long text for a date": row_of('"가입일":"PT'.encode() + b"1" * size + b'"'),
        "a long text of a closed set": row_of('"지역":"'.encode() + "가".encode() * (size // 3) + b'"'),
        "a long blank text": row_of(b'"class":"' + b" " * size + b'"'),
        "escapes": row_of(b'"class":"' + b"\\u0041" * (size // 6) + b'"'),
        "pairs of surrogates": row_of(b'"class":"' + b"\\ud83d\\ude00" * (size // 12) + b'"'),
        "a lone surrogate": row_of(b'"class":"' + b"a" * size + b'\\ud800"'),
        "combining marks": row_of(b'"class":"' + "\u0301\u0323".encode() * (size // 4) + b'","x":1'),
        "runs of combining marks": row_of(b'"class":"' + MARKS.encode() * (size // len(MARKS.encode())) + b'","x":1'),
        "decomposed letters": row_of(b'"class":"' + "e\u0301".encode() * (size // 3) + b'","x":1'),
        "commas in a text": row_of(b'"class":"' + b"," * size + b'"'),
        "quotes in a text": row_of(b'"class":"' + b'\\"' * (size // 2) + b'"'),
        "no UTF-8": row_of(b'"class":"' + b"\xff" * size + b'"'),
        "a long key": row_of(b'"' + b"k" * size + b'":1'),
        "long keys": row_of(b",".join(b'"%d%s":1' % (i, b"k" * 4_000) for i in range(size // 4_020))),
        "wrong values": pad(size, json.dumps({"rows": [dict.fromkeys(ROW, WRONG)] * rows}).encode()),
        "wrong in the last row": pad(
            size, json.dumps({"rows": [ROW] * (rows - 1) + [dict.fromkeys(ROW, WRONG)]}).encode()
        ),
        "NaN": pad(size, json.dumps({"rows": [ROW | {"house age": float("nan")}] * rows}).encode()),
        "__proto__": row_of(b",".join([b'"__proto__":{"__proto__":1}'] * 1000)),
        "blanks": b" " * size,
        "zeros": b"\0" * size,
        "cut": pad(size, json.dumps({"rows": [ROW] * rows}).encode()[:-1]),
    }


def valid_bodies(size: int) -> dict[str, bytes]:
    """Return the largest valid bodies of that many bytes."""
    rows = max(1, min(1000, size // ROW_BYTES))
    text = "x" * max(0, size - 1000 * ROW_BYTES)
    # Any text is valid in an open column, also one that takes long to normalize.
    long = {part: ROW | {"class": part * ((size - ROW_BYTES) // len(part.encode()))} for part in (DECOMPOSED, MARKS)}
    return {
        "rows": pad(size, json.dumps({"rows": [ROW] * rows}).encode()),
        "a text": pad(size, json.dumps({"rows": [ROW] * (rows - 1) + [ROW | {"class": text}]}).encode()),
        "a decomposed text": pad(size, json.dumps({"rows": [long[DECOMPOSED]]}, ensure_ascii=False).encode()),
        "a text of marks": pad(size, json.dumps({"rows": [long[MARKS]]}, ensure_ascii=False).encode()),
    }


def pad(size: int, body: bytes) -> bytes:
    return body + b" " * (size - len(body))


class Meter:
    """The cost of one request for the worker: processor seconds, and megabytes above the idle state."""

    def __init__(self, server: Server) -> None:
        self.server, self.pid = server, worker(server).pid

    def seconds(self) -> float:
        files = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(path.read_text().split()[0]) for path in files) / 1e9

    def resident(self, name: str) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))

    def cost(self, body: bytes) -> tuple[int, float, float]:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the highest memory is counted from here
        before = self.seconds()
        status = post(self.server, body)
        time.sleep(0.1)
        return status, self.seconds() - before, self.resident("VmHWM")


@pytest.mark.parametrize(("size", "times"), [(1_000, 20), (100_000, 7), (LARGE, 3)])
def test_no_invalid_body_costs_twice_what_the_largest_valid_one_of_its_size_does(
    size: int, times: int, model: bytes, tmp_path: Path
) -> None:
    with run(tmp_path, model) as server:
        meter = Meter(server)
        rest = meter.resident("VmRSS")
        invalid, most = invalid_bodies(size), valid_bodies(size)
        found = {body: [meter.cost(body) for _ in range(times)] for body in (*most.values(), *invalid.values())}
    costs = {body: (statistics.median(s for _, s, _ in all_), max(m for *_, m in all_)) for body, all_ in found.items()}
    seconds, megabytes = (max(costs[body][i] for body in most.values()) for i in (0, 1))
    assert {status for body in most.values() for status, *_ in found[body]} == {200}
    print(
        f"the largest valid request of {size} bytes: {seconds * 1000:.2f} ms, {megabytes - rest:.1f} MB over {rest:.0f}"
    )
    for name, body in invalid.items():
        time_ratio, memory_ratio = costs[body][0] / seconds, (costs[body][1] - rest) / (megabytes - rest)
        print(f"{name:30} {len(body):8} {found[body][0][0]}  time {time_ratio:5.2f}  memory {memory_ratio:5.2f}")
        assert {status for status, *_ in found[body]} <= {400, 413}, name
        assert time_ratio <= 2, name
        assert memory_ratio <= 2 or costs[body][1] - megabytes < 8, name  # small bodies are within the noise


def test_event_loop_answers_while_large_invalid_bodies_come(server: Server) -> None:
    """Each of them once blocked it for six seconds."""
    done = threading.Event()

    def attack() -> None:
        bodies = list(invalid_bodies(LARGE).values())
        while not done.is_set():
            post(server, random.Random(1).choice(bodies))

    threads = [threading.Thread(target=attack) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        alive = [httpx.get(f"{server.client.base_url}/livez", timeout=5).status_code for _ in range(50)]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert alive == [200] * 50


def test_overload_is_shed_and_what_is_taken_is_answered(model: bytes, tmp_path: Path) -> None:
    body = json.dumps({"rows": [ROW] * 1000}).encode()
    with run(tmp_path, model, max_wait_seconds=0.3, max_bytes_in_flight=10_000_000) as server:

        def ask(_: int) -> tuple[int, str | None]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
            connection.request("POST", "/predict", body, JSON_TYPE)
            answer = connection.getresponse()
            answer.read()
            connection.close()
            return answer.status, answer.getheader("Retry-After")

        with ThreadPoolExecutor(60) as pool:
            answers = list(pool.map(ask, range(300)))
        counts = Counter(status for status, _ in answers)
        assert set(counts) == {200, 503} and counts[200] > 5
        assert all(after is not None and int(after) >= 1 for status, after in answers if status == 503)
        assert ask(0)[0] == 200


def test_worker_survives_any_requests_on_a_nearly_full_disk(model: bytes, tmp_path: Path) -> None:
    """Its metrics files are mapped into memory: if the disk has no block for a page, the process is killed."""
    with mount_disk(tmp_path / "disk", "12m") as disk, run(disk, model) as server:
        before = worker(server).pid
        with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(b"x" * 256):
                pass
        ask_unknown_paths(server, COUNT)
        for path in (
            "/",
            "/docs.json",
            "/schema.json",
            "/model",
            "/livez",
            "/readyz",
            "/healthz",
            "/static_content/swagger-ui.css",
        ):
            for method in ("GET", "POST", "PUT", "HEAD", "OPTIONS"):
                server.client.request(method, path, headers={"Host": "127.0.0.1"})
                server.client.request(method, path, headers={"Host": "evil.example"})
                server.client.request(method, path, headers={"Origin": "null"})
        for body, headers in ((b"", {}), (b"{", {}), (b" " * 6_000_000, {}), (b"{}", {"Content-Type": "text/plain"})):
            server.client.post("/predict", content=body, headers=JSON_TYPE | headers)
        assert server.client.post("/predict", json={"rows": [ROW]}).status_code == 200
        assert server.client.get("/metrics").status_code == 200
        assert worker(server).pid == before


def test_a_thousand_stalled_bodies_take_little_memory_and_block_no_request(model: bytes, tmp_path: Path) -> None:
    with run(tmp_path, model, max_bytes_in_flight=20_000_000) as server:
        before = memory(server)
        head = server.head("Content-Type: application/json", f"Content-Length: {LARGE}")
        stalled = []
        try:
            for _ in range(400):
                connection = server.connect()
                connection.settimeout(1)
                stalled.append(connection)
                with suppress(OSError):
                    connection.sendall(head + b" " * 150_000)
            assert server.client.post("/predict", json={"rows": [ROW]}).status_code == 200
            assert memory(server) < before + 200
        finally:
            for connection in stalled:
                connection.close()
