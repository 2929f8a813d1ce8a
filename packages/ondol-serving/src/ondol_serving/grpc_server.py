"""The Open Inference Protocol over gRPC, on a port of its own; needs the extra `grpc`.

BentoML's own gRPC server does not run services of its current kind. Access control, limits, metrics and the log are
those of HTTP.
"""

import asyncio
import logging
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from ondol_serving.access import HEALTH, MODEL, find_listening_host
from ondol_serving.admission import HEAVY_BYTES
from ondol_serving.answers import Accepted
from ondol_serving.bundle import Bundle
from ondol_serving.callers import Headers, read_headers
from ondol_serving.errors import FAILED, RequestRefused
from ondol_serving.grpc_messages import MESSAGE, SERVICE
from ondol_serving.inference_protocol import (
    BYTES,
    EXTENSIONS,
    INFER,
    VERSION,
    Tensor,
    decode_values,
    describe_model,
    encode_values,
    find_bundle,
    invalid,
    model_name,
    predict_tensors,
    read_tensor,
    require_inputs,
    require_outputs,
    select_outputs,
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
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
MOST_CALLS = 256  # at once; more are refused before they are read
PUSHBACK = "grpc-retry-pushback-ms"  # when a client that has a retry policy tries again
LARGEST_MESSAGE = 2**30  # of gRPC itself; `max_body_bytes` of the bundle is checked at each call
TLS_OPTIONS = ("--ssl-certfile", "--ssl-keyfile", "--ssl-keyfile-password", "--ssl-ca-certs", "--ssl-cert-reqs")

log = logging.getLogger("bentoml.service")


class Method(NamedTuple):
    """A method: what answers its request and metadata, and the route over HTTP whose access it shares."""

    answer: Callable[[Any, Headers], Awaitable[Any]]
    route: str


async def answer_live(*_: Any) -> Any:
    """Answer `ServerLive`."""
    return MESSAGE["ServerLiveResponse"](live=True)


async def answer_ready(*_: Any) -> Any:
    """Answer `ServerReady`."""
    return MESSAGE["ServerReadyResponse"](ready=serving.bundle is not None)


async def answer_model_ready(request: Any, _: Headers) -> Any:
    """Answer `ModelReady`."""
    try:
        find_bundle(serving.bundle, request.name, request.version)
    except RequestRefused:
        return MESSAGE["ModelReadyResponse"](ready=False)
    return MESSAGE["ModelReadyResponse"](ready=True)


async def answer_server_metadata(*_: Any) -> Any:
    """Answer `ServerMetadata`."""
    return MESSAGE["ServerMetadataResponse"](name="ondol", version=VERSION, extensions=EXTENSIONS)


async def answer_model_metadata(request: Any, _: Headers) -> Any:
    """Answer `ModelMetadata`."""
    about = describe_model(find_bundle(serving.bundle, request.name, request.version))
    return MESSAGE["ModelMetadataResponse"](**about)


async def answer_infer(request: Any, headers: Headers) -> Any:
    """Answer `ModelInfer`: with raw contents if the request has some."""
    bundle = find_bundle(serving.bundle, request.model_name, request.model_version)
    require_outputs(bundle, [one.name for one in request.outputs])
    heavy = request.ByteSize() > HEAVY_BYTES
    tensors = await asyncio.to_thread(read_tensors, request, bundle) if heavy else read_tensors(request, bundle)
    may_choose = None if request.model_version else headers.items()
    accepted, predictions = await predict_tensors(bundle, tensors, heavy, may_choose)
    write = partial(write_response, request, accepted, predictions)
    return await asyncio.to_thread(write) if heavy else write()


def read_tensors(request: Any, bundle: Bundle) -> list[Tensor]:
    """Return the columns of a request.

    Raises:
        RequestRefused: they cannot be read.
    """
    require_inputs(bundle, [one.name for one in request.inputs])
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise invalid("raw_input_contents and inputs differ in their number")
    tensors = []
    for number, one in enumerate(request.inputs):
        read = partial(decode_values, one.datatype, raw[number]) if raw else partial(_read_contents, one)
        try:
            tensors.append(read_tensor(one.name, one.datatype, list(one.shape), bundle, read))
        except (KeyError, ValueError) as error:
            raise invalid(f"{one.name!r} cannot be read: {type(error).__name__}: {error}") from None
    return tensors


def _read_contents(tensor: Any) -> list[Any]:
    values = getattr(tensor.contents, CONTENTS[tensor.datatype])
    return [value.decode() for value in values] if tensor.datatype == BYTES else list(values)


def write_response(request: Any, accepted: Accepted, predictions: list[dict[str, Any]]) -> Any:
    """Return the answer to `ModelInfer`."""
    bundle = accepted.bundle
    response = MESSAGE["ModelInferResponse"](
        model_name=model_name(bundle), model_version=bundle.version, id=request.id or accepted.request_id
    )
    response.parameters.add(key="role").value.string_param = accepted.role
    for about, values in select_outputs(bundle, predictions, [one.name for one in request.outputs]):
        output = response.outputs.add(**about)
        if request.raw_input_contents:
            response.raw_output_contents.append(encode_values(output.datatype, values))
        elif output.datatype == BYTES:
            output.contents.bytes_contents.extend(value.encode() for value in values)
        else:
            getattr(output.contents, CONTENTS[output.datatype]).extend(np.nan if v is None else v for v in values)
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
    """Return gRPC's handler of a method: it checks access, counts the request, and answers errors.

    The message is parsed here and not by gRPC, so that nothing is parsed for a caller without a key.
    """
    label = label_of(name)

    async def answer(message: bytes, context: Any) -> Any:
        metrics, started = request_metrics(), time.perf_counter()
        metrics.begin(label)
        status, said, reply = 200, "", None
        metadata: tuple[tuple[str, str], ...] = ()
        try:
            headers = read_metadata(context)
            if method.route not in HEALTH and serving.access.active:
                await serving.access.admit(method.route, headers, peer_address(context.peer()))
            reply = await admit(message, name, method, headers)
        except RequestRefused as refused:
            status, said = refused.answer.status_code, str(refused)
            if after := refused.answer.headers.get("retry-after"):
                metadata = ((PUSHBACK, f"{after}000"),)
        except Exception:
            log.exception("Exception on %s", label)
            status, said = 500, FAILED
        finally:
            metrics.end(label)
        metrics.count(label, status, time.perf_counter() - started)
        if reply is None:
            await context.abort(STATUSES.get(status, grpc.StatusCode.INTERNAL), said, metadata)
        return reply

    return grpc.unary_unary_rpc_method_handler(answer, None, MESSAGE[f"{name}Response"].SerializeToString)


def label_of(name: str) -> str:
    """Return the name of a method in the metrics."""
    return f"/{SERVICE}/{name}"


async def admit(message: bytes, name: str, method: Method, headers: Headers) -> Any:
    """Parse a message and answer it when its turn comes, within the limits of requests over HTTP.

    Raises:
        RequestRefused: it is too large, cannot be parsed, or the service is busy; or what the method raises.
    """
    bundle, load, size = serving.bundle, serving.load, len(message)
    limits = read_limits({}) if bundle is None else bundle.limits
    if size > limits.max_body_bytes:
        raise RequestRefused(413, "body_too_large", f"The message is larger than {limits.max_body_bytes} bytes")
    if method.route in HEALTH:
        return await method.answer(parse(message, name), headers)
    counted = size if size > HEAVY_BYTES else 0
    if counted:
        load.hold(counted, limits)
    try:
        work = load.begin(size, limits, bundle is not None and bundle.runtime.slow)
        try:
            if work.waits:
                await work.wait()
            return await method.answer(parse(message, name), headers)
        finally:
            work.end()
    finally:
        load.bytes -= counted


def parse(message: bytes, name: str) -> Any:
    """Return the request of a method.

    Raises:
        RequestRefused: it cannot be parsed.
    """
    try:
        return MESSAGE[f"{name}Request"].FromString(message)
    except DecodeError:
        raise invalid("The message cannot be parsed") from None


def peer_address(peer: str) -> str:
    """Return the address of a caller, without the scheme and port of gRPC's notation (`ipv6:%5B::1%5D:57284`)."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def read_metadata(context: Any) -> dict[bytes, bytes]:
    """Return the metadata of a call as headers."""
    pairs = context.invocation_metadata() or ()
    return read_headers([(n.encode(), v if isinstance(v, bytes) else v.encode()) for n, v in pairs])


async def start_server(port: int) -> Any:
    """Start the server of this worker; all workers share the port.

    Raises:
        RuntimeError: the port is in use.
        ValueError: BentoML's options for TLS ask for something that this server lacks.
    """
    server = grpc.aio.server(
        maximum_concurrent_rpcs=MOST_CALLS,
        options=[("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", LARGEST_MESSAGE)],
    )
    handlers = {name: handle(name, method) for name, method in METHODS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    host = find_listening_host(sys.argv) or "127.0.0.1"
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if credentials := read_credentials(sys.argv):
        server.add_secure_port(address, credentials)
    else:
        server.add_insecure_port(address)
    await server.start()
    request_metrics().start(map(label_of, METHODS))
    log.info("Serving gRPC on %s", address)
    return server


def read_credentials(arguments: list[str]) -> Any:
    """Return the certificates with which BentoML's worker was started; None without TLS.

    Raises:
        ValueError: the private key has a password.
    """
    given = {name: arguments[arguments.index(name) + 1] for name in TLS_OPTIONS if name in arguments}
    if "--ssl-certfile" not in given:
        return None
    if "--ssl-keyfile-password" in given:
        raise ValueError("gRPC cannot read a private key with a password: use one without, or no grpc_port")
    key, certificate = (Path(given[name]).read_bytes() for name in ("--ssl-keyfile", "--ssl-certfile"))
    authorities = Path(given["--ssl-ca-certs"]).read_bytes() if "--ssl-ca-certs" in given else None
    required = int(given.get("--ssl-cert-reqs", 0)) == ssl.CERT_REQUIRED
    return grpc.ssl_server_credentials([(key, certificate)], authorities, required)
