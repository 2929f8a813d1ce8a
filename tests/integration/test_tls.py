"""TLS of a real service, over HTTP and gRPC, by the options with which `ml serve` starts it."""

import subprocess
from pathlib import Path

import grpc
import httpx
import pytest
from service_server import serve
from service_support import ROW, bundle_files, compile_model, crown, fit, write_bundle

from ondol.cli.deployment import _tls_options
from ondol.config import Settings
from ondol.errors import UserError
from ondol.orchestration.guard import free_port
from ondol_serving.grpc_messages import MESSAGE, SERVICE


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, with its private key beside it."""
    path = tmp_path_factory.mktemp("tls") / "service.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    subprocess.run(made, check=True, capture_output=True)
    return path


def test_service_answers_https_and_grpc_with_its_certificate(certificate: Path, tmp_path: Path) -> None:
    store, port = tmp_path / "store", free_port()
    crown(store, *write_bundle(store, bundle_files("7", "binary", compile_model(fit("binary"), "binary"))))
    with serve(store, tmp_path / "home", certificate=certificate, ML_SERVICE__GRPC_PORT=str(port)) as client:
        assert client.post("/predict", json={"rows": [ROW]}).json()["model_version"] == "7"
        with pytest.raises(httpx.TransportError):
            httpx.get(str(client.base_url).replace("https", "http"))
        request, response = MESSAGE["ServerReadyRequest"], MESSAGE["ServerReadyResponse"]
        how = {"request_serializer": request.SerializeToString, "response_deserializer": response.FromString}
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{port}", trusted) as channel:
            assert channel.unary_unary(f"/{SERVICE}/ServerReady", **how)(request(), timeout=20).ready
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{SERVICE}/ServerReady", **how)(request(), timeout=20)


def settings_with(root: Path, **service: str) -> Settings:
    return Settings(root=root, service=service)  # type: ignore[arg-type]


def test_options_name_the_files_of_the_settings(certificate: Path) -> None:
    settings = settings_with(certificate.parent, certificate="service.pem", certificate_key="service.key")
    options = _tls_options(settings)
    assert options[1] == str(certificate) and options[3] == str(certificate.with_suffix(".key"))
    assert _tls_options(settings_with(certificate.parent)) == []


@pytest.mark.parametrize(
    ("service", "said"),
    [
        (
            {"certificate": "service.pem"},
            r"\[service\] certificate_key is missing",
        ),
        (
            {"certificate": "no.pem", "certificate_key": "service.key"},
            "certificate is no.pem, and there is",
        ),
        (
            {"certificate": "service.key", "certificate_key": "service.key"},
            "certificate_key cannot be used",
        ),
    ],
)
def test_mistakes_are_one_sentence(certificate: Path, service: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        _tls_options(settings_with(certificate.parent, **service))
