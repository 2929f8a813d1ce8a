"""The cost of `ml replay` on a large log: `make bench BENCHMARKS=replay`.

A project's champion gets a log of a million rows, and `ml replay` sends all of them through a second version that was
never deployed: wall time and peak memory of the command. Goals: 30 s and 1 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_monitor import SOURCE, wait_for_the_last, write_log
from bench_pipeline import make_project, measure

GOAL_SECONDS, GOAL_MEGABYTES = 30.0, 1024.0


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--together", type=int, default=1, help="rows in each request")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"ML_DATA__SOURCE": SOURCE}
    ml = [sys.executable, "-m", "ondol.cli"]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        project = make_project(Path(folder) / "project", Path("unused.csv"))
        subprocess.run([sys.executable, "-m", "compileall", "-q", "."], cwd=project, check=True)
        subprocess.run([*ml, "run"], cwd=project, env=env, check=True, capture_output=True)
        other = env | {"ML_TRAIN__SEED": "7"}
        subprocess.run([*ml, "train"], cwd=project, env=other, check=True, capture_output=True)
        size = write_log(project, options.rows, options.together, env)
        wait_for_the_last(project, options.rows)
        cost = measure([*ml, "replay", "2"], project, env)
    print(
        f"{options.rows:,} rows ({size / 1e6:,.0f} MB): {cost.seconds:.1f} s (goal {GOAL_SECONDS:.0f}), "
        f"{cost.megabytes:.0f} MB (goal {GOAL_MEGABYTES:.0f})"
    )
    if options.out:
        options.out.write_text(json.dumps({"seconds": cost.seconds, "megabytes": cost.megabytes}), encoding="utf-8")


if __name__ == "__main__":
    main()
