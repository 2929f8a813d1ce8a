"""Who the project is, how its service, monitor and servers run, and where it is released to."""

from ipaddress import IPv4Address
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, IPvAnyAddress, SecretStr, model_validator
from pydantic_settings import NoDecode

from ondol.config.base import Section, StorePlace
from ondol_serving.callers import require_host, split_hosts

Hosts = Annotated[tuple[Annotated[str, AfterValidator(require_host)], ...], NoDecode, BeforeValidator(split_hosts)]


class Project(Section):
    """Who the project is."""

    name: str = Field("project", pattern=r"^[a-z0-9][a-z0-9._-]*$")


class Service(Section):
    """Limits and address of the service; each process of it keeps the limits by itself.

    Attributes:
        host: The address that it listens on; any but a loopback address lets other machines ask.
        port: The port.
        hosts: By which names it may be asked, beside the loopback's and the address it listens on: `churn.example.com`,
            `*.example.com`, or `*` for any. Web pages of an origin that is named here, with its port where a browser
            shows one, may ask too.
        workers: How many processes answer.
        max_rows: Of a request.
        max_body_bytes: Of a request.
        max_bytes_in_flight: Of all requests that are being received or answered.
        body_seconds: How long the body of a request may take to arrive.
        max_wait_seconds: A request that would wait longer for its turn is answered 503 at once.
    """

    host: str = "127.0.0.1"
    port: int = Field(3000, ge=1, le=65535)
    hosts: Hosts = ()
    workers: int = Field(1, ge=1)
    max_rows: int = Field(1000, ge=1)
    max_body_bytes: int = Field(5_000_000, ge=1)
    max_bytes_in_flight: int = Field(50_000_000, ge=1)
    body_seconds: float = Field(10.0, gt=0)
    max_wait_seconds: float = Field(2.0, gt=0)


class Log(Section):
    """The service's record of its answers, in the store's `log`.

    Attributes:
        enabled: Whether there is one.
        sensitive: Whether columns of that role are left out or hashed with the key in `ML_LOG_KEY`.
        file_bytes: A file that would grow over it is followed by the next.
        keep_bytes: The oldest files are removed while all together are over it.
    """

    enabled: bool = True
    sensitive: Literal["drop", "hash"] = "drop"
    file_bytes: int = Field(64_000_000, ge=1)
    keep_bytes: int = Field(2_000_000_000, ge=1)


class Monitor(Section):
    """What the monitor compares and from when on a difference counts; see docs/monitoring.md.

    Attributes:
        labels: A source with what came true, in the grammar of `[data] source`: the target and `request_id`
            (with `row`, from 0, where requests hold several), or the id column that callers sent along.
        min_rows: Fewer rows are too few to judge, of the window and of its labels.
        sample_rows: As many rows of a window are compared at most, drawn by a seed.
        distance: From where on a column has drifted, unless chance alone goes further at the window's size.
        missing: By how much a column's share of missing values may change.
        unseen: By how much the share of values never seen in training may grow.
        drift_share: The share of drifted columns from which on the window has drifted.
        loss: By how much the metric may fall before performance is lost; of errors in the target's unit, a share.
        keep: How many reports are kept.
        metrics: Where the worker serves how the loop stands to Prometheus, such as 127.0.0.1:9464; None for nowhere.
    """

    labels: str | None = None
    min_rows: int = Field(200, ge=20)
    sample_rows: int = Field(10_000, ge=100, le=100_000)
    distance: float = Field(0.1, gt=0)
    missing: float = Field(0.1, gt=0, le=1)
    unseen: float = Field(0.05, gt=0, le=1)
    drift_share: float = Field(0.3, gt=0, le=1)
    loss: float = Field(0.02, ge=0)
    keep: int = Field(20, ge=1)
    metrics: str | None = Field(None, pattern=r"^(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}$")


class Retrain(Section):
    """When the pipeline is asked to run again: `windows` of the last `of`, and the latest, drifted or got worse."""

    windows: int = Field(2, ge=1)
    of: int = Field(3, ge=1)
    cooldown_hours: float = Field(23.0, ge=0)  # a daily monitor is some seconds early or late

    @model_validator(mode="after")
    def _require_enough(self) -> Self:
        if self.windows > self.of:
            raise ValueError(f"{self.windows} windows of the last {self.of} can never be: raise `of`")
        return self


class Ports(Section):
    """Where `ml up` puts the servers on the loopback; the service has its own under `[service]`.

    Attributes:
        prefect: The port of Prefect.
        mlflow: The port of MLflow.
        hosts: By which names browsers reach both beside the loopback's, as through a reverse proxy; written as those of
            the service.
        mlflow_url: Where browsers reach MLflow, for links to it; default: where the project itself does.
    """

    prefect: int = Field(4200, ge=1, le=65535)
    mlflow: int = Field(5000, ge=1, le=65535)
    hosts: Hosts = ()
    mlflow_url: str | None = Field(None, pattern=r"^https?://[^/?#\s]+[^?#\s]*$")


class Retention(Section):
    """How long what only people read is kept; models, snapshots and records have rules of their own.

    Attributes:
        run_days: Prefect's flow runs, with their logs and artifacts, after their end.
    """

    run_days: float = Field(30.0, ge=0.05)


class Alerts(Section):
    """Where alerts are sent, best by `ML_ALERTS__WEBHOOK`; the same one again after `repeat_hours` at the earliest."""

    webhook: SecretStr | None = None
    format: Literal["json", "slack"] = "json"
    repeat_hours: float = Field(24.0, ge=0)


class Environment(Section):
    """Where `ml release` brings a model, see docs/delivery.md.

    Attributes:
        store: What the environment's service has as its `ML_STORE`: a folder, or an object store's address.
        url: The service's address.
        host: The container host that runs the service, as `docker --host` takes it; None where images are not moved.
        address: At which of that host's addresses the container is published; any but a loopback address lets other
            machines ask, and 0.0.0.0 is all of them.
        port: What the container publishes there; None for the one in an http:// `url`, and else `[service] port`.
        variables: Names of what the container on that host is given from the environment of `ml release`.
        wait_seconds: How long the service may take to be ready, and then to swap.
    """

    store: StorePlace
    url: str = Field(pattern=r"^https?://[^/?#\s]+[^?#\s]*$")
    host: str | None = Field(None, pattern=r"^(ssh|unix|tcp)://\S+$")
    address: IPvAnyAddress = Field(IPv4Address("127.0.0.1"))
    port: int | None = Field(None, ge=1, le=65535)
    variables: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()
    wait_seconds: float = Field(60.0, gt=0)
