"""Writes the parts of docs/reference that are generated from the code: settings, commands, routes, metrics, alerts.

Run as `reference.py`, by the environment's Python, as `make docs` does; `reference.py FOLDER` writes the pages to
another folder. A page keeps what is written by hand: only what is between `<!-- begin NAME: made by make docs -->` and
`<!-- end NAME -->` is replaced.
"""

import ast
import inspect
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from enum import EnumType
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
sys.path[:0] = [str(ROOT / folder) for folder in ("packages/ondol/src", "packages/ondol-serving/src", "template")]
BLOCK = re.compile(r"(<!-- begin (\w+): made by make docs -->\n).*?(<!-- end \2 -->\n)", re.DOTALL)

# What the code does not say by itself. A test holds each of these tables to the code.
STATUSES = {  # of a command, beside those of every command
    "init": {
        1: "`model/schema.py` would change, and `--force` was not given. The unedited schema of the sample is replaced "
        "without it"
    },
    "run": {1: "A gate refused the model, the contract breaks callers, or the version was rolled back"},
    "evaluate": {1: "A gate refused the model"},
    "deploy": {1: "A gate had refused the version, the contract breaks callers, or the version was rolled back"},
    "predict": {2: "Also where all rows break the contract; the output file is written"},
    "reproduce": {1: "A metric differs"},
    "simulate": {2: "Also where the loop did not close, or where something was retrained with `--no-shift`"},
    "release": {1: "The contract breaks callers, or the bundle was taken out of production by hand"},
    "doctor": {2: "A check failed"},
    "smoke": {2: "The service is not ready, runs another version, or answers otherwise than its model"},
    "client": {1: "With `--check`: the file is not what `ml client` would write"},
    "contract diff": {1: "The source differs from `model/schema.py`"},
    "quarantine replay": {1: "No row was valid"},
}
CHECKS = {  # of `ml doctor`: what it checks, and when it fails
    "python": ("The version of Python", "It is not 3.11, 3.12 or 3.13"),
    "packages": ("The versions of the main packages", "One is not installed"),
    "settings": ("`config.toml`", "Never: with a wrong one, only `Error: …` is printed"),
    "gates": ("The metric that decides", "`[gates] metric` does not fit the problem"),
    "contract": ("`model/schema.py`", "It cannot be imported, or has a mistake"),
    "source": ("The source has the columns of the contract", "It does not answer, is missing, or lacks a column"),
    "disk": ("Free space under the project", "Less than 1 GB is free"),
    "secrets": ("The mode of `.env`", "Never; `!` if other users can read it"),
    "git": ("The commit", "Git ignores `vendor/`; `!` if there are uncommitted changes"),
    "leftovers": ("Files of an earlier release", "Never; `!` if there are some"),
    "prefect": ("Prefect's server", "The one of `ml up` has stopped, or that of `PREFECT_API_URL` does not answer"),
    "mlflow": ("MLflow's server", "The one of `ml up` has stopped, or that of `MLFLOW_TRACKING_URI` does not answer"),
    "champion": ("The version in production, and every byte of its bundle", "The bundle or `champion.json` is damaged"),
    "endpoints": ("`service/service.py`", "It cannot be imported"),
    "service": ("The service of `ml up`", "It has stopped or does not answer"),
    "worker": ("The worker of `ml up`", "It has stopped or does not answer"),
    "files": ("Folders, databases, records and tables", "One is damaged: a line for each"),
}
REFUSALS = {  # by the type of a refusal of the service: when
    "no_explanation": "An explanation is wanted, and the version in production was deployed before there were any",
    "explanation_in_json": "An explanation is wanted, and the answer is to be a table of Arrow",
    "too_many_explained_rows": "More explanations are wanted than `[service] max_explained_rows`",
    "not_found": "There is no such path. All of them have one count, `ml_unknown_paths_total`",
    "method_not_allowed": "The path does not have this method; `Allow` lists the methods that it has",
    "target_too_long": "Path and query are too long",
    "head_too_long": "There are too many headers, or they are too long",
    "foreign_host": "The request is for a host that is not a name of the service (`[service] hosts`)",
    "foreign_origin": "The request is of a web page of another origin",
    "body_too_slow": "The body did not arrive in time (`[service] body_seconds`)",
    "body_too_large": "The body is too large (`[service] max_body_bytes`)",
    "unsupported_media_type": "`Content-Type` is another one than the route declares (it may be absent), or is that of "
    "Arrow, and the extra `arrow` is not installed",
    "unsupported_encoding": "The body has a `Content-Encoding`",
    "no_model": "No model is in production yet",
    "no_card": "The version in production was deployed before there were model cards",
    "invalid_arrow": "A table cannot be read: it is not a stream of Arrow, is compressed, or has unknown types",
    "invalid_inference_request": "A request of the Open Inference Protocol cannot be read",
    "unknown_model": "The path names another model than that of the project",
    "unknown_version": "The path names another version than that in production",
    "no_key": "Access is controlled, and the request has no key",
    "invalid_key": "The key or token is unknown, expired or revoked",
    "wrong_scope": "The key or token does not have the scope of the path",
    "too_many_requests": "The caller has sent more requests than `[access] rate`; `Retry-After` says when to try again",
    "no_issuer": "The public keys at `[access] jwks` cannot be read",
    "busy": "Too many requests are in progress (`[service] max_concurrency`), the request would wait too long "
    "(`max_wait_seconds`), or too many bytes are in flight (`max_bytes_in_flight`); `Retry-After` says when to try "
    "again",
}
ROUTES = {  # of BentoML, without a description in its document, or not in it
    "/predict": "Predict each row with the model in production.",
    "/explain": "Predict each row, and say [what each column contributed](../how-to/explain-a-prediction.md).",
    "/model": "The model in production: version, data digest, commit, metrics, classes, how labels are decided, and "
    "the schema of a request.",
    "/model/card": "The [model card](../how-to/write-a-model-card.md): HTML if `Accept` has it, else Markdown.",
    "/v2/models/{model}/infer": "As `/predict`, by the [Open Inference Protocol]"
    "(../how-to/use-the-open-inference-protocol.md).",
    "/v2/models/{model}/versions/{version}/infer": "The same, if that version is in production.",
    "/v2/models/{model}": "Inputs and outputs of the model, by that protocol.",
    "/v2/models/{model}/versions/{version}": "The same, if that version is in production.",
    "/v2": "The protocol's version and extensions.",
    "/livez": "200 while the process runs.",
    "/healthz": "The same.",
    "/readyz": "200 if a model is loaded, else 503: for load balancers.",
    "/v2/health/live": "As `/livez`, by the Open Inference Protocol.",
    "/v2/health/ready": "As `/readyz`, by that protocol.",
    "/v2/models/{model}/ready": "The same for the model.",
    "/v2/models/{model}/versions/{version}/ready": "The same, if that version is in production.",
    "/metrics": "The [metrics](metrics.md) for Prometheus.",
    "/docs.json": "The OpenAPI document, with the fields of the model in production.",
    "/schema.json": "BentoML's own description of the endpoints.",
    "/": "A page that shows the OpenAPI document and sends requests.",
    "/static_content/…": "The files of the page at `/`.",
}
ALERTS = {  # by kind: when it is raised; what to do
    "gate-refused": (
        "A gate refused a candidate, in `ml run` or in a scheduled run, or its contract would break callers, or it was "
        "rolled back before. The version in production stays.",
        "`ml report` shows the gates.",
    ),
    "drift": (
        "A window drifted or got worse, whether or not retraining is requested. Once for each window and verdict.",
        "`ml loop show` shows the columns and whether retraining is requested.",
    ),
    "retrained": (
        "The pipeline put a new version into production.",
        '`ml rollback --why "…"` puts the previous version back, if the new one is not wanted.',
    ),
    "rollout-promoted": (
        "A rollout ended with its version in production: by its checks, or by `ml rollout step`.",
        '`ml rollback --why "…"` puts the previous version back, if the new one is not wanted.',
    ),
    "rollout-withdrawn": (
        "A rollout ended without its version: a check was beyond its limit, it was not decided in time, or "
        "`ml rollout abort` or another version ended it. The version in production answers all requests.",
        "The artifact `rollout` in Prefect compares the two versions. Correct the cause, and train again.",
    ),
    "promoted": ("`ml promote` put a version into production.", "`ml status` shows the history."),
    "rolled-back": ("`ml rollback` put the previous version into production.", "`ml status` shows the history."),
    "released": (
        "`ml release` put a version into production in an environment, and verified it there.",
        "`ml release --to NAME --bundle BUNDLE` restores the previous version; the alert has the whole command.",
    ),
    "release-failed": (
        "A release could not be verified, or was killed. The previous version and image were restored.",
        "The alert has the reason. Correct it and release again.",
    ),
    "run-failed": (
        "A run failed, crashed, or ended three times with its process. A mistake in a command that is typed on a "
        "terminal raises no alert, because the command prints it there.",
        "Open the run in Prefect by the id in the alert; `ml doctor` checks the machine.",
    ),
    "log-dropped": (
        "A service could not log answers, because its disk is full. All answers were given.",
        "Make room where the store's `log` is; `[log] keep_bytes` limits what is kept.",
    ),
}
NEXT_RUN = "the next command, and the next run of the worker"
TRAINING = f"{NEXT_RUN}. With other values, the next `ml run` trains a version"
EFFECTS = {  # by section: what a change of it reaches, and when
    "store": "the next command. For the processes: `ml down`, then `ml up`",
    "project": "`ml down`, then `ml up`. Records of the old name stay where they are",
    "data": f"{NEXT_RUN}. If the table is read otherwise, or `window_days` differs, the next `ml run` trains a version",
    "fetch": NEXT_RUN,
    "split": TRAINING,
    "leakage": f"{NEXT_RUN}. With another `accept`, the next `ml run` trains a version",
    "train": TRAINING,
    "decision": TRAINING,
    "compute": "the next `ml tune`",
    "gates": f"{NEXT_RUN}. Nothing is trained again: a version that is not in production is evaluated again",
    "card": "the next `ml card`, `ml evaluate` or `ml deploy` that writes a card. Nothing is trained again",
    "deploy": f"{NEXT_RUN}: a bundle of the same version is made and loaded",
    "rollout": "`strategy`: the next `ml run`, `ml deploy` or `ml rollout start`. The shares: the next rollout. "
    "The limits: the next run of the rollout flow",
    "service": "`ml serve`: its next start. `ml up`: `ml down`, then `ml up`. A container: hosts and "
    "limits with the next bundle, or by a variable at its next start; `workers` by a variable alone",
    "access": "`ml serve`: its next start. `ml up`: `ml down`, then `ml up`. A container: by a variable at its next "
    "start, or by the next `ml release`",
    "log": "as `[service]` hosts and limits",
    "monitor": "the next `ml monitor`, and the next run of the worker. `metrics`: `ml down`, then `ml up`",
    "retrain": "the next `ml monitor`, and the next run of the worker",
    "ports": "`ml down`, then `ml up`",
    "alerts": "the next alert of a command or of a run. Alerts that the worker itself raises: `ml down`, then `ml up`",
    "retention": "`ml down`, then `ml up`. Compose and a server of your own have settings of their own",
    "environments": "the next `ml release`, `ml smoke` or `ml environments`",
}
VARIABLES = {  # read from the environment, and no setting of config.toml
    "ML_API_KEY": "The key that `ml release`, `ml smoke` and the monitor show to a service with access control.",
    "ML_BUNDLE": "The folder of one bundle that the service loads, instead of the version that `champion.json` names.",
    "ML_COMMIT": "The commit that a version records where there is no repository, as in the worker's image.",
    "ML_IMAGE": "The image that `ml release` runs on the environment's host; the default of `--image`.",
    "ML_LOG_KEY": 'The key of hashed columns in the prediction log (`[log] sensitive = "hash"`).',
    "ML_MLFLOW_AUTH_STRING": "The login that `ondol.registry.mlflow_server` asks for: a name, a colon and a password.",
    "ML_REDIS_PASSWORD": "The password of the Redis server at `[access] redis`, if it asks for one.",
}


