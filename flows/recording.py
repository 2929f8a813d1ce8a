"""What is recorded of a training run: all that made the model, so that it can be made again."""

import json
from typing import TYPE_CHECKING, Literal

from flows.contract import Contract
from flows.holdout import Holdout
from flows.leaks.accepting import settle
from flows.provenance import Provenance
from flows.rows import sample_share
from flows.secrets import redact, show_uri
from flows.settings import Settings
from flows.store.files import digest_json
from flows.store.snapshots import Snapshots
from flows.store.validations import Validations

if TYPE_CHECKING:
    from flows.train import Fitted


SHORT = 12  # characters of a snapshot's digest, as `ml data log` shows it
TYPES = {
    "number": "double",
    "integer": "long",
    "boolean": "boolean",
    "text": "string",
    "date": "datetime",
    "duration": "string",
}


def tags_of(settings: Settings, validation: str, fitted: "Fitted", origin: Provenance) -> dict[str, str]:
    """Return what a run and its version are found by."""
    record = Validations(settings.store_path).get(validation)
    accepted = ", ".join(name for alarm in fitted.alarms for name in alarm.columns)
    return {
        "validation": validation,
        "data_digest": record.snapshot,
        "git_commit": origin.commit,
        "git_base": origin.base or "",
        "patch_digest": origin.patch_digest or "",
        "holdout": fitted.holdout.model_dump_json(),
        **({"leaks_accepted": accepted[:500]} if accepted else {}),
    }


def log_run(settings: Settings, validation: str, run_id: str, fitted: "Fitted", origin: Provenance) -> None:
    """Write down what decided the model, and what became of it."""
    import mlflow

    log_dataset(settings, validation, run_id, fitted.contract, fitted.holdout, "training", fitted.rows)
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
    mlflow.log_params({k: str(v)[:500] for k, v in said.items()}, run_id=run_id)
    mlflow.log_metrics({"fit_seconds": fitted.seconds, "train_rows": fitted.rows}, run_id=run_id)
    mlflow.log_dict(fitted.contract.model_dump(mode="json"), "contract.json", run_id=run_id)
    mlflow.log_dict({"prediction": fitted.baseline}, "baseline.json", run_id=run_id)
    mlflow.log_dict({"alarms": settle(fitted.alarms, settings.leakage.accept)}, "leakage.json", run_id=run_id)
    mlflow.log_dict(origin.model_dump(), "provenance.json", run_id=run_id)
    mlflow.log_dict(settings.model_dump(mode="json", exclude={"root"}), "settings.json", run_id=run_id)


def log_dataset(
    settings: Settings,
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
    import mlflow
    from mlflow.entities import Dataset, DatasetInput, InputTag

    record = Validations(settings.store_path).get(validation)
    uri = redact(show_uri(Snapshots(settings.store_path).get(record.snapshot).source))
    part = digest_json([validation, holdout.model_dump(mode="json"), context, rows])
    columns = [{"name": c.name, "type": TYPES[c.kind], "required": not c.nullable} for c in contract.used]
    web = uri.startswith(("http://", "https://"))
    dataset = Dataset(
        name=f"{settings.project.name} {'training rows' if context == 'training' else 'held-out rows'}",
        digest=f"{record.snapshot[:SHORT]}-{part[:8]}",
        source_type="http" if web else uri.partition("://")[0] if "://" in uri else "local",
        source=json.dumps({"url" if web else "uri": uri, "snapshot": record.snapshot, "validation": validation}),
        schema=json.dumps({"mlflow_colspec": columns}, ensure_ascii=False),
        profile=json.dumps({"num_rows": rows, "num_elements": rows * len(columns)}),
    )
    tags = [InputTag("mlflow.data.context", context)]
    mlflow.MlflowClient().log_inputs(run_id, [DatasetInput(dataset, tags)])
