"""`rollout.json`: a challenger that is tried beside the champion, and which requests it answers."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic_core import from_json

from ondol_serving.bundle import Bundle

Role = Literal["champion", "challenger", "shadow"]
HEADER = b"x-rollout-key"
ALL = 1 << 64


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """A challenger, and its share of the requests from each moment on.

    The moments lie in the future when they are written, so all processes of the service change at the same time.

    Attributes:
        id: The name of the rollout, which decides together with a key which requests the challenger answers.
        strategy: How the challenger is tried.
        champion: The bundle in production. Requests that arrived for an earlier one are not the rollout's.
        challenger: The bundle that is tried.
        moments: The times (seconds since 1970) from which the shares count.
        shares: The share of the requests from each of the moments on.
    """

    id: str
    strategy: str
    champion: Bundle
    challenger: Bundle
    moments: tuple[float, ...]
    shares: tuple[float, ...]

    def share(self, now: float) -> float:
        """Return the share at the time `now`, in seconds since 1970."""
        place = bisect_right(self.moments, now)
        return self.shares[place - 1] if place else 0.0

    def takes(self, key: bytes, now: float) -> bool:
        """Return True if the challenger answers a request with this key.

        A key that it answers stays with it when the share grows.
        """
        share = self.share(now)
        drawn = hashlib.blake2b(key, digest_size=8, key=self.id.encode()[-64:]).digest()
        return share > 0 and int.from_bytes(drawn) < share * ALL


def find_key(bundle: Bundle, body: bytes, headers: Mapping[bytes, bytes], request_id: str) -> bytes:
    """Return what decides which version answers a request.

    It is the id of its first row, else the header X-Rollout-Key, else the request itself: the same caller gets the same
    version until the share changes.
    """
    ids = _read_ids([column.name for column in bundle.contract.ids], body)
    return ids or headers.get(HEADER) or request_id.encode()


def _read_ids(names: list[str], body: bytes) -> bytes | None:
    if not names:
        return None
    try:
        row = from_json(body)["rows"][0]
        values = [row.get(name) for name in names]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    if all(value is None for value in values):
        return None
    return json.dumps([_plain(value) for value in values], ensure_ascii=False).encode(errors="replace")


def _plain(value: Any) -> Any:
    """Return 3.0 as 3, which is the same id."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_steps(record: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the moments of a rollout's steps, in seconds since 1970, and the shares.

    Raises:
        ValueError, KeyError, TypeError: the record is not one of a rollout.
    """
    steps = [(datetime.fromisoformat(step["at"]).timestamp(), float(step["share"])) for step in record["steps"]]
    return tuple(at for at, _ in steps), tuple(share for _, share in steps)
