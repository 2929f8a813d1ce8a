"""Train: a scikit-learn pipeline is fitted on the rows that are not held out and registered as challenger."""

import importlib
import time
from dataclasses import dataclass, replace
from inspect import signature
from types import ModuleType
from typing import Any

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import publish_markdown
from flows.contract import Contract, encode, encode_target, fit_encodings, load_contract
from flows.contract.encoding import require_answerable
from flows.dummy import baseline_of
from flows.errors import UserError
from flows.leaks import SAMPLE_ROWS, Alarm
from flows.leaks.accepting import check_leaks
from flows.naming import name_run
from flows.pipelines import round_targets
from flows.progress import say
from flows.provenance import code_digest, read_provenance, shaping_packages
from flows.recording import log_run, tags_of
from flows.rows import Holdout, read_sides
from flows.settings import Settings, load_settings
from flows.splitting import define_holdout
from flows.stage import stage
from flows.store.files import digest_json
from flows.store.validations import Latest
from flows.tracking import CHALLENGER, KEY_TAG, Registry, repair_alias

EXAMPLE_ROWS = 5


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
    alarms: tuple[Alarm, ...] = ()


@stage(timeout_hours=6)
def train(validation: str | None = None) -> str:
    """Fit and register a candidate on validated rows (default: the latest); return its version.

    Unchanged data, code and settings give the version that they gave before.

    Args:
        validation: A validation's id; empty for the latest.
    """
    settings = load_settings()
    name = validation or Latest(settings.store_path).get("validate")
    registry = Registry(settings)
    repair_alias(settings)
    key = train_key(settings, name)
    found = registry.find(key)
    made = str(found.version) if found else register(registry, name, key, fit(name))
    if found and registry.alias(CHALLENGER) != made:  # a run was killed before, or older settings are back
        registry.set_alias(CHALLENGER, made)
    if found:
        say(f"Version {made} was trained from this data, code and settings before: nothing is to be done.")
    Latest(settings.store_path).set("train", made)
    name_run("train", version=made, data=name)
    return made


def train_key(settings: Settings, validation: str) -> str:
    """Return the digest of everything that decides what is learned."""
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


@task(name="fit", cache_policy=NO_CACHE)
def fit(validation: str) -> Fitted:
    """Fit the project's pipeline on the training side of the validated rows."""
    settings = load_settings()
    contract = load_contract(settings)
    holdout = define_holdout(settings, contract, validation)
    frame, held = read_sides(settings, contract, validation, holdout, SAMPLE_ROWS)
    if contract.problem == "regression":
        require_answerable(contract.target, frame[contract.target])
    alarms = check_leaks(settings, contract, frame, held)
    return replace(fit_rows(settings, contract, frame, holdout), alarms=alarms)


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


@task(name="register", cache_policy=NO_CACHE)
def register(registry: Registry, validation: str, key: str, fitted: Fitted) -> str:
    """Record the run with all that made it, register the version, and give it the alias challenger."""
    settings = load_settings()
    origin = read_provenance(settings.root, settings.data.source)  # once: the tags and the artifact must say the same
    tags = tags_of(settings, validation, fitted, origin)
    with registry.run(f"train-{validation}", tags) as run_id:
        log_run(registry, validation, run_id, fitted, origin)
        requirements = [f"{name}=={version}" for name, version in shaping_packages().items()]
        uri, model_id = registry.log_model(fitted.pipeline, fitted.example, requirements)
    made = registry.register(uri, model_id, run_id, tags | {KEY_TAG: key})
    registry.set_alias(CHALLENGER, made)
    say(f"Version {made} was fitted on {fitted.rows:,} rows in {fitted.seconds:.1f} s and registered.")
    publish_markdown("candidate", f"**Version {made}**, fitted on {fitted.rows:,} rows in {fitted.seconds:.1f} s.")
    return made
