"""Files and objects at an address: secrets, optional libraries, retries and errors."""

import errno
import importlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from ondol.config import Fetch
from ondol.errors import UserError
from ondol.redaction import expand, find_plain
from ondol.storage.files import digest_json

if TYPE_CHECKING:
    from tenacity import RetryCallState

ANY_TAG: Final = "any tag"
CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409")
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
EXTRAS = {  # optional dependencies in the engine's pyproject.toml
    "s3fs": "s3",
    "gcsfs": "gcs",
    "adlfs": "azure",
    "psycopg[binary]": "postgresql",
    "pymysql": "mariadb",
    "duckdb-engine": "duckdb",
    "confluent-kafka": "kafka",
}


def refuse_plain(uri: str) -> None:
    """Refuse an address with a secret in plain text.

    Raises:
        UserError: it has one; the message does not repeat it.
    """
    if what := find_plain(uri):
        raise UserError(
            f"The source's {what} is in plain text: write ${{NAME}} in its place, and NAME=… in .env "
            "or in the environment."
        )


def resolve(uri: str) -> str:
    """Return `uri` with the values of its secrets, for connections; never print it.

    Raises:
        UserError: one is not set.
    """
    try:
        return expand(uri)
    except KeyError as error:
        name = error.args[0]
        raise UserError(f'"{uri}" needs {name}: set it in the environment, or write {name}=… in .env.') from None


