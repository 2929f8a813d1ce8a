"""Predictions of many rows a request, side by side in one run: JSON and Arrow of our service, and FastAPI.

    make bench BENCHMARKS=bulk [ARGS="--rows 1000 --clients 1 --seconds 3 --rounds 3 --out result.json"]

Every server is one process with the same model and the same rows of telco; `wrk` asks the servers in turn, several
rounds; the figures are medians. The processor time of a request says more where others use the machine. The service is
measured with its log and without. "Categories" are texts in a dictionary of Arrow, as pandas writes them for the dtype
`category`. Goals: JSON at least 5 times the rows of the better FastAPI, and Arrow at least 5 times those of JSON, log
and metrics on.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from bench_serving import ask, find_wrk, show  # noqa: E402
from serving.servers import Running, list_logging, list_servers, run_server  # noqa: E402
from serving.telco import example_rows, fit_linear, fit_telco, read_telco, write_bundle  # noqa: E402

MODELS = {"boosted trees": fit_telco, "logistic regression": fit_linear}
BODIES = {"JSON": "body.json", "Arrow": "rows.arrow", "Arrow, categories": "categories.arrow"}
TIMES_FASTAPI, TIMES_JSON = 5.0, 5.0
Figures = dict[str, dict[str, float]]


def main() -> int:
    """Run the comparison; return 0 where the goals are met."""
    arguments = read_arguments()
    if (wrk := find_wrk()) is None:
        print("wrk is not installed and could not be: apt-get install wrk", file=sys.stderr)
        return 2
    results: dict[str, Any] = {}
    for model in MODELS:
        with tempfile.TemporaryDirectory(prefix="bench-bulk-") as folder, ExitStack() as stack:
            work = Path(folder)
            prepare(work, model, arguments.rows)
            running = [
                stack.enter_context(run_server(server, work))
                for server in (*list_servers(work), *list_logging(work))
                if server.name.startswith(("fastapi", "log o"))
            ]
            asked = [one for server in running for one in with_bodies(server)]
            for one in asked:
                check(one, work, arguments.rows)
            figures = measure(wrk, asked, work, arguments)
        results[model] = {"rows_per_second": figures, "ratios": compare(figures)}
        print_table(model, figures, results[model]["ratios"])
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0 if all(one["ratios"]["met"] for one in results.values()) else 1


def read_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000, help="of each request")
    parser.add_argument("--clients", type=int, default=1, help="that ask at the same time")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement; at least one answer must fit in")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server and body")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, usually into benchmarks/results/")
    return parser.parse_args()


def prepare(work: Path, model: str, count: int) -> None:
    """Train a model, and write it in every server's form, and the bodies."""
    import joblib
    import pandas as pd
    import pyarrow as pa

    frame = read_telco()
    pipeline = MODELS[model](frame)
    joblib.dump(pipeline, work / "pipeline.joblib")
    write_bundle(pipeline, frame, work / "bundle")
    rows = example_rows(frame, count)
    (work / "body.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    plain = pd.DataFrame(rows)
    texts = plain.select_dtypes(exclude="number").columns
    for name, one in (("rows", plain), ("categories", plain.astype(dict.fromkeys(texts, "category")))):
        table, stream = pa.Table.from_pandas(one, preserve_index=False), io.BytesIO()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        (work / f"{name}.arrow").write_bytes(stream.getvalue())


def with_bodies(running: Running) -> list[Running]:
    """Return a server once for each body that it reads."""
    server = running.server
    if not server.name.startswith("log"):
        return [running]
    return [
        replace(running, server=replace(server, name=f"{form}, {server.name}", body=body))
        for form, body in BODIES.items()
    ]


def check(running: Running, work: Path, rows: int) -> None:
    """Ask once, so that a server that only returns errors is not measured."""
    import pyarrow as pa

    body, arrow = (work / running.server.body).read_bytes(), running.server.body.endswith(".arrow")
    headers = {"Content-Type": "application/vnd.apache.arrow.stream" if arrow else "application/json"}
    with urllib.request.urlopen(urllib.request.Request(running.url, body, headers), timeout=30) as answer:
        content = answer.read()
    found = pa.ipc.open_stream(content).read_all().num_rows if arrow else len(json.loads(content)["predictions"])
    assert found == rows, running.server.name


def measure(wrk: str, asked: list[Running], work: Path, arguments: argparse.Namespace) -> Figures:
    """Return for each server and body the median rows a second, and milliseconds of a request."""
    samples: dict[str, list[dict[str, float]]] = {}
    for turn in range(arguments.rounds):
        for one in asked:
            show(f"Round {turn + 1}: {one.server.name}")
            before = read_processor(one)
            sample = ask(wrk, one, work, arguments.clients, arguments.seconds)
            sample["cpu_ms"] = (read_processor(one) - before) / sample["requests"] * 1000
            assert not sample["failed"], one.server.name
            samples.setdefault(one.server.name, []).append(sample)
    show("")
    return {
        name: {
            "rows": round(statistics.median(one["per_second"] for one in taken) * arguments.rows),
            "p50_ms": round(statistics.median(one["p50_ms"] for one in taken), 2),
            "cpu_ms": round(statistics.median(one["cpu_ms"] for one in taken), 2),
        }
        for name, taken in samples.items()
    }


def read_processor(running: Running) -> float:
    """Return the seconds of processor time that a server has used, also where others use the machine."""
    server = psutil.Process(running.process)
    times = [one.cpu_times() for one in (server, *server.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def compare(figures: Figures) -> dict[str, Any]:
    """Return the ratios of the goals, with the log and without."""
    rows = {name: entry["rows"] for name, entry in figures.items()}
    fastapi = max(count for name, count in rows.items() if name.startswith("fastapi"))
    ratios: dict[str, Any] = {}
    for log in ("log on", "log off"):
        arrow = max(rows[f"{form}, {log}"] for form in BODIES if form != "JSON")
        ratios[log] = {
            "JSON to FastAPI": round(rows[f"JSON, {log}"] / fastapi, 2),
            "Arrow to JSON": round(arrow / rows[f"JSON, {log}"], 2),
            "Arrow to FastAPI": round(arrow / fastapi, 2),
        }
    on = ratios["log on"]
    ratios["met"] = on["JSON to FastAPI"] >= TIMES_FASTAPI and on["Arrow to JSON"] >= TIMES_JSON
    return ratios


def print_table(model: str, figures: Figures, ratios: dict[str, Any]) -> None:
    """Print the figures and the ratios."""
    print(f"{model:32}{'rows/s':>10}{'p50 ms':>10}{'cpu ms':>10}")
    for name, entry in figures.items():
        print(f"{name:32}{entry['rows']:10,.0f}{entry['p50_ms']:10.2f}{entry['cpu_ms']:10.2f}")
    for log in ("log on", "log off"):
        print(f"{log}: " + ", ".join(f"{name} {value:g}" for name, value in ratios[log].items()))
    print(f"Goals (log on: 5 and 5) {'met' if ratios['met'] else 'NOT met'}.\n")


if __name__ == "__main__":
    sys.exit(main())
