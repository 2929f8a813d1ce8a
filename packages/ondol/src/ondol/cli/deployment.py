"""`ml promote`, `ml rollback`, `ml serve`, `ml report` and `ml environments`: the champion, here and elsewhere."""

import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Iterator

from rich.markup import escape

from ondol.cli.console import console, current_store, print_plain, start_command
from ondol.cli.release import GROUP
from ondol.config import Environment, Settings
from ondol.deployment.smoke import check_service
from ondol.errors import UserError
from ondol.evaluation.gates import StoredVerdict, gate_rows, metric_lines
from ondol.orchestration.alerts import AlertKind, alert
from ondol.orchestration.processes import running
from ondol.orchestration.reporting import plain, table
from ondol.project import Project
from ondol.registry.bundles import Bundle, new_bento_home, open_bundle, served_bundle
from ondol.registry.champion import Action, Champion, move_champion, read_champion, require_champion
from ondol.registry.keys import read_local_keys
from ondol.registry.rollout import running_rollout
from ondol.storage.files import CHAMPION_FILE, KEYS_FILE, ROLLOUT_FILE
from ondol.storage.store import Store, open_store
from ondol_serving.callers import is_loopback

MARKED = {"passed": "✅ passed", "refused": "❌ refused"}  # not on pages: a browser may have no font with them


def promote_version(version: str, why: str) -> None:
    """Put a version that was deployed before into production.

    Raises:
        UserError: it is in production now, or never was.
    """
    settings = start_command()
    store = open_store(settings)
    champion = require_champion(store)
    if champion.version == version:
        raise UserError(f"Version {version} is in production already, since {champion.since}.")
    _move(settings, champion, served_bundle(store, version), "promote", why)


def roll_back(why: str) -> None:
    """Put the version that was in production before the current one back.

    Raises:
        UserError: there is none, or a rollout runs: then the wrong version is probably not the one in production.
    """
    settings = start_command()
    store = open_store(settings)
    champion = require_champion(store)
    if rollout := running_rollout(store):
        raise UserError(
            f"Version {rollout.version} is only tried beside version {champion.version}, which is in production: end "
            'its rollout by `ml rollout abort --why "…"`. To go back further, repeat `ml rollback` then.'
        )
    _move(settings, champion, open_bundle(store, previous_bundle(champion)), "rollback", why)


def previous_bundle(champion: Champion) -> str:
    """Return the previous bundle in production; rolling back twice goes back two steps, not back and forth.

    Raises:
        UserError: there is none.
    """
    stack: list[str] = []
    for change in champion.history:
        if change.action == "rollback" and len(stack) > 1:
            stack.pop()
        elif change.action != "withdraw":
            stack.append(change.to)
    if len(stack) < 2:
        raise UserError(
            f"Version {champion.version} is the first in production: there is no earlier one to roll back to."
        )
    return stack[-2]


def _move(settings: Settings, old: Champion, bundle: Bundle, action: Action, why: str) -> None:
    now = move_champion(open_store(settings), bundle, action, why)
    moved = f"[bold]version {bundle.version}[/] is in production in place of version {old.version}"
    console.print(f"[green]✓[/] {moved} ({escape(why)})", soft_wrap=True)
    copy_alias_to_mlflow(settings)
    what = f"Version {bundle.version} was put into production by hand in place of version {old.version}: {why}"
    kind: AlertKind = "rolled-back" if action == "rollback" else "promoted"
    alert(settings, kind, what, "`ml status` shows the history.", key=f"{kind} {now.move}")


def copy_alias_to_mlflow(settings: Settings) -> None:
    """Move MLflow's alias too; if MLflow is not available, the next command moves it."""
    from ondol.registry.registry import repair_mlflow_alias

    try:
        repair_mlflow_alias(Project(settings))
    except Exception as error:  # an unreachable server may raise any error; champion.json is already written
        console.print(f"  [yellow]MLflow's alias was not moved ({type(error).__name__}); the next `ml run` does it.[/]")


def print_model_report() -> None:
    """Print the metrics and gates of the last model."""
    print_plain("\n".join(report_lines(Project(start_command()))))


