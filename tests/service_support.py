"""Bundles for the tests of the service."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

with warnings.catch_warnings():  # starlette would rather have httpx2, which BentoML does not bring
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

__all__ = ["ROW", "TEMPLATE", "TestClient"]
TEMPLATE = Path(__file__).parents[1] / "template"
MISSING = "<missing>"

COLUMNS: list[dict[str, Any]] = [
    {"name": "고객 번호", "kind": "text", "role": "id"},
    {"name": "house age", "kind": "number", "nullable": True, "minimum": 0, "exclusive_maximum": 200},
    {"name": "class", "kind": "text", "nullable": True},
    {"name": "지역", "kind": "text", "categories": ["서울", "부산"]},
    {"name": "a.b/c?", "kind": "integer", "minimum": 0},
    {"name": "매출 (원)", "kind": "integer", "encoding": {"offset": 3_000_000_000.0, "scale": 10.0}},
    {"name": "가입일", "kind": "date", "nullable": True, "encoding": {"origin": "2020-01-01T00:00:00"}},
    {"name": "model_config", "kind": "boolean"},
    {"name": "target", "kind": "text", "role": "target"},
]
ROW = {
    "house age": 12.5,
    "class": "new",
    "지역": "서울",
    "a.b/c?": 3,
    "매출 (원)": 3_000_000_010,
    "가입일": "2021-02-03T04:05:06",
    "model_config": True,
}


def describe(problem: str = "binary") -> dict[str, Any]:
    """Return a contract.json with names and kinds of every sort."""
    columns, place = [], 0
    for entry in COLUMNS:
        column = {"role": "feature", "nullable": False, "input": None, "encoding": None, **entry}
        if column["role"] == "feature":
            known = ["서울", "부산"] if column.get("categories") else ["new", "old"]
            text = {"tensor": "string", "missing": MISSING, "known": known}
            number = {"tensor": "float32", "offset": 0.0, "scale": 1.0} | (column["encoding"] or {})
            column |= {"input": f"c{place}", "encoding": text if column["kind"] == "text" else number}
            place += 1
        columns.append(column)
    classes = {"binary": ["no", "yes"], "multiclass": [1, 2, 3], "regression": None}[problem]
    return {"format": 1, "problem": problem, "target": "target", "classes": classes, "columns": columns}


def encoded_frame(rows: int, seed: int = 0) -> pd.DataFrame:
    """Return features as training sees them, under their real names."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "house age": random.choice([np.nan, *range(100)], rows).astype(np.float32),
            "class": random.choice(["new", "old", MISSING], rows),
            "지역": random.choice(["서울", "부산"], rows),
            "a.b/c?": random.integers(0, 9, rows).astype(np.float32),
            "매출 (원)": random.integers(-5, 5, rows).astype(np.float32),
            "가입일": random.uniform(0, 900, rows).astype(np.float32),
            "model_config": random.integers(0, 2, rows).astype(np.float32),
        }
    )


def fit(problem: str, seed: int = 0) -> Any:
    """Return a pipeline that depends on every column."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = encoded_frame(200, seed)
    texts = ["class", "지역"]
    numbers = [c for c in frame if c not in texts]
    score = frame["house age"].fillna(0) / 50 + (frame["class"] == "new") + frame["a.b/c?"] / 5
    score += frame["매출 (원)"] / 5 + frame["model_config"] + (frame["지역"] == "서울") + frame["가입일"] / 900
    classes = {"binary": 2, "multiclass": 3, "regression": 0}[problem]
    target = pd.qcut(score, classes, labels=False) if classes else score
    transformer = ColumnTransformer(
        [
            ("texts", OneHotEncoder(handle_unknown="ignore"), texts),
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
        ]
    )
    return make_pipeline(transformer, LogisticRegression() if classes else LinearRegression()).fit(frame, target)


def compile_model(pipeline: Any, problem: str) -> bytes:
    """Return the pipeline as ONNX with the inputs and outputs of a bundle."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    frame = encoded_frame(1)
    types = [
        (f"c{i}", (StringTensorType if name in ("class", "지역") else FloatTensorType)([None, 1]))
        for i, name in enumerate(frame)
    ]
    transformer = pipeline[0]
    names = {name: f"c{i}" for i, name in enumerate(frame)}
    transformer.feature_names_in_ = list(names.values())
    transformer.transformers_ = [(n, s, [names[c] for c in cs]) for n, s, cs in transformer.transformers_]
    options = None if problem == "regression" else {id(pipeline): {"zipmap": False}}
    opset = {"": 21, "ai.onnx.ml": 3}
    model = to_onnx(pipeline, initial_types=types, options=options, target_opset=opset)
    outputs = ["value"] if problem == "regression" else ["label", "probabilities"]
    renamed = dict(zip([o.name for o in model.graph.output], outputs, strict=True))
    for node in model.graph.node:
        node.output[:] = [renamed.get(o, o) for o in node.output]
    for output in model.graph.output:
        output.name = renamed[output.name]
    return bytes(model.SerializeToString())


def bundle_files(version: str, problem: str, model: bytes, **meta: Any) -> dict[str, bytes]:
    """Return the files of a bundle."""
    about = {
        "format": 1,
        "name": "sample",
        "version": version,
        "problem": problem,
        "runtime": "onnx",
        "data_digest": "d1",
        "commit": "uncommitted",
        "metrics": {"roc_auc": {"value": 0.8, "low": 0.7, "high": 0.9}},
        "settings": {"max_rows": 100, "max_body_bytes": 50_000},
        "example": {"rows": [ROW]},
    }
    return {
        "contract.json": json.dumps(describe(problem), ensure_ascii=False).encode(),
        "meta.json": json.dumps(about | meta).encode(),
        "model.skops" if meta.get("runtime") == "sklearn" else "model.onnx": model,
    }


def write_bundle(store: Path, files: dict[str, bytes]) -> tuple[str, str]:
    """Write a bundle into a store; return its name and digest."""
    lines = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    folder = store / "bundles" / f"{json.loads(files['meta.json'])['version']}-{digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder.name, digest


def crown(store: Path, name: str, digest: str) -> None:
    """Name a bundle as the champion, in one step."""
    new = store / "champion.json.new"
    new.write_text(json.dumps({"version": name.split("-")[0], "bundle": name, "digest": digest}))
    new.replace(store / "champion.json")
