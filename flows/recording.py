"""What is recorded of a training run: all that made the model, so that it can be made again."""

from typing import TYPE_CHECKING

from flows.leaks.accepting import settle
from flows.provenance import Provenance
from flows.rows import sample_share
from flows.settings import Settings
from flows.store.validations import Validations

if TYPE_CHECKING:
    from flows.train import Fitted


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
