"""A record of the prediction log: one answered request as one line of JSON."""

import hmac
import json
import logging
import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json

from ondol_serving.contract import Contract
from ondol_serving.environment import read_settings

SPACED_COLONS = (b" :", b"\t:", b"\n:", b"\r:")

log = logging.getLogger("bentoml.service")


class Rules(BaseModel):
    """What is logged and how much is kept; the meaning of each entry is `ondol.config.Log`'s."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = True
    sensitive: Literal["drop", "hash"] = "drop"
    file_bytes: int = Field(64_000_000, ge=1)
    keep_bytes: int = Field(2_000_000_000, ge=1)


def read_rules(settings: dict[str, Any]) -> Rules:
    """Return the rules: each entry the environment's (`ML_LOG__…`), else the bundle's, else the default.

    Raises:
        ValueError: an entry is not allowed.
    """
    return read_settings(Rules, settings, "ML_LOG__", "the log")


class Answered(NamedTuple):
    """A valid request and its answer."""

    request_id: str
    milliseconds: float  # from the request's arrival
    body: bytes  # the request's
    keys: int  # of the validated request, `rows` among them
    predictions: bytes  # the answer's, as JSON
    unread: bool = False  # whether a row holds a column that is neither read nor logged


class Recorder:
    """Writes the records of one bundle's answers.

    A body that was validated is JSON already, so its bytes go into the record as they came. It is read and
    written again only where columns are left out, or where a reader of the log could stumble over it.
    """

    def __init__(self, contract: Contract, version: str, folder: Path, rules: Rules) -> None:
        """Prepare for the bundle in `folder`."""
        self.rules = rules
        self.folder = str(Path(os.environ.get("ML_STORE") or ".ml/store") / "log")
        self._sensitive = frozenset(c.name for c in contract.columns if c.role == "sensitive")
        self._unread = frozenset(c.name for c in contract.unread)
        self._has_ids = bool(contract.ids)
        self._key = (os.environ.get("ML_LOG_KEY") or "").encode() if rules.sensitive == "hash" else b""
        if rules.enabled and self._sensitive and rules.sensitive == "hash" and not self._key:
            _warn_of_missing_key()
        names = {"version": version, "bundle": folder.resolve().name}
        self._about = json.dumps(names, ensure_ascii=False, separators=(",", ":"))[1:-1]

    def line(self, answered: Answered) -> bytes:
        """Return the record of an answer, stamped with the time that it is now."""
        at = datetime.now(UTC).isoformat("T", "microseconds")
        request_id, milliseconds, body, keys, predictions, unread = answered
        head = f'{{"id":"{request_id}","at":"{at}",{self._about},"ms":{milliseconds:.3f},"request":'
        request = self._request(body, keys, unread)
        return b"".join((head.encode(), request, b',"predictions":', predictions, b"}\n"))

    def _request(self, body: bytes, keys: int, unread: bool) -> bytes:
        """Return the request in one line, each key once, without what is sensitive or not read."""
        if (
            not unread
            and not self._sensitive
            and _is_plain(body, keys)
            and not (self._has_ids and _has_constants(body))
        ):
            return body.replace(b"\n", b" ").replace(b"\r", b" ")  # JSON has both between its tokens only
        request = from_json(body)
        if unread:
            request["rows"] = [{n: v for n, v in row.items() if n not in self._unread} for row in request["rows"]]
        if self._sensitive:
            for row in request["rows"]:
                for name in self._sensitive & row.keys():
                    value = row.pop(name)
                    if self._key:
                        row[name] = _hash(self._key, value)
        return to_json(request, inf_nan_mode="null")


def _is_plain(body: bytes, keys: int) -> bool:
    """Return True if no key is there twice: JSON allows it, and strict readers of the log would fail on it."""
    if body.count(b":") == keys:
        return True
    # A colon may be in a text too, but then only after an escaped quote could it look like a key's.
    return body.count(b'":') == keys and not any(colon in body for colon in SPACED_COLONS)


def _has_constants(body: bytes) -> bool:
    """Return True if NaN or Infinity may be in an id, which is not validated."""
    return b"NaN" in body or b"Infinity" in body


def _hash(key: bytes, value: Any) -> str | None:
    """Return the keyed hash of a value, None for a missing one; 3 and 3.0 are one number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = value if isinstance(value, str) else json.dumps(float(value) if number else value)
    return hmac.digest(key, text.encode(), "sha256").hex()


@cache  # once for the process
def _warn_of_missing_key() -> None:
    log.warning('[log] sensitive = "hash" needs a key in ML_LOG_KEY: sensitive columns are left out of the log')
