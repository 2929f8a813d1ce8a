"""Serving speed, side by side in one run: our service and its alternatives.

    make bench BENCHMARKS=serving [ARGS="--seconds 3 --rounds 3 --out result.json"]

Every server is one process with the same model and the same 19-field telco row; `wrk` asks with 1 and 16
clients, the servers in turn, several rounds; the figures are medians. The service counts and logs each answer. Goals:
at 1 and at 16 clients 75% of the throughput of a bare ASGI callable with the same bundle, validation and batching, and
90% of its own with a key; with a shadow, a p50 of at most 1.1 times its own; at 16 clients 8 times the better FastAPI;
a p99 of at most twice the p50 on `/predict`, `/livez` and `/model`, also after `--requests` more; and no failed
request.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from serving.servers import Running, Server, check_answer, list_servers, run_server  # noqa: E402

CLIENTS = (1, 16)
TIMES_FASTAPI, SHARE_OF_BARE, SHARE_WITH_KEY, P99_TO_P50, P50_WITH_SHADOW = 8.0, 0.75, 0.9, 2.0, 1.1
SERVICE, KEYED, SHADOWED, BARE = "service", "service, with a key", "service, with a shadow", "bare ASGI callable"
PAGES = ("/livez", "/model")
Figures = dict[str, dict[str, Any]]


def main() -> int:
    """Run the comparison; return 0 where the goal is met."""
    arguments = read_arguments()
    if (wrk := find_wrk()) is None:
        print("wrk is not installed and could not be: apt-get install wrk", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder, ExitStack() as stack:
        work = Path(folder)
        print("Training the model …", flush=True)
        prepare(work)
        figures: Figures = {}
        running: list[Running] = []
        for server in list_servers(work):
            print(f"Starting {server.name} …", flush=True)
            running.append(stack.enter_context(run_server(server, work)))
            check_answer(running[-1], work)
        measure(wrk, running, work, arguments, figures)
    ratios = compare(figures)
    print_table(figures, ratios)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"servers": figures, "ratios": ratios}, indent=1), encoding="utf-8")
    return 0 if ratios["met"] else 1


def read_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server and number of clients")
    parser.add_argument("--requests", type=int, default=0, help="to send before the service is measured again")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, usually into benchmarks/results/")
    return parser.parse_args()


def find_wrk() -> str | None:
    """Return wrk's path, installing Debian's package where that is allowed."""
    if not shutil.which("wrk") and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "install", "-y", "-qq", "wrk"], stdout=subprocess.DEVNULL, check=False)
    return shutil.which("wrk")


def prepare(work: Path) -> None:
    """Train once and write the model in every server's form, and the bodies."""
    import joblib
    import mlflow.sklearn
    from serving.telco import ID, TARGET, example_rows, fit_telco, read_telco, write_bundle

    frame = read_telco()
    pipeline = fit_telco(frame)
    joblib.dump(pipeline, work / "pipeline.joblib")
    write_bundle(pipeline, frame, work / "bundle")
    trusted = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]
    mlflow.sklearn.save_model(
        pipeline,
        str(work / "mlflow"),
        signature=mlflow.models.infer_signature(frame.drop(columns=[ID, TARGET]).astype({"tenure": "int64"})),
        pip_requirements=["scikit-learn"],
        serialization_format="skops",
        skops_trusted_types=trusted,
    )
    row = example_rows(frame)
    (work / "body.json").write_text(json.dumps({"rows": row}), encoding="utf-8")
    (work / "mlflow.json").write_text(json.dumps({"dataframe_records": row}), encoding="utf-8")


def measure(wrk: str, running: list[Running], work: Path, arguments: argparse.Namespace, figures: Figures) -> None:
    """Fill `figures`: for each server the median requests a second and latency by clients, and failures."""
    by_name = {one.server.name: one for one in running}
    service = by_name[SERVICE]
    pages = [find_page(service, page) for page in PAGES]
    floor = find_page(by_name[BARE], "/")  # the tail that the machine causes
    for one in running:  # a warm-up that does not count
        ask(wrk, one, work, clients=16, seconds=1)
    measure_rounds(wrk, [*running, *pages, floor], work, arguments, figures)
    if arguments.requests:
        before = read_memory(service)
        sent = 0
        while sent < arguments.requests:
            sent += int(ask(wrk, service, work, clients=16, seconds=10)["requests"])
            show(f"{sent:,} of {arguments.requests:,} requests")
        after = read_memory(service)
        long = [replace(one, server=replace(one.server, name=f"{one.server.name}, later")) for one in (service, *pages)]
        measure_rounds(wrk, long, work, arguments, figures)
        figures[long[0].server.name] |= {"requests": sent, "megabytes": [before, after]}


def find_page(running: Running, path: str) -> Running:
    """Return a page of a server, which is read by GET."""
    server = Server(f"{running.server.name} {path}", [], "", body="")
    return replace(running, url=running.url.removesuffix(running.server.path) + path, server=server)


def measure_rounds(
    wrk: str, running: list[Running], work: Path, arguments: argparse.Namespace, figures: Figures
) -> None:
    """Measure the servers in turn, several rounds."""
    samples: dict[tuple[str, int], list[dict[str, float]]] = {}
    for turn in range(arguments.rounds):
        for clients in CLIENTS:
            for one in running:
                show(f"Round {turn + 1}, {clients} clients: {one.server.name}")
                sample = ask(wrk, one, work, clients, arguments.seconds)
                samples.setdefault((one.server.name, clients), []).append(sample)
    show("")
    for one in running:
        name = one.server.name
        entry: dict[str, Any] = {"seconds_to_ready": round(one.seconds_to_ready, 2), "failed": 0}
        for clients in CLIENTS:
            taken = samples[name, clients]
            entry["failed"] += int(sum(s["failed"] for s in taken))
            medians = {k: statistics.median(s[k] for s in taken) for k in ("per_second", "p50_ms", "p99_ms")}
            entry[str(clients)] = {k: round(v, 3) for k, v in medians.items()}
        figures[name] = entry


