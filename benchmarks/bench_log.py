"""The cost of the prediction log: the service with and without it, side by side in one run.

    make bench BENCHMARKS=log [ARGS="--seconds 2 --rounds 15 --out result.json"]

One process each, with the same model and the same 19-field telco row; `wrk` sends requests to them in turn, with one
client. Each round gives a ratio of median latencies; the figure is the median of the ratios, since a machine's speed
changes between rounds by more than the log costs. Goal: at most 1.10.
"""

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from bench_serving import ask, find_wrk, show  # noqa: E402
from serving.servers import Running, check_answer, list_logging, run_server  # noqa: E402
from serving.telco import example_rows, fit_telco, read_telco, write_bundle  # noqa: E402

GOAL = 1.10
Samples = dict[str, list[dict[str, float]]]


def main() -> int:
    """Run the comparison; return 0 where the goal is met."""
    arguments = read_arguments()
    if (wrk := find_wrk()) is None:
        print("wrk is not installed and could not be: apt-get install wrk", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-log-") as folder, ExitStack() as stack:
        work = Path(folder)
        frame = read_telco()
        write_bundle(fit_telco(frame), frame, work / "bundle")
        (work / "body.json").write_text(json.dumps({"rows": example_rows(frame)}), encoding="utf-8")
        running = [stack.enter_context(run_server(server, work)) for server in list_logging(work)]
        samples = measure(wrk, running, work, arguments)
        logged = count_records(work / "store" / "log")
    return report(samples, logged, arguments.out)


def read_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each service")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, usually into benchmarks/results/")
    return parser.parse_args()


def measure(wrk: str, running: list[Running], work: Path, arguments: argparse.Namespace) -> Samples:
    """Return each service's measurements with one client; every other round begins with the other service."""
    samples: Samples = {one.server.name: [] for one in running}
    for one in running:  # a warm-up that does not count
        check_answer(one, work)
        ask(wrk, one, work, clients=1, seconds=1)
    for turn in range(arguments.rounds):
        for one in running if turn % 2 == 0 else reversed(running):
            show(f"Round {turn + 1}: {one.server.name}")
            samples[one.server.name].append(ask(wrk, one, work, clients=1, seconds=arguments.seconds))
    show("")
    return samples


def count_records(folder: Path) -> int:
    """Return how many answers are in the log."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


def report(samples: Samples, logged: int, out: Path | None) -> int:
    """Print and write the figures; return 0 where the goal is met."""
    off, on = ([s["p50_ms"] for s in samples[name]] for name in ("log off", "log on"))
    failed = int(sum(s["failed"] for some in samples.values() for s in some))
    ratio = statistics.median(b / a for a, b in zip(off, on, strict=True))
    met = ratio <= GOAL and not failed and logged > 0
    for name, values in (("log off", off), ("log on", on)):
        rate = statistics.median(s["per_second"] for s in samples[name])
        print(f"{name:8} p50 {statistics.median(values):.3f} ms, {rate:.0f} requests a second")
    print(f"ratio    {ratio:.3f} (goal: at most {GOAL:.2f}), {failed} failed, {logged} logged")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        figures = {"p50_ms": {"off": off, "on": on}, "ratio": ratio, "failed": failed, "logged": logged, "met": met}
        out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