# Text


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; a bar within a cell is escaped."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(text: str) -> str:
    """Return text as code; empty text stays empty."""
    return f"`{text}`" if text else ""


def require_same(described: Iterable[str], found: Iterable[str], what: str) -> None:
    """End the program where the code and a table of this script do not have the same entries."""
    if different := sorted({*described} ^ {*found}):
        raise SystemExit(f"{what} in {Path(__file__).name} and in the code differ: {', '.join(different)}.")


def sentence(text: str) -> str:
    """Return a description as a sentence on one line, with the names of docs pages as links."""
    text = " ".join(text.split())
    text = re.sub(r"\bdocs/([\w/-]+\.md)", r"[\1](../\1)", text)
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


# Settings


def read_attributes(model: type) -> tuple[str, dict[str, str]]:
    """Return what the docstring of a class says of it, and of each attribute."""
    about, _, listed = (inspect.getdoc(model) or "").partition("\nAttributes:\n")
    listed = re.split(r"\n\n", listed)[0]
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", listed, re.MULTILINE)
    return sentence(about), {name: sentence(text) for name, text in found}


def describe_type(schema: dict[str, Any]) -> str:
    """Return the type and the limits of a value in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(describe_type(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema or "const" in schema:
        return " or ".join(code(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]:,}" for name, sign in limits.items() if name in schema]
    kind = {"integer": "integer", "number": "number", "boolean": "`true` or `false`", "string": "text"}
    if (found := schema.get("type")) == "array":
        kind, _, limits = describe_type(schema["items"]).partition(" ")
        return f"list of {kind}s {limits}".strip()
    if found == "object":
        inner = schema.get("additionalProperties")
        return (
            f"table of {describe_type(inner)}s".replace("list of textss", "lists of texts")
            if inner is not True and inner
            else "table"
        )
    return " ".join([kind.get(str(found), "any"), ", ".join(bounds)]).strip()


def show_default(value: Any) -> str:
    """Return a default as TOML has it; "–" for a setting that is not set."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, int | float):
        return code(f"{value:_}" if value >= 100_000 else f"{value:g}")  # a port is written without a separator
    if isinstance(value, dict):
        return code("{}" if not value else json.dumps(value, ensure_ascii=False))
    return code(json.dumps(value if isinstance(value, str | list) else str(value), ensure_ascii=False))


