"""Steps of the train flow: fit a scikit-learn pipeline on the training rows and register it."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from ondol.config import Settings, Train
from ondol.contract import Contract, encode, encode_target, fit_encodings, require_known
from ondol.contract.encoding import list_classes, require_answerable
from ondol.errors import UserError
from ondol.orchestration.reporting import publish_markdown, publish_table, say
from ondol.project import Project
from ondol.registry.registry import CHALLENGER, CHOICE_TAG, DECISION_TAG, KEY_TAG
from ondol.storage.files import digest_json
from ondol.training.calibration import fit_sigmoids, with_sigmoids
from ondol.training.candidates import Choice, read_candidates
from ondol.training.dataset import Holdout, define_holdout, log_dataset, read_sides, sample_share
from ondol.training.decision import ChosenRule, choose_rule, require_classes
from ondol.training.folds import OutOfFold, predict_out_of_fold
from ondol.training.pipeline import asks_for, build_pipeline, fitting, round_targets
from ondol.training.provenance import Provenance, code_digest, read_provenance, shaping_packages
from ondol.training.support import Support, describe_support
from ondol.validation.leakage import SAMPLE_ROWS, Alarm, accept_alarms, find_alarms, require_accepted, warn_of_needless

EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class TrainingRows:
    """The training rows, and some of the rows that the rule `holdout` holds out."""

    train: pd.DataFrame
    held_out: pd.DataFrame
    holdout: Holdout


@dataclass(frozen=True)
class Fitted:
    """A fitted pipeline with the contract whose encodings it was fitted with."""

    pipeline: Any
    contract: Contract
    holdout: Holdout
    rows: int
    seconds: float
    example: pd.DataFrame
    baseline: list[float]
    choice: Choice
    support: Support
    decision: ChosenRule | None = None


def cache_key(project: Project, validation: str) -> str:
    """Return the digest of all inputs of training."""
    settings = project.settings
    usual = {name for name in ("budget", "calibration") if getattr(settings.train, name) == getattr(Train(), name)}
    return digest_json(
        {
            "validation": validation,
            "split": settings.split.model_dump(),
            "train": settings.train.model_dump(exclude_none=True, exclude=usual),  # as in versions without these
            **({"window_days": settings.data.window_days} if settings.data.window_days else {}),
            # The metric decides among the candidates.
            **({"metric": settings.gates.metric} if settings.gates.metric and _compares(settings) else {}),
            **({"decision": settings.decision.model_dump(exclude_none=True)} if settings.decision.is_set else {}),
            **({"accept": sorted(settings.leakage.accept)} if settings.leakage.accept else {}),
            "code": code_digest(settings.root),
            "packages": shaping_packages(),
        }
    )


def _compares(settings: Settings) -> bool:
    return settings.train.budget > 0 and len(read_candidates(settings)) > 1


def is_trained(project: Project, validation: str) -> bool:
    """Return True if a version was trained from these rows with the current code and settings."""
    return bool(project.registry.find_all(cache_key(project, validation)))


def find_version(project: Project, key: str) -> str | None:
    """Return the version with this key and make it the challenger again; None if there is none."""
    found = project.registry.find(key)
    if found is None:
        return None
    version = str(found.version)
    if project.registry.alias(CHALLENGER) != version:  # an earlier run was killed, or older settings were restored
        project.registry.set_alias(CHALLENGER, version)
    say(f"Version {version} was already trained from this data, code and settings: nothing to do.")
    return version


def load_rows(project: Project, validation: str) -> TrainingRows:
    """Read the training rows, and a sample of the holdout.

    Raises:
        UserError: the target of a regression exceeds the range of the service's answers, or `[decision]` names a class
            that does not exist.
    """
    settings, contract = project.settings, project.contract
    holdout = define_holdout(settings, contract, validation)
    train, held_out = read_sides(settings, contract, validation, holdout, SAMPLE_ROWS)
    if contract.problem == "regression":
        require_answerable(contract.target, train[contract.target])
    else:
        require_classes(settings.decision, list_classes(train[contract.target]))
    return TrainingRows(train, held_out, holdout)


def check_leakage(project: Project, rows: TrainingRows) -> tuple[Alarm, ...]:
    """Search for leakage; return the alarms, all of which `config.toml` accepts.

    Raises:
        UserError: one is not accepted.
    """
    accept = project.settings.leakage.accept
    require_known("[leakage] accept", accept, project.contract.by_name)
    alarms = find_alarms(project.contract, rows.train, rows.held_out)
    if alarms:
        lines = [line | {"columns": ", ".join(line["columns"])} for line in accept_alarms(alarms, accept)]
        publish_table("leakage", lines)
    warn_of_needless(alarms, accept)
    require_accepted(alarms, accept)
    return tuple(alarms)


def fit(project: Project, rows: TrainingRows, choice: Choice | None = None) -> Fitted:
    """Fit the chosen candidate on the training rows; default: the first one."""
    return fit_rows(project.settings, project.contract, rows.train, rows.holdout, choice)


def fit_rows(
    settings: Settings, contract: Contract, frame: pd.DataFrame, holdout: Holdout, choice: Choice | None = None
) -> Fitted:
    """Fit features and estimator on valid rows.

    Args:
        settings: The settings.
        contract: The contract, without encodings.
        frame: The training rows in the contract's dtypes.
        holdout: The rule that held out the other rows.
        choice: The parameters of the estimator; default: those of the first candidate.

    Raises:
        UserError: the target has one class only, `[decision]` cannot be followed, or the project's code fails.
    """
    if frame.empty:
        raise UserError("No rows are left to train on: the holdout or the quarantine took them all.")
    fitted = fit_encodings(contract, frame, parts=asks_for("problem"))
    if fitted.classes is not None and len(fitted.classes) < 2:
        raise UserError(
            f'The target "{contract.target}" has only the class {fitted.classes[0]!r}: nothing can be learned.'
        )
    encoded, target = encode(fitted, frame), encode_target(fitted, frame[contract.target])
    example = encoded.head(EXAMPLE_ROWS).copy()
    choice = choice or Choice(read_candidates(settings)[0], "Nothing was compared.")
    choice = replace(choice, calibrated=choice.calibrated or settings.train.calibration == "sigmoid")
    decision, found = None, None
    if choice.calibrated or settings.decision.is_set:
        found = predict_out_of_fold(settings, fitted, frame, choice.params)
    if found is not None and settings.decision.is_set and fitted.classes is not None:
        known = found.calibrated() if choice.calibrated else found
        decision = choose_rule(settings.decision, fitted.classes, known, len(frame))
        fitted = fitted.model_copy(update={"decision": decision.rule})
    pipeline = build_pipeline(settings, choice.params)
    started = time.perf_counter()
    with fitting():
        pipeline.fit(encoded, target)
    round_targets(pipeline)
    if found is not None and choice.calibrated:
        calibrate(pipeline, fitted, found, len(frame))
    seconds = time.perf_counter() - started
    baseline, support = baseline_of(fitted, target), describe_support(fitted, frame)
    return Fitted(pipeline, fitted, holdout, len(frame), seconds, example, baseline, choice, support, decision)


def calibrate(pipeline: Any, contract: Contract, found: OutOfFold, rows: int) -> None:
    """Put sigmoids above the classifier of a fitted pipeline, fitted on predictions out of fold.

    Raises:
        UserError: the training rows, so many, cannot be divided into folds.
    """
    if len(np.unique(found.target)) < len(contract.classes or ()):
        raise UserError(
            f"The probabilities cannot be calibrated on {rows:,} training rows: too few rows, groups or classes. "
            'Set calibration = "none" under [train] in config.toml.'
        )
    name, classifier = pipeline.steps[-1]
    pipeline.steps[-1] = (name, with_sigmoids(classifier, fit_sigmoids(found.scores, found.target)))


def baseline_of(contract: Contract, target: np.ndarray) -> list[float]:
    """Return the parameters of a dummy model: the share of each class, or the mean and the median."""
    if contract.classes is None:
        return [float(target.mean()), float(np.median(target))]
    return [float(share) for share in np.bincount(target, minlength=len(contract.classes)) / len(target)]


def register(
    project: Project,
    validation: str,
    key: str,
    fitted: Fitted,
    alarms: tuple[Alarm, ...],
    params: Mapping[str, Any] = MappingProxyType({}),
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> str:
    """Record the run with its inputs, register the version, and give it the alias challenger.

    Args:
        project: The project.
        validation: The validation of the training rows.
        key: The digest of all inputs of training.
        fitted: The fitted model.
        alarms: The accepted alarms of leakage.
        params: Additional parameters of the run.
        files: Additional files of the run, by their paths among its artifacts.
    """
    settings, registry = project.settings, project.registry
    origin = read_provenance(settings.root, settings.data.source)  # read once: the tags and the artifact must agree
    tags = tags_of(project, validation, fitted, alarms, origin)
    with registry.run(f"train-{validation}", tags) as run_id:
        if files:
            registry.log_files(run_id, files)
        log_run(project, validation, run_id, fitted, alarms, origin, params)
        log_trials(project, fitted.choice)
        requirements = [f"{name}=={version}" for name, version in shaping_packages().items()]
        uri, model_id = registry.log_model(fitted.pipeline, fitted.example, requirements)
    version = registry.register(uri, model_id, run_id, tags | {KEY_TAG: key})
    registry.set_alias(CHALLENGER, version)
    if fitted.decision:
        say(fitted.decision.reason)
    say(f"Version {version} was fitted on {fitted.rows:,} rows in {fitted.seconds:.1f} s and registered.")
    publish_markdown("candidate", f"**Version {version}**, fitted on {fitted.rows:,} rows in {fitted.seconds:.1f} s.")
    return version


def tags_of(
    project: Project, validation: str, fitted: "Fitted", alarms: Sequence[Alarm], origin: Provenance
) -> dict[str, str]:
    """Return the tags by which a run and its version are found."""
    record = project.validations.get(validation)
    accepted = ", ".join(name for alarm in alarms for name in alarm.columns)
    return {
        "validation": validation,
        "data_digest": record.snapshot,
        "git_commit": origin.commit,
        "git_base": origin.base or "",
        "patch_digest": origin.patch_digest or "",
        "holdout": fitted.holdout.model_dump_json(),
        **({"leaks_accepted": accepted[:500]} if accepted else {}),
        **({CHOICE_TAG: fitted.choice.reason[:500]} if fitted.choice.trials else {}),
        **({DECISION_TAG: fitted.decision.reason[:500]} if fitted.decision else {}),
    }


def log_run(
    project: Project,
    validation: str,
    run_id: str,
    fitted: "Fitted",
    alarms: Sequence[Alarm],
    origin: Provenance,
    params: Mapping[str, Any],
) -> None:
    """Record the inputs of the model, and the result."""
    settings, calibration = project.settings, "sigmoid" if fitted.choice.calibrated else "none"
    estimator = fitted.pipeline[-1].estimator if fitted.choice.calibrated else fitted.pipeline[-1]
    log_dataset(project, validation, run_id, fitted.contract, fitted.holdout, "training", fitted.rows)
    parameters = {
        **{f"split.{k}": v for k, v in settings.split.model_dump().items()},
        "train.seed": settings.train.seed,
        "train.sample_share": sample_share(settings, validation),
        "data.window_days": settings.data.window_days,
        "problem": settings.data.problem,
        "target": settings.data.target or fitted.contract.target,
        **({"calibration": calibration} if fitted.contract.classes else {}),
        "estimator": type(estimator).__name__,
        **{f"estimator.{k}": v for k, v in estimator.get_params(deep=False).items()},
        **(fitted.decision.params if fitted.decision else {}),
        **params,
    }
    documents = {
        "contract.json": fitted.contract.model_dump(mode="json"),
        "baseline.json": {"prediction": fitted.baseline},
        "leakage.json": {"alarms": accept_alarms(alarms, settings.leakage.accept)},
        "provenance.json": origin.model_dump(),
        "choice.json": fitted.choice.describe(),
        "support.json": fitted.support.model_dump(mode="json"),
        # With what was chosen: `ml reproduce` fits it, and compares nothing.
        "settings.json": settings.model_dump(mode="json", exclude={"root"})
        | {
            "train": settings.train.model_dump(mode="json")
            | {"params": dict(fitted.choice.params), "calibration": calibration}
        },
    }
    project.registry.log_results(
        run_id,
        {
            "fit_seconds": fitted.seconds,
            "train_rows": fitted.rows,
            **(fitted.decision.figures if fitted.decision else {}),
        },
        documents,
        params={k: str(v)[:500] for k, v in parameters.items()},
    )


def log_trials(project: Project, choice: Choice) -> None:
    """Record each candidate that was compared as a run below the active one."""
    for trial in choice.trials:
        with project.registry.run(trial.name[:250], {}, nested=True) as nested:
            folds = {f"fold_{place}": score for place, score in enumerate(trial.scores) if not math.isnan(score)}
            metrics = {**folds, str(choice.metric): trial.mean, "fit_seconds": trial.seconds}
            params = {key: str(value)[:500] for key, value in trial.params.items()}
            project.registry.log_results(nested, metrics, {}, params=params)
