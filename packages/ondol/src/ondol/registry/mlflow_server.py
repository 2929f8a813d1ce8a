"""The MLflow server as an ASGI application that refuses requests of other sites' pages.

`uvicorn --factory ondol.registry.mlflow_server:mlflow` starts it.
"""

import os

from ondol.orchestration.asgi import RequireLogin, SameOrigin, read_hosts, read_secrets
from ondol.registry.registry import explain_schema


def mlflow() -> SameOrigin:
    """Return the MLflow server, configured by the variables of `mlflow server`; other hosts are in `ML_PORTS__HOSTS`.

    With `ML_MLFLOW_AUTH_STRING` (a name, a colon and a password) it asks for them on every path but `/health`.
    MLflow's own checks remain, but they allow pages from any port of this machine and names such as 10.example.com.
    """
    read_secrets()
    hosts = read_hosts()
    from mlflow.server import constants

    environment = os.environ
    environment["MLFLOW_SERVER_ALLOWED_HOSTS"] = "*"  # ours are stricter, and include the hosts in the settings
    environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(
        f"{s}://{host}" for host in hosts for s in ("http", "https")
    )
    backend = environment["MLFLOW_BACKEND_STORE_URI"]
    artifacts = environment.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or "mlflow-artifacts:/"
    environment[constants.BACKEND_STORE_URI_ENV_VAR] = environment[constants.REGISTRY_STORE_URI_ENV_VAR] = backend
    environment[constants.ARTIFACT_ROOT_ENV_VAR] = artifacts
    if destination := environment.get("MLFLOW_ARTIFACTS_DESTINATION"):
        environment[constants.ARTIFACTS_DESTINATION_ENV_VAR] = destination
        environment[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"

    from mlflow.exceptions import MlflowException
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    try:
        initialize_backend_stores(backend, backend, artifacts)
    except MlflowException as error:
        raise SystemExit(explain_schema(str(error), backend, "MLFLOW_BACKEND_STORE_URI") or str(error)) from None
    login = environment.get("ML_MLFLOW_AUTH_STRING")
    return SameOrigin(RequireLogin(app, login, ("/health",)) if login else app, hosts, ("/health", "/version"))