def section(name: str, model: Any, variable: str, heading: str) -> str:
    """Return the part of the page on one section of config.toml."""
    about, attributes = read_attributes(model)
    for base in model.__mro__[1:]:  # [data] has the settings of a dialect too
        attributes = (read_attributes(base)[1] if hasattr(base, "model_fields") else {}) | attributes
    schema = model.model_json_schema()["properties"]
    required = model.model_json_schema().get("required", [])
    rows = []
    for key, entry in model.model_fields.items():
        if key not in attributes:
            raise SystemExit(f"{model.__name__}.{key} has no description: add it to the class's Attributes.")
        default = "required" if key in required else show_default(schema[key].get("default", entry.default))
        rows.append(
            (code(key), describe_type(schema[key]), default, code(f"{variable}__{key.upper()}"), attributes[key])
        )
    return f"{heading}\n\n{about}\n\n" + table(("key", "type", "default", "variable", "what it is"), rows)


def settings() -> Iterator[str]:
    """Yield the sections of config.toml."""
    from ondol.config import Settings

    top = read_attributes(Settings)[1]
    yield "## Top level\n\n" + table(
        ("key", "type", "default", "variable", "what it is"),
        [(code("store"), "text", show_default(Settings.model_fields["store"].default), code("ML_STORE"), top["store"])],
    )
    for name, entry in Settings.model_fields.items():
        if name in ("root", "store"):
            continue
        if model := get_args(entry.annotation):  # a table of sections
            yield section(name, model[1], f"ML_{name.upper()}__NAME", f"## [{name}.NAME]")
        else:
            yield section(name, entry.annotation, f"ML_{name.upper()}", f"## [{name}]")


