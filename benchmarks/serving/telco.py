"""The model that every server serves: telco churn, OrdinalEncoder and HistGradientBoosting."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

DATA = Path(__file__).parents[3] / "shared" / "data" / "telco_churn.csv"
INTEGERS = ("SeniorCitizen", "tenure")
NUMBERS = ("MonthlyCharges", "TotalCharges")
ID, TARGET = "customerID", "Churn"


def read_telco() -> pd.DataFrame:
    """Return the table; blanks in TotalCharges are missing values."""
    return pd.read_csv(DATA, na_values=[" "])


def fit_telco(frame: pd.DataFrame) -> Pipeline:
    """Return the fitted pipeline over the 19 raw features, predicting the index of No, Yes."""
    features = frame.drop(columns=[ID, TARGET])
    texts = [c for c in features if c not in INTEGERS + NUMBERS]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    transformer = ColumnTransformer([("texts", encoder, texts)], remainder="passthrough")
    estimator = HistGradientBoostingClassifier(
        learning_rate=0.08, max_leaf_nodes=15, min_samples_leaf=10, random_state=0
    )
    pipeline = Pipeline([("features", transformer), ("estimator", estimator)])
    return pipeline.fit(features, (frame[TARGET] == "Yes").astype("int64"))


def fit_linear(frame: pd.DataFrame) -> Pipeline:
    """Return a fitted logistic regression over the same features: nearly all of its time is that of the encoding."""
    features = frame.drop(columns=[ID, TARGET])
    numbers = [*INTEGERS, *NUMBERS]
    texts = [c for c in features if c not in numbers]
    scaled = Pipeline([("missing", SimpleImputer()), ("scale", StandardScaler())])
    steps = [("texts", OneHotEncoder(handle_unknown="ignore"), texts), ("numbers", scaled, numbers)]
    pipeline = Pipeline([("features", ColumnTransformer(steps)), ("estimator", LogisticRegression(max_iter=1000))])
    return pipeline.fit(features, (frame[TARGET] == "Yes").astype("int64"))


def example_rows(frame: pd.DataFrame, count: int = 1) -> list[dict[str, Any]]:
    """Return the first rows as JSON-able features."""
    rows: list[dict[str, Any]] = json.loads(
        frame.head(count).drop(columns=[ID, TARGET]).to_json(orient="records", double_precision=15)
    )
    return rows


def describe_telco(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the `contract.json` of the table."""
    columns: list[dict[str, Any]] = [{"name": ID, "kind": "text", "role": "id", "nullable": False}]
    for i, name in enumerate(frame.drop(columns=[ID, TARGET])):
        number: dict[str, Any] = {"tensor": "float32", "offset": 0.0, "scale": 1.0}
        known = sorted(frame[name].dropna().astype(str).unique())
        text = {"tensor": "string", "missing": "<missing>", "known": known}
        kind = "integer" if name in INTEGERS else "number" if name in NUMBERS else "text"
        columns.append(
            {
                "name": name,
                "kind": kind,
                "role": "feature",
                "nullable": name == "TotalCharges",
                "minimum": None if kind == "text" else 0,
                "input": f"c{i}",
                "encoding": text if kind == "text" else number,
            }
        )
    columns.append({"name": TARGET, "kind": "text", "role": "target", "nullable": False})
    return {"format": 1, "problem": "binary", "target": TARGET, "classes": ["No", "Yes"], "columns": columns}


def write_bundle(pipeline: Pipeline, frame: pd.DataFrame, folder: Path) -> None:
    """Write the bundle that `ml deploy` would write, with what the service needs of it."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    contract = describe_telco(frame)
    features = [c for c in contract["columns"] if c.get("input")]
    tensors = {"string": StringTensorType, "float32": FloatTensorType}
    types = [(c["input"], tensors[c["encoding"]["tensor"]]([None, 1])) for c in features]
    renamed = rename_columns(pipeline, {c["name"]: c["input"] for c in features})
    model = to_onnx(
        renamed,
        initial_types=types,
        options={id(renamed): {"zipmap": False}},
        target_opset={"": 21, "ai.onnx.ml": 3},
    )
    for old in ("output_label", "output_probability"):
        new = "label" if old == "output_label" else "probabilities"
        for node in model.graph.node:
            node.output[:] = [new if o == old else o for o in node.output]
        for output in model.graph.output:
            output.name = new if output.name == old else output.name
    content = model.SerializeToString()
    meta = {
        "format": 1,
        "name": "telco",
        "version": "1",
        "problem": "binary",
        "runtime": "onnx",
        "settings": {"max_rows": 1000, "max_body_bytes": 5_000_000},
        "example": {"rows": example_rows(frame)},
    }
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "contract.json").write_text(json.dumps(contract), encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def rename_columns(pipeline: Pipeline, names: dict[str, str]) -> Pipeline:
    """Return a pipeline whose transformer finds its columns under `names`."""
    import copy

    renamed = copy.deepcopy(pipeline)
    transformer = renamed.named_steps["features"]
    transformer.feature_names_in_ = [names[n] for n in transformer.feature_names_in_]
    transformer.transformers_ = [
        (label, step, [names[c] for c in columns]) for label, step, columns in transformer.transformers_
    ]
    return renamed
