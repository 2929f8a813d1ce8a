"""`ml keys`: the API keys of the service, here or in an environment."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from rich.markup import escape

from ondol.cli.console import console, current_store, print_plain, start_command
from ondol.errors import UserError, nearest
from ondol.orchestration.reporting import plain, table
from ondol.registry.keys import add_key, read_keys, revoke_key
from ondol.storage.store import Store, open_store
from ondol_serving.keys import Key


def print_new_key(name: str, scopes: Iterable[str], days: float | None, to: str | None) -> None:
    """Create a key and print it, once."""
    store = _find_store(to)
    first = not read_keys(store)
    text, key = add_key(store, name, scopes, days)
    until = f"until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else "until it is revoked"
    about = f"Key {key.id} of {escape(name)} is valid {until}, for {', '.join(key.scopes)}"
    console.print(f"[green]✓[/] {about}. It is shown only now:", soft_wrap=True)
    print_plain(text)
    if first:
        console.print(
            "From now on, the service answers only requests with a key: "
            "[bold]Authorization: Bearer KEY[/]. Health checks need none.",
            soft_wrap=True,
        )


def print_keys(to: str | None) -> None:
    """Print a table of the keys."""
    print_plain("\n".join(key_lines(read_keys(_find_store(to)))))


def key_lines(keys: Iterable[Key]) -> Iterator[str]:
    """Yield the lines of a table of keys."""
    now = datetime.now(UTC)
    rows = [
        (key.id, plain(key.name), ", ".join(key.scopes), f"{key.created:%Y-%m-%d}", _state(key, now)) for key in keys
    ]
    if rows:
        yield from table(("key", "name", "scopes", "created", "state"), rows, show=str)
    else:
        yield "There are no keys: `ml keys create NAME` creates one."


def print_revoked(key_id: str, to: str | None) -> None:
    """Revoke a key."""
    key = revoke_key(_find_store(to), key_id)
    console.print(
        f"[green]✓[/] Key {key.id} of {escape(key.name)} is revoked: services refuse it within two seconds.",
        soft_wrap=True,
    )


def _state(key: Key, now: datetime) -> str:
    if key.revoked:
        return f"revoked {key.revoked:%Y-%m-%d %H:%M}"
    if key.expires is None:
        return "valid"
    return f"{'valid until' if now < key.expires else 'expired'} {key.expires:%Y-%m-%d %H:%M}"


def _find_store(to: str | None) -> Store:
    settings = start_command(stored=False)
    if to is None:
        return open_store(settings)
    if to not in settings.environments:
        raise UserError(f"There is no [environments.{to}] in config.toml.{nearest(to, settings.environments)}")
    return current_store(settings, settings.environments[to].store)
