"""How an API is read: the part of a REST source's address after `#`."""

import re
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import unquote, urlsplit

from ondol.errors import UserError, nearest
from ondol.redaction import PLACEHOLDER

REPEATED = ("header", "drop")
NUMBERS = ("first", "step")
NEEDS = {"param": "next", "first": "page", "step": "page"}


@dataclass(frozen=True)
class Plan:
    """What follows `#`, as `key=value&key=value`; a value's `&`, `=` and `%` are percent-encoded.

    Attributes:
        records: The dotted path to the list of records; None where the body is that list, or holds only one.
        next: The dotted path to what leads to the next page: the value of `param`, or without one an address.
        param: The query parameter that takes the value at `next`.
        page: The query parameter that takes the page's number, from `first` in steps of `step` until a page is empty.
        first: The first page's number.
        step: What is added for the next page; the page's size where the API counts records.
        since: The query parameter that takes the watermark: records at or after it are asked for.
        header: Headers, as `Name: value` with `${NAME}` for secrets.
        drop: Members of the records that are left out, dotted where nested.
    """

    records: str | None = None
    next: str | None = None
    param: str | None = None
    page: str | None = None
    first: int = 1
    step: int = 1
    since: str | None = None
    header: tuple[str, ...] = field(default=(), repr=False)
    drop: tuple[str, ...] = ()


def split_uri(uri: str) -> tuple[str, Plan]:
    """Return the address to be read, its secrets not filled in, and how.

    Raises:
        UserError: it is no such address, or a key is unknown, doubled or makes no sense.
    """
    address, _, said = uri.partition("#")
    if not re.match(r"rest\+https?://[^/?]", address):
        raise UserError(f'"{uri}" is no address of an API: write rest+https://host/path#records=….')
    if urlsplit(PLACEHOLDER.sub("x", address)).hostname is None:
        raise UserError(f'"{uri}" names no host: write rest+https://host/path#records=….')
    return address.removeprefix("rest+"), _read_plan(uri, said)


def _read_plan(uri: str, said: str) -> Plan:
    known = [f.name for f in fields(Plan)]
    values: dict[str, list[str]] = {}
    for part in filter(None, said.split("&")):
        name, _, value = part.partition("=")
        if name not in known:
            raise UserError(f'"{uri}" has the unknown key "{name}" after #.{nearest(name, known) or _list(known)}')
        if not value:
            raise UserError(f'"{uri}" gives {name} no value: write {name}=…, or leave it out.')
        if name in values and name not in REPEATED:
            raise UserError(f'"{uri}" gives {name} twice: keep one.')
        values.setdefault(name, []).append(unquote(value))
    _check(uri, values)
    return Plan(**{name: _convert(uri, name, given) for name, given in values.items()})


def _check(uri: str, values: dict[str, list[str]]) -> None:
    if "next" in values and "page" in values:
        raise UserError(f'"{uri}" gives both next and page: keep the one that the API knows.')
    for name, needed in NEEDS.items():
        if name in values and needed not in values:
            raise UserError(f'"{uri}" gives {name} without {needed}: add {needed}=…, or leave {name} out.')
    for header in values.get("header", []):
        name, colon, _ = header.partition(":")
        if not colon or not name.strip():
            raise UserError(f'A header in the source\'s address has no name: write "header=Name: value" ({uri[:40]}…).')


def _convert(uri: str, name: str, given: list[str]) -> Any:
    if name in REPEATED:
        return tuple(given)
    if name not in NUMBERS:
        return given[0]
    if not re.fullmatch(r"[0-9]{1,9}", given[0]):
        raise UserError(f'"{uri}" gives {name} as "{given[0]}": give a whole number such as 1.')
    return int(given[0])


def _list(known: list[str]) -> str:
    return f" Known: {', '.join(known)}."
