"""Access control: who may send a request, and how many.

A caller shows an API key of the store, or a token (JWT) of an issuer. Until there is a first key or an issuer, everyone
may send requests. Then the service listens only on the loopback, unless `open` is set: see `require_access_control`.
"""

import asyncio
import base64
import binascii
import logging
import math
import os
import socket
import sys
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ondol_serving.callers import Headers, is_loopback
from ondol_serving.errors import RequestRefused
from ondol_serving.keys import KEYS_FILE, SCOPES, Key, find_key, parse_keys
from ondol_serving.settings import AccessRules, read_access_rules

MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")  # of the Open Inference Protocol
HEALTH = frozenset(  # answered without a key, and under any host name
    {"/livez", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", *(f"{path}/ready" for path in MODEL)}
)
METRICS = "/metrics"  # answered under any host name too: it reveals no data
NEEDED = {"/predict": "predict", "/explain": "explain", METRICS: "metrics"}  # by path
PAGES = frozenset(  # for callers with any scope
    {"/", "/docs.json", "/schema.json", "/model", "/model/card", "/static_content/{path}", "/v2", *MODEL}
)
CALLERS_KEPT = 10_000  # with a rate, or a verified token
ISSUER_SECONDS = 5.0  # for its answer
REREAD_SECONDS = 300.0  # after which the issuer's keys are read again
RETRY_SECONDS = 10.0  # between two tries, also for tokens that name an unknown key
REDIS_SECONDS = 0.25  # for its answer
REDIS_RETRY_SECONDS = 5.0  # in which it is not asked again
REDIS_CONNECTIONS = 16  # of one process
TAKE = """
local clock = redis.call('TIME')
local now, count, seconds = clock[1] + clock[2] / 1e6, tonumber(ARGV[1]), tonumber(ARGV[2])
local kept = redis.call('HMGET', KEYS[1], 'left', 'since')
local past = math.max(0, now - (tonumber(kept[2]) or now))
local left = math.min(count, (tonumber(kept[1]) or count) + past * count / seconds)
local rest = left >= 1 and left - 1 or left
redis.call('HSET', KEYS[1], 'left', string.format('%.17g', rest), 'since', string.format('%.17g', now))
redis.call('EXPIRE', KEYS[1], math.ceil(seconds))
return string.format('%.17g', math.max(0, (1 - left) * seconds / count))
"""  # as `Access._take`, by the clock of Redis
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
# A browser asks for a name and a password then: the key is the password.
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="model", Basic realm="model"'}
NO_ACCESS_CONTROL = (
    "The service would listen on {host}, where other machines can reach it, and has no access control: create a key "
    "with `ml keys create NAME`, set ML_ACCESS__JWKS to the keys of an issuer of tokens, or set ML_ACCESS__OPEN=true "
    "([access] open = true) to let everyone use it who can reach it."
)

log = logging.getLogger("bentoml.service")


class Caller(NamedTuple):
    """Who sends a request."""

    name: str
    scopes: tuple[str, ...]


class Access:
    """The keys and rules of one process."""

    def __init__(self) -> None:
        """Read the rules from the environment, and the keys from the store.

        Raises:
            ValueError: a rule is not allowed.
            OSError: the keys cannot be read.
        """
        self.rules = read_access_rules()
        self._path = Path(os.environ.get("ML_STORE") or ".ml/store") / KEYS_FILE
        self._stamp: tuple[int, ...] | None = None
        self._keys: tuple[Key, ...] | None = None  # None: keys are not used
        self._tokens = Tokens(self.rules) if self.rules.jwks else None
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by caller: requests left, since when
        self._shared = SharedBuckets(self.rules) if self.rules.rate and self.rules.redis else None
        self.refresh()

    @property
    def active(self) -> bool:
        """Whether there is anything to check."""
        return self.rules.rate is not None or self.controlled

    @property
    def controlled(self) -> bool:
        """Whether callers must show a key or a token."""
        return self._keys is not None or self._tokens is not None

    def refresh(self) -> None:
        """Read the keys if the file has changed. If it is missing or damaged, the keys that were read stay.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            if self._keys is None:
                return
            raise
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._stamp:
            self._keys = self._keys or ()  # a file that cannot be read does not open the service
            try:
                self._keys = parse_keys(self._path.read_bytes())
            except ValueError as error:
                raise ValueError(f"{self._path} was changed or damaged ({error}): restore it from a backup") from None
            self._stamp = stamp

    async def admit(self, path: str, headers: Headers, client: str) -> None:
        """Check that the caller may send a request to `path`, and not too many.

        Raises:
            RequestRefused: with 401, the key is missing or not valid; with 403, it has another scope; with 429, the
                caller has sent too many requests.
        """
        caller = await self.require(path, headers, client)
        if self.rules.rate is not None:
            await self._limit(caller.name)

    async def require(self, path: str, headers: Headers, client: str) -> Caller:
        """Return the caller, who may send requests to `path`.

        Raises:
            RequestRefused: with 401, the key is missing or not valid; with 403, it has another scope.
        """
        caller = await self._identify(headers) if self.controlled else Caller(client, SCOPES)
        if not may_use(caller, path):
            raise RequestRefused(403, "wrong_scope", f'This key does not have the scope "{scope_of(path)}"')
        return caller

    async def _identify(self, headers: Headers) -> Caller:
        text = read_credentials(headers)
        if text is None:
            message = "Send an API key: Authorization: Bearer KEY"
            raise RequestRefused(401, "no_key", message, CHALLENGE)
        if self._tokens is not None and text.count(".") == 2:
            caller = await self._tokens.identify(text)
        else:
            key = find_key(self._keys or (), text)
            caller = Caller(key.id, key.scopes) if key else None
        if caller is None:
            raise RequestRefused(
                401, "invalid_key", "This key is not valid: it is unknown, expired or revoked", CHALLENGE
            )
        return caller

    async def _limit(self, name: str) -> None:
        """Count a request of the caller, in Redis or, while it does not answer, in this process."""
        assert self.rules.rate is not None
        count, seconds = self.rules.rate
        wait = await self._shared.take(name) if self._shared else None
        if wait is None:
            wait = self._take(name)
        if wait > 0:
            after = str(max(1, math.ceil(wait)))
            message = f"This caller has sent more than {count:g} requests in {seconds:g} s: try again in {after} s"
            raise RequestRefused(429, "too_many_requests", message, {"Retry-After": after})

    def _take(self, name: str) -> float:
        """Take a request from the caller's bucket, which holds those of the rate and fills continuously.

        Returns:
            The seconds until there is one; 0.0 if there was one.
        """
        assert self.rules.rate is not None
        count, seconds = self.rules.rate
        now = time.monotonic()
        left, since = self._buckets.pop(name, (count, now))
        left = min(count, left + (now - since) * count / seconds)
        self._buckets[name] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > CALLERS_KEPT:
            self._buckets.popitem(last=False)
        return max(0.0, (1 - left) * seconds / count)


class SharedBuckets:
    """The buckets of `Access` in Redis, for all processes and hosts that name the same server and database.

    While Redis does not answer, each process counts by itself: the service must not depend on it.
    """

    def __init__(self, rules: AccessRules) -> None:
        """Import the library, without a connection.

        Raises:
            ValueError: redis is not installed.
        """
        try:
            import redis.asyncio
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise ValueError(
                "ML_ACCESS__REDIS needs a library: run `uv add --group service 'ondol-serving[redis]'`, and build "
                "a new image"
            ) from None
        assert rules.rate is not None and rules.redis is not None
        self._rate = rules.rate
        self._failures = (redis.RedisError, OSError)
        self._failed = -math.inf  # when Redis failed last
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            rules.redis,
            password=os.environ.get("ML_REDIS_PASSWORD") or None,
            max_connections=REDIS_CONNECTIONS,
            timeout=REDIS_SECONDS,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 1),  # Redis may have closed an idle connection
        )
        self._script = redis.asyncio.Redis.from_pool(pool).register_script(TAKE)

    async def take(self, name: str) -> float | None:
        """Take a request from a caller's bucket; return as `Access._take`, or None if Redis does not answer."""
        if time.monotonic() - self._failed < REDIS_RETRY_SECONDS:
            return None
        try:
            return float(await self._script([f"ondol:rate:{name}"], self._rate))
        except self._failures as error:
            self._failed = time.monotonic()
            log.warning("Redis (ML_ACCESS__REDIS) does not answer, so each process limits callers by itself: %s", error)
            return None


def scope_of(path: str) -> str:
    """Return the scope that a path needs; an endpoint of the project needs that of `/predict`."""
    return NEEDED.get(path, "predict")


def may_use(caller: Caller, path: str) -> bool:
    """Return True if a caller has the scope of a path."""
    scopes = caller.scopes
    return "admin" in scopes or scope_of(path) in scopes or (path in PAGES and bool(scopes))


def read_credentials(headers: Headers) -> str | None:
    """Return the key or token in `Authorization` (Bearer, or the password of Basic), else in `X-API-Key`.

    Returns:
        None if there is neither, or if `Authorization` is repeated.
    """
    if b"authorization" not in headers:
        return headers.get(b"x-api-key", b"").decode("latin-1").strip() or None
    scheme, _, value = headers.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return value.decode("latin-1").strip() or None
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2] or None
        except binascii.Error:
            return None
    return None


