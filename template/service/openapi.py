"""The OpenAPI document of the model in service."""

import inspect
from typing import Any

import bentoml

from service.bundle import Bundle
from service.serving import serving

REFERENCE = "#/components/schemas/{model}"


class Document:
    """What BentoML writes as `/docs.json`."""

    def __init__(self, document: dict[str, Any]) -> None:
        """Hold `document`."""
        self._document = document

    def asdict(self) -> dict[str, Any]:
        """Return the document."""
        return self._document


class TypedService(bentoml.Service[Any]):
    """A BentoML service whose documentation shows the types of the bundle that it serves."""

    @property
    def doc(self) -> str:
        """What the page says at its head: not BentoML's own text, whose badges are loaded from other hosts."""
        return inspect.getdoc(self.inner) or ""

    @property
    def openapi_spec(self) -> Any:
        """BentoML's document with the request type of the bundle in service, and `/model`."""
        document = super().openapi_spec.asdict()
        document["info"].pop("contact", None)
        document["paths"]["/model"] = {"get": _describe_model()}
        if serving.bundle is not None:
            add_types(document, serving.bundle)
        return Document(document)


def add_types(document: dict[str, Any], bundle: Bundle) -> None:
    """Put the bundle's request type, and its example, in place of the envelope."""
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
    return {
        "tags": ["Service APIs"],
        "description": "The model in service: version, data digest, commit, metrics, schema.",
        "responses": {
            "200": {
                "description": "The model",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            "503": {"description": "There is no model yet"},
        },
    }
