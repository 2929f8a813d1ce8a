"""Measures the first model on one table: `python benchmarks/quality/measure.py TABLE SEEDS OUT [peer]`.

It works in an empty folder, which becomes a project: `ml init`, ingest, validate, then for each seed the choice, the
fit, and the metrics of the held-out rows, beside scikit-learn's boosting with its defaults on ordinal codes. With
`peer`, FLAML searches for as long as the choice and the fit took.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from quality.tables import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
HOLDOUTS = (0.1, 0.15, 0.2, 0.25, 0.3)  # for a split by time, which has no seed


def main(name: str, seeds: int, out: Path, peer: bool) -> None:
    """Measure the table `name`, and write the figures to `out`."""
    from quality.tables import TABLES

    report = make_project(next(one for one in TABLES if one.name == name))
    results = [measure(seed, peer) for seed in range(seeds)]
    out.write_text(json.dumps({"doubts": report.doubts, "problem": report.problem, "seeds": results}), encoding="utf-8")


def run_each(names: Sequence[str], work: Callable[[str], bool]) -> int:
    """Call `work` with each name, in a process and an empty folder of its own; return 0 if all returned True.

    A project's modules can be imported once in a process.
    """
    status = 0
    for name in names:
        child = os.fork()
        if not child:
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                os.chdir(folder)
                reached = work(name)
            os._exit(int(not reached))
        status |= os.waitpid(child, 0)[1]
    return int(status != 0)


def make_project(table: "Table") -> Any:
    """Make this folder a project of a table by `ml init`, and return the report."""
    root = Path.cwd()
    for folder in ("model", "flows", "service"):
        shutil.copytree(ROOT / "template" / folder, root / folder, symlinks=False)
    (root / "config.toml").write_text('[project]\nname = "quality"\n[data]\nsource = "sample://"\n', encoding="utf-8")
    table.read().drop(columns=list(table.without)).to_csv(root / "data.csv", index=False)
    sys.path.insert(0, str(root))
    from ondol.setup.initialize import initialize

    return initialize(root, "data.csv", table.target, table.problem, force=True)


def measure(seed: int, peer: bool) -> dict[str, Any]:
    """Return the figures of one seed."""
    from ondol.config import load_settings
    from ondol.evaluation.metrics import choose_metric, score_metrics
    from ondol.project import Project
    from ondol.selection.comparison import compare
    from ondol.training.train import fit_rows

    os.environ |= {"ML_SPLIT__SEED": str(seed), "ML_TRAIN__SEED": str(seed)}
    if load_settings().split.by == "time":
        os.environ["ML_SPLIT__HOLDOUT"] = str(HOLDOUTS[seed % len(HOLDOUTS)])
    project = Project(load_settings())
    settings, contract = project.settings, project.contract
    train, held_out, holdout = split_rows(project)
    started = time.perf_counter()
    choice = compare(settings, contract, train)
    chosen = time.perf_counter() - started
    fitted = fit_rows(settings, contract, train, holdout, choice)
    spent = time.perf_counter() - started
    ours = predict(fitted, held_out)
    truth = target_of(fitted.contract, held_out)
    theirs = predict_default(fitted.contract, train, held_out, truth)
    problem, metric = contract.problem, choose_metric(contract.problem, None)
    found, base = (score_metrics(problem, truth, one) for one in (ours, theirs))
    searched = {}
    if peer:
        by_time = contract.role("time") if settings.split.by == "time" else None
        made = predict_peer(fitted.contract, train, held_out, metric, spent, seed, by_time)
        searched = {"peer": score_metrics(problem, truth, made)}
    return {
        "rows": len(train),
        "metric": metric,
        "ours": found,
        "default": base,
        **searched,
        "spent": spent,
        "choice": choice.reason,
        "params": dict(choice.params),
        "trials": {trial.name: list(trial.scores) for trial in choice.trials},
        "seconds": chosen,
        "trial_seconds": {trial.name: trial.seconds for trial in choice.trials},
        "split": settings.split.by,
    }


def split_rows(project: Any) -> tuple[pd.DataFrame, pd.DataFrame, Any]:
    """Return the training rows, the held-out rows, and the rule that holds them out."""
    from ondol.ingestion.ingest import read_source
    from ondol.training.dataset import define_holdout, read_rows
    from ondol.validation.validate import validate_rows

    settings, contract = project.settings, project.contract
    validation = validate_rows(project, read_source(project).digest).id
    holdout = define_holdout(settings, contract, validation)
    train, held_out = (read_rows(settings, contract, validation, side, holdout) for side in ("train", "holdout"))
    return train, held_out, holdout


def target_of(contract: Any, frame: pd.DataFrame) -> Any:
    """Return the encoded target."""
    from ondol.contract import encode_target

    return encode_target(contract, frame[contract.target])


def predict(fitted: Any, frame: pd.DataFrame) -> Any:
    """Return the predictions of the fitted project."""
    from ondol.contract import encode

    rows = encode(fitted.contract, frame)
    if fitted.contract.problem == "regression":
        return np.asarray(fitted.pipeline.predict(rows), np.float64)
    return spread(fitted.pipeline, rows, len(fitted.contract.classes))


def spread(model: Any, rows: Any, count: int) -> Any:
    """Return the probabilities with a column for each class."""
    made = np.zeros((len(rows), count))
    made[:, model.classes_] = model.predict_proba(rows)
    return made


def predict_default(contract: Any, train: pd.DataFrame, held_out: pd.DataFrame, truth: Any) -> Any:
    """Return the predictions of scikit-learn's boosting with its defaults, on the project's features without the id."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.preprocessing import OrdinalEncoder

    names = used_names(contract, train)
    known, unknown = {}, {}
    for name in names:
        sides = [train[name], held_out[name]]
        if sides[0].dtype.kind == "M":
            sides = [side.astype("int64") for side in sides]
        elif sides[0].dtype.kind == "m":
            sides = [side.dt.total_seconds() for side in sides]
        elif not pd.api.types.is_numeric_dtype(sides[0].dtype) or isinstance(sides[0].dtype, pd.CategoricalDtype):
            encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
            encoder.fit(sides[0].astype("str").to_frame())
            sides = [pd.Series(encoder.transform(side.astype("str").to_frame())[:, 0]) for side in sides]
        known[name], unknown[name] = (np.asarray(side.to_numpy(np.float64, na_value=np.nan)) for side in sides)
    x, x_held = pd.DataFrame(known).to_numpy(), pd.DataFrame(unknown).to_numpy()
    y = target_of(contract, train)
    if contract.problem == "regression":
        return HistGradientBoostingRegressor(random_state=0).fit(x, y).predict(x_held)
    return spread(HistGradientBoostingClassifier(random_state=0).fit(x, y), x_held, len(contract.classes))


