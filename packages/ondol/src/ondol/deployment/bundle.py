"""Builds the bundle of a registered version: the compiled model, the contract, and the other files of the service.

Each bundle that is deployed is imported into BentoML's model store, so that BentoML's commands list and build it.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ondol.config import Settings
from ondol.contract import Column, Contract, encode
from ondol.deployment.explanation import BACKGROUND, Explanation, build_explanation
from ondol.deployment.onnx import check_parity, compile_model
from ondol.evaluation.card import write_card
from ondol.evaluation.scoring import Scorer
from ondol.evaluation.targets import REFERENCE, Candidate, load_candidate, make_reference
from ondol.orchestration.reporting import say
from ondol.project import Project
from ondol.registry.bundles import Bundle, write_bundle
from ondol.storage.files import utc_now
from ondol.training.dataset import sample_training_rows
from ondol.training.support import COMMON
from ondol_serving.names import label_key

if TYPE_CHECKING:
    from bentoml import Tag


def typical_row(contract: Contract, frame: pd.DataFrame) -> pd.DataFrame:
    """Return one valid row of the features: the median or the most common value of each column."""
    return pd.DataFrame({c.name: [_middle(c, frame[c.name])] for c in contract.features}).astype(
        {c.name: frame[c.name].dtype for c in contract.features}
    )


def _middle(column: Column, values: "pd.Series[Any]") -> Any:
    present = values.dropna()
    if present.empty:
        return None
    if column.categories is None and column.kind in ("number", "integer", "date", "duration"):
        return present.quantile(0.5, interpolation="lower")
    counts = present.value_counts()
    if column.kind == "text" and column.categories is None and counts.iloc[0] < COMMON:
        return "text"
    return counts.index[0]


SMOKE_ROWS = 3


def build_bundle(project: Project, version: str) -> Bundle:
    """Compile a version, check parity on every held-out row, and write its bundle.

    Raises:
        UserError: it cannot be compiled, or the compiled model differs from scikit-learn.
    """
    candidate = load_candidate(project.settings, version)
    files, compiled = _compile(candidate)
    explanation = explain_candidate(candidate, files.get("model.onnx"))
    example = typical_row(candidate.contract, candidate.held_out)
    reference, about = make_reference(candidate)
    meta = _meta(project, candidate) | {
        **compiled,
        "reference": about,
        "explanation": explanation.about,
        "example": {"rows": json_rows(candidate.contract, example)},
        "expected": expected_answers(candidate, example),
    }
    files |= explanation.files | write_card(project, version)
    files |= {
        REFERENCE: reference,
        "contract.json": candidate.contract.model_dump_json(indent=1).encode(),
        "meta.json": json.dumps(meta, ensure_ascii=False, indent=1).encode(),
    }
    bundle = write_bundle(project.store, version, files)
    rows = bundle.meta["parity"]["rows"]
    equal = f", equal to scikit-learn on {rows:,} held-out rows" if rows else ""
    say(f"Version {version} is compiled{equal}: bundle {bundle.name}.")
    if reason := explanation.about.get("reason"):
        say(f"Its predictions are explained by an approximation: {reason}.")
    return bundle


def explain_candidate(candidate: Candidate, model: bytes | None) -> Explanation:
    """Build what the service explains the candidate's predictions with; `model` is the compiled one, if there is."""
    contract = candidate.contract
    scorer = Scorer.from_onnx(model, contract) if model else Scorer.from_pipeline(candidate.pipeline, contract)
    rows = sample_training_rows(candidate.settings, contract, candidate.validation, candidate.holdout, BACKGROUND)
    return build_explanation(model, scorer, rows)


def smoke_rows(settings: Settings, bundle: Bundle) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return held-out rows in the form of a request, and the expected answers; neither is stored."""
    candidate = load_candidate(settings, bundle.version)
    rows = candidate.held_out.head(min(SMOKE_ROWS, settings.service.max_rows))
    return json_rows(candidate.contract, rows), expected_answers(candidate, rows)


def json_rows(contract: Contract, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the features of rows as JSON for the service; missing values are left out."""
    rows: list[dict[str, Any]] = []
    for record in frame[[c.name for c in contract.features]].to_dict("records"):
        rows.append({str(name): json_value(value) for name, value in record.items() if not pd.isna(value)})
    return rows


def expected_answers(candidate: Candidate, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return scikit-learn's predictions for rows, in the form of the service's answers."""
    encoded, classes = encode(candidate.contract, frame), candidate.contract.classes
    outputs = Scorer.from_pipeline(candidate.pipeline, candidate.contract).run(encoded)
    if classes is None:
        return [{"value": float(value)} for value in outputs[0]]
    names = [label_key(label) for label in classes]
    return [
        {"label": classes[int(index)], "probabilities": dict(zip(names, map(float, row), strict=True))}
        for index, row in zip(*outputs, strict=True)
    ]


def _compile(candidate: Candidate) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the model file and its metadata; the runtime sklearn needs no parity check."""
    deploy = candidate.settings.deploy
    if deploy.runtime == "sklearn":
        from skops.io import get_untrusted_types

        content = candidate.skops_bytes()
        return {"model.skops": content}, {"parity": {"rows": 0}, "trusted": get_untrusted_types(data=content)}
    model = compile_model(candidate.pipeline, candidate.contract)
    parity = check_parity(
        model,
        candidate.pipeline,
        candidate.contract,
        candidate.held_out,
        deploy.tolerance,
        candidate.predictions,
    )
    return {"model.onnx": model}, {"parity": parity.model_dump(mode="json")}


def _meta(project: Project, candidate: Candidate) -> dict[str, Any]:
    settings, record = project.settings, project.verdicts.find(candidate.version)
    return {
        "format": 1,
        "name": settings.project.name,
        "version": candidate.version,
        "created": utc_now(),
        "problem": candidate.contract.problem,
        "runtime": settings.deploy.runtime,
        "source": project.snapshots.get(candidate.tags["data_digest"]).source,
        "data_digest": candidate.tags["data_digest"],
        "commit": candidate.tags["git_commit"],
        "run_id": candidate.run_id,
        "holdout": candidate.holdout.model_dump(mode="json"),
        "metrics": record.verdict.model_dump()["scores"]["candidate"] if record else {},
        "deploy": settings.deploy.model_dump(),
        "settings": settings.service.model_dump(exclude={"host", "port", "workers"}, mode="json")
        | {"log": settings.log.model_dump()},
    }


def json_value(value: Any) -> Any:
    """Convert one cell of a frame to a JSON value."""
    if isinstance(value, pd.Timestamp | pd.Timedelta):
        return value.isoformat()
    return value.item() if isinstance(value, np.generic) else value


def tag_of(bundle: Bundle) -> str:
    """Return the BentoML tag of a bundle: project and bundle name."""
    return f"{bundle.meta['name']}:{bundle.name}"


def import_bundle(bundle: Bundle) -> str:
    """Copy the bundle into BentoML's model store, unless it is there completely; return its tag."""
    import bentoml
    from bentoml.exceptions import NotFound

    tag = tag_of(bundle)
    try:
        bentoml.models.get(tag)
    except NotFound:
        with bentoml.models.create(tag, module="service", labels={"version": bundle.version}, signatures={}) as model:
            for file in bundle.path.iterdir():
                shutil.copy2(file, Path(model.path) / file.name)
    return tag


def remove_imported_bundle(tag: "str | Tag") -> None:
    """Remove a bundle from BentoML's model store."""
    import bentoml

    bentoml.models.delete(tag)
