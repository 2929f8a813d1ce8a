"""The settings: defaults here, overridden by `config.toml`, and that by environment variables.

`ML_TRAIN__SEED=7` overrides `seed` in the section `[train]`; `ML_STORE` moves the store.
"""

import codecs
import hashlib
import os
import tomllib
from collections import Counter
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyAddress,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ondol.errors import UserError, nearest
from ondol.redaction import load_env_file
from ondol_serving.callers import require_host, require_redis, show_value, split_hosts
from ondol_serving.grammar import AMBIGUOUS_FORMATS, compile_format, normalize

Problem = Literal["binary", "multiclass", "regression"]


class Section(BaseModel):
    """One section of `config.toml`: immutable; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def is_address(store: str) -> bool:
    """Return True if a store is an object store's address rather than a folder."""
    return "://" in store


def _require_store(value: Any) -> Any:
    if str(value).startswith(("http://", "https://")):
        raise ValueError("a web server cannot be a store: use a folder, s3://, gs:// or az://")
    return str(value)


StorePlace = Annotated[str, BeforeValidator(_require_store)]  # a folder or an address


THOUSANDS = (",", ".", " ", "'", "’", "_")
NAMED_CHARACTERS = {"tab": "\t", "space": " ", "comma": ",", "semicolon": ";", "point": ".", "none": ""}


def _read_character(value: Any) -> Any:
    """Return the character for a name such as "tab"; other values are unchanged."""
    return NAMED_CHARACTERS.get(value.lower(), value) if isinstance(value, str) and len(value) > 1 else value


def _require_one(value: str) -> str:
    if len(value) > 1:
        raise ValueError("use one character")
    return value


def _require_sign(value: Any) -> Any:
    if _read_character(value) not in (".", ","):
        raise ValueError('use "." or ","')
    return _read_character(value)


def _require_header(value: Any) -> Any:
    if not isinstance(value, bool) and not (isinstance(value, list | tuple) and all(isinstance(n, str) for n in value)):
        raise ValueError("use true, false, or a list of the columns' names")
    return value


def _require_texts(value: Any) -> Any:
    lists = value.values() if isinstance(value, dict) else [value]
    if not all(isinstance(texts, list | tuple) and all(isinstance(t, str) for t in texts) for texts in lists):
        raise ValueError('use a list of texts such as ["?", "-"], or a table of such lists by the column\'s name')
    return value


Character = Annotated[str, AfterValidator(_require_one), BeforeValidator(_read_character)]


def _bare(text: str) -> str:
    return normalize(text.strip())


