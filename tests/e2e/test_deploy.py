"""Conditions of deployment: the model compiles or skops can load it, and callers are not broken."""

from pathlib import Path

import pandas as pd
import pytest
from marks import slow_but

from e2e.conftest import Make
from e2e.support import Project, refuse, sample, succeed, wait_for

ROWS = 1_000
UNCOMPILABLE = '''"""An estimator of scikit-learn for which there is no way into ONNX."""

from typing import Any

from sklearn.base import BaseEstimator
from sklearn.semi_supervised import LabelPropagation


def build_estimator(problem: str, seed: int, **params: Any) -> BaseEstimator:
    """Return the estimator."""
    return LabelPropagation(kernel="rbf", gamma=0.1, **params)
'''
FEATURES = '''"""Numbers alone, gaps filled."""

from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def build_features() -> ColumnTransformer:
    """Return the transformer."""
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    return ColumnTransformer([("numbers", numbers, make_column_selector(dtype_include="number"))])
'''


def own_data(project: Project, frame: pd.DataFrame) -> None:
    """Use a table of the owner: its callers are protected, unlike those of the sample's model."""
    project.use(frame, "customers.csv")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return sample(ROWS)


@pytest.fixture(scope="module")
def trained_once(make: Make, frame: pd.DataFrame) -> Project:
    """A project whose version 1 was trained on a table of the owner."""
    project = make(rows=None)
    own_data(project, frame)
    project.run()
    return project.save()


UNTRUSTED = '''"""An estimator that keeps a type outside the trust list."""

from sklearn.neighbors import KNeighborsClassifier


def build_estimator(problem, seed, **params):
    return KNeighborsClassifier(algorithm="kd_tree")
'''


BREAKING = [
    ("    device: str = pa.Field()\n", "", "device"),
    (
        "    satisfaction: pd.Int64Dtype = pa.Field(nullable=True, ge=1, le=5)",
        "    satisfaction: str = pa.Field(nullable=True)",
        "satisfaction",
    ),
    ("    payment_method: str = pa.Field(nullable=True)", "    payment_method: str = pa.Field()", "payment_method"),
]


def write_model(project: Project) -> None:
    (project.root / "model" / "estimator.py").write_text(UNCOMPILABLE, encoding="utf-8")
    (project.root / "model" / "features.py").write_text(FEATURES, encoding="utf-8")
    project.configure("gates", margin=0.9)


def test_type_outside_the_trust_list_is_refused_in_one_sentence_that_says_how(trained: Project) -> None:
    write_model(trained)
    (trained.root / "model" / "estimator.py").write_text(UNTRUSTED, encoding="utf-8")
    sentence = refuse(trained.ml("train"))
    assert "sklearn.neighbors._kd_tree.KDTree" in sentence
    assert "trusted_types" in sentence
    assert trained.versions() == ["1"]


def test_model_without_a_converter_is_served_by_scikit_learn_where_asked(trained: Project, frame: pd.DataFrame) -> None:
    write_model(trained)
    before = trained.champion
    sentence = refuse(trained.ml("run"))
    assert "LabelPropagation" in sentence
    assert 'runtime = "sklearn"' in sentence
    assert trained.champion == before
    assert trained.aliases()["champion"] == "1"
    trained.configure("deploy", runtime="sklearn")
    trained.run()
    assert trained.champion and trained.champion["version"] == "2"
    bundle = trained.store / "bundles" / trained.champion["bundle"]
    found = {path.name for path in bundle.iterdir()}
    cards = {"card.html", "card.md"}
    assert found == {"contract.json", "explanation.npz", "meta.json", "model.skops", "reference.parquet"} | cards
    rows = trained.json(f"bundles/{bundle.name}/meta.json")["example"]["rows"]
    with trained.serve() as client:
        wait_for(client, "/readyz", 200)
        answer = client.post("/predict", json={"rows": rows})
    assert answer.status_code == 200, answer.text
    expected = trained.json(f"bundles/{bundle.name}/meta.json")["expected"]
    assert [a["label"] for a in answer.json()["predictions"]] == [e["label"] for e in expected]


OWN_CLASS = '''

class Own(LabelPropagation):
    """A class of the project's own."""
'''


