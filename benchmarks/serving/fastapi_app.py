"""A typical hand-written service: FastAPI, pydantic rows, a DataFrame, the scikit-learn pipeline."""

import os
from typing import Any

import joblib
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel, Field

app = FastAPI()
pipeline = joblib.load(os.environ["BENCH_PIPELINE"])


class Row(BaseModel):
    """A customer."""

    gender: str
    SeniorCitizen: int = Field(ge=0)
    Partner: str
    Dependents: str
    tenure: int = Field(ge=0)
    PhoneService: str
    MultipleLines: str
    InternetService: str
    OnlineSecurity: str
    OnlineBackup: str
    DeviceProtection: str
    TechSupport: str
    StreamingTV: str
    StreamingMovies: str
    Contract: str
    PaperlessBilling: str
    PaymentMethod: str
    MonthlyCharges: float = Field(ge=0)
    TotalCharges: float | None = Field(None, ge=0)


class Request(BaseModel):
    """Rows to predict."""

    rows: list[Row]


@app.post("/predict")
def predict(request: Request) -> dict[str, Any]:
    """Return the probabilities of each row."""
    frame = pd.DataFrame([row.model_dump() for row in request.rows])
    predictions = [
        {"label": "Yes" if p[1] >= 0.5 else "No", "probabilities": {"No": p[0], "Yes": p[1]}}
        for p in pipeline.predict_proba(frame).tolist()
    ]
    return {"predictions": predictions}