class Tokens:
    """Verifies JSON Web Tokens by the public keys at the issuer's JWKS address.

    `sub` names the caller. The scopes are in `scope` (with spaces between them), `scp` or `scopes`. Keys that were read
    stay valid while the issuer does not answer. A thread of its own reads them, so a slow issuer delays only tokens of
    an unknown key.
    """

    def __init__(self, rules: AccessRules) -> None:
        """Import the library, without a request to the issuer.

        Raises:
            ValueError: PyJWT is not installed.
        """
        try:
            import jwt
        except ImportError:
            raise ValueError(
                "ML_ACCESS__JWKS needs PyJWT: run `uv add --group service 'ondol-serving[jwt]'`, and build a new image"
            ) from None
        self._rules = rules
        self._jwt = jwt
        self._client = jwt.PyJWKClient(str(rules.jwks), cache_jwk_set=False, timeout=ISSUER_SECONDS)
        self._reader = ThreadPoolExecutor(1, "issuer")
        self._keys: dict[str, Any] = {}  # by id
        self._read, self._tried = -math.inf, -math.inf  # when the keys were read last, and when that was tried
        self._reading: asyncio.Future[None] | None = None
        self._known: OrderedDict[str, tuple[float, Caller]] = OrderedDict()  # verified tokens, and their end

    async def identify(self, token: str) -> Caller | None:
        """Return the caller of a token, None if it is not valid.

        Raises:
            RequestRefused: with 503, the issuer's keys have never been read.
        """
        end, caller = self._known.get(token, (0.0, None))
        if time.time() < end:
            return caller
        try:
            kid = self._jwt.get_unverified_header(token).get("kid")
        except (self._jwt.PyJWTError, RecursionError):
            return None
        now = time.monotonic()
        wanted = kid not in self._keys or now - self._read > REREAD_SECONDS
        if wanted and (self._reading is not None or now - self._tried > RETRY_SECONDS):
            await self._read_keys(needed=kid not in self._keys)
        if not self._keys:
            message = "The public keys of the issuer of tokens cannot be read: try again later"
            raise RequestRefused(503, "no_issuer", message, {"Retry-After": "10"})
        return self._verify(token, self._keys[kid]) if kid in self._keys else None

    async def _read_keys(self, needed: bool) -> None:
        """Read the keys, once for all requests that need them now; those that have an older key do not wait."""
        if self._reading is None:
            self._tried = time.monotonic()
            self._reading = asyncio.get_running_loop().run_in_executor(self._reader, self._fetch)
            self._reading.add_done_callback(self._end_reading)
        if needed:
            await asyncio.shield(self._reading)

    def _end_reading(self, _: "asyncio.Future[None]") -> None:
        self._reading = None

    def _fetch(self) -> None:
        try:
            found = self._client.get_jwk_set(refresh=True).keys
        except Exception as error:  # an issuer may answer anything
            log.warning("The public keys of tokens cannot be read from %s: %s", self._rules.jwks, error)
            return
        self._keys = {key.key_id: key for key in found if key.key_id and key.public_key_use in ("sig", None)}
        self._read = time.monotonic()

    def _verify(self, token: str, key: Any) -> Caller | None:
        try:
            claims: dict[str, Any] = self._jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                options={"require": ["exp", "sub", "aud"]},
            )
        except (self._jwt.PyJWTError, RecursionError):
            return None
        stated = claims.get("scope") or claims.get("scp") or claims.get("scopes") or ()
        scopes = stated.split() if isinstance(stated, str) else stated
        caller = Caller(f"jwt:{claims['sub']}", tuple(scope for scope in SCOPES if scope in scopes))
        self._known[token] = (float(claims["exp"]), caller)
        if len(self._known) > CALLERS_KEPT:
            self._known.popitem(last=False)
        return caller


