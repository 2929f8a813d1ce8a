"""The rule of `[decision]` is a part of the compiled model, so every runtime answers with its labels."""

import io
import json
from typing import Any

import numpy as np
import onnx
import pytest
from compiling_support import boosting, fit, nasty_frame, onehot_features, training
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ondol.contract import Contract
from ondol.deployment.onnx import check_parity, compile_model
from ondol.deployment.smoke import require_same
from ondol.errors import UserError
from ondol.evaluation.scoring import PREDICTION, Scorer
from ondol_serving.decision import DecisionRule, decide
from ondol_serving.names import label_key

COSTS = ((0.0, 1.0, 2.0), (4.0, 0.0, 1.0), (9.0, 3.0, 0.0))
RULES = {"binary": DecisionRule(0.173, ((0.0, 1.0), (5.0, 0.0))), "multiclass": DecisionRule(None, COSTS)}
MODELS: dict[str, Any] = {
    "boosting": boosting,
    "forest": lambda problem: make_pipeline(onehot_features(), RandomForestClassifier(20, random_state=0)),
    "linear": lambda problem: make_pipeline(onehot_features(), LogisticRegression(max_iter=300)),
}


def fitted(name: str, problem: str) -> tuple[Any, Contract]:
    model, contract = fit(MODELS[name](problem), problem, training(problem))
    return model, contract.model_copy(update={"decision": RULES[problem]})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("problem", RULES)
def test_the_compiled_model_decides_as_the_rule_says(name, problem):
    model, contract = fitted(name, problem)
    rows, content = nasty_frame(1000, seed=1, unknown=True), compile_model(model, contract)
    assert check_parity(content, model, contract, rows, 1e-5).labels_differ == 0
    compiled, pipeline = (
        s.score(rows) for s in (Scorer.from_onnx(content, contract), Scorer.from_pipeline(model, contract))
    )
    expected = np.array(contract.classes)[decide(contract.decision, pipeline.iloc[:, 1:].to_numpy())]
    assert (pipeline[PREDICTION] == expected).all()
    assert (compiled[PREDICTION] == expected).mean() > 0.999
    plain = Scorer.from_pipeline(model, contract.model_copy(update={"decision": None})).score(rows)
    assert (plain[PREDICTION] != expected).sum() > 50


def test_without_a_rule_the_compiled_model_has_no_node_more():
    model, contract = fit(boosting("binary"), "binary", training("binary"))
    nodes = [node.op_type for node in onnx.load_from_string(compile_model(model, contract)).graph.node]
    ruled = compile_model(model, contract.model_copy(update={"decision": RULES["binary"]}))
    more = [node.op_type for node in onnx.load_from_string(ruled).graph.node]
    assert more == [*nodes, "Gather", "GreaterOrEqual", "Cast"]


def test_parity_finds_a_threshold_that_was_left_out():
    model, contract = fitted("boosting", "binary")
    content = compile_model(model, contract.model_copy(update={"decision": None}))
    with pytest.raises(UserError, match="with another label for"):
        check_parity(content, model, contract, nasty_frame(1000, seed=1), 1e-5)


def test_the_smoke_test_allows_another_label_only_at_the_threshold():
    def answer(label: str, positive: float) -> dict[str, Any]:
        return {"label": label, "probabilities": {"no": 1 - positive, "yes": positive}}

    rule = DecisionRule(0.2)
    require_same({"predictions": [answer("no", 0.199999)]}, [answer("yes", 0.200001)], 1e-5, rule)
    with pytest.raises(UserError, match="but the model says"):
        require_same({"predictions": [answer("no", 0.5)]}, [answer("yes", 0.5)], 1e-5, rule)


@pytest.mark.parametrize("runtime", ["onnx", "sklearn"])
@pytest.mark.parametrize("problem", RULES)
def test_the_service_answers_with_the_label_of_the_rule(tmp_path, runtime, problem):
    import skops.io

    from ondol.deployment.bundle import json_rows
    from ondol_serving.bundle import load_bundle

    model, contract = fitted("linear", problem)
    content = compile_model(model, contract) if runtime == "onnx" else skops.io.dumps(model)
    trusted = skops.io.get_untrusted_types(data=content) if runtime == "sklearn" else []
    meta = {"format": 1, "version": "1", "runtime": runtime, "trusted": trusted}
    files = {"contract.json": contract.model_dump_json(), "meta.json": json.dumps(meta)}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / f"model.{'onnx' if runtime == 'onnx' else 'skops'}").write_bytes(io.BytesIO(content).getvalue())
    bundle = load_bundle(tmp_path)
    body = json.dumps({"rows": json_rows(contract, nasty_frame(200, seed=1))})
    answers = bundle.predict(bundle.parse(body.encode()))
    keys = [label_key(label) for label in contract.classes or ()]
    probabilities = np.array([[one["probabilities"][key] for key in keys] for one in answers])
    expected = decide(contract.decision, probabilities)
    assert [one["label"] for one in answers] == [(contract.classes or ())[place] for place in expected]
    assert (expected != probabilities.argmax(axis=1)).sum() > 5
