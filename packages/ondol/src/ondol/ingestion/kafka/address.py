"""A topic by its address, and the connection to it."""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from ondol.config.data import Fetch
from ondol.errors import UserError, nearest
from ondol.ingestion.kafka.errors import explain, explain_lost, say_begun
from ondol.storage.addresses import resolve

log = logging.getLogger(__name__)
OURS = {
    "bootstrap.servers": "the part before the topic",
    "group.id": "group=…",
    "enable.auto.commit": "nothing: offsets are committed once the snapshot is safe",
    "enable.auto.offset.store": "nothing: offsets are committed once the snapshot is safe",
    "auto.offset.reset": "nothing: a group without offsets begins at the start",
    "enable.partition.eof": "nothing: a read ends where the partitions ended when it began",
}


@dataclass(frozen=True)
class Address:
    """What a topic's address says, its secrets not filled in.

    Attributes:
        servers: The brokers to begin with.
        topic: The topic's name.
        group: The group of readers whose offsets are committed.
        settings: librdkafka's, by name.
        drop: Members of the records that are left out, dotted where nested.
        skip: Messages that are passed over, as `partition:offset`.
    """

    servers: str
    topic: str
    group: str
    settings: Mapping[str, str] = field(repr=False)
    drop: tuple[str, ...] = ()
    skip: frozenset[str] = frozenset()


def split_uri(uri: str) -> Address:
    """Return what `uri` says.

    Raises:
        UserError: a part is missing, doubled or not to be set.
    """
    place, _, query = uri.removeprefix("kafka://").partition("?")
    servers, _, topic = place.partition("/")
    given: dict[str, list[str]] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        given.setdefault(name, []).append(unquote(value))
    drop, skip, groups = given.pop("drop", []), given.pop("skip", []), given.pop("group", [])
    if not servers or not topic or "/" in topic or len(groups) != 1 or not groups[0]:
        raise UserError(f'"{uri}" is no address of a topic: write kafka://host:9092/topic?group=name.')
    if wrong := [one for one in skip if not re.fullmatch(r"[0-9]+:[0-9]+", one)]:
        raise UserError(f'"{uri}" skips "{wrong[0]}", which is no message: write skip=PARTITION:OFFSET, such as 3:67.')
    for name, values in given.items():
        if len(values) > 1:
            raise UserError(f'"{uri}" gives {name} twice: keep one.')
        if name in OURS:
            raise UserError(f'"{uri}" sets {name}, which is not to be set: write {OURS[name]}.')
    settings = {name: values[0] for name, values in given.items()}
    return Address(servers, unquote(topic), groups[0], settings, tuple(drop), frozenset(skip))


class Topic:
    """An open connection to a topic.

    Attributes:
        consumer: confluent_kafka's.
    """

    def __init__(self, consumer: Any, address: Address, uri: str, seconds: float) -> None:
        """Look up the topic's partitions.

        Raises:
            UserError: there is no such topic.
            KafkaException: no broker answers.
        """
        self.consumer, self._address, self._uri, self._seconds = consumer, address, uri, seconds
        found = consumer.list_topics(timeout=seconds).topics
        if address.topic not in found:
            raise UserError(
                f'"{uri}" names the topic "{address.topic}", which does not exist (or which this user may not see): '
                f"check its name.{nearest(address.topic, found)}"
            )
        if (error := found[address.topic].error) is not None:
            raise UserError(explain(error, uri))
        self.partitions = sorted(found[address.topic].partitions)

    def at(self, offsets: Mapping[int, int]) -> list[Any]:
        """Return partitions at offsets, as confluent_kafka takes them."""
        from confluent_kafka import TopicPartition

        return [TopicPartition(self._address.topic, number, at) for number, at in sorted(offsets.items())]

    def range(self, partition: int) -> tuple[int, int]:
        """Return a partition's first offset and the one after its last."""
        low, high = self.consumer.get_watermark_offsets(*self.at({partition: 0}), timeout=self._seconds)
        return low, high

    def bounds(self, position: Mapping[str, int] | None, full: bool) -> tuple[dict[int, int], dict[int, int]]:
        """Return the offsets to begin at (with `full`, the first that are kept) and to end before, by partition.

        Raises:
            UserError: rows that were never read are gone, or a partition is.
        """
        known = {int(number): offset for number, offset in (position or {}).items()}
        if gone := sorted(set(known) - set(self.partitions)):
            raise UserError(
                f'Partition {gone[0]} of "{self._uri}" is gone, which was read up to offset {known[gone[0]]}: the '
                "topic was made anew; ingest it whole with `ml ingest --full`."
            )
        others = self.at(dict.fromkeys(set(self.partitions) - set(known), 0)) if not full else []
        committed = self.consumer.committed(others, self._seconds) if others else []
        stands = {p.partition: p.offset for p in committed if p.offset >= 0}
        known |= stands
        begin, end, passed = {}, {}, 0
        for number in self.partitions:
            first, end[number] = self.range(number)
            begin[number] = known.get(number, first)
            if not first <= begin[number] <= end[number]:
                raise UserError(explain_lost(self._uri, number, begin[number], first, end[number]))
            passed += begin[number] - first if number in stands else 0
        if passed:  # on purpose, or what the group read before was lost: nobody but the user knows
            log.warning(say_begun(self._uri, self._address.group, passed))
        return begin, end


@contextlib.contextmanager
def connect(address: Address, uri: str, fetch: Fetch) -> Iterator[Topic]:
    """Open a connection to the topic, and close it.

    Raises:
        UserError: a setting is none of librdkafka's, no broker answers, or there is no such topic.
    """
    from confluent_kafka import Consumer, KafkaException

    refused: list[Any] = []  # wrong credentials come by this way; what is asked meanwhile just times out
    settings = {name: resolve(value) for name, value in address.settings.items()} | {
        "bootstrap.servers": resolve(address.servers),
        "group.id": address.group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "error_cb": refused.append,
        "logger": _silent(),
    }
    try:
        consumer = Consumer(settings)
    except KafkaException as error:
        raise UserError(explain(error.args[0], uri)) from None
    try:
        yield Topic(consumer, address, uri, fetch.timeout_seconds)
    except KafkaException as error:
        consumer.poll(0)  # lets `error_cb` speak
        raise UserError(explain(error.args[0], uri, refused)) from None
    finally:
        consumer.close()


def _silent() -> logging.Logger:
    """Return a logger that says nothing: librdkafka's lines would stand between those of a run."""
    logger = logging.getLogger("ondol.ingestion.kafka.librdkafka")
    logger.setLevel(logging.CRITICAL)
    return logger