def report_lines(project: Project) -> Iterator[str]:
    """Yield the lines of the last model's report; parts that the last run did not reach are missing."""
    champion = project.champion
    record = project.verdicts.find(project.latest.find("train") or "")
    yield f"## {plain(project.settings.project.name)}"
    yield ""
    yield (
        f"Version {champion.version} is in production since {champion.since}."
        if champion
        else "No model is in production yet."
    )
    if validation := project.validations.find(project.latest.find("validate") or ""):
        bare = f", {validation.unlabelled:,} without a label left out" if validation.unlabelled else ""
        yield f"{validation.kept:,} rows were kept, {validation.bad:,} quarantined{bare}."
    if record is None:
        yield "No candidate was evaluated yet: `ml run` trains and evaluates one."
        return
    yield from _metric_lines(record)
    yield from _gate_lines(record)
    if record.refusal:
        yield from ("", f"**Refused**: {plain(record.refusal)}")


def _metric_lines(record: StoredVerdict) -> Iterator[str]:
    yield from ("", f"### Version {record.version} on {record.verdict.rows:,} held-out rows", "")
    yield from metric_lines(record)


def _gate_lines(record: StoredVerdict) -> Iterator[str]:
    yield from ("", "### Gates", "")
    rows = gate_rows(record)
    yield from table(rows[0], ((MARKED.get(cell, cell) for cell in row.values()) for row in rows))


def print_environments() -> None:
    """Print every environment, and how to configure those that deploy.yml needs and that are missing."""
    print_plain("\n".join(environment_lines(start_command())))


def environment_lines(settings: Settings) -> Iterator[str]:
    """Yield a table of the environments, and how to configure those that only deploy.yml has."""
    yield from ("## Environments", "")
    if rows := [*_running_rows(settings), *_environment_rows(settings)]:
        yield from table(("environment", "version", "since", "service", "host"), rows, show=str)
        yield ""
    for name in ("staging", "production"):
        if name not in settings.environments:
            prefix = f"ML_ENVIRONMENTS__{name.upper()}"
            yield (
                f"- No {name} is configured: write `[environments.{name}]` with `store` and `url` into config.toml; "
                f"for deploy.yml set the repository variables `{prefix}__STORE`, `{prefix}__URL` and, where "
                f"containers are to be moved, `{prefix}__HOST`."
            )
    if settings.deploy.runtime == "sklearn":
        yield (
            f"- Models are served by scikit-learn itself: the service's image must be built with `GROUP={GROUP}`, in "
            f"deploy.yml by the repository variable `SERVICE_GROUP` = `{GROUP}`."
        )
    if not os.environ.get("PREFECT_API_URL"):
        yield "- No Prefect server is configured: the repository variable `PREFECT_API_URL` lets flows be deployed."


def _running_rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    """Yield the table row of the service that `ml up` runs here, if it runs."""
    if record := running(settings, "service"):
        champion = read_champion(open_store(settings))
        version, since = (champion.version, champion.since) if champion else ("none yet", "–")
        yield "here, by `ml up`", plain(version), since, str(record.address), "–"


def _environment_rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    for name, environment in settings.environments.items():
        version, since = _serving(settings, environment)
        yield plain(name), plain(version), since, environment.url, plain(environment.host or "–")


def _serving(settings: Settings, environment: Environment) -> tuple[str, str]:
    champion = read_champion(current_store(settings, environment.store))
    return (champion.version, champion.since) if champion else ("none yet", "–")


