"""The time from a new project to its first model in production, and of a run in which nothing changed.

    make bench BENCHMARKS=first_model [ARGS="--refs HEAD 160a57d --rounds 3"]

Each commit of this repository that is named becomes a project in an empty home, by turns: `copier copy`, `uv lock`,
`uv sync`, `ml run`, `ml serve` until it is ready, and `ml run` once more. Packages come from uv's cache, which a first
project fills; nothing is compiled to bytecode. Figures are medians, and ratios to the last commit named.
Goal: at most 0.7 times 0.3.0 (160a57d) for the sum up to a ready service, and for the second run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_pipeline import free_port, wait_for

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
STEPS = ("copy", "lock", "sync", "run", "serve", "run again")
KEPT = ("PATH", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refs", nargs="+", default=["HEAD"], help="commits or tags of this repository")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON, usually into benchmarks/results/")
    options = parser.parse_args()
    taken: dict[str, list[dict[str, float]]] = {ref: [] for ref in options.refs}
    for ref in options.refs:
        print(f"Filling uv's cache for {ref} …", flush=True)
        make_project(ref, served=False)
    for number in range(options.rounds):
        for ref in options.refs if number % 2 else reversed(options.refs):
            taken[ref].append(make_project(ref))
            print(ref, show(taken[ref][-1]), flush=True)
    medians = {ref: {step: statistics.median(t[step] for t in times) for step in STEPS} for ref, times in taken.items()}
    base = medians[options.refs[-1]]
    for ref, figures in medians.items():
        first, again = (f(figures) / f(base) for f in (until_ready, lambda times: times["run again"]))
        print(f"{ref}: {show(figures)}; {first:.2f} and {again:.2f} times {options.refs[-1]}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(medians, indent=1) + "\n", encoding="utf-8")


def until_ready(times: dict[str, float]) -> float:
    """Return the seconds up to a ready service."""
    return sum(times[step] for step in STEPS[:-1])


def show(times: dict[str, float]) -> str:
    """Return the times as one line."""
    return ", ".join(f"{step} {times[step]:.1f} s" for step in STEPS) + f"; until ready {until_ready(times):.1f} s"


def make_project(ref: str, served: bool = True) -> dict[str, float]:
    """Return the seconds of each step; unless `served`, of those that install packages."""
    with tempfile.TemporaryDirectory(prefix="bench-first-model-") as folder:
        home = Path(folder)
        project, port = home / "project", free_port()
        uv = str(BIN / "uv")
        env = {name: os.environ[name] for name in KEPT if name in os.environ}
        env |= {"HOME": folder, "UV_SYSTEM_CERTS": "1", "ML_SERVICE__PORT": str(port)}
        env |= {"UV_CACHE_DIR": subprocess.check_output([uv, "cache", "dir"], text=True).strip()}
        env |= {"UV_PYTHON": getattr(sys, "_base_executable", sys.executable)}
        copy = [sys.executable, "-W", "ignore", "-m", "copier", "copy", "--quiet", "--defaults", "--vcs-ref", ref]
        times = {"copy": seconds([*copy, str(ROOT), str(project)], home, env)}
        subprocess.run(["git", "init", "--quiet"], cwd=project, env=env, check=True)
        times["lock"] = seconds([uv, "lock", "--quiet"], project, env)
        times["sync"] = seconds([uv, "sync", "--quiet"], project, env)
        if served:
            times["run"] = seconds([uv, "run", "ml", "run"], project, env)
            started = time.perf_counter()
            with background([uv, "run", "ml", "serve"], project, env):
                wait_for(f"http://127.0.0.1:{port}/readyz")
                times["serve"] = time.perf_counter() - started
            times["run again"] = seconds([uv, "run", "ml", "run"], project, env)
    return times


def seconds(command: list[str], cwd: Path, env: dict[str, str]) -> float:
    """Run a command and return its wall time.

    Raises:
        SystemExit: it failed.
    """
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
    return time.perf_counter() - started


@contextmanager
def background(command: list[str], cwd: Path, env: dict[str, str]) -> Iterator[None]:
    """Run a command while the block runs."""
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
