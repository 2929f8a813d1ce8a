"""What is recorded of a training run: all that made the model, so that it can be made again."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ondol.config.settings import Settings
from ondol.contract import Contract
from ondol.redaction import redact, show_uri
from ondol.registry.tracking import Registry
from ondol.snapshots.snapshots import Snapshots
from ondol.storage.files import digest_json
from ondol.training.holdout import Holdout
from ondol.training.provenance import Provenance
from ondol.training.rows import sample_share
from ondol.validation.leakage.accepting import settle
from ondol.validation.leakage.alarms import Alarm
from ondol.validation.results import Validations

if TYPE_CHECKING:
    from ondol.training.train import Fitted


SHORT = 12  # characters of a snapshot's digest, as `ml data log` shows it
TYPES = {
    "number": "double",
    "integer": "long",
    "boolean": "boolean",
    "text": "string",
    "date": "datetime",
    "duration": "string",
}


def tags_of(
    settings: Settings, validation: str, fitted: "Fitted", alarms: Sequence[Alarm], origin: Provenance
) -> dict[str, str]:
    """Return what a run and its version are found by."""
    record = Validations(settings.store_path).get(validation)
    accepted = ", ".join(name for alarm in alarms for name in alarm.columns)
    return {
        "validation": validation,
        "data_digest": record.snapshot,
        "git_commit": origin.commit,
        "git_base": origin.base or "",
        "patch_digest": origin.patch_digest or "",
        "holdout": fitted.holdout.model_dump_json(),
        **({"leaks_accepted": accepted[:500]} if accepted else {}),
    }


def log_run(
    registry: Registry, validation: str, run_id: str, fitted: "Fitted", alarms: Sequence[Alarm], origin: Provenance
) -> None:
    """Write down what decided the model, and what became of it."""
    settings = registry.settings
    log_dataset(registry, validation, run_id, fitted.contract, fitted.holdout, "training", fitted.rows)
    said = {
        **{f"split.{k}": v for k, v in settings.split.model_dump().items()},
        "train.seed": settings.train.seed,
        "train.sample_share": sample_share(settings, validation),
        "data.window_days": settings.data.window_days,
        "problem": settings.data.problem,
        "target": settings.data.target or fitted.contract.target,
        "estimator": type(fitted.pipeline[-1]).__name__,
        **{f"estimator.{k}": v for k, v in fitted.pipeline[-1].get_params(deep=False).items()},
    }
    documents = {
        "contract.json": fitted.contract.model_dump(mode="json"),
        "baseline.json": {"prediction": fitted.baseline},
        "leakage.json": {"alarms": settle(alarms, settings.leakage.accept)},
        "provenance.json": origin.model_dump(),
        "settings.json": settings.model_dump(mode="json", exclude={"root"}),
    }
    registry.log_results(
        run_id,
        {"fit_seconds": fitted.seconds, "train_rows": fitted.rows},
        documents,
        params={k: str(v)[:500] for k, v in said.items()},
    )


def log_dataset(
    registry: Registry,
    validation: str,
    run_id: str,
    contract: Contract,
    holdout: Holdout,
    context: Literal["training", "evaluation"],
    rows: int,
) -> None:
    """Record as a run's dataset which rows it used, without reading them.

    Its digest begins with the snapshot's, and differs by the rows that were used of it.
    """
    settings = registry.settings
    record = Validations(settings.store_path).get(validation)
    uri = redact(show_uri(Snapshots(settings.store_path).get(record.snapshot).source))
    part = digest_json([validation, holdout.model_dump(mode="json"), context, rows])
    columns = [{"name": c.name, "type": TYPES[c.kind], "required": not c.nullable} for c in contract.used]
    web = uri.startswith(("http://", "https://"))
    dataset = {
        "name": f"{settings.project.name} {'training rows' if context == 'training' else 'held-out rows'}",
        "digest": f"{record.snapshot[:SHORT]}-{part[:8]}",
        "source_type": "http" if web else uri.partition("://")[0] if "://" in uri else "local",
        "source": json.dumps({"url" if web else "uri": uri, "snapshot": record.snapshot, "validation": validation}),
        "schema": json.dumps({"mlflow_colspec": columns}, ensure_ascii=False),
        "profile": json.dumps({"num_rows": rows, "num_elements": rows * len(columns)}),
    }
    registry.log_input(run_id, context, dataset)
