"""The documentation of the model in production: the OpenAPI document, and the page at `/`."""

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import bentoml
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from ondol_serving.access import HEALTH
from ondol_serving.bundle import Bundle
from ondol_serving.inference_protocol import ROUTES
from ondol_serving.serving import serving

PAGE = Path(bentoml.__file__).parents[1] / "_bentoml_impl" / "server" / "main-openapi.html"
TRACKER = re.compile(r"<!-- Google Tag Manager.*?<!-- End Google Tag Manager[^>]*-->", re.DOTALL)
UNFRAMED = {"X-Frame-Options": "DENY", "Content-Security-Policy": "frame-ancestors 'none'"}
NAMED = "<style>.info .main .title { visibility: visible } .info .main .title span { position: static }</style></head>"
REFERENCE = "#/components/schemas/{model}"
ERROR = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string", "description": "What is wrong, in one sentence."},
        "detail": {
            "type": "array",
            "description": "Each thing that is wrong, of at most fifty.",
            "items": {
                "type": "object",
                "required": ["type", "loc", "msg"],
                "properties": {
                    "type": {"type": "string"},
                    "loc": {
                        "type": "array",
                        "description": 'Where: ["rows", 0, "a column"]; empty for the request itself.',
                        "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                    },
                    "msg": {"type": "string"},
                },
            },
        },
    },
}
CALLERS = {
    401: "The key or token is missing or not valid, where access is controlled",
    403: "The request is of another origin's web page, or the key has another scope",
    429: "The caller has sent more requests than its rate; `Retry-After` says when to try again",
    421: "The request is for a host that is not one of the service's",
}
REFUSALS = {
    400: "The body does not match the contract: each wrong field",
    **CALLERS,
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not declared as application/json or as a table of Arrow, or is encoded",
    429: "The caller has sent more requests than its rate; `Retry-After` says when to try again",
    500: "The service failed",
    503: "There is no model yet, or more is asked than can be served; then `Retry-After` says when to try again",
}

EXPLAINED = dict(sorted((REFUSALS | {409: "An explanation is wanted, and the model has none"}).items()))


class Document:
    """The document that BentoML writes as `/docs.json`."""

    def __init__(self, document: dict[str, Any]) -> None:
        """Store `document`."""
        self._document = document

    def asdict(self) -> dict[str, Any]:
        """Return the document."""
        return self._document


class DocumentedService(bentoml.Service[Any]):
    """A BentoML service whose documentation shows the types of the bundle that it serves."""

    _made: tuple[Bundle | None, Document] | None = None

    @property
    def doc(self) -> str:
        """The text at the top of the page; BentoML's own text loads badges from other hosts."""
        return inspect.getdoc(self.inner) or ""

    @property
    def openapi_spec(self) -> Any:
        """BentoML's document with the bundle's request type, and our own routes; cached by bundle."""
        bundle = serving.bundle
        if self._made is None or self._made[0] is not bundle:
            self._made = bundle, Document(self._describe(bundle))
        return self._made[1]

    def _describe(self, bundle: Bundle | None) -> dict[str, Any]:
        document: dict[str, Any] = super().openapi_spec.asdict()
        document["info"].pop("contact", None)
        document["components"]["schemas"]["Error"] = ERROR
        document["paths"]["/model"] = {"get": _describe_model()}
        document["paths"]["/model/card"] = {"get": _describe_card()}
        document["paths"] |= {path: _describe_protocol(path) for path in ROUTES}
        operation = document["paths"]["/predict"]["post"]
        # BentoML's keys are numbers: text keys would appear in the document a second time.
        operation["responses"] = {"200": operation["responses"][200]} | _describe(EXPLAINED)
        if bundle is not None:
            add_types(document, bundle)
        # The same request, or an endpoint of the project.
        document["paths"].setdefault("/explain", {"post": _describe_explain(operation["requestBody"])})
        return document


def add_types(document: dict[str, Any], bundle: Bundle) -> None:
    """Replace the generic request type by that of the bundle, with its example."""
    schema = bundle.request_type.model_json_schema(ref_template=REFERENCE)
    definitions = schema.pop("$defs", {})
    document["components"]["schemas"] |= definitions | {"PredictRequest": schema | {"title": "PredictRequest"}}
    content: dict[str, Any] = {"schema": {"$ref": REFERENCE.format(model="PredictRequest")}}
    if bundle.meta.get("example"):
        content["example"] = bundle.meta["example"]
    operation = document["paths"]["/predict"]["post"]
    operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    document["info"] |= {"title": bundle.meta.get("name") or "model", "version": bundle.version}


def _describe_model() -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    found = {"200": {"description": "The model", "content": content}}
    return {
        "tags": ["Service APIs"],
        "description": "The model in production: version, data digest, commit, metrics, schema.",
        "responses": found | _describe(CALLERS | {503: "There is no model yet"}),
    }


def _describe_card() -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string"}} for media_type in ("text/html", "text/markdown")}
    found = {"200": {"description": "The model card", "content": content}}
    refusals = CALLERS | {404: "The model was deployed before there were model cards", 503: "There is no model yet"}
    return {
        "tags": ["Service APIs"],
        "description": "The model card of the model in production, as of its deployment.",
        "responses": found | _describe(dict(sorted(refusals.items()))),
    }


def _describe_explain(request: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": REFERENCE.format(model="PredictResponse")}}}
    found = {"200": {"description": "The predictions and their explanation", "content": content}}
    return {
        "tags": ["Service APIs"],
        "description": "Predict each row, and return what each column contributed. It is not logged.",
        "requestBody": request,
        "responses": found | _describe(EXPLAINED),
    }


def _describe_protocol(path: str) -> dict[str, Any]:
    """Return the description of a path of the Open Inference Protocol."""
    method, application = ROUTES[path]
    content = {"application/json": {"schema": {"type": "object"}}}
    refusals = {404: "There is no such model or version"} if "{model}" in path else {}
    if method == "POST":
        refusals |= REFUSALS
    elif path not in HEALTH:
        refusals |= CALLERS
    if path not in ("/v2", "/v2/health/live"):
        refusals |= {503: REFUSALS[503] if method == "POST" else "There is no model yet"}
    operation: dict[str, Any] = {
        "tags": ["Open Inference Protocol"],
        "description": inspect.getdoc(application),
        "responses": {"200": {"description": "The answer", "content": content}}
        | _describe(dict(sorted(refusals.items()))),
    }
    if method == "POST":
        operation["requestBody"] = {"required": True, "content": content}
    named = re.findall(r"{(\w+)}", path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in named]
    return {"parameters": parameters, method.lower(): operation}


def _describe(refusals: dict[int, str]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": REFERENCE.format(model="Error")}}}
    return {str(status): {"description": text, "content": content} for status, text in refusals.items()}


async def show_page(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /` by BentoML's own page, with the model's name, which BentoML's style hides, and without a tracker.

    The tracker would be loaded from Google.
    """
    await HTMLResponse(read_page(), headers=UNFRAMED)(scope, receive, send)


@cache
def read_page() -> str:
    """Return the page."""
    return TRACKER.sub("", PAGE.read_text(encoding="utf-8")).replace("</head>", NAMED)
