"""The pipeline: the five stages in order."""

from prefect import flow

from flows.deploy import deploy
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.settings import load_settings
from flows.smoke import smoke_service
from flows.train import train
from flows.validate import validate


@flow(name="pipeline", flow_run_name="pipeline")
def pipeline(breaking: bool = False) -> str:
    """Ingest, validate, train, evaluate and deploy; return the version in service.

    Args:
        breaking: Deploy even if the request or answer changes for those who call the service.
    """
    snapshot = ingest()
    validation = validate(snapshot)
    with smoke_service(load_settings()):  # it takes seconds to start: beside the fit, they are free
        candidate = train(validation)
        verdict = evaluate(candidate)
        return deploy(verdict, breaking)
