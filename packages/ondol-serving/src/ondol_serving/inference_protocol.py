"""The Open Inference Protocol, version 2, over HTTP: how clients and gateways of KServe, Triton and others ask.

The tensors of a request become the rows of a request to `/predict`. So contract, limits, metrics and log are the same,
and so are the numbers. https://github.com/kserve/open-inference-protocol; tensors in binary form are the extension
`binary_tensor_data` of Triton.
"""

import asyncio
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json, to_json
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ondol_serving.access import MODEL
from ondol_serving.admission import HEAVY_BYTES
from ondol_serving.bundle import Bundle
from ondol_serving.contract import Column
from ondol_serving.endpoint import read_request
from ondol_serving.errors import RequestRefused
from ondol_serving.names import label_key
from ondol_serving.serving import NO_MODEL, serving

VERSION = "2"
EXTENSIONS = ["binary_tensor_data"]
HEADER_LENGTH = b"inference-header-content-length"  # of the JSON in front of binary tensors
NUMBERS = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
BYTES = "BYTES"
ANY_MODEL = "model"  # a name for the model of every project, beside its own


class Tensor(NamedTuple):
    """A column of values."""

    name: str
    datatype: str
    values: list[Any]


@dataclass(frozen=True)
class Inference:
    """A parsed request: its columns, and how the answer is wanted."""

    id: str
    tensors: list[Tensor]
    outputs: dict[str, bool]  # by name, whether in binary form; empty for all of them
    binary: bool  # the form of outputs that were not named


def input_datatype(column: Column) -> str:
    """Return the datatype of a column. NaN and an empty text are missing values, so a nullable column needs either."""
    if column.kind == "number" or (column.kind == "integer" and column.nullable):
        return "FP64"
    return {"integer": "INT64", "boolean": "BYTES" if column.nullable else "BOOL"}.get(column.kind, BYTES)


def describe_inputs(bundle: Bundle) -> list[dict[str, Any]]:
    """Return name, datatype and shape of each input: one for each feature."""
    return [{"name": c.name, "datatype": input_datatype(c), "shape": [-1]} for c in bundle.contract.features]


