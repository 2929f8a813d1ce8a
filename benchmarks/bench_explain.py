"""Explanations of one row of the telco table by the service: speed, exactness and size of the tables.

    make bench BENCHMARKS=explain [ARGS="--requests 1000 --out result.json"]

One service process and one client. `/predict` and `/explain` alternate in one run. If `shap` is installed, the
contributions of 100 rows are compared with its interventional values of the same model and background. Goals: a median
of at most 1 ms, sums equal to the log-odds to 1e-9 and to the answered probability to 1e-6, equal to `shap` to 1e-6,
and tables of at most 10 MB that are built in at most 1 s.
"""

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from serving.servers import list_servers, run_server  # noqa: E402
from serving.telco import ID, TARGET, describe_telco, example_rows, fit_telco, read_telco, write_bundle  # noqa: E402

from ondol.contract import Contract, encode  # noqa: E402
from ondol.deployment.explanation import ARRAYS, BACKGROUND, build_explanation, split_model, sum_margins  # noqa: E402
from ondol.deployment.onnx import prepare_copy  # noqa: E402
from ondol.evaluation.scoring import Scorer, make_tensors  # noqa: E402
from ondol_serving.bundle import load_bundle  # noqa: E402
from ondol_serving.shapley import list_inputs  # noqa: E402

MOST_MS, MOST_MB, MOST_SECONDS, TOLERANCE, SUM_TOLERANCE = 1.0, 10.0, 1.0, 1e-6, 1e-9
COMPARED = 100  # rows


def main() -> int:
    """Run the benchmark; return 0 where every goal is met."""
    arguments = read_arguments()
    frame = read_telco()
    pipeline = fit_telco(frame)
    pipeline.steps[-1] = ("estimator", prepare_copy(pipeline)[-1])  # thresholds of float32, as `ml deploy` compiles it
    background = frame.sample(BACKGROUND, random_state=0)
    with tempfile.TemporaryDirectory(prefix="bench-explain-") as folder:
        work = Path(folder)
        write_bundle(pipeline, frame, work / "bundle")
        figures = add_explanation(work / "bundle", frame, background)
        figures |= check_sums(work / "bundle", frame, background)
        figures |= compare_with_shap(work / "bundle", pipeline, frame, background)
        service = next(one for one in list_servers(work) if one.name == "service")
        with run_server(service, work) as running:
            address = running.url.removeprefix("http://").removesuffix("/predict")
            figures |= time_requests(address, example_rows(frame), arguments.requests)
    limits = {
        "explain, ms": MOST_MS,
        "tables, MB": MOST_MB,
        "build, s": MOST_SECONDS,
        "sum, log-odds": SUM_TOLERANCE,
        "sum, probability": TOLERANCE,
        "shap": TOLERANCE,
    }
    for name, value in figures.items():
        print(f"{name}: {value:.3g}" + (f" (goal: at most {limits[name]:g})" if name in limits else ""))
    met = all(value <= limits.get(name, value) for name, value in figures.items())
    print(f"Goals {'met' if met else 'NOT met'}.")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0 if met else 1


def add_explanation(bundle: Path, frame: pd.DataFrame, background: pd.DataFrame) -> dict[str, float]:
    """Add the explanation that `ml deploy` would build; return the size of the tables, and the seconds for it."""
    contract = Contract.model_validate(describe_telco(frame))
    model = (bundle / "model.onnx").read_bytes()
    scorer = Scorer.from_onnx(model, contract)
    started = time.perf_counter()
    made = build_explanation(model, scorer, background)
    seconds = time.perf_counter() - started
    for name, content in made.files.items():
        (bundle / name).write_bytes(content)
    meta = json.loads((bundle / "meta.json").read_text(encoding="utf-8")) | {"explanation": made.about}
    (bundle / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    if made.about["method"] != "exact":
        raise SystemExit(f"The explanation is not exact: {made.about}")
    return {"tables, MB": len(made.files[ARRAYS]) / 1e6, "build, s": seconds}


def check_sums(bundle: Path, frame: pd.DataFrame, background: pd.DataFrame) -> dict[str, float]:
    """Return the largest distance of baseline and contributions from the trees' own sum, and from the answer."""
    contract = Contract.model_validate(describe_telco(frame))
    loaded, rows = load_bundle(bundle), frame.head(COMPARED)
    model = (bundle / "model.onnx").read_bytes()
    tensors, features = make_tensors(contract, encode(contract, rows)), contract.features
    split = split_model(model, make_tensors(contract, encode(contract, background)), list_inputs(features))
    explained = loaded.explain(loaded.parse(json.dumps({"rows": example_rows(frame, COMPARED)}).encode()))
    sums = explained["baseline"] + np.array([sum(one.values()) for one in explained["contributions"]])
    margins = sum_margins(split, split_model(model, tensors, list_inputs(features)).matrix, 1)[:, 0]
    answered = Scorer.from_onnx(model, contract).predict(rows)[:, 1]
    return {
        "sum, log-odds": float(np.abs(sums - margins).max()),
        "sum, probability": float(np.abs(1 / (1 + np.exp(-sums)) - answered).max()),
    }


def compare_with_shap(
    bundle: Path, pipeline: Pipeline, frame: pd.DataFrame, background: pd.DataFrame
) -> dict[str, float]:
    """Return the largest distance from the values of shap on rows without gaps; nothing if shap is not installed."""
    if find_spec("shap") is None:
        print("shap is not installed: no comparison with it", flush=True)
        return {}
    import shap

    rows = frame.dropna().head(COMPARED)
    features, estimator = pipeline[0], pipeline[1]
    many, some = (features.transform(one.drop(columns=[ID, TARGET])).astype(np.float32) for one in (background, rows))
    masker = shap.maskers.Independent(many, max_samples=len(many))  # otherwise it takes 100 of them
    explainer = shap.TreeExplainer(estimator, masker, feature_perturbation="interventional", model_output="raw")
    theirs = explainer.shap_values(some)
    names = [name.partition("__")[2] for name in features.get_feature_names_out()]
    loaded = load_bundle(bundle)
    ours = loaded.explain(loaded.parse(json.dumps({"rows": example_rows(rows, COMPARED)}).encode()))["contributions"]
    found = np.array([[one[name] for name in names] for one in ours])
    return {"shap": float(np.abs(found - theirs).max())}


def time_requests(address: str, rows: list[dict[str, Any]], count: int) -> dict[str, float]:
    """Return the medians of one client's requests, which alternate between the paths."""
    client = http.client.HTTPConnection(address)
    bodies = {
        "predict, ms": ("/predict", {"rows": rows}),
        "explain, ms": ("/explain", {"rows": rows}),
        "predict and explain, ms": ("/predict", {"rows": rows, "explain": True}),
    }
    taken: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(count):
        for name, (path, body) in bodies.items():
            content = json.dumps(body)
            started = time.perf_counter()
            client.request("POST", path, content, {"Content-Type": "application/json"})
            answer = client.getresponse()
            answer.read()
            taken[name].append((time.perf_counter() - started) * 1e3)
            if answer.status != 200:
                raise SystemExit(f"{path} was answered {answer.status}")
    return {name: statistics.median(found) for name, found in taken.items()}


def read_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="of each kind")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, usually into benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
