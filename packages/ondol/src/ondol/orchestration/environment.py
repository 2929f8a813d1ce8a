"""Environment variables of the libraries: their folders inside the project, no telemetry, less output."""

import os
from pathlib import Path

from ondol.config import Settings, is_address
from ondol.storage.files import is_plain, make_private, sqlite_url

QUIET = {
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # from onnxruntime 1.29 on it reports to Microsoft and keeps a database in ~/.cache
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # a store is used outside of runs as well
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SHOW_UPDATE_NOTIFICATION": "false",
    "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",  # a worker's runs use the packages installed here
    "GIT_PYTHON_REFRESH": "quiet",
    # Beside other busy processes, OpenMP's spinning threads make a fit twenty times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


# Loggers whose messages are written to the log of the run.
LOGGERS = ("ondol.ingestion", "ondol.storage.remote_files", "ondol.orchestration.reporting")
DATABASE = {"PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL"}
STRIPPED = ("ML_", "MLFLOW_", "PREFECT_", "BENTOML_", "MPLCONFIGDIR")


def clean_environment(root: Path) -> dict[str, str]:
    """Return the environment for commands of another project in `root`: without folders and addresses of this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(STRIPPED)}
    own = [str(root), *(str(root / "vendor" / name / "src") for name in ("ondol", "ondol-serving"))]
    return kept | {"PYTHONPATH": os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])}


def prefect_database() -> Path:
    """Return the file of Prefect's own database, if it uses a file."""
    return Path(os.environ["PREFECT_HOME"]) / "prefect.db"


def prepare(settings: Settings) -> None:
    """Set the variables that the libraries read at import, unless the user has set them. Make `.ml` private."""
    stores = [one.store for one in settings.environments.values() if one.host and not is_address(one.store)]
    make_private(
        settings.home, {settings.root / store for store in stores}
    )  # containers read the other folders: see `ml release`
    homes = {
        "PREFECT_HOME": settings.home / "prefect",
        "PREFECT_PROFILES_PATH": settings.home / "prefect" / "profiles.toml",
        "BENTOML_HOME": settings.home / "bentoml",
        "MPLCONFIGDIR": settings.home / "matplotlib",
    }
    for name, path in homes.items():
        os.environ.setdefault(name, str(path))
    # Prefect does not quote its own path.
    if not is_plain(os.environ["PREFECT_HOME"]) and not DATABASE & os.environ.keys():
        os.environ[min(DATABASE)] = sqlite_url(prefect_database(), "aiosqlite")
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
        # Empty if a workflow's variable is not set; boto would build an address from an empty region.
        del os.environ[name]
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    known = os.environ.get("PREFECT_LOGGING_EXTRA_LOGGERS", "")
    os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"] = ",".join(dict.fromkeys([*filter(None, known.split(",")), *LOGGERS]))
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