def used_names(contract: Any, frame: pd.DataFrame) -> list[str]:
    """Return the names of the columns without the target and the id."""
    return [c.name for c in contract.columns if c.role not in ("target", "id") and c.name in frame]


def predict_peer(
    contract: Any, train: pd.DataFrame, held_out: pd.DataFrame, metric: str, seconds: float, seed: int, by_time: Any
) -> Any:
    """Return the predictions of FLAML after a search of so many seconds, with two threads; texts are categories."""
    import lightgbm  # noqa: F401  # not in the time of the search
    import xgboost  # noqa: F401
    from flaml import AutoML

    order = train[by_time.name].argsort(kind="stable") if by_time is not None else np.arange(len(train))
    train = train.iloc[order]
    sides = [side[used_names(contract, train)].copy() for side in (train, held_out)]
    for name in sides[0]:
        if sides[0][name].dtype.kind == "M":
            numbers = [(side[name] - sides[0][name].min()).dt.total_seconds() for side in sides]
        elif sides[0][name].dtype.kind == "m":
            numbers = [side[name].dt.total_seconds() for side in sides]
        elif pd.api.types.is_numeric_dtype(sides[0][name].dtype):
            numbers = [pd.Series(side[name].to_numpy(np.float64, na_value=np.nan), side.index) for side in sides]
        else:
            levels = pd.CategoricalDtype(sorted(sides[0][name].astype("str").unique()))
            numbers = [side[name].astype("str").astype(levels) for side in sides]
        for side, values in zip(sides, numbers, strict=True):
            side[name] = values
    regression = contract.problem == "regression"
    search = AutoML()
    search.fit(
        sides[0].reset_index(drop=True),
        target_of(contract, train),
        task="regression" if regression else "classification",
        metric={"f1_macro": "macro_f1"}.get(metric, metric),
        time_budget=seconds,
        split_type="time" if by_time is not None else "auto",
        estimator_list=["lgbm", "rf", "xgboost", "extra_tree", "xgb_limitdepth", *([] if regression else ["lrl1"])],
        n_jobs=2,
        seed=seed,
        verbose=0,
    )
    if regression:
        return np.asarray(search.predict(sides[1]), np.float64)
    made = np.zeros((len(held_out), len(contract.classes)))
    made[:, search.classes_.astype(int)] = search.predict_proba(sides[1])
    return made


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), "peer" in sys.argv[4:])
