"""The Open Inference Protocol, version 2, over HTTP: how clients and gateways of KServe, Triton and others ask.

The tensors of a request become the rows of a request to `/predict`. So contract, limits, metrics and log are the same,
and so are the numbers. https://github.com/kserve/open-inference-protocol; tensors in binary form are the extension
`binary_tensor_data` of Triton.
"""

import asyncio
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json, to_json
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ondol_serving.access import MODEL
from ondol_serving.admission import HEAVY_BYTES
from ondol_serving.answers import Accepted
from ondol_serving.bundle import Bundle
from ondol_serving.callers import HeaderPair
from ondol_serving.contract import Column
from ondol_serving.endpoint import answer_request, read_rows
from ondol_serving.errors import RequestRefused
from ondol_serving.names import label_key
from ondol_serving.request import LONGEST_NAME, shorten
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
LENGTH = re.compile(rb"[0-9]{1,12}")
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
    outputs: dict[str, bool]  # by name, whether in binary form


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


def parse_inference(body: bytes, header_length: bytes | None, bundle: Bundle) -> Inference:
    """Parse a request.

    Raises:
        RequestRefused: it is not one, or names inputs or outputs that the model does not have.
    """
    header, binary = memoryview(body), memoryview(b"")
    if header_length is not None:
        if not LENGTH.fullmatch(header_length) or int(header_length) > len(body):
            raise invalid("Inference-Header-Content-Length is not a length within the body")
        header, binary = header[: int(header_length)], header[int(header_length) :]
    place = 0
    try:
        request = from_json(bytes(header))
        parameters = request.get("parameters") or {}
        require_inputs(bundle, [given["name"] for given in request["inputs"]])
        tensors = []
        for given in request["inputs"]:
            size = (given.get("parameters") or {}).get("binary_data_size")
            if size is not None and not (type(size) is int and 0 <= size <= len(binary) - place):
                raise invalid(f"The binary_data_size of {given['name']!r} is not a size within the body")
            raw = None if size is None else bytes(binary[place : place + size])
            place += size or 0
            name, datatype = str(given["name"]), str(given["datatype"])
            read = partial(_flatten, given) if raw is None else partial(decode_values, datatype, raw)
            tensors.append(read_tensor(name, datatype, given["shape"], bundle, read))
        by_default = bool(parameters.get("binary_data_output"))
        outputs = {
            str(wanted["name"]): bool((wanted.get("parameters") or {}).get("binary_data", by_default))
            for wanted in request.get("outputs") or ()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise invalid(f"The request cannot be read: {type(error).__name__}: {error}") from None
    if place < len(binary):
        raise invalid("The body is longer than its binary tensors")
    require_outputs(bundle, outputs)
    all_outputs = dict.fromkeys((one["name"] for one in describe_outputs(bundle)), by_default)
    return Inference(str(request.get("id") or ""), tensors, outputs or all_outputs)


def require_inputs(bundle: Bundle, names: list[Any]) -> None:
    """Check the names of inputs before their values are read: their number is limited by that.

    Raises:
        RequestRefused: there is none, one is there twice, or is not a column of the contract.
    """
    known = {column.name for column in bundle.contract.columns}
    if not names:
        raise invalid("The request has no inputs")
    if unknown := next((name for name in names if name not in known), None):
        raise invalid(f"The model has no input {shorten(str(unknown), LONGEST_NAME)!r}")
    if len(set(names)) < len(names):
        raise invalid("An input is there twice")


def require_outputs(bundle: Bundle, names: Iterable[str]) -> None:
    """Check the names of outputs.

    Raises:
        RequestRefused: the model does not have one.
    """
    known = [one["name"] for one in describe_outputs(bundle)]
    if unknown := next((name for name in names if name not in known), None):
        raise invalid(f"The model has no output {shorten(unknown, LONGEST_NAME)!r}: it has {', '.join(known)}")


def _flatten(given: Mapping[str, Any]) -> list[Any]:
    """Return the values of an input in JSON, which may be nested by its shape."""
    return [one for value in given["data"] for one in (value if isinstance(value, list) else [value])]


def read_tensor(name: str, datatype: str, shape: Any, bundle: Bundle, read: Callable[[], list[Any]]) -> Tensor:
    """Return a column whose values `read` returns, after its datatype and shape have been checked.

    Raises:
        RequestRefused: datatype or shape is not one of a column, there are too many rows, or not as many values.
    """
    if not (isinstance(shape, list) and shape and shape[1:] in ([], [1]) and type(shape[0]) is int and shape[0] >= 0):
        shown = shorten(str(shape), LONGEST_NAME)
        raise invalid(f"The shape of {name!r} is {shown}: a column has the shape [rows] or [rows, 1]")
    if datatype != BYTES and datatype not in NUMBERS:
        datatype = shorten(datatype, LONGEST_NAME)
        raise invalid(f"The datatype of {name!r} is {datatype!r}: use BYTES or one of {', '.join(NUMBERS)}")
    if shape[0] > bundle.limits.max_rows:
        raise invalid(f"A request may hold at most {bundle.limits.max_rows} rows (max_rows)")
    values = read()
    if len(values) != shape[0]:
        raise invalid(f"{name!r} has {len(values)} values, and its shape says {shape[0]}")
    return Tensor(name, datatype, values)


def decode_values(datatype: str, raw: bytes) -> list[Any]:
    """Return the values of a binary tensor.

    Raises:
        ValueError: they are not of this datatype.
    """
    return split_texts(raw) if datatype == BYTES else list(np.frombuffer(raw, NUMBERS[datatype]).tolist())


def encode_values(datatype: str, values: list[Any]) -> bytes:
    """Return values as a binary tensor; None among numbers becomes NaN."""
    return join_texts(values) if datatype == BYTES else np.array(values, dtype=NUMBERS[datatype]).tobytes()


def split_texts(raw: bytes) -> list[str]:
    """Return the texts of a binary tensor: each follows its length in four bytes.

    Raises:
        ValueError: a length does not fit, or a text is not UTF-8.
    """
    texts, place = [], 0
    while place < len(raw):
        if place + 4 > len(raw):
            raise ValueError("a length is incomplete")
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
        RequestRefused: the columns differ in length.
    """
    if len({len(tensor.values) for tensor in tensors}) != 1:
        raise invalid("The inputs differ in their number of rows")
    kinds = {column.name: column.kind for column in bundle.contract.columns}
    columns = {tensor.name: _read_values(tensor, kinds.get(tensor.name, "")) for tensor in tensors}
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


def select_outputs(
    bundle: Bundle, predictions: list[dict[str, Any]], names: Iterable[str]
) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Yield name, datatype and shape of the named outputs, of all if none is named, with their values."""
    columns: dict[str, Callable[[], list[Any]]] = {
        "value": lambda: [one["value"] for one in predictions],
        "label": lambda: ["" if one["label"] is None else label_key(one["label"]) for one in predictions],
        "probabilities": lambda: [p for one in predictions for p in one["probabilities"].values()],
    }
    described = {one["name"]: one for one in describe_outputs(bundle)}
    for name in dict.fromkeys(names) or described:
        yield described[name] | {"shape": [len(predictions), *described[name]["shape"][1:]]}, columns[name]()


def write_outputs(bundle: Bundle, predictions: list[dict[str, Any]], wanted: Inference) -> tuple[list[Any], bytes]:
    """Return the outputs of an answer, and the content of those in binary form."""
    outputs, content = [], b""
    for output, values in select_outputs(bundle, predictions, wanted.outputs):
        if wanted.outputs[output["name"]]:
            raw = encode_values(output["datatype"], values)
            outputs.append(output | {"parameters": {"binary_data_size": len(raw)}})
            content += raw
        else:
            outputs.append(output | {"data": values})
    return outputs, content


def invalid(message: str) -> RequestRefused:
    """Return the refusal of a request that is not one of this protocol."""
    return RequestRefused(400, "invalid_inference_request", message)


def model_name(bundle: Bundle) -> str:
    """Return the name of the model: that of the project."""
    return str(bundle.meta.get("name") or ANY_MODEL)


def find_bundle(bundle: Bundle | None, name: str, version: str | None = None) -> Bundle:
    """Return the bundle in production, or the challenger of a rollout, if it is that of the named model and version.

    Raises:
        RequestRefused: there is no model, or it has another name or version.
    """
    if bundle is None:
        raise RequestRefused(503, "no_model", NO_MODEL)
    if name not in (model_name(bundle), ANY_MODEL):
        raise RequestRefused(404, "unknown_model", f"There is no such model: this service has {model_name(bundle)!r}")
    if version and version != bundle.version:
        rollout = serving.rollout
        if rollout is not None and version == rollout.challenger.version:
            return rollout.challenger
        message = f"Version {bundle.version} is in production, and no other is loaded"
        raise RequestRefused(404, "unknown_version", message)
    return bundle


def describe_model(bundle: Bundle) -> dict[str, Any]:
    """Return the metadata of the model."""
    rollout = serving.rollout
    return {
        "name": model_name(bundle),
        "versions": [bundle.version] + ([rollout.challenger.version] if rollout else []),
        "platform": "onnx_onnxv1" if bundle.meta.get("runtime", "onnx") == "onnx" else "sklearn_skops",
        "inputs": describe_inputs(bundle),
        "outputs": describe_outputs(bundle),
    }


def _named_in_path(scope: Scope, bundle: Bundle | None) -> Bundle:
    """Return `bundle` if it is that of the model, and of the version if there is one, in a path.

    Raises:
        RequestRefused: there is none.
    """
    parts = scope["path"].strip("/").split("/")  # v2, models, MODEL, versions, VERSION
    return find_bundle(bundle, parts[2], parts[4] if parts[3:4] == ["versions"] else None)


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
    """Answer `GET /v2/models/MODEL/ready`; it needs no key, so it names neither the model nor its version."""
    try:
        _named_in_path(scope, serving.bundle)
    except RequestRefused as refused:
        status = refused.answer.status_code
        return await JSONResponse({"ready": False}, status)(scope, receive, send)
    await JSONResponse({"ready": True})(scope, receive, send)


async def show_model(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `GET /v2/models/MODEL`."""
    await JSONResponse(describe_model(_named_in_path(scope, serving.bundle)))(scope, receive, send)


async def answer_infer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `POST /v2/models/MODEL/infer`; an ASGI application behind `Application`, which has read the body."""
    bundle = _named_in_path(scope, scope["bundle"])
    body, length = scope["body"], dict(scope["headers"]).get(HEADER_LENGTH)
    heavy = len(body) > HEAVY_BYTES
    parse = partial(parse_inference, body, length, bundle)
    wanted = await asyncio.to_thread(parse) if heavy else parse()
    headers = None if scope["path"].count("/") > 4 else scope["headers"]  # with a version, no other may answer
    request, predictions = await predict_tensors(bundle, wanted.tensors, heavy, headers)
    write = partial(write_answer, predictions, wanted, request)
    answer = await asyncio.to_thread(write) if heavy else write()
    await answer(scope, receive, send)


def write_answer(predictions: list[dict[str, Any]], wanted: Inference, request: Accepted) -> Response:
    """Return the answer over HTTP."""
    bundle = request.bundle
    outputs, content = write_outputs(bundle, predictions, wanted)
    about = {
        "model_name": model_name(bundle),
        "model_version": bundle.version,
        "parameters": {"role": request.role},
        "id": wanted.id or request.request_id,
        "outputs": outputs,
    }
    header = json.dumps(about, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    headers = {"X-Request-ID": request.request_id, "Content-Type": "application/json"}
    if content:
        headers |= {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    return Response(header + content, headers=headers)


async def predict_tensors(
    bundle: Bundle, tensors: list[Tensor], heavy: bool, headers: Iterable[HeaderPair] | None
) -> tuple[Accepted, list[dict[str, Any]]]:
    """Return a request that was predicted and logged, and its predictions.

    Args:
        bundle: The bundle in production, or the one that the request asks for.
        tensors: The columns of the request.
        heavy: Whether the request is large, so that the event loop must stay free.
        headers: The request's headers, if a rollout may choose the challenger instead.

    Raises:
        RequestRefused: the columns do not match the contract.
    """
    rows = await asyncio.to_thread(to_rows, bundle, tensors) if heavy else to_rows(bundle, tensors)
    request, answer = await answer_request(await read_rows(bundle, rows, headers))
    found = await asyncio.to_thread(from_json, answer) if heavy else from_json(answer)
    return request, found["predictions"]


INFER = tuple(f"{path}/infer" for path in MODEL)
ROUTES: dict[str, tuple[str, ASGIApp]] = {  # method and application by path
    "/v2": ("GET", show_server),
    "/v2/health/live": ("GET", show_live),
    "/v2/health/ready": ("GET", show_ready),
    **dict.fromkeys(MODEL, ("GET", show_model)),
    **dict.fromkeys((f"{path}/ready" for path in MODEL), ("GET", show_model_ready)),
    **dict.fromkeys(INFER, ("POST", answer_infer)),
}
