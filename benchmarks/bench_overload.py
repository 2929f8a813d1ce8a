"""What the service does under too much load: `make bench BENCHMARKS=overload`.

    make bench BENCHMARKS=overload [ARGS="--seconds 5 --out result.json"]

One process with the telco model. The number of clients is raised until some are refused: the last one without refusals
is what the service carries. Then it gets 5 times as many. `wrk` is most of the clients, each of which sends its next
request as soon as it has an answer, also after a refusal. A few connections beside it measure each answer. Goals: with
5 times the clients, the p99 of accepted requests is at most twice that at capacity, 99% of the refusals take at most
50 ms, memory grows by at most a fifth, and answers are as fast as before within 1 s.
"""

import argparse
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from bench_serving import find_wrk, read_memory, show  # noqa: E402
from serving.servers import Running, Server, check_answer, list_servers, run_server  # noqa: E402
from serving.telco import example_rows, fit_telco, read_telco, write_bundle  # noqa: E402

TIMES = 5
STEP, LAST = 20, 400  # clients
PROBES = 4  # connections that measure
TAIL_RATIO, REFUSED_MS, RECOVERY_SECONDS, MEMORY_RATIO = 2.0, 50.0, 1.0, 1.2


class Answer(NamedTuple):
    """An answer that was measured."""

    status: int
    sent: float
    received: float

    @property
    def milliseconds(self) -> float:
        """The time from the request to the whole answer."""
        return (self.received - self.sent) * 1000


def main() -> int:
    """Run the measurement; return 0 where the goals are met."""
    arguments = read_arguments()
    if (wrk := find_wrk()) is None:
        print("wrk is not installed and could not be: apt-get install wrk", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-overload-") as folder:
        work = Path(folder)
        frame = read_telco()
        write_bundle(fit_telco(frame), frame, work / "bundle")
        (work / "body.json").write_text(json.dumps({"rows": example_rows(frame)}), encoding="utf-8")
        with run_server(pick_server(work), work) as running:
            check_answer(running, work)
            figures = measure(wrk, running, work, arguments.seconds)
    print_figures(figures)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0 if figures["met"] else 1


def read_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, usually into benchmarks/results/")
    return parser.parse_args()


def pick_server(work: Path) -> Server:
    """Return the service itself."""
    return next(server for server in list_servers(work) if server.name == "service")


def measure(wrk: str, running: Running, work: Path, seconds: float) -> dict[str, Any]:
    """Return the figures at capacity and with more clients."""
    body = (work / running.server.body).read_bytes()
    with run_clients(wrk, running, work, STEP):  # a warm-up that does not count
        time.sleep(1)
    carried = 0
    while carried < LAST:
        show(f"{carried + STEP} clients")
        with run_clients(wrk, running, work, carried + STEP - PROBES):
            if any(one.status != 200 for one in probe(running.url, body, seconds / 3)):
                break
        carried += STEP
    assert carried, f"requests of {STEP} clients are refused"
    show(f"{carried} clients")
    with run_clients(wrk, running, work, carried - PROBES):
        at_capacity = probe(running.url, body, seconds)
        memory = read_memory(running)
    show(f"{TIMES * carried} clients")
    with run_clients(wrk, running, work, TIMES * carried - PROBES):
        overloaded = probe(running.url, body, seconds)
        memory_then = read_memory(running)
    ended = time.perf_counter()
    after = probe(running.url, body, 2)
    show("")
    p99, p99_then = (quantile(0.99, some, 200) for some in (at_capacity, overloaded))
    late = [one.received - ended for one in after if one.status != 200 or one.milliseconds > TAIL_RATIO * p99]
    figures = {
        "carried": carried,
        "clients": TIMES * carried,
        "p50_ms": [quantile(0.5, some, 200) for some in (at_capacity, overloaded)],
        "p99_ms": [p99, p99_then],
        "answers": {status: sum(one.status == status for one in overloaded) for status in (200, 503)},
        "refusal_ms": {share: quantile(share, overloaded, 503) for share in (0.5, 0.99, 1)},
        "megabytes": [memory, memory_then],
        "recovery_seconds": round(max(late, default=0.0), 3),
        "others": sum(one.status not in (200, 503) for one in [*at_capacity, *overloaded, *after]),
    }
    figures["met"] = (
        p99_then <= TAIL_RATIO * p99
        and figures["refusal_ms"][0.99] <= REFUSED_MS
        and memory_then <= MEMORY_RATIO * memory
        and figures["recovery_seconds"] <= RECOVERY_SECONDS
        and figures["others"] == 0
    )
    return figures


@contextmanager
def run_clients(wrk: str, running: Running, work: Path, clients: int) -> Iterator[None]:
    """Let `clients` of wrk ask until the block ends."""
    command = [wrk, "-t1", f"-c{clients}", "-d600s", "-s", str(HERE / "serving" / "ask.lua"), running.url]
    environment = os.environ | {"BODY": str(work / running.server.body), "AUTHORIZATION": ""}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()


def probe(url: str, body: bytes, seconds: float) -> list[Answer]:
    """Return the answers to a few clients within that time, each with one request at a time."""
    address = urlsplit(url)
    lines = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    request = lines.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answers: list[Answer] = []
    selector = selectors.DefaultSelector()

    def ask(connection: socket.socket) -> None:
        received[connection], sent[connection] = b"", time.perf_counter()
        connection.sendall(request)

    received: dict[socket.socket, bytes] = {}
    sent: dict[socket.socket, float] = {}
    end = time.perf_counter() + seconds
    with ExitStack() as stack:
        for _ in range(PROBES):
            connection = stack.enter_context(socket.create_connection((address.hostname, address.port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ, connection)
            ask(connection)
        while time.perf_counter() < end:
            for key, _ in selector.select(1):
                received[key.data] += key.data.recv(65_536)
                answer, now = received[key.data], time.perf_counter()
                head, _, content = answer.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if length and len(content) == int(length[1]):
                    answers.append(Answer(int(answer[9:12]), sent[key.data], now))
                    ask(key.data)
    return answers


def quantile(share: float, answers: list[Answer], status: int) -> float:
    """Return a quantile of the milliseconds of the answers with that status."""
    return round(float(np.quantile([one.milliseconds for one in answers if one.status == status], share)), 2)


def print_figures(figures: dict[str, Any]) -> None:
    """Print the figures and the goals."""
    (p50, p50_then), (p99, p99_then), (memory, memory_then) = (figures[n] for n in ("p50_ms", "p99_ms", "megabytes"))
    refusal = figures["refusal_ms"]
    print(f"{'clients':>8}{'p50 ms':>9}{'p99 ms':>9}{'MB':>6}")
    print(
        f"{figures['carried']:8}{p50:9.1f}{p99:9.1f}{memory:6}\n{figures['clients']:8}{p50_then:9.1f}{p99_then:9.1f}{memory_then:6}"
    )
    print(
        f"p99 {p99_then / p99:.2f} times that at capacity (goal {TAIL_RATIO:g}). Refusals: p50 {refusal[0.5]:.0f}, "
        f"p99 {refusal[0.99]:.0f}, longest {refusal[1]:.0f} ms (goal of the p99 {REFUSED_MS:.0f}). "
        f"As before after {figures['recovery_seconds']:.2f} s (goal {RECOVERY_SECONDS:g}). "
        f"{figures['others']} answers had another status. Goals {'met' if figures['met'] else 'NOT met'}."
    )


if __name__ == "__main__":
    sys.exit(main())