def describe_outputs(bundle: Bundle) -> list[dict[str, Any]]:
    """Return name, datatype and shape of each output; probabilities are in the order of the classes."""
    classes = bundle.contract.classes
    if classes is None:
        return [{"name": "value", "datatype": "FP32", "shape": [-1]}]
    return [
        {"name": "label", "datatype": BYTES, "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(classes)]},
    ]


def parse_inference(body: bytes, header_length: bytes | None, max_rows: int) -> Inference:
    """Parse a request.

    Raises:
        RequestRefused: it is not one.
    """
    header, binary = body, b""
    if header_length is not None:
        if not header_length.isdigit() or int(header_length) > len(body):
            raise _invalid("Inference-Header-Content-Length is not a length within the body")
        header, binary = body[: int(header_length)], body[int(header_length) :]
    try:
        request = from_json(header)
        parameters = request.get("parameters") or {}
        tensors = []
        for given in request["inputs"]:
            size = (given.get("parameters") or {}).get("binary_data_size")
            raw = None if size is None else binary[: int(size)]
            binary = binary[len(raw) :] if raw is not None else binary
            tensors.append(_read_tensor(given, raw, max_rows))
        by_default = bool(parameters.get("binary_data_output"))
        outputs = {
            str(wanted["name"]): bool((wanted.get("parameters") or {}).get("binary_data", by_default))
            for wanted in request.get("outputs") or ()
        }
        return Inference(str(request.get("id") or ""), tensors, outputs, by_default)
    except (AttributeError, KeyError, TypeError, ValueError, struct.error) as error:
        raise _invalid(f"The request cannot be read: {type(error).__name__}: {error}") from None


def _read_tensor(given: Mapping[str, Any], raw: bytes | None, max_rows: int) -> Tensor:
    name, datatype, shape = str(given["name"]), str(given["datatype"]), given["shape"]
    if not (isinstance(shape, list) and len(shape) in (1, 2) and shape[1:] in ([], [1])):
        raise _invalid(f"The shape of {name!r} is {shape}: a column has the shape [rows] or [rows, 1]")
    if datatype != BYTES and datatype not in NUMBERS:
        raise _invalid(f"The datatype of {name!r} is {datatype!r}: use BYTES or one of {', '.join(NUMBERS)}")
    rows = int(shape[0])
    if rows > max_rows:
        raise _invalid(f"A request may hold at most {max_rows} rows (max_rows)")
    if raw is None:
        values = [one for value in given["data"] for one in (value if isinstance(value, list) else [value])]
    elif datatype == BYTES:
        values = split_texts(raw)
    else:
        values = np.frombuffer(raw, NUMBERS[datatype]).tolist()
    if len(values) != rows:
        raise _invalid(f"{name!r} has {len(values)} values, and its shape says {rows}")
    return Tensor(name, datatype, values)


def split_texts(raw: bytes) -> list[str]:
    """Return the texts of a binary tensor: each follows its length in four bytes.

    Raises:
        ValueError: a length does not fit, or a text is not UTF-8.
        struct.error: a length is incomplete.
    """
    texts, place = [], 0
    while place < len(raw):
        [length] = struct.unpack_from("<I", raw, place)
        text = raw[place + 4 : place + 4 + length]
        if len(text) < length:
            raise ValueError("a text is shorter than its length")
        texts.append(text.decode())
        place += 4 + length
    return texts


def join_texts(texts: Iterable[str]) -> bytes:
    """Return texts as a binary tensor."""
    return b"".join(struct.pack("<I", len(text)) + text for text in (one.encode() for one in texts))


def to_rows(bundle: Bundle, tensors: list[Tensor]) -> bytes:
    """Return the body of a request to `/predict` with the rows of these columns.

    Raises:
        RequestRefused: the columns differ in length, or a name is repeated.
    """
    if len({len(tensor.values) for tensor in tensors}) != 1:
        raise _invalid("The inputs differ in their number of rows" if tensors else "The request has no inputs")
    kinds = {column.name: column.kind for column in bundle.contract.columns}
    columns = {tensor.name: _read_values(tensor, kinds.get(tensor.name, "")) for tensor in tensors}
    if len(columns) < len(tensors):
        raise _invalid("An input is there twice")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return to_json({"rows": rows}, inf_nan_mode="constants")


def _read_values(tensor: Tensor, kind: str) -> list[Any]:
    """Return the values as in JSON: None for NaN and for an empty text."""
    if tensor.datatype == BYTES:
        meanings = {"": None, "true": True, "false": False} if kind == "boolean" else {"": None}
        return [meanings.get(value, value) if isinstance(value, str) else value for value in tensor.values]
    if tensor.datatype.startswith("FP"):
        return [None if isinstance(value, float) and math.isnan(value) else value for value in tensor.values]
    return tensor.values


def write_outputs(bundle: Bundle, predictions: list[dict[str, Any]], wanted: Inference) -> tuple[list[Any], bytes]:
    """Return the outputs of an answer, and the content of those in binary form.

    Raises:
        RequestRefused: there is no such output.
    """
    columns: dict[str, Callable[[], list[Any]]] = {
        "value": lambda: [one["value"] for one in predictions],
        "label": lambda: ["" if one["label"] is None else label_key(one["label"]) for one in predictions],
        "probabilities": lambda: [p for one in predictions for p in one["probabilities"].values()],
    }
    described = {one["name"]: one for one in describe_outputs(bundle)}
    if unknown := wanted.outputs.keys() - described.keys():
        raise _invalid(f"The model has no output {min(unknown)!r}: it has {', '.join(described)}")
    outputs, content = [], b""
    for name, binary in (wanted.outputs or dict.fromkeys(described, wanted.binary)).items():
        values, datatype = columns[name](), described[name]["datatype"]
        output = described[name] | {"shape": [len(predictions), *described[name]["shape"][1:]]}
        if binary:
            raw = join_texts(values) if datatype == BYTES else np.array(values, dtype=NUMBERS[datatype]).tobytes()
            outputs.append(output | {"parameters": {"binary_data_size": len(raw)}})
            content += raw
        else:
            outputs.append(output | {"data": values})
    return outputs, content


def _invalid(message: str) -> RequestRefused:
    return RequestRefused(400, "invalid_inference_request", message)


def _find_bundle(scope: Scope, bundle: Bundle | None) -> Bundle:
    """Return the bundle of the model and version in the path.

    Raises:
        RequestRefused: there is no model, or it has another name or version.
    """
    parts = scope["path"].strip("/").split("/")  # v2, models, MODEL, and perhaps versions, VERSION
    if bundle is None:
        raise RequestRefused(503, "no_model", NO_MODEL)
    name = str(bundle.meta.get("name") or ANY_MODEL)
    if parts[2] not in (name, ANY_MODEL):
        raise RequestRefused(404, "unknown_model", f"There is no such model: this service has {name!r}")
    if len(parts) > 4 and parts[3] == "versions" and parts[4] != bundle.version:
        raise RequestRefused(
            404, "unknown_version", f"Version {bundle.version} is in production, and no other is loaded"
        )
    return bundle


async def show_server(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /v2`."""
    await JSONResponse({"name": "ondol", "version": VERSION, "extensions": EXTENSIONS})(scope, receive, send)


async def show_live(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /v2/health/live`."""
    await JSONResponse({"live": True})(scope, receive, send)


async def show_ready(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /v2/health/ready`."""
    ready = serving.bundle is not None
    await JSONResponse({"ready": ready}, 200 if ready else 503)(scope, receive, send)


async def show_model_ready(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /v2/models/MODEL/ready`."""
    bundle = _find_bundle(scope, serving.bundle)
    await JSONResponse({"name": bundle.meta.get("name"), "ready": True})(scope, receive, send)


async def show_model(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /v2/models/MODEL`."""
    bundle = _find_bundle(scope, serving.bundle)
    about = {
        "name": str(bundle.meta.get("name") or ANY_MODEL),
        "versions": [bundle.version],
        "platform": "onnx_onnxv1" if bundle.meta.get("runtime", "onnx") == "onnx" else "sklearn_skops",
        "inputs": describe_inputs(bundle),
        "outputs": describe_outputs(bundle),
    }
    await JSONResponse(about)(scope, receive, send)


async def answer_infer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `POST /v2/models/MODEL/infer`; an ASGI application behind `Application`, which has read the body."""
    bundle = _find_bundle(scope, scope["bundle"])
    length = dict(scope["headers"]).get(HEADER_LENGTH)

    def parse() -> tuple[Inference, bytes]:
        wanted = parse_inference(scope["body"], length, bundle.limits.max_rows)
        return wanted, to_rows(bundle, wanted.tensors)

    heavy = len(scope["body"]) > HEAVY_BYTES
    wanted, rows = await asyncio.to_thread(parse) if heavy else parse()
    request = await read_request({**scope, "body": rows})
    if isinstance(request, Response):
        return await request(scope, receive, send)
    predictions = from_json(await serving.batcher.answer(request))["predictions"]
    outputs, content = write_outputs(bundle, predictions, wanted)
    about = {
        "model_name": str(bundle.meta.get("name") or ANY_MODEL),
        "model_version": bundle.version,
        "id": wanted.id or request.request_id,
        "outputs": outputs,
    }
    header = json.dumps(about, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    headers = {"X-Request-ID": request.request_id}
    if content:
        headers |= {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    else:
        headers["Content-Type"] = "application/json"
    await Response(header + content, headers=headers)(scope, receive, send)


INFER = tuple(f"{path}/infer" for path in MODEL)
ROUTES: dict[str, tuple[str, ASGIApp]] = {  # method and application by path
    "/v2": ("GET", show_server),
    "/v2/health/live": ("GET", show_live),
    "/v2/health/ready": ("GET", show_ready),
    **dict.fromkeys(MODEL, ("GET", show_model)),
    **dict.fromkeys((f"{path}/ready" for path in MODEL), ("GET", show_model_ready)),
    **dict.fromkeys(INFER, ("POST", answer_infer)),
}
