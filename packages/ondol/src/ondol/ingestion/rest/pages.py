"""From one page of an API to the next: where its records are, and which address comes then."""

import hashlib
import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from ondol.errors import UserError, nearest
from ondol.ingestion.rest.errors import Trouble
from ondol.ingestion.rest.plan import Plan
from ondol.ingestion.rest.session import Answer, Api

MOST_EMPTY = 1_000  # pages without records, one after the other
TELLS_MORE = re.compile(r"(?i)(has_?more|next(_?(page|cursor|token|link|url|offset|page_?token))?)")
MISSING = object()


class Pager:
    """What is remembered from page to page."""

    def __init__(self, plan: Plan, api: Api, address: str, uri: str) -> None:
        """Begin before the first page."""
        self._plan, self._api, self._uri = plan, api, uri
        self._start = address
        self._records = plan.records
        self._number = 0
        self._asked: set[bytes] = set()
        self._seen: dict[bytes, int] = {}
        self._empty = 0

    @property
    def place(self) -> str:
        """What messages call the page that was asked for last."""
        return f"Page {self._number}"

    def pages(self) -> Iterator[list[Any]]:
        """Yield the records of each page.

        Raises:
            UserError: a page cannot be had, is not as the plan says, or comes again and again.
        """
        plan = self._plan
        address: str | None = set_parameter(self._start, plan.page, plan.first) if plan.page else self._start
        while address is not None:
            self._number += 1
            answer = self._api.get(address, self.place)
            try:
                records = self._find_records(answer.body)
                self._refuse_repeated(address, records)
                following = self._follow(address, answer, records)
            except Trouble as error:
                raise UserError(f'{self.place} of "{self._uri}" {error}') from None
            yield records
            address = following

    def _find_records(self, body: Any) -> list[Any]:
        if self._records is None and isinstance(body, dict):
            lists = [name for name, value in body.items() if isinstance(value, list)]
            if len(lists) != 1:
                found = f"has {len(lists)} lists ({', '.join(lists)})" if lists else f"has no list ({_keys(body)})"
                raise Trouble(f"{found}: say with #records=… where its records are.")
            self._records = lists[0]
        found = walk(body, self._records or "")
        if found is MISSING:
            hint = nearest(str(self._records).rpartition(".")[2], body) if isinstance(body, dict) else ""
            raise Trouble(f"has nothing at records={self._records} ({_keys(body)}): check that path.{hint}")
        if found is not None and not isinstance(found, list):
            where = f"has {_name(found)} at records={self._records}" if self._records else f"is {_name(found)}"
            raise Trouble(f"{where}, where a list is expected: say with #records=… where the records are.")
        return found or []

    def _refuse_repeated(self, address: str, records: list[Any]) -> None:
        """Refuse a page that was there before: such an API would be read forever."""
        asked = _digest(address)
        if asked in self._asked:
            raise Trouble("is named as the next one again and again: the API repeats itself; ask who runs it.")
        self._asked.add(asked)
        self._empty = 0 if records else self._empty + 1
        if self._empty > MOST_EMPTY:
            raise Trouble(f"is the last of {MOST_EMPTY:,} without a record, and names a next: check the address.")
        before = self._seen.setdefault(_digest(json.dumps(records)), self._number) if records else self._number
        if before != self._number:
            name = self._plan.param or self._plan.page or "the next address"
            raise Trouble(f"has the records of page {before} again: check that the API follows {name}.")

    def _follow(self, address: str, answer: Answer, records: list[Any]) -> str | None:
        """Return the next page's address, None after the last."""
        plan = self._plan
        if plan.page:
            number = plan.first + self._number * plan.step
            return set_parameter(self._start, plan.page, number) if records else None
        value = self._find_next(answer.body) if plan.next else answer.link
        if value in (None, "", False):
            if not plan.next and not answer.link:
                self._refuse_more(answer.body)
            return None
        if plan.param:
            return set_parameter(self._start, plan.param, value)
        if not isinstance(value, str):
            raise Trouble(f"has {value} at next={plan.next}, no address: say with param=… which parameter takes it.")
        following = urljoin(address, value)
        self._api.session.require_same_host(address, following)
        return following

    def _find_next(self, body: Any) -> Any:
        """Return what is at `next`; an API may leave it out on its last page, so only a slip of the pen is refused."""
        if not isinstance(body, dict):
            raise Trouble(f"is {_name(body)}, which has no next={self._plan.next}: leave that out.")
        inside = body
        for key in str(self._plan.next).split("."):
            if not isinstance(inside, dict):
                return None
            if key not in inside:
                near = get_close_matches(key, inside, n=1, cutoff=0.8)
                if near and self._number == 1:
                    raise Trouble(f'has nothing at next={self._plan.next}: did you mean "{near[0]}"?')
                return None
            inside = inside[key]
        return inside

    def _refuse_more(self, body: Any) -> None:
        """Refuse a page that says itself that it is not the last, where nothing says how to go on."""
        envelope = body if isinstance(body, dict) else {}
        for name, value in envelope.items():
            inner = value if isinstance(value, dict) else {}
            paths = {name: value} | {f"{name}.{key}": inside for key, inside in inner.items()}
            for path, tells in paths.items():
                last = path.rpartition(".")[2]
                if TELLS_MORE.fullmatch(last) and tells and not isinstance(tells, list | dict):
                    raise Trouble(f'is not the last, says its "{path}": say with #next=… or #page=… how to go on.')


def walk(body: Any, path: str) -> Any:
    """Return what is at a dotted path, `MISSING` where nothing is."""
    for key in filter(None, path.split(".")):
        if not isinstance(body, dict) or key not in body:
            return MISSING
        body = body[key]
    return body


def set_parameter(address: str, name: str, value: object) -> str:
    """Return `address` with `name` in its query set to `value`."""
    parts = urlsplit(address)
    query = [(key, old) for key, old in parse_qsl(parts.query, keep_blank_values=True) if key != name]
    return urlunsplit(parts._replace(query=urlencode([*query, (name, str(value))])))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _keys(body: Any) -> str:
    return (
        f"it has {', '.join(map(str, list(body)[:10]))}" if isinstance(body, dict) and body else f"it is {_name(body)}"
    )


def _name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