@pytest.mark.slow
def test_class_of_ones_own_cannot_be_served_by_scikit_learn(trained: Project) -> None:
    write_model(trained)
    path = trained.root / "model" / "estimator.py"
    text = path.read_text(encoding="utf-8").replace("return LabelPropagation(", "return Own(")
    path.write_text(text + OWN_CLASS, encoding="utf-8")
    trained.configure("train", trusted_types=["model.estimator.Own"])
    trained.configure("deploy", runtime="sklearn")
    before = trained.champion
    sentence = refuse(trained.ml("run"))
    assert "The service refused the new bundle: its model needs model.estimator.Own, and the service has " in sentence
    assert 'set runtime = "onnx"' in sentence
    assert trained.champion == before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    slow_but([BREAKING[0]], BREAKING),
    ids=["removed", "retyped", "newly required"],
)
def test_contract_that_breaks_callers_needs_breaking(
    trained: Project, frame: pd.DataFrame, old: str, new: str, said: str
) -> None:
    filled = frame[frame["payment_method"] != ""]
    trained.use(filled, "customers.csv")
    schema = trained.root / "model" / "schema.py"
    text = schema.read_text(encoding="utf-8")
    assert old in text
    schema.write_text(text.replace(old, new), encoding="utf-8")
    trained.configure("gates", margin=0.9)
    before = trained.champion
    sentence = refuse(trained.ml("run"), status=1)
    assert said in sentence
    assert "--breaking" in sentence
    assert trained.champion == before
    succeed(trained.ml("run", "--breaking"))
    assert trained.champion and trained.champion["version"] == "2"


def test_contract_may_change_freely_after_the_sample(trained_on_sample: Project, frame: pd.DataFrame) -> None:
    """A model of the sample has no callers, so the first own data needs no flag."""
    project = trained_on_sample.restore()
    own = frame[["customer_id", "monthly_fee", "tenure_months", "support_calls", "churned"]].rename(
        columns={"monthly_fee": "fee"}
    )
    own.to_csv(project.root / "own.csv", index=False)
    succeed(project.ml("init", "own.csv", "--target", "churned"))
    project.configure("gates", margin=0.9)
    project.run()
    assert project.champion and project.champion["version"] == "2"


@pytest.mark.parametrize("file", slow_but(["schema.py"], ["estimator.py", "features.py", "schema.py"]))
def test_broken_code_of_the_owner_is_one_sentence(trained: Project, file: str) -> None:
    path: Path = trained.root / "model" / file
    path.write_text(path.read_text(encoding="utf-8") + "\nimport nothing_of_the_kind\n", encoding="utf-8")
    before = trained.champion
    sentence = refuse(trained.ml("run"))
    assert f"model/{file}" in sentence
    assert "nothing_of_the_kind" in sentence
    assert trained.champion == before


def test_service_that_cannot_start_leaves_all_as_it_was(trained: Project) -> None:
    """The smoke test uses the real service: if it fails, the champion is unchanged."""
    path = trained.root / "service" / "service.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\nraise RuntimeError('broken on purpose')\n", encoding="utf-8")
    before, aliases = trained.champion, trained.aliases()
    bundles = {p.name for p in (trained.root / ".ml" / "bentoml").rglob("model.yaml")}
    sentence = refuse(trained.ml("run", ML_TRAIN__SEED="1"))
    place = f"(service/service.py, line {text.count(chr(10)) + 2})"
    assert sentence == f"service/service.py cannot be imported: RuntimeError: broken on purpose {place}."
    assert trained.champion == before
    assert trained.aliases() == aliases | {"challenger": "2"}
    assert {p.name for p in (trained.root / ".ml" / "bentoml").rglob("model.yaml")} == bundles


@pytest.mark.slow
def test_bundle_that_the_service_refuses_is_reported_at_once(trained: Project) -> None:
    path = trained.root / "vendor" / "ondol-serving" / "src" / "ondol_serving" / "bundle.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('meta.get("format") != 1', 'meta.get("format") == 1'), encoding="utf-8")
    before = trained.champion
    sentence = refuse(trained.ml("run", ML_TRAIN__SEED="1"))
    assert "The service refused the new bundle" in sentence
    assert "has a format that this service does not know" in sentence
    assert trained.champion == before


def test_changed_deploy_settings_deploy_the_champion_again(trained: Project) -> None:
    before = trained.champion
    trained.run(ML_DEPLOY__TOLERANCE="1e-4")
    assert before and trained.champion
    assert trained.champion["version"] == before["version"]
    assert trained.champion["bundle"] != before["bundle"]