class Dialect(Section):
    """How delimited text (CSV, TSV, …) is written; see docs/how-to/read-csv-in-other-notations.md. `ml init` finds it.

    Attributes:
        encoding: A Python codec, such as "cp949" or "utf-16", for files without the byte order mark of UTF-8.
        delimiter: The character between two fields, or "tab"; None to find it in each file.
        skip_lines: How many lines above the header (or above the first row) are skipped.
        header: Whether the first line has the column names. False: they are column_1, column_2, … A list gives the
            names for a table without a header.
        trim: Whether to remove spaces around names and values.
        decimal: The decimal sign of numbers, "." or ",".
        thousands: The separator of thousands in numbers, or "" for none.
        missing: Texts that mean a missing value. A list applies to columns of numbers, dates, durations and booleans. A
            table of lists by column name applies to those columns, of any kind.
    """

    encoding: str = "utf-8"
    delimiter: Character | None = None
    skip_lines: int = Field(0, ge=0)
    header: Annotated[bool | tuple[str, ...], BeforeValidator(_require_header)] = True
    trim: bool = False
    decimal: Annotated[Literal[".", ","], BeforeValidator(_require_sign)] = "."
    thousands: Character = ""
    missing: Annotated[tuple[str, ...] | dict[str, tuple[str, ...]], BeforeValidator(_require_texts)] = ()

    @property
    def dialect(self) -> "Dialect":
        """Only the settings of the dialect."""
        return Dialect(**self.model_dump(include=self.model_fields_set & set(Dialect.model_fields)))

    @field_validator("encoding")
    @classmethod
    def _require_codec(cls, value: str) -> str:
        try:
            "".encode(value)
        except (LookupError, ValueError):
            raise ValueError(
                'this encoding is not known: write a Python codec such as "utf-8", "cp949", "utf-16" or "cp1252"'
            ) from None
        return codecs.lookup(value).name

    @field_validator("delimiter")
    @classmethod
    def _require_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (value in ('"', "\n", "\r", "") or ord(value) > 127):
            raise ValueError('use one character such as ";", ",", "|" or "tab"')
        return value

    @field_validator("header")
    @classmethod
    def _require_names(cls, value: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        if isinstance(value, bool):
            return value
        if not value or not all(name.strip() for name in value):
            raise ValueError("name every column, or write false")
        name, times = Counter(value).most_common(1)[0]
        if times > 1:
            raise ValueError(f'"{name}" is used {times} times: give each column a different name')
        return value

    @field_validator("thousands")
    @classmethod
    def _require_thousands(cls, value: str) -> str:
        if value and value not in THOUSANDS:
            raise ValueError(f'use one of {", ".join(map(repr, THOUSANDS))}, or "" for none')
        return value

    @field_validator("missing")
    @classmethod
    def _strip_markers(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {normalize(name): tuple(map(_bare, texts)) for name, texts in value.items()}
        return tuple(map(_bare, value))

    @model_validator(mode="after")
    def _require_different_signs(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError(f'decimal and thousands are both "{self.decimal}": they must differ')
        if self.decimal == self.delimiter:
            raise ValueError(
                f'decimal and delimiter are both "{self.decimal}": leave delimiter out if such numbers are in quotes'
            )
        return self


class Data(Dialect):
    """Where the rows come from, how they are written, and what is predicted.

    Attributes:
        source: The rows: a file, a folder, or an address of a kind in docs/reference/sources.md.
        target: The column to predict.
        problem: The kind of prediction.
        date_formats: Formats of dates with an ambiguous order of day and month, or with two-digit years, in strptime
            directives (English names on every machine). They are used in addition to the standard forms of
            docs/reference/contract.md, instead of the default month/day/year.
        max_bad_share: A run fails if a larger share of the labelled rows is quarantined.
        watermark: A column that grows from row to row, such as the time of the last change: each ingest reads only the
            newer rows and appends them.
        lateness: How far behind the newest value late rows may be: days for a date, else the column's unit.
        window_days: Train only on rows of the last so many days, by the column with the role time.
    """

    source: str = "sample://"
    target: str | None = None
    problem: Problem = "binary"
    date_formats: tuple[str, ...] = AMBIGUOUS_FORMATS
    max_bad_share: float = Field(0.1, ge=0, le=1)
    watermark: str | None = None
    lateness: float = Field(0.0, ge=0)
    window_days: float | None = Field(None, gt=0)

    @field_validator("target", "watermark")
    @classmethod
    def _normalize_name(cls, value: str | None) -> str | None:
        return value and normalize(value)

    @field_validator("date_formats")
    @classmethod
    def _require_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for form in value:
            compile_format(form)
        return value


class Fetch(Section):
    """Timeouts and retries of reading sources.

    Attributes:
        timeout_seconds: The time limit of one request, connection or message.
        retries: How often a request is repeated after a temporary failure, with growing pauses.
        max_ratio: The largest allowed ratio of a file's decompressed to its compressed size.
    """

    timeout_seconds: float = Field(60.0, gt=0)
    retries: int = Field(5, ge=0)
    max_ratio: int = Field(200, ge=1)


class Split(Section):
    """Which rows are held out, see docs/explanation/holdout.md.

    Attributes:
        by: "random" (by a hash of the group, else the id, else the row; formerly "hash"), "group" (the same, but a
            column with that role is required), "stratified" (the same share of each class, or of each tenth of a
            number) or "time" (the latest rows).
        holdout: The share of the rows that is held out.
        seed: The seed of the hash; another seed holds out other rows.
    """

    by: Literal["random", "stratified", "group", "time"] = "random"
    holdout: float = Field(0.2, gt=0, lt=1)
    seed: int = 0

    @field_validator("by", mode="before")
    @classmethod
    def _read_former_name(cls, value: Any) -> Any:
        return "random" if value == "hash" else value


class Leakage(Section):
    """Alarms of leakage that do not stop the training.

    Attributes:
        accept: By column name: the reason why the finding is not a leak. Training then continues.
    """

    accept: dict[str, str] = Field({})

    @field_validator("accept")
    @classmethod
    def _require_reasons(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reason in value.items():
            if not reason.strip():
                raise ValueError(f'give a reason why "{name}" is not a leak')
        return {normalize(name): reason for name, reason in value.items()}


class Train(Section):
    """How the model is fitted.

    Attributes:
        seed: The seed of all randomness in training, and of the choice of `sample_rows`.
        sample_rows: Train on about this many rows, if there are more, chosen by a hash of the row and the seed; None to
            use all.
        params: The argument `params` of `build_estimator` in `model/estimator.py`; if set, no candidates are
            compared.
        budget: How many fits the comparison of the candidates of `model/estimator.py` may take; 0 to fit the first one
            without a comparison.
        budget_seconds: The time after which no further candidate is tried; None for no limit. A choice by the clock may
            differ from run to run.
        calibration: Whether the probabilities of the classes are calibrated by a sigmoid, see
            docs/explanation/choosing-the-model.md; "auto" where the comparison of the candidates shows that it helps.
        trusted_types: Types that skops may load in a saved model, in addition to the known types of scikit-learn.
    """

    seed: int = 0
    sample_rows: int | None = Field(None, ge=100)
    params: dict[str, Any] = Field({})
    budget: int = Field(30, ge=0)
    budget_seconds: float | None = Field(None, gt=0)
    calibration: Literal["auto", "none", "sigmoid"] = "auto"
    trusted_types: tuple[str, ...] = ()


class Decision(Section):
    """How labels are decided from probabilities, see docs/how-to/choose-a-threshold.md; at most one of these.

    Attributes:
        costs: By true class, then by predicted class: what a row costs. A right label costs 0 and a wrong one 1 where
            nothing is written.
        precision: Of two classes: the share of rows with the second label that must be right; the recall is then as
            large as possible.
        recall: Of two classes: the share of rows of the second class that must get its label; the precision is then as
            large as possible.
    """

    costs: dict[str, dict[str, float]] | None = None
    precision: float | None = Field(None, gt=0, lt=1)
    recall: float | None = Field(None, gt=0, lt=1)

    @property
    def is_set(self) -> bool:
        """Whether labels are decided otherwise than by the most probable class."""
        return self != Decision()

    @field_validator("costs")
    @classmethod
    def _require_dearer_mistakes(cls, value: dict[str, dict[str, float]] | None) -> dict[str, dict[str, float]] | None:
        if value == {}:
            raise ValueError('write what a mistake costs, such as {"yes" = {"no" = 5}}: true class, predicted, cost')
        costs = value and {normalize(k): {normalize(n): c for n, c in row.items()} for k, row in value.items()}
        for label, row in (costs or {}).items():
            wrong = [cost for name, cost in row.items() if name != label]
            if min(wrong, default=1.0) <= row.get(label, 0.0):
                raise ValueError(f'for the true class "{label}", a wrong label must cost more than the right one')
        return costs

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        given = sorted(self.model_dump(exclude_none=True))
        if len(given) > 1:
            raise ValueError(f"it has {' and '.join(given)}: keep one of them")
        return self


class Compute(Section):
    """Where the fits of `ml tune` run.

    Attributes:
        dask: The address of the scheduler of a Dask cluster, such as "tcp://10.0.0.5:8786", see
            docs/how-to/tune-parameters.md; None for processes of this machine.
    """

    dask: str | None = Field(None, pattern=r"^(tcp|tls|ucx|ws|wss)://\S+$")


class Gates(Section):
    """The conditions that a candidate must meet to be deployed.

    Attributes:
        metric: The metric that the gates compare, see docs/reference/model-metrics.md; None for the default of the
            problem.
        minimum: The value that the metric must reach (an error must not exceed it), instead of the comparison with a
            dummy model; None for that comparison.
        margin: By how much the candidate may be worse than the champion on the same rows; for errors in the target's
            unit, as a share.
        slice_margin: By how much the error in any slice may be larger than the champion's, beyond chance: a share of
            wrong labels, or in the target's unit; see docs/how-to/look-at-slices.md. None for no such gate.
        confidence: The confidence level of the intervals.
        resamples: The number of bootstrap samples for an interval.
        replay_days: The days of the prediction log that are replayed through a candidate before it is deployed, see
            docs/how-to/replay-requests.md; None for no replay.
        replay_share: The largest share of the replayed rows that the candidate may answer otherwise than the champion.
    """

    metric: str | None = None
    minimum: float | None = None
    margin: float = Field(0.01, ge=0)
    slice_margin: float | None = Field(None, ge=0)
    confidence: float = Field(0.95, gt=0, lt=1)
    resamples: int = Field(200, ge=20)
    replay_days: float | None = Field(None, gt=0)
    replay_share: float = Field(0.1, ge=0, le=1)


class Deploy(Section):
    """How the model is compiled for the service.

    Attributes:
        runtime: "onnx" compiles the model. "sklearn" serves scikit-learn itself, for a model that cannot be compiled to
            ONNX.
        tolerance: The largest allowed difference between a prediction of the compiled model and of scikit-learn.
    """

    runtime: Literal["onnx", "sklearn"] = "onnx"
    tolerance: float = Field(1e-5, gt=0)


Strategy = Literal["direct", "shadow", "canary", "ab", "blue-green"]


class RolloutPolicy(Section):
    """How a version that passed its gates gets the requests, and when it is withdrawn; see docs/explanation/rollout.md.

    The limits say by how much the challenger may be worse than the champion. They decide at the confidence level: the
    next step is taken as soon as the challenger is within all of them, and it is withdrawn as soon as it is beyond one.

    Attributes:
        strategy: "direct" (at once), "shadow" (it answers nothing, and predicts the champion's requests, too), "canary"
            (it answers a share that grows), "ab" (it answers one share until it is decided) or "blue-green" (it answers
            all requests from one moment on, and the champion stays loaded).
        steps: The shares of a canary, of which the last is 1.
        share: The share of the challenger with "ab".
        step_minutes: The shortest duration of a step.
        min_requests: The smallest number of the challenger's requests in a step before the next one. As many labelled
            requests are needed before a step waits for the metric.
        max_hours: The longest duration of a rollout; the challenger is withdrawn if it is not decided by then.
        errors: By how much the share of failed requests may be higher.
        slower: By how much more time a request may take, as a share of the champion's time; of geometric means.
        shift: By how much the mean prediction may differ: for a number in standard deviations of the champion's
            predictions, else the probability of a class.
        disagreement: The largest share of requests that both answer differently: with another class, or with a value
            that is more than half of that standard deviation away.
        loss: By how much the metric of the gates may be worse where labels have come; for errors in the target's unit,
            as a share.
        confidence: The confidence level of a decision, over all looks at the data together.
    """

    strategy: Strategy = "direct"
    steps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.05, 0.25, 0.5, 1.0)
    share: float = Field(0.5, gt=0, lt=1)
    step_minutes: float = Field(60.0, ge=0)
    min_requests: int = Field(500, ge=1)
    max_hours: float = Field(72.0, gt=0)
    errors: float = Field(0.01, gt=0, lt=1)
    slower: float = Field(0.5, gt=0)
    shift: float = Field(0.1, gt=0)
    disagreement: float = Field(0.3, gt=0, lt=1)
    loss: float = Field(0.02, gt=0)
    confidence: float = Field(0.95, gt=0, lt=1)

    @field_validator("steps")
    @classmethod
    def _require_growing_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[-1] != 1 or any(one >= other for one, other in pairwise(value)):
            raise ValueError("the shares must grow from step to step, and the last one must be 1")
        return value


Hosts = Annotated[tuple[Annotated[str, AfterValidator(require_host)], ...], NoDecode, BeforeValidator(split_hosts)]


class Naming(Section):
    """The name of the project.

    Attributes:
        name: The name of the registered model, the experiments, the work pool and the deployments.
    """

    name: str = Field("project", pattern=r"^[a-z0-9][a-z0-9._-]*$")


class CardText(Section):
    """What the model card says that no record has; see docs/how-to/write-a-model-card.md.

    Attributes:
        use: What the model is for: which decisions, by whom, about which cases.
        not_for: What it must not be used for.
        owner: Who is responsible for it, with an address for questions.
        license: The licence of the model, such as "apache-2.0"; names of Hugging Face are recognised there.
    """

    use: str | None = None
    not_for: str | None = None
    owner: str | None = None
    license: str | None = None


class Service(Section):
    """Limits and address of the service; the limits apply to each process separately.

    Attributes:
        host: The address that it listens on; other machines can send requests unless it is a loopback address.
        port: The port.
        hosts: The host names that requests may use, in addition to loopback names and the address it listens on:
            `churn.example.com`, `*.example.com`, or `*` for any. Web pages of an origin listed here, with the port that
            a browser shows, may send requests too.
        grpc_port: The port of the Open Inference Protocol over gRPC; None for none. It needs the extra `grpc`.
        certificate: A certificate file (PEM), with which `ml serve` speaks TLS; None for plain HTTP.
        certificate_key: The file (PEM) of its private key.
        workers: The number of worker processes.
        max_rows: The largest number of rows in a request.
        max_explained_rows: The largest number of rows in a request that asks for an explanation.
        max_body_bytes: The largest size of a request's body.
        max_bytes_in_flight: The largest total size of the bodies of all requests that are being received or answered.
        body_seconds: The time limit for receiving the body of a request.
        max_concurrency: The largest number of small requests (up to 32 KB) in progress; more are answered 503. None: as
            many as take 10 ms by the recent speed (50 ms with scikit-learn), but at least 32 and at most 100.
        max_wait_seconds: A request that would wait longer for its turn is answered 503 at once.
    """

    host: str = "127.0.0.1"
    port: int = Field(3000, ge=1, le=65535)
    hosts: Hosts = ()
    grpc_port: int | None = Field(None, ge=1, le=65535)
    certificate: str | None = None
    certificate_key: str | None = None
    workers: int = Field(1, ge=1)
    max_rows: int = Field(1000, ge=1)
    max_explained_rows: int = Field(100, ge=1)
    max_body_bytes: int = Field(5_000_000, ge=1)
    max_bytes_in_flight: int = Field(50_000_000, ge=1)
    body_seconds: float = Field(10.0, gt=0)
    max_concurrency: int | None = Field(None, ge=1)
    max_wait_seconds: float = Field(2.0, gt=0)


class Access(Section):
    """Who may use the service. Keys are created by `ml keys create`, and are not in the settings.

    Attributes:
        open: Whether the service may run without access control where other machines can reach it. From the first key
            on, callers need one in any case.
        rate: The largest number of requests of one caller, such as "100/second", "1000/minute" or "5000/hour", in each
            process of the service; None for no limit. A caller is a key, the `sub` of a token, or an address where
            neither is needed.
        redis: The address of a Redis server, such as "redis://10.0.0.5:6379/0", by which all processes and hosts share
            `rate`; needs the extra `redis`. Its password is in `ML_REDIS_PASSWORD`.
        jwks: The address of the public keys (JWKS) of an issuer of tokens (JWT); needs `audience` and the extra `jwt`.
        issuer: The `iss` that tokens must have; None for any.
        audience: The `aud` that tokens must have: the name of this service at the issuer.
    """

    open: bool = False
    rate: str | None = Field(None, pattern=r"^[1-9]\d*/(second|minute|hour)$")
    redis: Annotated[str, AfterValidator(require_redis)] | None = None
    jwks: str | None = Field(None, pattern=r"^https?://\S+$")
    issuer: str | None = None
    audience: str | None = None

    @model_validator(mode="after")
    def _require_audience(self) -> Self:
        if self.jwks and not self.audience:
            raise ValueError("jwks needs an audience: without it, a token for another service would be valid here")
        return self


class Log(Section):
    """The prediction log: the service's record of its answers, in the store's `log`.

    Attributes:
        enabled: Whether answers are logged.
        sensitive: Whether columns with the role sensitive are left out, or hashed with the key in `ML_LOG_KEY`.
        file_bytes: The largest size of one log file.
        keep_bytes: The largest total size of the log files; the oldest files are removed.
    """

    enabled: bool = True
    sensitive: Literal["drop", "hash"] = "drop"
    file_bytes: int = Field(64_000_000, ge=1)
    keep_bytes: int = Field(2_000_000_000, ge=1)


class Monitor(Section):
    """What the monitor compares, and the limits, the same for every column; see docs/explanation/drift.md.

    Attributes:
        labels: A source with the true targets, in the notation of `[data] source`: the target and `request_id` (with
            `row`, from 0, if requests have several rows), or the id column that callers sent.
        min_rows: The smallest number of rows, or of labelled rows, that is evaluated.
        sample_rows: The largest number of rows of a window that are compared, drawn with a fixed seed.
        distance: A column has drifted at this distance, unless random variation alone exceeds it at the window's size.
        missing: By how much a column's share of missing values may change.
        unseen: By how much the share of values never seen in training may grow.
        drift_share: A window has drifted at this share of drifted columns.
        loss: By how much the metric may fall before performance counts as lost; for errors in the target's unit, as a
            share.
        confidence: The one-sided confidence level at which the fall must not be random.
        keep: The number of reports to keep.
        metrics: The address where the worker exposes the loop's metrics to Prometheus, such as 127.0.0.1:9464; None to
            disable.
    """

    labels: str | None = None
    min_rows: int = Field(200, ge=20)
    sample_rows: int = Field(10_000, ge=100, le=100_000)
    distance: float = Field(0.1, gt=0)
    missing: float = Field(0.1, gt=0, le=1)
    unseen: float = Field(0.05, gt=0, le=1)
    drift_share: float = Field(0.3, gt=0, le=1)
    loss: float = Field(0.02, ge=0)
    confidence: float = Field(0.9, gt=0, lt=1)  # two windows must agree before retraining is requested
    keep: int = Field(20, ge=1)
    metrics: str | None = Field(None, pattern=r"^(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}$")


class Retrain(Section):
    """When retraining is requested.

    Attributes:
        windows: How many of the last `of` windows, the latest among them, must have drifted or become worse.
        of: The number of last windows that are considered.
        cooldown_hours: The hours after a request, or after a new version in production, in which no request is made.
    """

    windows: int = Field(2, ge=1)
    of: int = Field(3, ge=1)
    cooldown_hours: float = Field(23.0, ge=0)  # a daily monitor may start some seconds early or late

    @model_validator(mode="after")
    def _require_enough(self) -> Self:
        if self.windows > self.of:
            raise ValueError(f"{self.windows} of the last {self.of} windows is impossible: raise `of`")
        return self


HOSTS = "ML_PORTS__HOSTS"  # the variable of `[ports] hosts`
HOSTS_SETTING = f"[ports] hosts ({HOSTS})"


class Ports(Section):
    """The ports of the servers of `ml up` on the loopback; that of the service is under `[service]`.

    Attributes:
        prefect: The port of Prefect.
        mlflow: The port of MLflow.
        hosts: The host names of both in addition to loopback names, as behind a reverse proxy; written like those of
            the service.
        mlflow_url: The address of MLflow in browsers, for links; default: the address that the project itself uses.
    """

    prefect: int = Field(4200, ge=1, le=65535)
    mlflow: int = Field(5000, ge=1, le=65535)
    hosts: Hosts = ()
    mlflow_url: str | None = Field(None, pattern=r"^https?://[^/?#\s]+[^?#\s]*$")


class Retention(Section):
    """How long records of runs are kept; other rules apply to models, snapshots and records in the store.

    Attributes:
        run_days: Days for which Prefect's flow runs are kept after their end, with logs and artifacts.
    """

    run_days: float = Field(30.0, ge=0.05)


class Alerts(Section):
    """Where alerts are sent.

    Attributes:
        webhook: The address that receives them. It is a secret: set it by the environment variable.
        format: "json", or "slack" for Slack and compatible receivers.
        repeat_hours: The hours for which the same alert is not sent again.
    """

    webhook: SecretStr | None = None
    format: Literal["json", "slack"] = "json"
    repeat_hours: float = Field(24.0, ge=0)


class Environment(Section):
    """A place to which `ml release` releases a model; see docs/how-to/release-a-model.md.

    Attributes:
        store: The `ML_STORE` of the environment's service: a folder, or the address of an object store.
        url: The service's address.
        host: The container host that runs the service, as for `docker --host`; None if no images are released.
        address: The address of that host at which the container is published; 0.0.0.0 is all addresses. Other machines
            can send requests unless it is a loopback address.
        port: The published port of the container; None for the port in an http:// `url`, else `[service] port`.
        variables: Names of the environment variables of `ml release` that the container on that host gets.
        wait_seconds: The time limit for the service to be ready, and then to load the new model.
    """

    store: StorePlace
    url: str = Field(pattern=r"^https?://[^/?#\s]+[^?#\s]*$")
    host: str | None = Field(None, pattern=r"^(ssh|unix|tcp)://\S+$")
    address: IPvAnyAddress = Field(IPv4Address("127.0.0.1"))
    port: int | None = Field(None, ge=1, le=65535)
    variables: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()
    wait_seconds: float = Field(60.0, gt=0)


VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy")
EXCEPTIONS = ("no_proxy", "NO_PROXY")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
BRACKETS = str.maketrans("", "", "[]")  # of IPv6 addresses: httpx treats them as a part of a name


def keep_loopback_direct() -> None:
    """Exclude this machine from proxies, for libraries here and in child processes.

    Every server that is started here listens on the loopback. Libraries read different spellings of NO_PROXY, so both
    get the same value. A proxy that httpx cannot use (SOCKS without `socksio`, or an invalid address) would stop
    Prefect's client even if no request goes through it. Only httpx reads "*" among other names as "no proxies".
    """
    if not any(name.lower() in VARIABLES and value for name, value in os.environ.items()):
        return
    value = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip().translate(BRACKETS) for name in value.split(",") if name.strip()]
    if names != ["*"]:
        names = list(dict.fromkeys([*names, *LOOPBACK]))
    if {os.environ.get(name) for name in EXCEPTIONS} == {",".join(names)}:
        return
    os.environ.update(dict.fromkeys(EXCEPTIONS, ",".join(names)))
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, ValueError, httpx.InvalidURL):
        os.environ.update(dict.fromkeys(EXCEPTIONS, ",".join([*names, "*"])))


FILE_NAME = "config.toml"
HOME, MIRRORS = ".ml", "mirrors"  # folders of a project; `ondol.storage.store` opens what is in the second one


class Settings(BaseSettings):
    """All settings of a project.

    Attributes:
        root: The folder that holds `config.toml`.
        store: Where data, models and records are kept: a folder, or the address of an object store.
    """

    overridable: ClassVar[bool] = True

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="ML_", env_nested_delimiter="__", env_ignore_empty=True
    )

    root: Path
    store: StorePlace = ".ml/store"
    project: Naming = Naming()
    data: Data = Data()
    fetch: Fetch = Fetch()
    split: Split = Split()
    leakage: Leakage = Leakage()
    train: Train = Train()
    decision: Decision = Field(Decision(), exclude_if=lambda decision: not decision.is_set)
    compute: Compute = Field(Compute(), exclude_if=lambda compute: compute == Compute())
    gates: Gates = Gates()
    card: CardText = CardText()
    deploy: Deploy = Deploy()
    rollout: RolloutPolicy = RolloutPolicy()
    service: Service = Service()
    access: Access = Access()
    log: Log = Log()
    monitor: Monitor = Monitor()
    retrain: Retrain = Retrain()
    ports: Ports = Ports()
    alerts: Alerts = Alerts()
    retention: Retention = Retention()
    environments: dict[str, Environment] = {}

    @model_validator(mode="after")
    def _require_classes(self) -> Self:
        if self.decision.is_set and self.data.problem == "regression":
            raise ValueError("[decision] is about labels, and the problem is regression: remove the section")
        if self.data.problem == "multiclass" and (self.decision.precision or self.decision.recall):
            raise ValueError("[decision] precision and recall are for two classes: use costs for more")
        if self.train.calibration == "sigmoid" and self.data.problem == "regression":
            raise ValueError('[train] calibration = "sigmoid" needs classes: leave it out for a regression')
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override `config.toml`, which is passed to the initialiser."""
        return (env_settings, init_settings) if cls.overridable else (init_settings,)

    def show(self, path: Path) -> str:
        """Return a path for display: relative to the project where it lies inside."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    @property
    def home(self) -> Path:
        """The folder `.ml`, ignored by git, for everything that a run writes."""
        return self.root / HOME

    def folder_of(self, store: str) -> Path:
        """Return the folder of a store, relative to the project; for an address, the folder that mirrors it."""
        if not is_address(store):
            return self.root / store
        return self.home / MIRRORS / hashlib.sha256(store.rstrip("/").encode()).hexdigest()[:12]


