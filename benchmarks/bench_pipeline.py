"""The cost of the pipeline compared with a plain scikit-learn script: `make bench BENCHMARKS=pipeline`.

Both read the same CSV of sample rows, alternating in one run. Compared are the seconds for each further million rows
and the peak memory; the pipeline's fixed cost is its wall time on 1,000 rows.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CONFIG = '[project]\nname = "bench"\n[data]\nsource = "{source}"\ntarget = "churned"\nproblem = "binary"\n'


@dataclass(frozen=True)
class Cost:
    """Wall seconds and peak megabytes of one process and those it waited for."""

    seconds: float
    megabytes: float


def measure(command: list[str], cwd: Path, env: dict[str, str]) -> Cost:
    """Run `command` and return its cost.

    Raises:
        SystemExit: it failed.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            raise SystemExit(f"{command} failed:\n{output.read().decode(errors='replace')}")
    return Cost(time.perf_counter() - started, usage.ru_maxrss / 1024)


def make_project(folder: Path, source: Path) -> Path:
    """Return a fresh project whose source is `source`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, origin in (
        ("flows", ROOT / "flows"),
        ("vendor", ROOT / "packages"),
        *((n, ROOT / "template" / n) for n in ("model", "service")),
    ):
        shutil.copytree(origin, folder / name)
    (folder / "config.toml").write_text(CONFIG.format(source=source), encoding="utf-8")
    return folder


def make_csv(folder: Path, rows: int, env: dict[str, str]) -> Path:
    """Return a CSV file of sample rows."""
    path = folder / f"sample-{rows}.csv"
    command = [sys.executable, "-m", "ondol.ingestion.sample", str(path), "--rows", str(rows)]
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    return path


def run_pipeline(work: Path, source: Path, env: dict[str, str]) -> Cost:
    """Measure `ml run` in a fresh project, compiled to bytecode beforehand."""
    project = make_project(work / "project", source)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "."], cwd=project, check=True)
    return measure([sys.executable, "-m", "ondol.cli", "run"], project, env)


def run_script(source: Path, env: dict[str, str]) -> Cost:
    """Measure the plain script."""
    return measure([sys.executable, str(HERE / "pipeline" / "plain_script.py"), str(source)], HERE, env)


def compare(work: Path, sizes: list[int], rounds: int, env: dict[str, str]) -> dict[str, dict[int, Cost]]:
    """Return the median cost of each side at each size."""
    found: dict[str, dict[int, Cost]] = {"pipeline": {}, "script": {}}
    for rows in sizes:
        source = make_csv(work, rows, env)
        costs: dict[str, list[Cost]] = {"pipeline": [], "script": []}
        for _ in range(rounds):
            costs["script"].append(run_script(source, env))
            costs["pipeline"].append(run_pipeline(work, source, env))
        for side, measured in costs.items():
            cost = Cost(
                statistics.median(c.seconds for c in measured),
                statistics.median(c.megabytes for c in measured),
            )
            found[side][rows] = cost
            print(f"{rows:>10,} rows  {side:<9}{cost.seconds:8.1f} s {cost.megabytes:8.0f} MB", flush=True)
    return found


def report(found: dict[str, dict[int, Cost]]) -> dict[str, float]:
    """Print and return the ratios that the goals name."""
    sizes = sorted(found["script"])
    low, high = sizes[-2], sizes[-1]
    millions = (high - low) / 1e6
    each = {side: (costs[high].seconds - costs[low].seconds) / millions for side, costs in found.items()}
    ratios = {
        "script_seconds_per_million": each["script"],
        "pipeline_seconds_per_million": each["pipeline"],
        "cost_ratio": each["pipeline"] / each["script"],
        "memory_ratio": found["pipeline"][high].megabytes / found["script"][high].megabytes,
    }
    print(f"each further million rows: script {each['script']:.1f} s, pipeline {each['pipeline']:.1f} s, "
          f"ratio {ratios['cost_ratio']:.2f} (goal 1.3)")  # fmt: skip
    print(f"peak memory at {high:,} rows: ratio {ratios['memory_ratio']:.2f} (goal 1.5)")
    return ratios


def fixed_cost(work: Path, rounds: int, env: dict[str, str]) -> dict[str, float]:
    """Print and return the wall time on 1,000 rows, with nothing running and with a Prefect server up."""
    source = make_csv(work, 1000, env)
    alone = statistics.median(run_pipeline(work, source, env).seconds for _ in range(rounds))
    port, home = free_port(), work / "server"
    served = env | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    application = ["--lifespan", "on", "--factory", "ondol.orchestration.asgi:prefect"]  # as `ml up` starts it
    command = [sys.executable, "-m", "uvicorn", *application]
    quiet = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    server = subprocess.Popen([*command, "--port", str(port), "--log-level", "error"], env=env | quiet)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health")
        beside = statistics.median(run_pipeline(work, source, served).seconds for _ in range(rounds))
    finally:
        server.terminate()
        server.wait()
    print(f"1,000 rows: {alone:.1f} s with nothing running (goal 15), {beside:.1f} s with a server up (goal 8)")
    return {"fixed_seconds": alone, "fixed_seconds_server": beside}


def free_port() -> int:
    """Return a TCP port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, seconds: float = 120) -> None:
    """Wait until `url` answers.

    Raises:
        SystemExit: it does not in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{url} did not answer within {seconds:.0f} s.")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 3_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fixed-only", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ours = ("ML_", "MLFLOW_", "PREFECT_", "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        figures = fixed_cost(Path(folder), options.rounds, env)
        if not options.fixed_only:
            figures |= report(compare(Path(folder), sorted(options.rows), options.rounds, env))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
