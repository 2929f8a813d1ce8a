"""The images: built by Buildah without a daemon, run without root on a read-only file system, asked for predictions."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Render
from e2e.support import Project, make_project, succeed, wait_for
from template_support import find_uv

from ondol.orchestration.guard import free_port
from ondol.storage.files import open_for_others

pytestmark = pytest.mark.slow
TOOLS = ("buildah", "podman", "runc", "mmdebstrap")
LIBRARIES = (
    "ca-certificates,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8,zlib1g,libuuid1,netbase,tzdata"
)
CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
BASE = """FROM scratch
ADD base.tar /
COPY python/ /usr/local/
COPY certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY pip.conf /etc/pip.conf
COPY uv.toml /etc/uv/uv.toml
ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
RUN ldconfig
"""
CONTAINERS = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
CONFINED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges")


class Builder:
    """Images and containers in a separate storage, without an image registry: the base comes from this machine."""

    def __init__(self, folder: Path, uv: str) -> None:
        self.folder, self.uv = folder, uv
        self.storage = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]
        (folder / "containers.conf").write_text(CONTAINERS, encoding="utf-8")
        self.environment = os.environ | {"CONTAINERS_CONF": str(folder / "containers.conf")}

    def make_bases(self) -> None:
        base, uv = self.folder / "base", self.folder / "uv"
        base.mkdir()
        options = ["--quiet", "--variant=minbase", f"--include={LIBRARIES}", "bookworm", str(base / "base.tar")]
        self.do("mmdebstrap", *options)
        for name in ("bin", "include", "lib"):
            shutil.copytree(Path(sys.base_prefix) / name, base / "python" / name, symlinks=True)
        shutil.copy(CERTIFICATES, base / "certificates.crt")
        (base / "pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n", encoding="utf-8")
        (base / "uv.toml").write_text("system-certs = true\n", encoding="utf-8")
        (base / "Dockerfile").write_text(BASE, encoding="utf-8")
        self.build(base, "python")
        uv.mkdir()
        shutil.copy(self.uv, uv / "uv")
        (uv / "Dockerfile").write_text("FROM scratch\nCOPY uv /uv\n", encoding="utf-8")
        self.build(uv, "uv")

    def build(self, context: Path, name: str, *options: str) -> None:
        how = ["bud", "--isolation", "chroot", "--network", "host", "--format", "docker", "--layers"]
        bases = ["--build-arg", "PYTHON=localhost/python", "--build-arg", "UV=localhost/uv"]
        self.do("buildah", *self.storage, *how, *(bases if options else ()), *options, "--tag", name, str(context))

    def podman(self, *words: str) -> str:
        return self.do("podman", *self.storage, *words)

    def do(self, *command: str) -> str:
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        done = subprocess.run(
            command, env=self.environment | {"PATH": path}, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    @contextmanager
    def running(self, image: str, *options: str) -> Iterator[tuple[str, httpx.Client]]:
        """Run the service's image with the least rights until the block ends."""
        port = free_port()
        command = ["bentoml", "serve", "service.service:Service", "--host", "127.0.0.1", "--port", str(port)]
        name = f"ml-test-{port}"
        self.podman("run", "--detach", "--name", name, "--network", "host", *CONFINED, *options, image, *command)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                wait_for(client, "/livez", 200, 120)
                yield name, client
        finally:
            started = time.monotonic()
            self.podman("stop", "--time", "30", name)
            ended = time.monotonic() - started
            self.podman("rm", name)
        assert ended < 25, "the service ignored the request to end"


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    absent = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if absent or os.geteuid() != 0:
        pytest.skip(f"building images needs root and {', '.join(TOOLS)}; absent: {', '.join(absent) or 'root'}")
    uv = find_uv()
    if uv is None:
        pytest.skip("building images needs the uv binary: pip install uv")
    folder = tmp_path_factory.mktemp("images")
    made = Builder(folder, uv)
    made.make_bases()
    yield made
    made.do("buildah", *made.storage, "rmi", "--all", "--force")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def project(render: Render, builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with version 1 in production and a lock file."""
    made = make_project(render(), tmp_path_factory.mktemp("project") / "shop-churn")
    subprocess.run([builder.uv, "lock", "--quiet", "--python", sys.executable], cwd=made.root, check=True, timeout=300)
    made.run()
    return made


@pytest.fixture(scope="module")
def service(builder: Builder, project: Project) -> str:
    builder.build(project.root, "churn", "--target", "service")
    return "churn"


@pytest.fixture(scope="module")
def store(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's store as `ml release` opens it: the container's user may read it and write its log."""
    folder = tmp_path_factory.mktemp("released") / ".ml" / "store"
    shutil.copytree(project.store, folder)
    open_for_others(folder)
    (folder / "log").mkdir(exist_ok=True)
    os.chown(folder / "log", 10001, 10001)
    return folder


def test_service_serves_the_champion_of_a_store(builder, service, project, store):
    with builder.running(service, "--volume", f"{store}:/store") as (name, client):
        wait_for(client, "/readyz", 200)
        said = succeed(project.ml("smoke", str(client.base_url))).stdout
        assert "answers the example as the model does" in said
        assert builder.podman("exec", name, "id", "-u").strip() == "10001"
        answers = "".join(p.read_text(encoding="utf-8") for p in (store / "log").glob("*.jsonl"))
        assert answers.count('"predictions"') == 1
        with pytest.raises(AssertionError, match="Read-only file system"):
            builder.podman("exec", name, "touch", "/app/service/new.py")


def test_image_refuses_to_serve_every_address_without_access_control(builder, service):
    with pytest.raises(AssertionError, match="has no access control: create a key with `ml keys create NAME`"):
        builder.podman("run", "--rm", "--network", "host", *CONFINED, service)


def test_health_check_of_the_image_passes(builder, service, store):
    port = 3000
    with httpx.Client() as client:
        try:
            client.get(f"http://127.0.0.1:{port}/livez")
            pytest.skip("port 3000, which the image's health check asks, is taken")
        except httpx.TransportError:
            pass
    options = ["--env", "ML_ACCESS__OPEN=true", *CONFINED]
    builder.podman("run", "--detach", "--name", "healthy", "--network", "host", *options, service)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            wait_for(client, "/livez", 200, 120)
            assert client.get("/readyz").status_code == 503  # alive without a model
        builder.podman("healthcheck", "run", "healthy")
    finally:
        builder.podman("rm", "--force", "--time", "10", "healthy")


def test_service_holds_no_more_than_it_needs(builder, service):
    found = builder.podman("run", "--rm", service, "ls", "/opt/venv/lib", "/app").split()
    assert "service" in found
    assert "ondol_serving" in found
    assert not {"flows", "model", "vendor", "config.toml"} & set(found)
    script = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n)])"
    heavy = ["pandas", "sklearn", "mlflow", "prefect", "evidently", "matplotlib", "pyarrow", "scipy", "skl2onnx"]
    assert builder.podman("run", "--rm", service, "python3", "-c", script, *heavy).split() == []


def test_service_serves_a_bundle_that_was_baked_in_where_there_is_no_store(builder, service, project):
    name: Any = project.champion
    builder.build(project.root, "baked", "--target", "service", "--build-arg", f"BUNDLE={name['bundle']}")
    with builder.running("baked") as (_, client):
        wait_for(client, "/readyz", 200)
        succeed(project.ml("smoke", str(client.base_url)))
        assert "ml_log_dropped_total 0" in client.get("/metrics").text


def test_worker_holds_the_flows_and_knows_its_commit(builder, project):
    builder.build(project.root, "churn-worker", "--target", "worker", "--build-arg", "COMMIT=0123abc")
    script = "import flows.pipeline, mlflow, psycopg; from ondol.training.provenance import read_provenance as r; "
    script += "from pathlib import Path; print(r(Path('/app')).commit)"
    run = ["run", "--rm", "--network", "host", *CONFINED, "--volume", "/app/.ml"]
    assert builder.podman(*run, "churn-worker", "python3", "-c", script).split()[-1] == "0123abc"
    assert "no model is in production yet" in builder.podman(*run, "churn-worker", "ml", "status")