def serve_champion(port: int | None, *, plain_http: bool = False) -> None:
    """Become the service process; ready as soon as there is a champion.

    Args:
        port: The port; None for that of the settings.
        plain_http: Whether a certificate of the settings is left out.

    Raises:
        UserError: the port is in use, the host is not an address or needs access control, the bundle is damaged or
            missing, or `service/service.py` cannot be imported.
    """
    settings = start_command(stored=False)
    named = _named_bundle(settings)
    host, chosen = settings.service.host, port or settings.service.port
    _require_free(host, chosen, f"`ml serve --port {chosen + 1}` takes another")
    if (grpc_port := settings.service.grpc_port) is not None:
        if grpc_port == chosen:
            raise UserError(f"[service] grpc_port is {chosen}, the port of HTTP: give it another one.")
        _require_free(host, grpc_port, "give [service] grpc_port another one")
    tls = [] if plain_http else _tls_options(settings)
    place = f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}"
    store = open_store(settings)
    _fetch_records(store)
    _require_access_control(settings, store, host)
    if store.remote:
        from ondol.cli.up import start_follower

        start_follower(settings)
    champion = read_champion(store)
    if champion and not store.remote:  # the local copy is served while the bucket is not reachable
        open_bundle(store, champion.bundle)
    os.environ |= {"ML_STORE": str(store.folder)}
    limits = settings.service.model_dump(
        exclude={"host", "port", "certificate", "certificate_key"}, exclude_none=True
    ) | {"hosts": ",".join((*settings.service.hosts, place))}
    access = settings.access.model_dump(exclude_none=True)
    for section, values in (("SERVICE", limits), ("LOG", settings.log.model_dump()), ("ACCESS", access)):
        os.environ |= {f"ML_{section}__{name.upper()}": str(value) for name, value in values.items()}
    os.chdir(settings.root)
    check_service(settings.root)  # BentoML would print a traceback
    scheme = "https" if tls else "http"
    serving = f"version {champion.version}" if champion else "no model yet: `ml run` deploys one"
    serving = escape(f"the bundle {named}, by ML_BUNDLE" if named else serving)
    name, address = escape(settings.project.name), f"{scheme}://{escape(place)}"
    console.print(f"Serving [bold]{name}[/] ({serving}) on {address}. Stop with Ctrl-C.", soft_wrap=True)
    sys.stdout.flush()
    environment, kept_open = new_bento_home(settings)
    os.environ |= environment
    for file in kept_open:
        os.set_inheritable(file, True)
    command = [sys.executable, "-m", "bentoml", "serve", "service.service:Service"]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(chosen), *tls])


def _require_access_control(settings: Settings, store: Store, host: str) -> None:
    """Check that the service may listen on `host`; the service checks it again, for other ways of starting it.

    Raises:
        UserError: other machines could reach it, and neither keys, nor an issuer of tokens, nor `open` is set.
    """
    access, keys = settings.access, read_local_keys(store)  # read in any case: the service ends if they are damaged
    if not (is_loopback(host) or access.open or access.jwks or keys):
        raise UserError(
            f"[service] host is {host}, where other machines can reach the service, and it has no access control: "
            "create a key with `ml keys create NAME`, or set [access] open = true if everyone who can reach it may "
            "use it."
        )


def _tls_options(settings: Settings) -> list[str]:
    """Return BentoML's options for TLS; none without a certificate.

    Raises:
        UserError: only one of the two files is named, one is missing, or they do not belong together.
    """
    files = {name: getattr(settings.service, name) for name in ("certificate", "certificate_key")}
    if not any(files.values()):
        return []
    for name, file in files.items():
        if file is None:
            raise UserError(f"[service] {name} is missing: TLS needs a certificate and its private key.")
        if not (settings.root / file).is_file():
            raise UserError(f"[service] {name} is {file}, and there is no such file.")
    certificate, key = (str(settings.root / file) for file in files.values())
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"[service] certificate and certificate_key cannot be used: {error}.") from None
    return ["--ssl-certfile", certificate, "--ssl-keyfile", key, "--ssl-version", str(int(ssl.PROTOCOL_TLS_SERVER))]


def _named_bundle(settings: Settings) -> str:
    """Return the folder that `ML_BUNDLE` names; empty if it is not set.

    Raises:
        UserError: there is no bundle in it.
    """
    named = os.environ.get("ML_BUNDLE", "")
    if named and not (settings.root / named / "meta.json").is_file():
        raise UserError(
            f"ML_BUNDLE is {named}, and there is no meta.json in it: set it to a bundle's folder, or unset it to serve "
            "the version in production."
        )
    return named


def _fetch_records(store: Store) -> None:
    """Download the champion, the keys and the rollout; if the store does not answer, the local copies are used."""
    try:
        for name in (KEYS_FILE, CHAMPION_FILE, ROLLOUT_FILE):
            store.look(store.folder / name)
    except UserError as error:
        console.print(f"[yellow]{escape(str(error))}[/] The service starts with the local copy.", soft_wrap=True)


def _require_free(host: str, port: int, remedy: str) -> None:
    try:
        family = socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6
    except ValueError:
        raise UserError(f"[service] host is {host}: give the address to listen on, such as 127.0.0.1.") from None
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"Port {port} on {host} is not free ({error.strerror}): {remedy}.") from None