def read_memory(running: Running) -> int:
    """Return the megabytes of memory of a server's largest process."""
    server = psutil.Process(running.process)
    return max(one.memory_info().rss for one in (server, *server.children(recursive=True))) // 2**20


def show(progress: str) -> None:
    """Show the progress in one line of a terminal, and nothing in a file."""
    if sys.stdout.isatty():
        print(f"{progress:78}", end="\r", flush=True)


def ask(wrk: str, running: Running, work: Path, clients: int, seconds: int) -> dict[str, float]:
    """Return one measurement by wrk."""
    script = str(HERE / "serving" / "ask.lua")
    command = [wrk, "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "20s", "-s", script, running.url]
    body = str(work / running.server.body) if running.server.body else ""
    environment = os.environ | {"BODY": body, "AUTHORIZATION": running.server.authorization}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    numbers = re.search(r"RESULT (.*)", run.stdout)
    assert numbers is not None, run.stdout
    count, micros, p50, p99, failed = map(float, numbers[1].split())
    return {
        "requests": count,
        "per_second": count / micros * 1e6,
        "p50_ms": p50 / 1e3,
        "p99_ms": p99 / 1e3,
        "failed": failed,
    }


def compare(figures: Figures) -> dict[str, Any]:
    """Return the ratios of the goals."""
    speed = {name: {str(n): entry[str(n)]["per_second"] for n in CLIENTS} for name, entry in figures.items()}
    fastapi = max(at["16"] for name, at in speed.items() if name.startswith("fastapi"))
    ratios: dict[str, Any] = {
        "share_of_bare": {n: round(speed[SERVICE][n] / speed[BARE][n], 3) for n in ("1", "16")},
        "share_with_key": {n: round(speed[KEYED][n] / speed[SERVICE][n], 3) for n in ("1", "16")},
        "p50_with_shadow": {
            str(n): round(figures[SHADOWED][str(n)]["p50_ms"] / figures[SERVICE][str(n)]["p50_ms"], 3) for n in CLIENTS
        },
        "times_better_fastapi": round(speed[SERVICE]["16"] / fastapi, 2),
        "times_mlflow": round(speed[SERVICE]["16"] / speed["mlflow models serve"]["16"], 2),
        "p99_to_p50": {
            f"{name}, {n}": round(entry[str(n)]["p99_ms"] / entry[str(n)]["p50_ms"], 2)
            for name, entry in figures.items()
            if name.startswith((SERVICE, BARE)) and "BentoML" not in name
            for n in CLIENTS
        },
        "failed": sum(entry["failed"] for name, entry in figures.items() if name.startswith(SERVICE)),
    }
    ratios["met"] = (
        ratios["times_better_fastapi"] >= TIMES_FASTAPI
        and min(ratios["share_of_bare"].values()) >= SHARE_OF_BARE
        and min(ratios["share_with_key"].values()) >= SHARE_WITH_KEY
        and max(ratios["p50_with_shadow"].values()) <= P50_WITH_SHADOW
        and all(one <= P99_TO_P50 for name, one in ratios["p99_to_p50"].items() if name.startswith(SERVICE))
        and ratios["failed"] == 0
    )
    return ratios


def print_table(figures: Figures, ratios: dict[str, Any]) -> None:
    """Print the figures and the ratios."""
    print(f"{'server':30}{'1 client':>24}{'16 clients':>30}{'failed':>8}{'ready':>9}")
    print(f"{'':30}{'req/s':>8}{'p50 ms':>8}{'p99 ms':>8}{'req/s':>14}{'p50 ms':>8}{'p99 ms':>8}")
    for name, entry in figures.items():
        one, many = entry["1"], entry["16"]
        print(
            f"{name:30}{one['per_second']:8.0f}{one['p50_ms']:8.2f}{one['p99_ms']:8.2f}"
            f"{many['per_second']:14.0f}{many['p50_ms']:8.2f}{many['p99_ms']:8.2f}"
            f"{entry['failed']:8d}{entry['seconds_to_ready']:7.1f} s"
        )
    share, keyed = (
        " and ".join(f"{value:.0%}" for value in ratios[name].values()) for name in ("share_of_bare", "share_with_key")
    )
    shadow = " and ".join(f"{value:g}" for value in ratios["p50_with_shadow"].values())
    tails = ", ".join(f"{name}: {value:g}" for name, value in ratios["p99_to_p50"].items())
    print(
        f"\nWith 1 and 16 clients the service answers {share} of the bare callable's requests"
        f" (goal {SHARE_OF_BARE:.0%}), and with a key {keyed} of its own without one (goal {SHARE_WITH_KEY:.0%});"
        f"\nwith 16, {ratios['times_better_fastapi']} times the better FastAPI's (goal {TIMES_FASTAPI:g}) and"
        f" {ratios['times_mlflow']} times mlflow's.\nWith a shadow, the p50 is {shadow} times as long (goal"
        f" {P50_WITH_SHADOW:g}).\np99 to p50 (goal {P99_TO_P50:g}): {tails}."
    )
    for name, entry in figures.items():
        if "megabytes" in entry:
            before, after = entry["megabytes"]
            print(f"{name}: after {entry['requests']:,} requests {after} MB, {before} MB before.")
    print(f"{ratios['failed']} requests failed. Goals {'met' if ratios['met'] else 'NOT met'}.")


if __name__ == "__main__":
    sys.exit(main())