class FileSettings(Settings):
    """Settings that the environment does not override: for a project whose commands run with another environment."""

    overridable: ClassVar[bool] = False


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder at or above `start` (default: here) that holds `config.toml`.

    Raises:
        UserError: there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            return folder
    raise UserError(f"No {FILE_NAME} in {here} or above it: run this inside a project made with `copier copy`.")


def load_settings(root: Path | None = None, kind: type[Settings] = Settings) -> Settings:
    """Read `config.toml` of the project at `root` (default: found from here) and, depending on `kind`, the environment.

    Raises:
        UserError: the file is missing or is not TOML, a key is unknown, or a value is not allowed; or `.env` cannot be
            read.
    """
    folder = (root or find_root()).resolve()
    try:
        load_env_file(folder)
    except UnicodeDecodeError:
        raise UserError(f"{folder / '.env'} is not UTF-8: save it as UTF-8.") from None
    except OSError as error:
        raise UserError(
            f"{folder / '.env'} cannot be read ({error.strerror}): make it readable for this user."
        ) from None
    keep_loopback_direct()
    path = folder / FILE_NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := values.keys() - _keys([]):  # pydantic-settings takes [Data] for [data], and drops the second one
            raise UserError(_explain_unknown([min(unknown)]))
        return kind(**(values | {"root": folder}))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this inside a project made with `copier copy`.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        if path.read_bytes().startswith(codecs.BOM_UTF8):
            raise UserError(f"{path} begins with a byte order mark: save it as UTF-8 without one.") from None
        raise UserError(f"{path} is not valid TOML: {error}.") from None
    except SettingsError as error:
        raise UserError(f"A setting in the environment cannot be read: {error}.") from None
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    """Return a sentence on the first mistake in the settings, with a hint."""
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    name = ".".join(place)
    if first["type"] == "extra_forbidden":
        return _explain_unknown(place)
    reason = first["msg"].removeprefix("Value error, ")
    if not place:  # an error that concerns several sections
        return f"{FILE_NAME} or the environment cannot be used: {reason}."
    if isinstance(first["input"], dict) and "." not in name:  # an error that concerns several settings of a section
        return f"The section [{name}] ({FILE_NAME} or environment) cannot be used: {reason}."
    return f'The setting "{name}" ({FILE_NAME} or environment) is {show_value(first["input"])}: {reason}.'


def _explain_unknown(place: list[str]) -> str:
    known = _keys(place[:-1])
    hint = nearest(place[-1], known) or f" Known here: {', '.join(known)}."
    return f'{FILE_NAME} or the environment has the unknown setting "{".".join(place)}".{hint}'


def _keys(place: list[str]) -> list[str]:
    """List the known keys of the section at `place`."""
    model: Any = Settings
    for part in place:
        table = get_args(model)  # in a table of sections, such as [environments], any name is a section
        model = table[1] if table else model.model_fields[part].annotation
    return [key for key in getattr(model, "model_fields", ()) if key != "root"]
