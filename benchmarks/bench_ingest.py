"""The cost of ingest compared with pyarrow's own read and write: `make bench BENCHMARKS=ingest`.

Both read the same CSV of sample rows and write Parquet (zstd, level 1), each in a process of its own, alternating in
one run. Ingest digests the source and the snapshot besides, and types its columns by the contract. Goals: a ratio of
1.5 and 1.5 GB.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from bench_pipeline import Cost, make_csv, make_project, measure

GOAL_RATIO, GOAL_MEGABYTES = 1.5, 1536.0
PLAIN = """
import sys
import pyarrow.csv as csv, pyarrow.parquet as pq

reader = csv.open_csv(sys.argv[1], csv.ReadOptions(block_size=4 << 20))
with pq.ParquetWriter("plain.parquet", reader.schema, compression="zstd", compression_level=1) as writer:
    for batch in reader:
        writer.write_batch(batch)
"""
WHOLE = """
import sys
import pyarrow.csv as csv, pyarrow.parquet as pq

pq.write_table(csv.read_csv(sys.argv[1]), "plain.parquet", compression="zstd", compression_level=1)
"""
INGEST = """
import sys
from ondol.ingestion import read_source
from ondol.project import open_project

assert read_source(open_project()).rows == int(sys.argv[2])
"""
IMPORTS = "import ondol.ingestion.ingest, ondol.contract, ondol.config, model.schema"
SIDES = {"pyarrow": PLAIN, "pyarrow whole": WHOLE, "ingest": INGEST}


def compare(work: Path, source: Path, rows: int, rounds: int, env: dict[str, str]) -> dict[str, list[Cost]]:
    """Measure the sides in alternation; ingest's own imports are measured too, as `imports`."""
    project = make_project(work / "project", source)
    found: dict[str, list[Cost]] = {name: [] for name in (*SIDES, "imports")}
    for _ in range(rounds):
        for name, script in (*SIDES.items(), ("imports", IMPORTS)):
            shutil.rmtree(project / ".ml", ignore_errors=True)
            found[name].append(measure([sys.executable, "-c", script, str(source), str(rows)], project, env))
    return found


def report(rows: int, found: dict[str, list[Cost]]) -> dict[str, float]:
    """Print and return the medians and the ratio."""
    seconds = {name: statistics.median(cost.seconds for cost in costs) for name, costs in found.items()}
    memory = {name: max(cost.megabytes for cost in costs) for name, costs in found.items()}
    for name in SIDES:
        print(f"{rows:>10,} rows  {name:<14}{seconds[name]:8.1f} s {memory[name]:8.0f} MB", flush=True)
    ratio = (seconds["ingest"] - seconds["imports"]) / seconds["pyarrow"]
    print(
        f"{rows:>10,} rows  ratio {ratio:.2f} without {seconds['imports']:.1f} s of imports (goal {GOAL_RATIO}), "
        f"peak {memory['ingest']:.0f} MB (goal {GOAL_MEGABYTES:.0f})",
        flush=True,
    )
    return {"seconds": seconds["ingest"], "ratio": ratio, "megabytes": memory["ingest"]}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ours = ("ML_", "MLFLOW_", "PREFECT_", "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for rows in options.rows:
            source = make_csv(Path(folder), rows, env)
            made = report(rows, compare(Path(folder), source, rows, options.rounds, env))
            figures |= {f"ingest_{name}_{rows}": value for name, value in made.items()}
            source.unlink()
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
