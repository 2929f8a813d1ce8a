"""The pipeline: the five stages in order."""

from flows.artifacts import publish_markdown
from flows.deploy import deploy
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.naming import name_run
from flows.report import verdict_markdown
from flows.settings import Settings, load_settings
from flows.smoke import smoke_service
from flows.stage import stage
from flows.store.verdicts import Verdicts
from flows.train import train
from flows.validate import validate


@stage(timeout_hours=12)
def pipeline(breaking: bool = False) -> str:
    """Ingest, validate, train, evaluate and deploy; return the version in service.

    Args:
        breaking: Deploy even if the request or answer changes for those who call the service.
    """
    settings = load_settings()
    snapshot = ingest()
    validation = validate(snapshot)
    with smoke_service(settings):  # it takes seconds to start: beside the fit, they are free
        candidate = train(validation)
        name_run("pipeline", version=candidate, data=snapshot)
        verdict = evaluate(candidate)
        summarize(settings, candidate)
        return deploy(verdict, breaking)


def summarize(settings: Settings, version: str) -> None:
    """Show what was decided on the version in the pipeline's own run: the stages show the rest in theirs."""
    if record := Verdicts(settings.store_path).find(version):
        publish_markdown("summary", verdict_markdown(record))
