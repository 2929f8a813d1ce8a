"""API keys of the service. The store holds only their hashes; the engine writes them, and the service reads them.

It imports only the standard library, since the engine uses it too.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

KEYS_FILE = "access.json"  # in the store
SCOPES = ("predict", "explain", "metrics", "admin")
# A key is `ondol_ID_SECRET`. The secret is random (256 bits), so a fast hash is enough: slow ones are for passwords.
FORM = re.compile(r"ondol_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
NO_HASH = "0" * 64
TIMES = ("created", "expires", "revoked")


@dataclass(frozen=True)
class Key:
    """The record of an API key.

    Attributes:
        id: Part of the key, which names it in lists.
        name: Whose key it is.
        hash: The SHA-256 of the key, as hexadecimal digits.
        scopes: What it allows; `admin` allows everything.
        created: When it was created.
        expires: From when on it is refused; None for never.
        revoked: When it was revoked; None if it was not.
    """

    id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        """Return True if it was not revoked and has not expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def find_key(keys: Iterable[Key], text: str) -> Key | None:
    """Return the valid key that `text` is, in a time that does not depend on how much of it is right."""
    form = FORM.fullmatch(text)
    known = next((key for key in keys if form and key.id == form[1]), None)
    same = hmac.compare_digest(hash_key(text), known.hash if known else NO_HASH)
    return known if known and same and known.is_valid(datetime.now(UTC)) else None


def parse_keys(content: bytes) -> tuple[Key, ...]:
    """Return the keys in the content of `access.json`. Those that are not valid stay in it, so it never becomes empty.

    Raises:
        ValueError: it is damaged.
    """
    try:
        entries = json.loads(content)["keys"]
        if not isinstance(entries, list):
            raise TypeError("its keys are not a list")
        return tuple(Key(**entry | _read_values(entry)) for entry in entries)
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(repr(error)) from None


def _read_values(entry: dict[str, Any]) -> dict[str, Any]:
    read = {name: datetime.fromisoformat(entry[name]) for name in TIMES if entry.get(name) is not None}
    if not all(moment.tzinfo for moment in read.values()):
        raise TypeError(f"{entry['id']} has a time without a zone")
    if not all(isinstance(entry[name], str) for name in ("id", "name", "hash")) or set(entry["scopes"]) - set(SCOPES):
        raise TypeError(entry["id"])
    return read | {"scopes": tuple(entry["scopes"])}


def list_entries(keys: Iterable[Key]) -> dict[str, Any]:
    """Return the content of `access.json`, to be written as JSON."""
    return {"keys": [asdict(k) | {name: v.isoformat() for name in TIMES if (v := getattr(k, name))} for k in keys]}


def create_key(name: str, scopes: Iterable[str], expires: datetime | None) -> tuple[str, Key]:
    """Return a new key, which is shown once, and its record."""
    text = f"ondol_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
    key = Key(
        id=text.split("_")[1],
        name=name,
        hash=hash_key(text),
        scopes=tuple(scopes),
        created=datetime.now(UTC).replace(microsecond=0),
        expires=expires,
    )
    return text, key


def hash_key(text: str) -> str:
    """Return the hash of a key."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
