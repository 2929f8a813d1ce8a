"""Scoring by a bundle: the same numbers as scikit-learn and as the service, for any values in the table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from compiling_support import COLUMNS, DAY, PROBLEMS, REGION, SIGNUP, WON, boosting, fit, nasty_frame, training
from service_support import TestClient  # noqa: F401 - imports starlette without its warning

from ondol.contract import Contract, encode
from ondol.deployment.bundle import json_rows
from ondol.deployment.onnx import compile_model
from ondol.errors import UserError
from ondol.evaluation.scoring import CHUNK, Scorer

ROWS = 1000
# BentoML uses pathspec and pydantic in ways that these call old.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def write_bundle(folder: Path, files: dict[str, bytes], contract: Contract, **meta: Any) -> Path:
    folder.mkdir(parents=True)
    about = {"format": 1, "name": "t", "version": "1", "settings": {"max_rows": ROWS}} | meta
    files = files | {"contract.json": contract.model_dump_json().encode(), "meta.json": json.dumps(about).encode()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def expected(model: Any, contract: Contract, frame: pd.DataFrame) -> np.ndarray:
    encoded = encode(contract, frame)
    return np.asarray(model.predict(encoded) if contract.classes is None else model.predict_proba(encoded))


def answers(folder: Path, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the service's predictions, by its own types, encoder and runtime."""
    from ondol_serving.bundle import load_bundle

    bundle = load_bundle(folder)
    return bundle.predict(bundle.parse(json.dumps(body, ensure_ascii=False).encode()))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_batch_service_and_scikit_learn_give_the_same_numbers(problem, tmp_path):
    """On gaps, unknown categories, won amounts above 2^24, dates, Korean categories and names with punctuation."""
    model, contract = fit(boosting(problem), problem, training(problem))
    frame = nasty_frame(ROWS, seed=5, unknown=True)
    assert frame[WON].max() > 2**24 and frame[[WON, DAY, SIGNUP, REGION]].isna().any().all()
    assert "새 지역" in set(frame[REGION])
    folder = write_bundle(tmp_path / "b", {"model.onnx": compile_model(model, contract)}, contract)
    wanted = expected(model, contract, frame)
    batch = Scorer.open(folder)
    served = answers(folder, {"rows": json_rows(contract, frame)})
    if contract.classes is None:
        close = 1e-6 * np.abs(wanted).mean()  # a float32 sum's last bits depend on the order of its terms
        np.testing.assert_allclose(batch.predict(frame), wanted, rtol=0, atol=close)
        np.testing.assert_allclose([a["value"] for a in served], batch.predict(frame), rtol=0, atol=close)
        return
    names = [c if isinstance(c, str) else json.dumps(c) for c in contract.classes]
    np.testing.assert_allclose(batch.predict(frame), wanted, atol=1e-6)
    given = np.array([[a["probabilities"][name] for name in names] for a in served])
    np.testing.assert_allclose(given, batch.predict(frame), atol=1e-6)
    labels = [contract.classes[i] for i in model.predict(encode(contract, frame))]
    assert [a["label"] for a in served] == labels == batch.score(frame)["prediction"].tolist()


def test_scoring_by_scikit_learn_itself_gives_the_same_table(tmp_path):
    model, contract = fit(boosting("binary"), "binary", training("binary"))
    trusted = skops.io.get_untrusted_types(data=skops_bytes(model))
    folder = write_bundle(
        tmp_path / "b", {"model.skops": skops_bytes(model)}, contract, runtime="sklearn", trusted=trusted
    )
    frame = nasty_frame(200, seed=5, unknown=True)
    by_onnx = Scorer.from_onnx(compile_model(model, contract), contract).score(frame)
    pd.testing.assert_frame_equal(Scorer.open(folder).score(frame), by_onnx, atol=1e-6)
    np.testing.assert_array_equal(Scorer.open(folder).predict(frame), expected(model, contract, frame))


def skops_bytes(model: Any) -> bytes:
    return skops.io.dumps(model)


def test_a_table_is_scored_in_its_own_order_and_under_its_index():
    model, contract = fit(boosting("multiclass"), "multiclass", training("multiclass"))
    scorer = Scorer.from_onnx(compile_model(model, contract), contract)
    frame = nasty_frame(100, seed=2)
    shuffled = frame.sample(frac=1, random_state=0)[list(reversed(frame.columns))]
    pd.testing.assert_frame_equal(scorer.score(shuffled).loc[frame.index], scorer.score(frame))
    assert list(scorer.score(frame)) == ["prediction", "probability 0", "probability 10", "probability 20"]
    assert scorer.score(frame)["prediction"].isin([0, 10, 20]).all()


def test_scoring_in_chunks_equals_scoring_at_once(monkeypatch):
    model, contract = fit(boosting("binary"), "binary", training("binary"))
    scorer = Scorer.from_onnx(compile_model(model, contract), contract)
    frame = nasty_frame(500, seed=2)
    whole = scorer.score(frame)
    monkeypatch.setattr("ondol.evaluation.scoring.CHUNK", 7)
    pd.testing.assert_frame_equal(scorer.score(frame), whole, atol=1e-6)
    assert CHUNK > 7


@pytest.mark.parametrize("problem", PROBLEMS)
def test_no_rows_give_a_table_without_rows(problem):
    model, contract = fit(boosting(problem), problem, training(problem))
    scorer = Scorer.from_onnx(compile_model(model, contract), contract)
    scored = scorer.score(nasty_frame(3).iloc[:0])
    assert len(scored) == 0 and tuple(scored) == scorer.columns
    assert len(scorer.predict(nasty_frame(3).iloc[:0])) == 0


def test_labels_keep_the_type_that_they_had_in_the_data():
    from compiling_support import add_target

    frame = add_target(nasty_frame(300), "binary")
    for values in ([False, True], [0, 1], ["no", "예"], [0.5, 1.5]):
        told = frame.assign(
            떠남=frame["떠남"].map(dict(zip(["아니오", "예"], values, strict=True))).astype(type(values[0]))
        )
        model, contract = fit(boosting("binary", max_iter=3), "binary", told)
        scored = Scorer.from_onnx(compile_model(model, contract), contract).score(told)
        assert set(scored["prediction"].tolist()) <= set(values)
        assert {type(value) for value in scored["prediction"].tolist()} == {type(values[0])}


def test_columns_that_the_features_drop_are_not_inputs():
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = ColumnTransformer([("n", SimpleImputer(), ["a_b"])], remainder="drop")
    model, contract = fit(make_pipeline(features, LogisticRegression()), "binary", training("binary"))
    scorer = Scorer.from_onnx(compile_model(model, contract), contract)
    frame = nasty_frame(50)
    np.testing.assert_allclose(scorer.predict(frame), expected(model, contract, frame), atol=1e-6)


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a bundle: it has no contract\.json"):
        Scorer.open(tmp_path)


def test_a_bundle_of_another_estimator_keeps_to_its_trust_list(tmp_path):
    model, contract = fit(boosting("binary", max_iter=2), "binary", training("binary"))
    folder = write_bundle(tmp_path / "b", {"model.skops": skops_bytes(model)}, contract, runtime="sklearn", trusted=[])
    with pytest.raises(Exception, match=r"Untrusted types"):
        Scorer.open(folder)


def test_json_rows_leave_out_what_is_missing():
    _, contract = fit(boosting("binary", max_iter=2), "binary", training("binary"))
    frame = nasty_frame(50)
    rows = json_rows(contract, frame)
    for name in (c.name for c in COLUMNS if c.role != "id"):
        assert sum(name in row for row in rows) == frame[name].notna().sum(), name
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