def require_library(module: str, package: str, uri: str) -> ModuleType:
    """Import the client library of an optional source.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f'"{uri}" is read by {package}, which is not installed: run `{install_command(package)}`.'
        ) from None


def install_command(package: str) -> str:
    """Return the command that adds a library of an optional source, within the tested bounds."""
    extra = EXTRAS.get(package)
    return f'uv add "ondol[{extra}]"' if extra else f'uv add "{package}"'


CHUNK = 8 << 20
WILD = re.compile(r"[*?[]")


@dataclass(frozen=True)
class RemoteFile:
    """A file in a listing.

    Attributes:
        name: The path below the folder, or the full name.
        path: The path for requests to the place.
        size: In bytes, if it is known.
        tag: A value that changes whenever the bytes change; None if the server returns none.
    """

    name: str
    path: str
    size: int | None
    tag: str | None


class Place(Protocol):
    """A place where files are listed and read; it raises errors of its library, see `faults`."""

    def find(self) -> list[RemoteFile]:
        """Return the files, sorted."""
        ...

    def look(self, file: RemoteFile) -> RemoteFile:
        """Return the current metadata of `file`."""
        ...

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        """Return the offset of the bytes (`start` or 0) and the bytes."""
        ...


def choose(names: Iterable[str]) -> list[str]:
    """Return the paths of data files, without hidden ones and markers such as _SUCCESS, sorted by bytes."""
    kept = {name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))}
    return sorted(kept, key=str.encode)


LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
CHECKSUMS = ("ETag", "etag", "md5Hash", "content_md5")


class Bucket:
    """One file, all files below a prefix, or the files that match a pattern, in an object store."""

    def __init__(self, uri: str, resolved: str, fetch: Fetch) -> None:
        """Store the address; no request is sent yet.

        Raises:
            UserError: the store's library is not installed.
        """
        scheme, _, path = resolved.partition("://")
        require_library(LIBRARIES[scheme], LIBRARIES[scheme], uri)
        self._uri = uri
        self._path = path.rstrip("/")
        self._scheme = scheme
        self._fetch = fetch

    def find(self) -> list[RemoteFile]:
        """Return the files, sorted; see `Place`."""
        store = self._store
        if WILD.search(self._path) and not store.exists(self._path):
            base = self._path[: WILD.search(self._path).start()].rpartition("/")[0]  # type: ignore[union-attr]
            found = store.glob(self._path, detail=True)
        else:
            about = store.info(self._path)
            if about["type"] == "file":
                return [_describe(self._path.rpartition("/")[2], about)]
            base, found = self._path, store.find(self._path, detail=True)
        below = {path.removeprefix(f"{base}/"): about for path, about in found.items() if about["type"] == "file"}
        return [_describe(name, below[name]) for name in choose(below)]

    def look(self, file: RemoteFile) -> RemoteFile:
        """Request the metadata of a file again; see `Place`."""
        return _describe(file.name, self._store.info(file.path))

    def read(self, file: RemoteFile, start: int) -> tuple[int, Iterator[bytes]]:
        """Read a file, a range of it at a time; see `Place`."""
        return start, self._stream(file, start)

    def _stream(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        with self._store.open(file.path, "rb", cache_type="none", block_size=CHUNK) as stream:
            stream.seek(start)
            while chunk := stream.read(CHUNK):
                yield chunk

    @cached_property
    def _store(self) -> Any:
        return open_filesystem(self._uri, self._scheme, self._fetch)


def open_filesystem(uri: str, scheme: str, fetch: Fetch) -> Any:
    """Return a file system without caching and retries; the caller retries.

    Raises:
        UserError: its library is not installed.
    """
    import fsspec

    require_library(LIBRARIES[scheme], LIBRARIES[scheme], uri)
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        seconds = fetch.timeout_seconds
        options["config_kwargs"] = {
            "connect_timeout": seconds,
            "read_timeout": seconds,
            "retries": {"total_max_attempts": 1},
        }
    store = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        store.retries = 1
    return store


def _describe(name: str, about: dict[str, Any]) -> RemoteFile:
    tag = next((str(about[key]) for key in CHECKSUMS if about.get(key)), None)
    return RemoteFile(name, about["name"], about["size"], tag)


RETRIED = (408, 425, 429, 500, 502, 503, 504)
DENIED = "access is denied: check the credentials and their permissions"
MISSING = "it does not exist: check the address"
BROKEN = "the server reports an error, at every request: try again later, or ask its operator"
# By the names of the libraries' classes, so that none must be installed; the first match counts.
MESSAGES = (
    (("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "CredentialUnavailableError"),
     "there are no credentials: set those of the store in the environment or in .env "
     "(see docs/how-to/read-from-an-object-store.md)", False),
    (("SSLError", "ClientSSLError", "SSLCertVerificationError", "ClientConnectorCertificateError"),
     "the server's certificate does not verify: name its authority in SSL_CERT_FILE (AWS_CA_BUNDLE for s3)", False),
    (("EndpointConnectionError", "ClientConnectorError", "ServiceRequestError", "ConnectionRefusedError", "gaierror"),
     "the host cannot be reached: check the address and the network", True),
    (("TimeoutError", "ConnectTimeoutError", "ReadTimeoutError", "ServiceResponseError"),
     "the server does not answer in time: try again, or raise `timeout_seconds` under [fetch]", True),
    (("ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "IncompleteReadError", "ConnectionError",
      "HTTPClientError", "ConnectionClosedError", "ResponseStreamingError", "Cut"),
     "the connection was lost, at every attempt: try again later", True),
    (("FileExpired",), "it changed while it was read: run the command again", False),
    (("InvalidURL",), "the address is invalid: write it as https://host/path", False),
    (("PermissionError", "ClientAuthenticationError", "RefreshError"), DENIED, False),
    (("FileNotFoundError", "ResourceNotFoundError"), MISSING, False),
)  # fmt: skip
BY_NUMBER = {
    errno.ENOSPC: "the disk is full: free some space under .ml",
    errno.EREMOTEIO: BROKEN,
    errno.EBUSY: BROKEN,
}


class Cut(Exception):
    """The server sent fewer bytes than announced."""


@dataclass(frozen=True)
class Fault:
    """A failure of a request.

    Attributes:
        text: The end of the message.
        passing: Whether a retry may help.
    """

    text: str
    passing: bool = False

    @property
    def brief(self) -> str:
        """The problem, without the number of attempts and the remedy."""
        return re.split("[,:]", self.text)[0]


def explain_fault(error: BaseException) -> Fault:
    """Translate an error of fsspec or of a library below it; its text may contain secrets and is not used."""
    status = getattr(error, "status", None) or getattr(error, "status_code", None)
    if isinstance(status, int):
        return _by_status(status)
    names = {kind.__name__ for kind in type(error).__mro__}
    if lacks_bucket(error):
        return Fault("its bucket does not exist: check the address")
    for known, text, passing in MESSAGES:
        if names & set(known):
            return Fault(text, passing)
    number = getattr(error, "errno", None)
    if number in BY_NUMBER:
        return Fault(BY_NUMBER[number], BY_NUMBER[number] == BROKEN)
    return Fault(f"{type(error).__name__} was raised: check the address and the credentials")


def lacks_bucket(error: BaseException) -> bool:
    """Return True if an error means that the bucket does not exist."""
    return isinstance(error, FileNotFoundError) and "bucket" in str(error).lower()


def explain_remote_error(uri: str, error: BaseException, doing: str = "read") -> UserError:
    """Return the error for the user."""
    return UserError(f'"{uri}" cannot be {doing}: {explain_fault(error).text}.')


def _by_status(status: int) -> Fault:
    if status in (401, 403):
        return Fault(DENIED)
    if status in (404, 410):
        return Fault(MISSING)
    if status in RETRIED:
        return Fault(f"{BROKEN} (status {status})", passing=True)
    return Fault(f"the server answers with status {status}: check the address")


T = TypeVar("T")
PAUSE_SECONDS = 1.0  # pause before the second attempt; doubled before each further one
LONGEST_PAUSE_SECONDS = 60.0
log = logging.getLogger(__name__)  # one of `ondol.orchestration.environment.LOGGERS`


def log_pause_of(what: str, seconds: float) -> None:
    """Log that `what` (without secrets) failed and is retried in `seconds`."""
    log.warning("%s: trying again in %s s", what, f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}")


def before_sleep(describe: Callable[[BaseException], str]) -> "Callable[[RetryCallState], None]":
    """Return the function that tenacity calls before each pause; `describe` returns the failure."""

    def log_pause(state: "RetryCallState") -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None and state.next_action is not None:
            log_pause_of(describe(error), state.next_action.sleep)

    return log_pause


def with_retries(uri: str, call: Callable[[], T], retries: int, doing: str = "read", missing: bool = False) -> T:
    """Return `call()`, with retries of transient failures after increasing pauses.

    Raises:
        UserError: all attempts failed; the message contains `doing`.
        FileNotFoundError: with `missing`, if the bucket exists and the file does not.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

    attempts = Retrying(
        stop=stop_after_attempt(retries + 1),
        wait=wait_random_exponential(multiplier=PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        retry=retry_if_exception(lambda error: explain_fault(error).passing),
        before_sleep=before_sleep(lambda error: f'"{uri}" cannot be {doing}, {explain_fault(error).brief}'),
        reraise=True,
    )
    try:
        return attempts(call)
    except UserError:
        raise
    except Exception as error:  # of any library: they have no common base class
        if missing and isinstance(error, FileNotFoundError) and not lacks_bucket(error):
            raise
        raise explain_remote_error(uri, error, doing) from None


@dataclass(frozen=True)
class Object:
    """An object in a listing of the store: `tag` changes with the bytes, `modified` is in seconds since 1970."""

    tag: str
    size: int
    modified: float | None


class Changed(UserError):
    """An object has changed since this host last read it."""


class Objects:
    """The objects below `address`, by names relative to it."""

    def __init__(self, address: str, fetch: Fetch) -> None:
        """Store the address; no request is sent yet."""
        self.address = address.rstrip("/")
        self._fetch = fetch

    def list(self, below: str = "") -> dict[str, Object]:
        """Return all objects whose names begin with the folder `below`, sorted by name."""
        found = self._retry(lambda store: store.find(self._path(below.rstrip("/")), detail=True))
        start = f"{self._base}/"
        files = {n: about for n, about in found.items() if about["type"] == "file" and n.startswith(start)}
        return {name.removeprefix(start): _describe_object(files[name]) for name in sorted(files)}

    def look(self, name: str) -> Object | None:
        """Return the current metadata of an object, None if it does not exist."""
        try:
            return self._retry(lambda store: _describe_object(store.info(self._path(name))), missing=True)
        except FileNotFoundError:
            return None

    def get(self, name: str, path: Path) -> bool:
        """Copy an object to the file at `path`; return whether the object exists."""
        try:
            self._retry(lambda store: store.get_file(self._path(name), str(path)), missing=True)
        except FileNotFoundError:
            return False
        return True

    def put(self, name: str, content: bytes, expected: str | None = ANY_TAG) -> str:
        """Replace a small object in one step and return its new tag.

        Args:
            name: The object.
            content: Its bytes.
            expected: The tag that it must have now, None if it must not exist; default: any.

        Raises:
            Changed: it has another tag.
        """
        put = _put_s3 if self._scheme == "s3" else _put
        return self._retry(lambda store: put(store, self._place(store, name), content, expected), doing="written")

    def put_file(self, name: str, path: Path) -> None:
        """Replace an object by the file at `path`."""
        self._retry(lambda store: store.put_file(str(path), self._place(store, name)), doing="written")

    def delete(self, name: str) -> None:
        """Remove an object, if it exists."""
        try:
            self._retry(lambda store: store.rm_file(self._path(name)), doing="written", missing=True)
        except FileNotFoundError:
            return

    @cached_property
    def _store(self) -> Any:
        known = self._scheme in LIBRARIES
        return open_filesystem(self.address, self._scheme, self._fetch) if known else _open_other(self)

    @cached_property
    def _resolved(self) -> str:
        refuse_plain(self.address)
        return resolve(self.address)

    @cached_property
    def _base(self) -> str:
        return str(self._store._strip_protocol(self._resolved)).rstrip("/")

    @property
    def _scheme(self) -> str:
        return self.address.partition("://")[0]

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def _place(self, store: Any, name: str) -> str:
        """Return the path for writing an object; folders are created only if the place is not an object store."""
        path = self._path(name)
        if self._scheme in ("file", "local", "sftp", "ssh", "smb", "hdfs"):
            store.makedirs(path.rpartition("/")[0], exist_ok=True)
        return path

    def _retry(self, call: Callable[[Any], T], doing: str = "read", missing: bool = False) -> T:
        """Return `call()`, with retries of transient failures.

        Raises:
            UserError: all attempts failed; with `missing`, FileNotFoundError of an object is raised.
        """
        store = self._store
        return with_retries(self.address, lambda: call(store), self._fetch.retries, doing, missing)


def _open_other(objects: Objects) -> Any:
    """Return fsspec's file system of any other scheme.

    Raises:
        UserError: there is none, or its library is not installed.
    """
    import fsspec

    try:
        return fsspec.filesystem(objects._scheme)
    except (ImportError, ValueError) as error:
        message = f'"{objects.address}" cannot be a store ({error}): use a folder, s3://, gs:// or az://.'
        raise UserError(message) from None


def _describe_object(about: dict[str, Any]) -> Object:
    tag = next((str(about[key]) for key in CHECKSUMS if about.get(key)), None)
    time = next((about[key] for key in TIMES if about.get(key)), None)
    modified = time.timestamp() if isinstance(time, datetime) else time if isinstance(time, int | float) else None
    return Object(tag or digest_json(about), about["size"], modified)


def _put_s3(store: Any, path: str, content: bytes, expected: str | None) -> str:
    """Put an object with a condition that S3 checks."""
    bucket, key, _ = store.split_path(path)
    condition = {} if expected == ANY_TAG else {"IfMatch": expected} if expected else {"IfNoneMatch": "*"}
    try:
        return str(store.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)["ETag"])
    except OSError as error:
        if not condition or not _is_conflict(error):
            raise
    about = _known_object(store, path)
    # The same content: an earlier attempt arrived, and its response was lost.
    if about is None or store.cat_file(path) != content:
        raise Changed(path)
    return about.tag


def _put(store: Any, path: str, content: bytes, expected: str | None) -> str:
    """Put an object in a store without conditions: it is checked before, which leaves a short race."""
    about = None if expected == ANY_TAG else _known_object(store, path)
    if expected != ANY_TAG and (about.tag if about else None) != expected and store.cat_file(path) != content:
        raise Changed(path)
    store.pipe_file(path, content)
    return _describe_object(store.info(path)).tag


def _known_object(store: Any, path: str) -> Object | None:
    try:
        return _describe_object(store.info(path))
    except FileNotFoundError:
        return None


def _is_conflict(error: OSError) -> bool:
    code = getattr(error.__cause__ or error, "response", {}).get("Error", {}).get("Code")
    return code in CONFLICTS or isinstance(error, FileExistsError)
