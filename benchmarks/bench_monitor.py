"""The cost of the monitor on a large log: `make bench BENCHMARKS=monitor`.

A project's champion gets a log of a million rows (single-row requests, or as many in each as named), and `ml monitor`
evaluates all of it as one window: wall time and peak memory of the command. Goals: 20 s and 1 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench_pipeline import Cost, make_project, measure

SOURCE = "sample://?rows=5000"
TEMPLATES = 20_000  # rows whose answers are computed; the log repeats them
FILE_RECORDS = 100_000
GOAL_SECONDS, GOAL_MEGABYTES = 20.0, 1024.0
ANSWERS = """
import json, sys
from pathlib import Path
from ondol.deployment.bundle import json_rows
from ondol.contract import typed
from ondol.deployment.predict import choose_bundle
from ondol.evaluation.scoring import Scorer
from ondol.ingestion.sample import SampleSource
from ondol.storage.store import Store
import pyarrow as pa

bundle = choose_bundle(Store(Path(".ml/store")), None)
scorer = Scorer.open(bundle.path)
table = pa.Table.from_batches(list(SampleSource(rows=int(sys.argv[1]), start=10**6).batches()))
frame = typed(table.to_pandas(), bundle.contract.used)
found = scorer.predict(frame)
classes = bundle.contract.classes
answers = [{"label": classes[int(p[1] > 0.5)], "probabilities": dict(zip(classes, p))} for p in found.tolist()]
print(json.dumps({"bundle": bundle.name, "rows": json_rows(bundle.contract, frame), "answers": answers}))
"""


def write_log(project: Path, rows: int, together: int, env: dict[str, str]) -> int:
    """Write a log of `rows` rows, answered by the champion; return its bytes."""
    command = [sys.executable, "-c", ANSWERS, str(min(rows, TEMPLATES))]
    made = json.loads(subprocess.run(command, cwd=project, env=env, check=True, capture_output=True).stdout)
    champion = json.loads((project / ".ml/store/champion.json").read_text(encoding="utf-8"))
    begin = datetime.fromisoformat(champion["since"]) + timedelta(seconds=1)
    folder = project / ".ml/store/log"
    folder.mkdir(parents=True)
    size = 0
    lines = records(made, rows, together, begin)
    for number in range(-(-rows // together // FILE_RECORDS)):
        path = folder / f"{begin:%Y%m%dT%H%M%S}-bench-{number}-1.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for _, line in zip(range(FILE_RECORDS), lines, strict=False):
                size += file.write(line)
    return size


def records(made: dict[str, Any], rows: int, together: int, begin: datetime) -> Iterator[str]:
    """Yield records as the service writes them."""
    texts = [json.dumps(row, ensure_ascii=False) for row in made["rows"]]
    answers = [json.dumps(answer, ensure_ascii=False, separators=(",", ":")) for answer in made["answers"]]
    bundle = made["bundle"]
    about = f'"version":"{bundle.rpartition("-")[0]}","bundle":"{bundle}"'
    for first in range(0, rows, together):
        places = [i % len(texts) for i in range(first, min(first + together, rows))]
        at = (begin + timedelta(microseconds=first)).isoformat("T", "microseconds")
        request = ", ".join(texts[i] for i in places)
        predictions = ",".join(answers[i] for i in places)
        yield (
            f'{{"id":"{first:032x}","at":"{at}",{about},"ms":{0.4 + first % 100 / 100:.3f},'
            f'"request":{{"rows": [{request}]}},"predictions":[{predictions}]}}\n'
        )


def run(work: Path, rows: int, together: int, env: dict[str, str]) -> tuple[Cost, int]:
    """Measure `ml monitor` on a log; return its cost and the log's bytes."""
    project = make_project(work / f"project-{together}", Path("unused.csv"))
    env = env | {"ML_DATA__SOURCE": SOURCE}
    subprocess.run([sys.executable, "-m", "compileall", "-q", "."], cwd=project, check=True)
    subprocess.run([sys.executable, "-m", "ondol.cli", "run"], cwd=project, env=env, check=True, capture_output=True)
    size = write_log(project, rows, together, env)
    wait_for_the_last(project, rows)
    cost = measure([sys.executable, "-m", "ondol.cli", "monitor"], project, env)
    (record,) = (project / ".ml/store/windows").glob("*.json")
    window = json.loads(record.read_text(encoding="utf-8"))
    if window["rows"] != rows or window["verdict"] != "ok":
        raise SystemExit(f"the window holds {window['rows']:,} rows and is {window['verdict']}: {window['reasons']}")
    return cost, size


def wait_for_the_last(project: Path, rows: int) -> None:
    """Wait until the last record is of the past."""
    champion = json.loads((project / ".ml/store/champion.json").read_text(encoding="utf-8"))
    last = datetime.fromisoformat(champion["since"]) + timedelta(seconds=2, microseconds=rows)
    time.sleep(max(0.0, (last - datetime.now(UTC)).total_seconds()))


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 100], help="rows in each request")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for together in options.together:
            cost, size = run(Path(folder), options.rows, together, env)
            print(
                f"{options.rows:>10,} rows, {together:>4} in a request ({size / 1e6:,.0f} MB): {cost.seconds:6.1f} s "
                f"(goal {GOAL_SECONDS:.0f}) {cost.megabytes:6.0f} MB (goal {GOAL_MEGABYTES:.0f})",
                flush=True,
            )
            figures |= {f"seconds_{together}": cost.seconds, f"megabytes_{together}": cost.megabytes}
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
