"""The pipeline: the five stages in order."""

from contextlib import nullcontext

from flows.deploy import deploy
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.train import train
from flows.validate import validate
from ondol.deployment import smoke_service
from ondol.evaluation import publish_summary
from ondol.monitoring import check_replay
from ondol.orchestration import name_run, stage, task
from ondol.project import open_project
from ondol.training import is_trained


@stage(timeout_hours=12)
def pipeline(breaking: bool = False) -> str:
    """Ingest, validate, train, evaluate and deploy; return the version in production.

    Args:
        breaking: Deploy even if the request or answer changes for those who call the service.
    """
    project = open_project()
    snapshot = ingest()
    validation = validate(snapshot)
    trained = is_trained(project, validation)  # before, by unchanged data, code and settings
    with nullcontext() if trained else smoke_service(project):  # it starts while training runs
        candidate = train(validation)
        name_run("pipeline", version=candidate, data=snapshot)
        approved = evaluate(candidate)
        task(check_replay)(project, approved)
        task(publish_summary)(project, candidate)
        return deploy(approved, breaking)
