"""A bundle is scored with the numbers of the pipeline it was made of, whatever its runtime and however many rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from compiling_support import PROBLEMS, add_target, boosting, fit, nasty_frame, training

from flows.compiling import compile_model
from flows.contract import Contract, encode
from flows.errors import UserError
from flows.scoring import Scorer


def write_bundle(folder: Path, model: Any, contract: Contract, runtime: str = "onnx") -> Path:
    folder.mkdir()
    trusted: list[str] = []
    if runtime == "onnx":
        (folder / "model.onnx").write_bytes(compile_model(model, contract))
    else:
        content = skops.io.dumps(model)
        trusted = skops.io.get_untrusted_types(data=content)
        (folder / "model.skops").write_bytes(content)
    (folder / "contract.json").write_text(contract.model_dump_json(), encoding="utf-8")
    (folder / "meta.json").write_text(
        json.dumps({"format": 1, "runtime": runtime, "trusted": trusted}), encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize("runtime", ["onnx", "sklearn"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_bundle_scores_as_its_pipeline(tmp_path: Path, problem: str, runtime: str) -> None:
    fitted, contract = fit(boosting(problem), problem, training(problem))
    scorer = Scorer.open(write_bundle(tmp_path / "b", fitted, contract, runtime))
    rows = add_target(nasty_frame(1000, seed=5, unknown=True), problem)
    encoded = encode(contract, rows)
    found = scorer.predict(rows)
    if problem == "regression":
        values = fitted.predict(encoded)
        assert found.shape == (1000,)
        assert np.abs(found - values).max() / np.abs(values).mean() < 1e-6
    else:
        assert np.allclose(found, fitted.predict_proba(encoded), atol=1e-6)
        assert scorer.score(rows)["prediction"].tolist() == [contract.classes[i] for i in fitted.predict(encoded)]  # type: ignore[index]


@pytest.mark.parametrize(
    ("problem", "columns"),
    [
        ("binary", ["prediction", "probability 아니오", "probability 예"]),
        ("multiclass", ["prediction", "probability 0", "probability 10", "probability 20"]),
        ("regression", ["prediction"]),
    ],
)
def test_score_names_each_class_and_keeps_the_index(problem: str, columns: list[str]) -> None:
    fitted, contract = fit(boosting(problem), problem, training(problem))
    scorer = Scorer.from_onnx(compile_model(fitted, contract), contract)
    rows = training(problem).iloc[[5, 900, 17]]
    scored = scorer.score(rows)
    assert list(scored) == list(scorer.columns) == columns
    assert scored.index.tolist() == [5, 900, 17]
    if problem != "regression":
        assert np.array_equal(scored[columns[1:]].to_numpy(), scorer.predict(rows))
    assert isinstance(
        scored["prediction"].tolist()[0], {"binary": str, "multiclass": int, "regression": float}[problem]
    )


def test_rows_are_scored_the_same_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, contract = fit(boosting("multiclass"), "multiclass", training("multiclass"))
    scorer = Scorer.from_onnx(compile_model(fitted, contract), contract)
    whole = scorer.score(training("multiclass"))
    monkeypatch.setattr("flows.scoring.CHUNK", 101)
    pd.testing.assert_frame_equal(scorer.score(training("multiclass")), whole)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_rows_give_no_predictions(problem: str) -> None:
    fitted, contract = fit(boosting(problem), problem, training(problem))
    scorer = Scorer.from_onnx(compile_model(fitted, contract), contract)
    assert len(scorer.predict(training(problem).head(0))) == 0
    assert scorer.score(training(problem).head(0)).shape == (0, len(scorer.columns))


def test_a_folder_that_is_no_bundle_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no bundle: it has no contract\.json"):
        Scorer.open(tmp_path)


def test_a_type_outside_the_trust_list_is_not_loaded(tmp_path: Path) -> None:
    fitted, contract = fit(boosting("binary"), "binary", training("binary"))
    folder = write_bundle(tmp_path / "b", fitted, contract, "sklearn")
    (folder / "meta.json").write_text(json.dumps({"runtime": "sklearn", "trusted": []}), encoding="utf-8")
    with pytest.raises(Exception, match="(?i)untrusted"):
        Scorer.open(folder)
