"""`ml compose secrets`: the passwords of the containers of ops/compose.yaml."""

import os
import secrets
from pathlib import Path

from ondol.cli.console import console, print_plain, start_command
from ondol.errors import UserError
from ondol.storage.files import locked, write_bytes

FOLDER = Path("ops", "secrets")
# Compose reads this empty file before anything else, so its error for a missing file names the command.
MADE = "made-by-ml-compose-secrets"
USER = "ml"
# The passwords that a project had in variables before 0.5.0: the databases of PostgreSQL and Grafana keep them.
EARLIER = {"postgres": "POSTGRES_PASSWORD", "grafana": "GRAFANA_PASSWORD"}
LOGINS = f"""
  Prefect  http://127.0.0.1:4200  all behind PREFECT_API_AUTH_STRING= in {FOLDER}/servers.env, `{USER}:` included
  MLflow   http://127.0.0.1:5000  user {USER}, password MLFLOW_TRACKING_PASSWORD in {FOLDER}/servers.env
  Grafana  http://127.0.0.1:3001  user admin, password {FOLDER}/grafana

Start the containers: docker compose -f ops/compose.yaml up --build --detach --wait"""


def create_secrets() -> None:
    """Create each file of ops/secrets that is missing, and print how to log in.

    Containers run as other users than the owner of the files, which Compose mounts as they are. So all may read a file,
    but the folder lets only its owner in.

    Raises:
        UserError: the project has no ops/compose.yaml.
    """
    settings = start_command(stored=False)
    root = settings.root
    if not (root / "ops" / "compose.yaml").is_file():
        raise UserError(f"There is no ops/compose.yaml in {root}: this command makes the passwords of its containers.")
    folder = root / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    with locked(settings.home / "secrets.lock", wait=True):
        created = [name for name, text in _contents().items() if _create(folder / name, text)]
    for name in filter(created.__contains__, EARLIER):
        if os.environ.get(EARLIER[name]):
            console.print(f"The password in {FOLDER / name} is that of the variable {EARLIER[name]}.", soft_wrap=True)
    if made := ", ".join(name for name in created if name not in (".gitignore", MADE)):
        console.print(f"[green]✓[/] Created in {FOLDER}, which git ignores: {made}.", soft_wrap=True)
    else:
        console.print(f"{FOLDER} has all passwords already: nothing was changed.", soft_wrap=True)
    print_plain(LOGINS)


def _contents() -> dict[str, str]:
    """Return the contents of the files by name; the last one says that all others are there."""
    prefect, mlflow = f"{USER}:{_password()}", _password()
    servers = {
        "PREFECT_API_AUTH_STRING": prefect,
        "PREFECT_SERVER_API_AUTH_STRING": prefect,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": mlflow,
        "ML_MLFLOW_AUTH_STRING": f"{USER}:{mlflow}",
    }
    return {
        ".gitignore": "*\n",
        **{name: f"{os.environ.get(variable) or _password()}\n" for name, variable in EARLIER.items()},
        "servers.env": "".join(f"{name}={value}\n" for name, value in servers.items()),
        MADE: "",
    }


def _password() -> str:
    return secrets.token_urlsafe(24)


def _create(path: Path, text: str) -> bool:
    """Write a new file; return False if there is one."""
    if path.exists():
        return False
    write_bytes(path, text.encode(errors="surrogateescape"))
    path.chmod(0o644)
    return True
