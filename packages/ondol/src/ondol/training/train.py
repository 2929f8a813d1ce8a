"""Training: a scikit-learn pipeline is fitted on the rows that are not held out and registered as challenger."""

import importlib
import time
from dataclasses import dataclass
from inspect import signature
from types import ModuleType
from typing import Any

import pandas as pd

from ondol.config.settings import Settings
from ondol.contract import Contract, encode, encode_target, fit_encodings
from ondol.contract.encoding import require_answerable
from ondol.errors import UserError
from ondol.orchestration.artifacts import publish_markdown
from ondol.orchestration.progress import say
from ondol.project import Project
from ondol.registry.tracking import CHALLENGER, KEY_TAG
from ondol.storage.files import digest_json
from ondol.training.baseline import baseline_of
from ondol.training.holdout import Holdout
from ondol.training.pipelines import round_targets
from ondol.training.provenance import code_digest, read_provenance, shaping_packages
from ondol.training.recording import log_run, tags_of
from ondol.training.rows import read_sides
from ondol.training.splitting import define_holdout
from ondol.validation.leakage.accepting import check_leaks
from ondol.validation.leakage.alarms import SAMPLE_ROWS, Alarm

EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class Rows:
    """The rows to train on, and some of those that the rule `holdout` holds out."""

    train: pd.DataFrame
    held_out: pd.DataFrame
    holdout: Holdout


@dataclass(frozen=True)
class Fitted:
    """A fitted pipeline with the contract whose encodings it was fitted under."""

    pipeline: Any
    contract: Contract
    holdout: Holdout
    rows: int
    seconds: float
    example: pd.DataFrame
    baseline: list[float]


def train_key(project: Project, validation: str) -> str:
    """Return the digest of everything that decides what is learned."""
    settings = project.settings
    return digest_json(
        {
            "validation": validation,
            "split": settings.split.model_dump(),
            "train": settings.train.model_dump(exclude_none=True),
            **({"window_days": settings.data.window_days} if settings.data.window_days else {}),
            **({"accept": sorted(settings.leakage.accept)} if settings.leakage.accept else {}),
            "code": code_digest(settings.root),
            "packages": shaping_packages(),
        }
    )


def find_version(project: Project, key: str) -> str | None:
    """Return the version that has this key, which becomes the challenger again; None where there is none."""
    found = project.registry.find(key)
    if found is None:
        return None
    version = str(found.version)
    if project.registry.alias(CHALLENGER) != version:  # a run was killed before, or older settings are back
        project.registry.set_alias(CHALLENGER, version)
    say(f"Version {version} was trained from this data, code and settings before: nothing is to be done.")
    return version


def load_rows(project: Project, validation: str) -> Rows:
    """Read the training side of the validated rows, and a sample of the holdout.

    Raises:
        UserError: the target of a regression cannot be answered by the service.
    """
    settings, contract = project.settings, project.contract
    holdout = define_holdout(settings, contract, validation)
    train, held_out = read_sides(settings, contract, validation, holdout, SAMPLE_ROWS)
    if contract.problem == "regression":
        require_answerable(contract.target, train[contract.target])
    return Rows(train, held_out, holdout)


def check_leakage(project: Project, rows: Rows) -> tuple[Alarm, ...]:
    """Return the alarms of leakage, all of which `config.toml` accepts.

    Raises:
        UserError: one is not accepted.
    """
    return check_leaks(project.settings, project.contract, rows.train, rows.held_out)


def fit(project: Project, rows: Rows) -> Fitted:
    """Fit the project's pipeline on the training rows."""
    return fit_rows(project.settings, project.contract, rows.train, rows.holdout)


def fit_rows(settings: Settings, contract: Contract, frame: pd.DataFrame, holdout: Holdout) -> Fitted:
    """Fit features and estimator on valid rows.

    Raises:
        UserError: the target has one class only, or the project's code fails.
    """
    if frame.empty:
        raise UserError("No rows are left to train on: the holdout or the quarantine took them all.")
    fitted = fit_encodings(contract, frame, parts=_asks_problem(_owned("features")))
    if fitted.classes is not None and len(fitted.classes) < 2:
        raise UserError(
            f'The target "{contract.target}" has only the class {fitted.classes[0]!r}: nothing can be learned.'
        )
    encoded, target = encode(fitted, frame), encode_target(fitted, frame[contract.target])
    example = encoded.head(EXAMPLE_ROWS).copy()
    pipeline = build_pipeline(settings)
    started = time.perf_counter()
    try:
        pipeline.fit(encoded, target)
    except (ValueError, TypeError) as error:
        raise UserError(f"model/estimator.py or model/features.py failed to fit: {error}") from error
    round_targets(pipeline)
    seconds = time.perf_counter() - started
    return Fitted(pipeline, fitted, holdout, len(frame), seconds, example, baseline_of(fitted, target))


def build_pipeline(settings: Settings) -> Any:
    """Return the project's unfitted pipeline: features, then estimator.

    Raises:
        UserError: `model/features.py` or `model/estimator.py` cannot be imported or called.
    """
    from sklearn.pipeline import Pipeline

    features, estimator = _owned("features"), _owned("estimator")
    try:
        made = estimator.build_estimator(settings.data.problem, settings.train.seed, **settings.train.params)
        built = features.build_features(**({"problem": settings.data.problem} if _asks_problem(features) else {}))
        pipeline = Pipeline([("features", built), ("estimator", made)])
    except Exception as error:  # whatever the owner's code raises
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"The model of model/estimator.py and model/features.py cannot be built: {said}.") from error
    if settings.data.problem != "regression" and not hasattr(pipeline, "predict_proba"):
        raise UserError(
            f"{type(made).__name__} in model/estimator.py gives no probabilities, which metrics and service need: "
            "wrap it in sklearn.calibration.CalibratedClassifierCV."
        )
    return pipeline


def _asks_problem(features: ModuleType) -> bool:
    """Tell whether `build_features` takes the problem; 0.1.0's did not, and may choose columns from the end."""
    build = getattr(features, "build_features", None)
    return callable(build) and "problem" in signature(build).parameters


def _owned(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"model.{name}")
    except Exception as error:  # whatever a person's edit can raise
        raise UserError(f"model/{name}.py cannot be imported: {type(error).__name__}: {error}.") from error


def register(project: Project, validation: str, key: str, fitted: Fitted, alarms: tuple[Alarm, ...]) -> str:
    """Record the run with all that made it, register the version, and give it the alias challenger."""
    settings, registry = project.settings, project.registry
    origin = read_provenance(settings.root, settings.data.source)  # once: the tags and the artifact must say the same
    tags = tags_of(settings, validation, fitted, alarms, origin)
    with registry.run(f"train-{validation}", tags) as run_id:
        log_run(registry, validation, run_id, fitted, alarms, origin)
        requirements = [f"{name}=={version}" for name, version in shaping_packages().items()]
        uri, model_id = registry.log_model(fitted.pipeline, fitted.example, requirements)
    version = registry.register(uri, model_id, run_id, tags | {KEY_TAG: key})
    registry.set_alias(CHALLENGER, version)
    say(f"Version {version} was fitted on {fitted.rows:,} rows in {fitted.seconds:.1f} s and registered.")
    publish_markdown("candidate", f"**Version {version}**, fitted on {fitted.rows:,} rows in {fitted.seconds:.1f} s.")
    return version
