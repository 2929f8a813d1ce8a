"""API keys of the service: `access.json` in the store, which the service reads by itself."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from ondol.errors import UserError
from ondol.storage.files import KEYS_FILE, explain_damage, locked, read_bytes
from ondol.storage.store import Store
from ondol_serving.keys import FORM, Key, create_key, list_entries, parse_keys

LONGEST_NAME = 100


def read_keys(store: Store) -> tuple[Key, ...]:
    """Return the records of all keys, also of those that are no longer valid.

    Raises:
        Damaged: the file cannot be read.
        UserError: the store cannot be reached.
    """
    store.look(store.folder / KEYS_FILE)
    return read_local_keys(store)


def read_local_keys(store: Store) -> tuple[Key, ...]:
    """Return the keys like `read_keys`, without asking a remote store.

    Raises:
        Damaged: the file cannot be read.
    """
    path = store.folder / KEYS_FILE
    content = read_bytes(path)
    try:
        return () if content is None else parse_keys(content)
    except ValueError as error:
        raise explain_damage(path, str(error)) from None


def add_key(store: Store, name: str, scopes: Iterable[str], days: float | None) -> tuple[str, Key]:
    """Create a key that is valid for `days` days (None: for ever); return it and its record.

    Raises:
        UserError: the name cannot be shown in a line, the store cannot be reached, or another host has changed the keys
            in the meantime.
    """
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise UserError(f"A key needs a name in one line, of at most {LONGEST_NAME} characters: whose key it is.")
    expires = None if days is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    text, key = create_key(name, scopes, expires)
    with locked(store.folder / "access.lock", wait=True):
        _write(store, (*read_keys(store), key))
    return text, key


def revoke_key(store: Store, key_id: str) -> Key:
    """Revoke a key and return its record; services refuse it within two seconds.

    Args:
        store: The store.
        key_id: The key's id, or the key itself.

    Raises:
        UserError: there is no such key, or it is revoked already.
    """
    whole = FORM.fullmatch(key_id)
    key_id = whole[1] if whole else key_id.removeprefix("ondol_")[:8]  # an error must not show a key
    with locked(store.folder / "access.lock", wait=True):
        keys = read_keys(store)
        found = next((key for key in keys if key.id == key_id), None)
        if found is None:
            raise UserError(f"There is no key {key_id} in {store}: `ml keys list` shows them.")
        if found.revoked:
            since = f"{found.revoked:%Y-%m-%d %H:%M} UTC"
            raise UserError(f"The key {key_id} of {found.name} is revoked already, since {since}.")
        revoked = replace(found, revoked=datetime.now(UTC).replace(microsecond=0))
        _write(store, tuple(revoked if key is found else key for key in keys))
    return revoked


def _write(store: Store, keys: tuple[Key, ...]) -> None:
    store.write_json(store.folder / KEYS_FILE, list_entries(keys))