def effects() -> Iterator[str]:
    """Yield when a change of each section takes effect."""
    from ondol.config import Settings

    require_same(EFFECTS, Settings.model_fields.keys() - {"root"}, "EFFECTS")
    names = {"store": "`store`", "environments": "`[environments.NAME]`"}
    rows = [(names.get(name, f"`[{name}]`"), EFFECTS[name]) for name in Settings.model_fields if name in EFFECTS]
    yield table(("section", "a change reaches"), rows)


def variables() -> Iterator[str]:
    """Yield the environment variables that are not settings."""
    yield table(("variable", "what it is"), ((code(name), text) for name, text in VARIABLES.items()))


# Commands


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command that does something, with its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    for name, below in (inner or {}).items():
        yield from walk(below, (*path, name))


def describe_parameter(parameter: Any) -> tuple[str, str, str, str]:
    """Return the name of an argument or option, its type, default and help."""
    flag = getattr(parameter, "is_flag", False)
    annotation = parameter.type_descriptor.annotation
    [inner] = get_args(annotation) or [annotation]  # of a list
    choices = ", ".join(code(one.value) for one in inner) if isinstance(inner, EnumType) else ""
    kind = "flag" if flag else choices or {str: "text", int: "integer", float: "number"}.get(inner, "path")
    if parameter.min is not None:
        kind += f", from {parameter.min:,}" + (f" to {parameter.max:,}" if parameter.max is not None else "")
    if parameter.required:
        default = "required"
    elif flag:
        names = parameter.opts if parameter.default else parameter.secondary_opts
        default = code(names[0]) if names else ""
    else:
        default = "" if parameter.default is None else code(str(parameter.default))
    about = sentence(parameter.help or "") + (f" Variable: {code(parameter.envvar)}." if parameter.envvar else "")
    return code(name_of(parameter)), kind, default, about


