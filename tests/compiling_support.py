"""A nasty table and pipelines over it, for the tests of compiling, scoring and batch prediction."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from ondol.contract import Column, Contract, encode, encode_target, fit_encodings

WON, DAY, SIGNUP, REGION, PLAN = "누적 결제액 (원)", "a b", "가입.일", "지역", "class"
COLUMNS = (
    Column(name="id", kind="text", role="id"),
    Column(name="a_b", kind="number", nullable=True),
    Column(name=DAY, kind="number", nullable=True),  # the converter would write it as a_b
    Column(name="a.b", kind="number", minimum=0),
    Column(name=WON, kind="integer", nullable=True, minimum=0),
    Column(name="epoch, s", kind="integer"),
    Column(name=SIGNUP, kind="date", nullable=True),
    Column(name="자동이체?", kind="boolean", nullable=True),
    Column(name=REGION, kind="text", nullable=True),
    Column(name=PLAN, kind="text", role="sensitive", categories=("basic", "플러스")),
    Column(name='say "hi"; 1=1', kind="text"),
)
TARGETS: dict[str, Column] = {
    "binary": Column(name="떠남", kind="text", role="target"),
    "multiclass": Column(name="떠남", kind="integer", role="target"),
    "regression": Column(name="떠남", kind="number", role="target"),
}
PROBLEMS = tuple(TARGETS)


def nasty_frame(rows: int, seed: int = 0, unknown: bool = False) -> pd.DataFrame:
    """Return rows in the contract's dtypes, with gaps; `unknown` adds categories that seed 0 never has."""
    rng = np.random.default_rng(seed)
    regions = ["서울", "부산 (해운대)", "nan", "None", "a\tb", "제주'도", None, *(["새 지역", "🙂"] if unknown else [])]
    notes = ["1", "01", " 1", "x" * 300, "é", *(["é", "2"] if unknown else [])]
    days = pd.Timestamp("2024-02-29") + pd.to_timedelta(rng.integers(0, 10**8, rows), unit="s")
    frame = pd.DataFrame(
        {
            "id": [f"{seed}-{i}" for i in range(rows)],
            "a_b": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(size=rows)),
            DAY: np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows).round(1)),
            "a.b": rng.exponential(1e-3, rows),
            WON: pd.array(np.where(rng.random(rows) < 0.1, -1, 2**27 + rng.integers(0, 3000, rows)), dtype="Int64"),
            "epoch, s": 1_700_000_000 + rng.integers(0, 1000, rows),
            SIGNUP: pd.Series(days).mask(rng.random(rows) < 0.1).astype("datetime64[us]"),
            "자동이체?": pd.array(rng.random(rows) < 0.5, dtype="boolean"),
            REGION: pd.Series(rng.choice(np.array(regions, dtype=object), rows), dtype="str"),
            PLAN: pd.Series(rng.choice(["basic", "플러스"], rows), dtype="str"),
            'say "hi"; 1=1': pd.Series(rng.choice(notes, rows), dtype="str"),
        }
    )
    frame[WON] = frame[WON].mask(frame[WON] < 0)
    frame["자동이체?"] = frame["자동이체?"].mask(rng.random(rows) < 0.1)
    return frame


def add_target(frame: pd.DataFrame, problem: str, seed: int = 0) -> pd.DataFrame:
    """Return `frame` with a target that depends on every kind of column."""
    won = frame[WON].astype("Float64").fillna(2**27).to_numpy(dtype=np.float64) - 2**27
    days = (frame[SIGNUP] - pd.Timestamp("2024-02-29")).dt.days.fillna(0).to_numpy()
    signal = won / 1500 + days / 600 + 2 * frame["a_b"].fillna(0.5) - frame[DAY].fillna(-1.0)
    signal = signal + 1.5 * frame[REGION].isna() - (frame[REGION] == "nan") + 300 * frame["a.b"]
    signal = (
        signal
        + (frame["epoch, s"] - 1_700_000_000) / 500
        + frame["자동이체?"].astype("Float64").fillna(2.0).astype(float)
    )
    noisy = signal + np.random.default_rng(seed).normal(0, 0.5, len(frame))
    if problem == "regression":
        return frame.assign(떠남=noisy * 1e6)
    if problem == "binary":
        return frame.assign(떠남=np.where(noisy > noisy.median(), "예", "아니오"))
    return frame.assign(떠남=pd.qcut(noisy, 3, labels=False).astype(np.int64) * 10)


def contract_for(problem: str, columns: tuple[Column, ...] = COLUMNS) -> Contract:
    """Return the nasty table's contract, without encodings."""
    return Contract(problem=problem, target="떠남", columns=(*columns, TARGETS[problem]))  # type: ignore[arg-type]


def fit(model: Any, problem: str, frame: pd.DataFrame, columns: tuple[Column, ...] = COLUMNS) -> tuple[Any, Contract]:
    """Return `model` fitted on the encoded `frame`, and the contract with its encodings."""
    contract = fit_encodings(contract_for(problem, columns), frame)
    model.fit(encode(contract, frame), encode_target(contract, frame[contract.target]))
    return model, contract


@cache
def training(problem: str, rows: int = 1500) -> pd.DataFrame:
    """Return the training rows of a problem."""
    return add_target(nasty_frame(rows), problem)


def boosting(problem: str, **params: Any) -> Any:
    """Return the unfitted model that every project starts with."""
    chosen: dict[str, Any] = {"max_iter": 20, "random_state": 0} | params
    made = HistGradientBoostingRegressor if problem == "regression" else HistGradientBoostingClassifier
    return Pipeline([("features", ordinal_features()), ("estimator", made(**chosen))])


def ordinal_features() -> ColumnTransformer:
    """Encode texts as numbers and keep the other columns."""
    texts = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    chosen = make_column_selector(dtype_exclude="number")
    return ColumnTransformer([("texts", texts, chosen)], remainder="passthrough", verbose_feature_names_out=False)


def onehot_features() -> ColumnTransformer:
    """Prepare features for linear models: no missing values, one scale, texts as indicators."""
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    texts = OneHotEncoder(handle_unknown="ignore")
    return ColumnTransformer(
        [
            ("numbers", numbers, make_column_selector(dtype_include="number")),
            ("texts", texts, make_column_selector(dtype_exclude="number")),
        ]
    )
