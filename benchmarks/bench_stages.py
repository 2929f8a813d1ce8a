"""The cost of the streaming stages as tables grow: `make bench BENCHMARKS=stages`.

Ingest of CSV, validation, validation that puts a good part of the rows into quarantine, batch prediction, and ingest
of what is new in a folder, each in a process of its own. Goals: 1.5 GB at 10,000,000 rows of 21 columns, and 12 times
the time of 1,000,000.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_ingest import INGEST
from bench_pipeline import Cost, make_csv, make_project, measure

GOAL_MEGABYTES, GOAL_RATIO = 1536.0, 12.0
LEARNED_ROWS = 20_000
VALIDATE = """
import sys
from ondol.config import load_settings
from ondol.snapshots.snapshots import Snapshots
from ondol.storage.store import open_store
from ondol.validation.validate import validate_snapshot

settings = load_settings()
[snapshot] = [s for s in Snapshots(open_store(settings)).folder.glob("*.json")]
done = validate_snapshot(settings, snapshot.stem, sys.argv[3])
assert done.rows == int(sys.argv[2])
print(done.bad)
assert bool(done.bad) == (sys.argv[3] == "quarantine")
"""
PREDICT = """
import sys
from pathlib import Path
from ondol.project import open_project
from ondol.deployment.predict import choose_bundle, predict_rows

project = open_project()
done = predict_rows(project, choose_bundle(project.store, None), sys.argv[1], Path("predicted.parquet").resolve())
assert done["rows"] == int(sys.argv[2]) and not done["refused"], done
"""
STAGES = {"ingest": INGEST, "validate": VALIDATE, "quarantine": VALIDATE, "predict": PREDICT}
GROWTH = ("first file", "new file", "changed")
FEW = 2_000


def run_stages(work: Path, rows: int, env: dict[str, str]) -> dict[str, Cost]:
    """Measure each stage on a table of `rows` rows."""
    source = make_csv(work, rows, env)
    learned = make_csv(work, LEARNED_ROWS, env)
    project = make_project(work / "project", learned)
    subprocess.run([sys.executable, "-m", "ondol.cli", "run"], cwd=project, env=env, check=True, capture_output=True)
    for snapshot in (project / ".ml" / "store" / "snapshots").glob("*.*"):
        snapshot.unlink()
    config, schema = project / "config.toml", project / "model" / "schema.py"
    config.write_text(config.read_text(encoding="utf-8").replace(str(learned), str(source)), encoding="utf-8")
    whole = schema.read_text(encoding="utf-8")
    costs = {}
    for name, script in STAGES.items():
        strict = whole.replace("support_calls: int = pa.Field(ge=0)", "support_calls: int = pa.Field(ge=1)")
        schema.write_text(strict if name == "quarantine" else whole, encoding="utf-8")
        costs[name] = measure_stage(name, script, source, rows, project, env)
    costs |= run_growth(work, source, rows, env)
    return costs


def run_growth(work: Path, source: Path, rows: int, env: dict[str, str]) -> dict[str, Cost]:
    """Measure ingest with a watermark: of one file, then of a small one beside it, then of more rows in the first."""
    lake = work / "lake"
    lake.mkdir()
    first = source.rename(lake / "1.csv")
    project = make_project(work / "growing", lake)
    with (project / "config.toml").open("a", encoding="utf-8") as config:
        config.write('watermark = "customer_id"\n')
    few = make_csv(work, FEW, env).read_bytes().splitlines(keepends=True)
    costs = {}
    for name, total in zip(GROWTH, (rows, rows + FEW, rows + 2 * FEW), strict=True):
        if name == "new file":
            (lake / "2.csv").write_bytes(few[0] + b"".join(b"5" + row for row in few[1:]))
        elif name == "changed":
            with first.open("ab") as file:
                file.writelines(b"6" + row for row in few[1:])
        costs[name] = measure_stage(name, INGEST, lake, total, project, env)
    return costs


def measure_stage(name: str, script: str, source: Path, rows: int, project: Path, env: dict[str, str]) -> Cost:
    """Measure one stage and print what it cost."""
    cost = measure([sys.executable, "-c", script, str(source), str(rows), name], project, env)
    print(f"{rows:>10,} rows  {name:<11}{cost.seconds:8.1f} s {cost.megabytes:8.0f} MB", flush=True)
    return cost


def main() -> None:
    """Measure every stage at every size, and print the goals beside the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ours = ("ML_", "MLFLOW_", "PREFECT_", "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    figures: dict[str, float] = {}
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            found = [run_stages(Path(folder), rows, env) for _ in range(options.rounds)]
        for name in (*STAGES, *GROWTH):
            figures[f"{name}_seconds_{rows}"] = statistics.median(costs[name].seconds for costs in found)
            figures[f"{name}_megabytes_{rows}"] = max(costs[name].megabytes for costs in found)
    for name in (*STAGES, *GROWTH):
        small, large = (figures.get(f"{name}_seconds_{rows}") for rows in (1_000_000, 10_000_000))
        if small and large:
            peak = figures[f"{name}_megabytes_10000000"]
            print(
                f"{name:<11} 10,000,000 rows take {large / small:.1f} times 1,000,000 (goal {GOAL_RATIO:.0f}), "
                f"peak {peak:.0f} MB (goal {GOAL_MEGABYTES:.0f})"
            )
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