def name_of(parameter: Any) -> str:
    """Return an argument as in a usage line, and an option as it is typed."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def describe_command(path: tuple[str, ...], command: Any) -> str:
    """Return the part of the page on one command."""
    words = " ".join(path)
    parameters = [one for one in command.params if one.name != "help"]
    arguments = [one for one in parameters if one.param_type_name == "argument"]
    options = [one for one in parameters if one.param_type_name == "option"]
    usage = ["ml", words]
    usage += [name_of(one) if one.required else f"[{name_of(one)}]" for one in arguments]
    usage += [f"{one.opts[0]} {one.name.upper()}" for one in options if one.required]
    if any(not one.required for one in options):
        usage.append("[OPTIONS]")
    parts = [f"### ml {words}\n", f"```text\n{' '.join(usage)}\n```\n", f"{' '.join(command.help.split())}\n"]
    if arguments:
        parts.append(table(("argument", "type", "default", "what it is"), map(describe_parameter, arguments)))
    if options:
        parts.append(table(("option", "type", "default", "what it is"), map(describe_parameter, options)))
    if found := STATUSES.get(words):
        parts.append(table(("exit status", "when"), ((str(status), text) for status, text in found.items())))
    return "\n".join(parts)


def commands() -> Iterator[str]:
    """Yield every command in the order of its subject."""
    from typer.main import get_command

    from ondol.cli.app import app

    top: Any = get_command(app)
    options = [one for one in top.params if one.name != "help"]
    yield table(("option of `ml`", "type", "default", "what it is"), map(describe_parameter, options))
    require_same(STATUSES, STATUSES.keys() & {" ".join(path) for path, _ in walk(top)}, "STATUSES")
    for path, command in walk(top):
        yield describe_command(path, command)


def contents() -> Iterator[str]:
    """Yield a table of all commands."""
    from typer.main import get_command

    from ondol.cli.app import app

    rows = []
    for path, command in walk(get_command(app)):
        words = " ".join(path)
        rows.append((f"[`ml {words}`](#ml-{words.replace(' ', '-')})", sentence(command.help.partition("\n\n")[0])))
    yield table(("command", "what it does"), rows)


# The service


def load_service() -> Any:
    """Return the service of a new project, imported without its traces in the home of the user."""
    os.environ |= {"BENTOML_DO_NOT_TRACK": "True"}
    os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp(prefix="reference-"))
    from service.service import Service

    return Service


def find_routes() -> dict[str, tuple[str, ...]]:
    """Return the methods of each path that the service answers."""
    found: dict[str, tuple[str, ...]] = {}
    for route in load_service().to_asgi().routes:
        inner = getattr(route, "routes", None) or []
        if inner:
            found |= {route.path + one.path: tuple(sorted(one.methods)) for one in inner}
        elif getattr(route, "methods", None):
            found[route.path] = tuple(sorted(route.methods))
        else:
            found[f"{route.path}/…"] = ("GET", "HEAD")  # a folder of files
    return found


def routes() -> Iterator[str]:
    """Yield the paths, and the statuses of each: those of the OpenAPI document, and those of access control."""
    from ondol_serving.access import HEALTH, METRICS

    declared = load_service().openapi_spec.asdict()["paths"]
    rows = []
    require_same(ROUTES, found := find_routes(), "ROUTES")
    for path in ROUTES:
        operations = [one for name, one in declared.get(path, {}).items() if name != "parameters"]
        responses = {"200", *(str(status) for operation in operations for status in operation["responses"])}
        if path not in HEALTH:
            responses |= {"401", "403", "429"} if path == METRICS else {"401", "403", "421", "429"}
        if path == "/readyz":
            responses.add("503")
        rows.append((code(path), ", ".join(found[path]), ", ".join(sorted(responses)), ROUTES[path]))
    yield table(("path", "methods", "answers", "what it is"), rows)


def answers() -> Iterator[str]:
    """Yield what each status of `POST /predict` means."""
    responses = load_service().openapi_spec.asdict()["paths"]["/predict"]["post"]["responses"]
    rows = sorted((str(status), response["description"]) for status, response in responses.items())
    rows[0] = ("200", "The predictions")  # BentoML says: Successful Response
    yield table(("status", "meaning"), ((status, sentence(text)) for status, text in rows))


def find_refusals() -> set[tuple[int, str]]:
    """Return status and type of each refusal that the service's code writes."""
    found = set()
    for path in (ROOT / "packages" / "ondol-serving" / "src" / "ondol_serving").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or len(node.args) < 3:
                continue
            given = [one.value for one in node.args[:2] if isinstance(one, ast.Constant)]
            if len(given) == 2 and isinstance(given[0], int) and isinstance(given[1], str):
                found.add((given[0], given[1]))
    return found


