"""The Open Inference Protocol over gRPC, on a port of its own; needs the extra `grpc`.

BentoML's own gRPC server does not run services of its current kind. Access control, limits, metrics and the log are
those of HTTP.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from ondol_serving.access import HEALTH, MODEL, find_listening_host
from ondol_serving.admission import HEAVY_BYTES, Busy
from ondol_serving.bundle import Bundle
from ondol_serving.callers import read_headers
from ondol_serving.errors import RequestRefused
from ondol_serving.grpc_messages import MESSAGE, SERVICE
from ondol_serving.inference_protocol import (
    BYTES,
    EXTENSIONS,
    INFER,
    NUMBERS,
    VERSION,
    Inference,
    Tensor,
    describe_model,
    find_bundle,
    join_texts,
    model_name,
    predict_tensors,
    require_rows,
    split_texts,
    write_outputs,
)
from ondol_serving.metrics import request_metrics
from ondol_serving.serving import serving
from ondol_serving.settings import read_limits

CONTENTS = {  # the field of the values of a datatype
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
FAILED = "An unexpected error has occurred, please check the server log."

log = logging.getLogger("bentoml.service")


class Method(NamedTuple):
    """A method: what answers it, and the route over HTTP whose access it shares."""

    answer: Callable[[Any], Awaitable[Any]]
    route: str


async def answer_live(_: Any) -> Any:
    """Answer `ServerLive`."""
    return MESSAGE["ServerLiveResponse"](live=True)


async def answer_ready(_: Any) -> Any:
    """Answer `ServerReady`."""
    return MESSAGE["ServerReadyResponse"](ready=serving.bundle is not None)


async def answer_model_ready(request: Any) -> Any:
    """Answer `ModelReady`."""
    try:
        find_bundle(serving.bundle, request.name, request.version)
    except RequestRefused:
        return MESSAGE["ModelReadyResponse"](ready=False)
    return MESSAGE["ModelReadyResponse"](ready=True)


async def answer_server_metadata(_: Any) -> Any:
    """Answer `ServerMetadata`."""
    return MESSAGE["ServerMetadataResponse"](name="ondol", version=VERSION, extensions=EXTENSIONS)


async def answer_model_metadata(request: Any) -> Any:
    """Answer `ModelMetadata`."""
    about = describe_model(find_bundle(serving.bundle, request.name, request.version))
    return MESSAGE["ModelMetadataResponse"](**about)


async def answer_infer(request: Any) -> Any:
    """Answer `ModelInfer`: with raw contents if the request has some."""
    bundle = find_bundle(serving.bundle, request.model_name, request.model_version)
    size = request.ByteSize()
    heavy = size > HEAVY_BYTES
    try:
        work = serving.load.begin(size, bundle.limits.max_wait_seconds)
        if work.waits:
            await work.wait()
    except Busy as busy:
        raise RequestRefused(503, "busy", f"The service is busy: try again in {busy.retry_after} s") from None
    try:
        tensors = await asyncio.to_thread(read_tensors, request, bundle) if heavy else read_tensors(request, bundle)
        request_id, predictions = await predict_tensors(bundle, tensors, heavy)
    finally:
        work.end()
    return write_response(request, bundle, request_id, predictions)


def read_tensors(request: Any, bundle: Bundle) -> list[Tensor]:
    """Return the columns of a request.

    Raises:
        RequestRefused: they cannot be read.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise RequestRefused(400, "invalid_inference_request", "raw_input_contents and inputs differ in their number")
    tensors = []
    for number, one in enumerate(request.inputs):
        rows = require_rows(one.name, one.datatype, list(one.shape), bundle.limits.max_rows)
        try:
            values = _read_raw(one.datatype, raw[number]) if raw else _read_contents(one)
        except (KeyError, ValueError) as error:
            message = f"{one.name!r} cannot be read: {type(error).__name__}: {error}"
            raise RequestRefused(400, "invalid_inference_request", message) from None
        if len(values) != rows:
            message = f"{one.name!r} has {len(values)} values, and its shape says {rows}"
            raise RequestRefused(400, "invalid_inference_request", message)
        tensors.append(Tensor(one.name, one.datatype, values))
    return tensors


def _read_raw(datatype: str, raw: bytes) -> list[Any]:
    return split_texts(raw) if datatype == BYTES else list(np.frombuffer(raw, NUMBERS[datatype]).tolist())


