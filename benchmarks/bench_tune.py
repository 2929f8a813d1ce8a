"""How much quicker `ml tune` is with two processes than with one.

    python benchmarks/bench_tune.py [--trials 50] [--rounds 3] [table.csv target]

It needs the extra `tune`, and two free cores. The same deterministic search runs with one process and with two, in
turn, so that both fit the same trials. The time is that of the search, with the start of the processes, and without
reading the rows and recording the result. "busy" is the share of the processes' time in which they fit.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PATHS = ("packages/ondol/src", "packages/ondol-serving/src", "template")
sys.path[:0] = [str(REPOSITORY / path) for path in PATHS]
TELCO = REPOSITORY.parent / "shared" / "data" / "telco_churn.csv"


def read_validation(table: Path, target: str):
    import pandas as pd

    from ondol.config import Settings
    from ondol.contract import Column, Contract
    from ondol.selection.comparison import CrossValidation

    frame = pd.read_csv(table).dropna()
    kinds = {name: "number" if frame[name].dtype.kind in "if" else "text" for name in frame}
    frame = frame.astype({name: float for name, kind in kinds.items() if kind == "number"})
    problem = "regression" if kinds[target] == "number" else "binary" if frame[target].nunique() == 2 else "multiclass"
    columns = [
        Column(
            name=name, kind=kind, role="target" if name == target else "ignored" if unique == len(frame) else "feature"
        )
        for (name, kind), unique in zip(kinds.items(), frame.nunique(), strict=True)
    ]
    contract = Contract(problem=problem, target=target, columns=tuple(columns))
    settings = Settings.model_validate(
        {"root": Path.cwd(), "project": {"name": "bench"}, "data": {"problem": problem, "target": target}}
    )
    return CrossValidation.prepare(settings, contract, frame)


def search_once(validation, trials: int, processes: int) -> tuple[float, float, float]:
    from ondol.training.candidates import read_candidates
    from ondol.tuning.search import Search, as_trial, open_study
    from ondol.tuning.workers import open_workers

    with tempfile.TemporaryDirectory() as folder:
        study = open_study(Path(folder) / "study.journal", "maximize" if validation.sign > 0 else "minimize")
        search = Search(study, validation, read_candidates(validation.settings), True, "", "")
        started = time.perf_counter()
        with open_workers(validation, processes) as workers:
            search.run(workers, trials)
            seconds = time.perf_counter() - started
        busy = sum(as_trial(one).seconds for one in search.trials) / seconds / processes
        return seconds, search.best.value, busy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("table", nargs="?", type=Path, default=TELCO)
    parser.add_argument("target", nargs="?", default="Churn")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    validation = read_validation(given.table, given.target)
    ratios = []
    for _ in range(given.rounds):
        found = {processes: search_once(validation, given.trials, processes) for processes in (1, 2)}
        assert found[1][1] == found[2][1], "the searches differ"
        ratios.append(found[1][0] / found[2][0])
        shown = ", ".join(
            f"{n} process(es) {seconds:.1f} s, {busy:.0%} busy" for n, (seconds, _, busy) in found.items()
        )
        print(f"{shown}: {ratios[-1]:.2f} times as quick; best {found[1][1]:.4f}; load {os.getloadavg()[0]:.1f}")
    print(f"median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