def refusals() -> Iterator[str]:
    """Yield the types of refusals."""
    require_same(REFUSALS, (kind for _, kind in find_refusals()), "REFUSALS")
    rows = sorted((str(status), code(kind), REFUSALS[kind] + ".") for status, kind in find_refusals())
    yield table(("status", "type", "when"), rows)


def limits() -> Iterator[str]:
    """Yield what a request may cost: settings of the service, and constants."""
    from ondol.config import Service
    from ondol_serving import application, protocol, request
    from ondol_serving.settings import Limits

    attributes = read_attributes(Service)[1]
    rows = []
    for name, entry in Limits.model_fields.items():
        if name != "hosts":
            rows.append((code(f"[service] {name}"), show_default(entry.default), attributes[name]))
    fixed = [
        (f"{application.LONGEST_TARGET:,} bytes", "Path and query."),
        (f"{application.MOST_HEADERS:,}", "Headers of a request."),
        (f"{application.LONGEST_HEAD:,} bytes", "All headers of a request."),
        (f"{protocol.HEAD_SECONDS:g} s", "Time in which all headers must arrive."),
        (f"{protocol.READ_SECONDS:g} s", "Time in which a client must continue to read its answer."),
        (f"{request.MOST_ERRORS:,}", "Errors that one answer lists."),
    ]
    yield table(("limit", "default", "of what"), [*rows, *(("fixed", value, what) for value, what in fixed)])


# Metrics and alerts