def _read_contents(tensor: Any) -> list[Any]:
    values = getattr(tensor.contents, CONTENTS[tensor.datatype])
    return [value.decode() for value in values] if tensor.datatype == BYTES else list(values)


def write_response(request: Any, bundle: Bundle, request_id: str, predictions: list[dict[str, Any]]) -> Any:
    """Return the answer to `ModelInfer`.

    Raises:
        RequestRefused: an output that is asked for does not exist.
    """
    wanted = Inference(request.id, [], {one.name: False for one in request.outputs}, False)
    outputs, _ = write_outputs(bundle, predictions, wanted)
    response = MESSAGE["ModelInferResponse"](
        model_name=model_name(bundle), model_version=bundle.version, id=request.id or request_id
    )
    for one in outputs:
        values, datatype = one["data"], one["datatype"]
        output = response.outputs.add(name=one["name"], datatype=datatype, shape=one["shape"])
        if request.raw_input_contents:
            array = None if datatype == BYTES else np.array(values, dtype=NUMBERS[datatype])  # None becomes NaN
            response.raw_output_contents.append(join_texts(values) if array is None else array.tobytes())
        elif datatype == BYTES:
            output.contents.bytes_contents.extend(value.encode() for value in values)
        else:
            getattr(output.contents, CONTENTS[datatype]).extend(np.nan if v is None else v for v in values)
    return response


METHODS = {
    "ServerLive": Method(answer_live, "/v2/health/live"),
    "ServerReady": Method(answer_ready, "/v2/health/ready"),
    "ModelReady": Method(answer_model_ready, f"{MODEL[0]}/ready"),
    "ServerMetadata": Method(answer_server_metadata, "/v2"),
    "ModelMetadata": Method(answer_model_metadata, MODEL[0]),
    "ModelInfer": Method(answer_infer, INFER[0]),
}


def handle(name: str, method: Method) -> Any:
    """Return gRPC's handler of a method: it checks access, counts the request, and answers errors."""
    label = f"/{SERVICE}/{name}"

    async def answer(request: Any, context: Any) -> Any:
        metrics, started = request_metrics(), time.perf_counter()
        metrics.begin(label)
        status, message, reply = 200, "", None
        try:
            if method.route not in HEALTH and serving.access.active:
                await serving.access.admit(method.route, read_metadata(context), context.peer())
            reply = await method.answer(request)
        except RequestRefused as refused:
            status, message = refused.answer.status_code, str(refused)
        except Exception:
            log.exception("Exception on %s", label)
            status, message = 500, FAILED
        finally:
            metrics.end(label)
        metrics.count(label, status, time.perf_counter() - started)
        if reply is None:
            await context.abort(STATUSES.get(status, grpc.StatusCode.INTERNAL), message)
        return reply

    request, response = MESSAGE[f"{name}Request"], MESSAGE[f"{name}Response"]
    return grpc.unary_unary_rpc_method_handler(answer, request.FromString, response.SerializeToString)


def read_metadata(context: Any) -> dict[bytes, bytes]:
    """Return the metadata of a call as headers."""
    pairs = context.invocation_metadata() or ()
    return read_headers([(n.encode(), v if isinstance(v, bytes) else v.encode()) for n, v in pairs])


async def start_server(port: int) -> Any:
    """Start the server of this worker; all workers share the port.

    Raises:
        RuntimeError: the port is in use.
    """
    bundle = serving.bundle
    limits = read_limits({}) if bundle is None else bundle.limits
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", limits.max_body_bytes)]
    )
    handlers = {name: handle(name, method) for name, method in METHODS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    host = find_listening_host(sys.argv) or "127.0.0.1"
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if credentials := _read_credentials(sys.argv):
        server.add_secure_port(address, credentials)
    else:
        server.add_insecure_port(address)
    await server.start()
    log.info("Serving gRPC on %s", address)
    return server


def _read_credentials(arguments: list[str]) -> Any:
    """Return the certificate with which BentoML's worker was started, if there is one."""
    files = [arguments[arguments.index(name) + 1] for name in ("--ssl-keyfile", "--ssl-certfile") if name in arguments]
    if len(files) < 2:
        return None
    key, certificate = (Path(file).read_bytes() for file in files)
    return grpc.ssl_server_credentials([(key, certificate)])
