"""The BentoML service of the project: `ml serve`. An endpoint of your own is a method with `@bentoml.api`."""

from ondol_serving import ModelService, service


@service
class Service(ModelService):
    """Predictions of the champion. Send rows to `POST /predict`; `GET /model` returns which model answers."""