def require_access_control() -> None:
    """End this process if it would serve other machines without access control.

    BentoML imports the service in the process that opens the port, and again in each worker.

    Raises:
        SystemExit: with the reason, in one sentence.
    """
    host = find_listening_host(sys.argv)
    if host is None:
        return
    try:
        access = Access()
    except (OSError, ValueError) as error:
        raise SystemExit(f"Access control cannot be set up: {error}") from None
    if not (is_loopback(host) or access.rules.open or access.controlled):
        raise SystemExit(NO_ACCESS_CONTROL.format(host=host))


def find_listening_host(arguments: list[str]) -> str | None:
    """Return the address on which a process of BentoML with these arguments listens; None for another program."""
    if "--fd" in arguments:  # a worker, which inherits the socket
        with socket.socket(fileno=os.dup(int(arguments[arguments.index("--fd") + 1]))) as listening:
            name = listening.getsockname()
        return str(name[0]) if isinstance(name, tuple) else "localhost"  # a Unix socket is of this machine
    if "serve" not in arguments or "bentoml" not in arguments[0]:
        return None
    given = [right for left, right in pairwise(arguments) if left == "--host"]
    given += [one.partition("=")[2] for one in arguments if one.startswith("--host=")]
    from bentoml._internal.configuration.containers import BentoMLContainer

    return given[-1] if given else os.environ.get("BENTOML_HOST") or str(BentoMLContainer.http.host.get())