def find_service_metrics() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Return name, type, labels and help of each metric that the service exposes; of a counter, with `_total`."""
    load_service()
    from prometheus_client.metrics import MetricWrapperBase

    from ondol_serving.metrics import counters, request_metrics

    made = [*vars(counters()).values(), *vars(request_metrics()).values()]
    found = [one for one in made if isinstance(one, MetricWrapperBase) and one._labelvalues == ()]
    return [
        (f"{one._name}_total" if one._type == "counter" else one._name, one._type, one._labelnames, one._documentation)
        for one in found
    ]


def metrics_of_service() -> Iterator[str]:
    """Yield the metrics of the service."""
    yield metric_table(find_service_metrics())


def metrics_of_worker() -> Iterator[str]:
    """Yield the metrics of the worker."""
    from ondol.monitoring.exporter import GAUGES

    yield metric_table((name, "gauge", labels, about) for name, (about, labels) in GAUGES.items())


def checks() -> Iterator[str]:
    """Yield the checks of `ml doctor`, in the order in which it prints them."""
    from ondol.cli.doctor import _checks

    names = [*(name for name, _ in _checks()), "files"]
    require_same(CHECKS, names, "CHECKS")
    yield table(("check", "what it checks", "`✗` when"), ((code(name), *CHECKS[name]) for name in names))


def metric_table(found: Iterable[tuple[str, str, tuple[str, ...], str]]) -> str:
    """Return a table of metrics."""
    rows = [(code(n), kind, ", ".join(map(code, labels)), sentence(about)) for n, kind, labels, about in found]
    return table(("metric", "type", "labels", "what it is"), rows)


def alerts() -> Iterator[str]:
    """Yield the kinds of alerts."""
    from ondol.orchestration.alerts import AlertKind

    require_same(ALERTS, get_args(AlertKind), "ALERTS")
    yield table(("kind", "when", "what to do"), ((code(kind), *ALERTS[kind]) for kind in get_args(AlertKind)))


def rules() -> Iterator[str]:
    """Yield the alert rules of Prometheus, a table for each group; the first sentence of each says what happened."""
    import yaml

    groups = yaml.safe_load((ROOT / "template" / "ops" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for group in groups:
        rows = []
        for rule in group["rules"]:
            text = re.sub(r"\{\{.*?\}\}", "…", rule["annotations"]["summary"])
            meaning, _, advice = text.partition(". ")
            severity = rule["labels"]["severity"]
            window = ", ".join(dict.fromkeys(re.findall(r"\[(\w+)\]", rule["expr"]))) or "now"
            lasting = rule.get("for", "at once")
            rows.append((code(rule["alert"]), severity, window, lasting, sentence(meaning), advice))
        head = ("alert", "severity", "measured over", "fires after", "meaning", "what to do")
        yield f"### Group {group['name']}\n\n" + table(head, rows)


# Pages

PAGES: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "settings.md": {"effects": effects, "settings": settings, "variables": variables},
    "commands.md": {"checks": checks, "contents": contents, "commands": commands},
    "http.md": {"routes": routes, "answers": answers, "refusals": refusals, "limits": limits},
    "metrics.md": {"service": metrics_of_service, "worker": metrics_of_worker},
    "alerts.md": {"alerts": alerts, "rules": rules},
}


def write_page(name: str, text: str) -> str:
    """Return the text of a page with its generated parts as the code is now."""
    blocks = PAGES[name]
    found = [match[2] for match in BLOCK.finditer(text)]
    if found != list(blocks):
        raise SystemExit(f"{name} has the generated parts {', '.join(found) or 'none'}, not {', '.join(blocks)}.")
    return BLOCK.sub(lambda match: f"{match[1]}\n" + "\n".join(blocks[match[2]]()) + f"\n{match[3]}", text)


def main(folder: Path) -> None:
    """Write the pages that differ."""
    for name in PAGES:
        text = write_page(name, (REFERENCE / name).read_text(encoding="utf-8"))
        path = folder / name
        same = path.exists() and path.read_text(encoding="utf-8") == text
        if not same:
            path.write_text(text, encoding="utf-8")
        print(f"{path} {'was' if same else 'is now'} up to date.")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE)
