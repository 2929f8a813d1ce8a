"""Kafka topics as sources: JSON objects, read from the position where the last snapshot ended.

`kafka://host:9092,host2:9092/topic?group=churn&security.protocol=SASL_SSL&sasl.username=ann&sasl.password=${PASSWORD}`:
after `?` come librdkafka's settings, and `group`, the consumer group whose offsets are committed. See
docs/reference/sources.md.
"""

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from ondol.config import Fetch
from ondol.errors import UserError, nearest
from ondol.ingestion.columns import Row, flatten
from ondol.ingestion.json_files import parse_object
from ondol.ingestion.sources import Reading
from ondol.ingestion.spool import Pages, RecordSource
from ondol.storage.remote_files import require_library, resolve


def explain_kafka_error(error: Any, uri: str, others: Sequence[Any] = ()) -> str:
    """Translate a `KafkaError` into an error for the user.

    Args:
        error: The error.
        uri: The source as the user wrote it.
        others: Errors reported before; wrong credentials are reported first, then something else times out.
    """
    from confluent_kafka import KafkaError as Known

    codes = [error.code(), *(other.code() for other in others)]
    if Known._AUTHENTICATION in codes or Known.SASL_AUTHENTICATION_FAILED in codes:
        return f'"{uri}" refuses the user or password: check sasl.username, and the secret in sasl.password.'
    if Known._SSL in codes:
        return f'"{uri}" has a certificate that does not verify: name its authority in ssl.ca.location=….'
    if Known.TOPIC_AUTHORIZATION_FAILED in codes or Known.GROUP_AUTHORIZATION_FAILED in codes:
        return f'"{uri}" cannot be read by this user and group: ask for the right to read the topic and the group.'
    if error.code() in (Known._INVALID_ARG, Known._CONFLICT, Known._NOT_IMPLEMENTED):
        return f'"{uri}" has a setting that librdkafka does not accept ({_say(error)}): check what follows "?".'
    if error.code() in (Known._UNKNOWN_TOPIC, Known.UNKNOWN_TOPIC_OR_PART, Known._UNKNOWN_PARTITION):
        return f'"{uri}" lost its topic or a partition while it was read: check that they exist, and run this again.'
    if Known._RESOLVE in codes or error.code() in (Known._TRANSPORT, Known._ALL_BROKERS_DOWN, Known._TIMED_OUT):
        return f'"{uri}" cannot be reached, no broker answers there: check the address, and that the brokers run.'
    return f'"{uri}" cannot be read ({_say(error)}): see the brokers\' logs.'


def explain_lost(uri: str, partition: int, begin: int, first: int, end: int) -> str:
    """Return an error on offsets that a partition does not have or no longer has."""
    if begin < first:
        return (
            f'Rows of "{uri}" were lost: partition {partition} was read up to offset {begin} and now begins at '
            f"{first}, its retention removed what is between; keep rows longer, and ingest "
            "what is left with `ml ingest --full`."
        )
    return (
        f'Partition {partition} of "{uri}" ends at offset {end}, before offset {begin}, up to which it was read: '
        "the topic was created again; ingest all of it with `ml ingest --full`."
    )


def say_begun(uri: str, group: str, passed: int) -> str:
    """Return a message on a read that begins at the group's offset, `passed` offsets after the first."""
    return (
        f'"{uri}" is read from the offset of the group "{group}": {passed:,} earlier messages are skipped; '
        "if they were never ingested here, run `ml ingest --full`, which reads from the start."
    )


def _say(error: Any) -> str:
    return str(error.str()).strip().rstrip(".")


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
class TopicAddress:
    """The parts of a topic's address, without the values of secrets.

    Attributes:
        servers: The brokers to begin with.
        topic: The topic's name.
        group: The consumer group whose offsets are committed.
        settings: librdkafka's, by name.
        drop: Members of the records that are left out, dotted where nested.
        skip: Messages to skip, as `partition:offset`.
    """

    servers: str
    topic: str
    group: str
    settings: Mapping[str, str] = field(repr=False)
    drop: tuple[str, ...] = ()
    skip: frozenset[str] = frozenset()


def parse_topic_address(uri: str) -> TopicAddress:
    """Parse the address of a topic.

    Raises:
        UserError: a part is missing, repeated or not allowed.
    """
    place, _, query = uri.removeprefix("kafka://").partition("?")
    servers, _, topic = place.partition("/")
    given: dict[str, list[str]] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        given.setdefault(name, []).append(unquote(value))
    drop, skip, groups = given.pop("drop", []), given.pop("skip", []), given.pop("group", [])
    if not servers or not topic or "/" in topic or len(groups) != 1 or not groups[0]:
        raise UserError(f'"{uri}" is not an address of a topic: write kafka://host:9092/topic?group=name.')
    if wrong := [one for one in skip if not re.fullmatch(r"[0-9]+:[0-9]+", one)]:
        raise UserError(f'"{uri}" skips "{wrong[0]}": write skip=PARTITION:OFFSET, such as skip=3:67.')
    for name, values in given.items():
        if len(values) > 1:
            raise UserError(f'"{uri}" gives {name} twice: keep one.')
        if name in OURS:
            raise UserError(f'"{uri}" sets {name}, which is not to be set: write {OURS[name]}.')
    settings = {name: values[0] for name, values in given.items()}
    return TopicAddress(servers, unquote(topic), groups[0], settings, tuple(drop), frozenset(skip))


class Topic:
    """An open connection to a topic.

    Attributes:
        consumer: The consumer of confluent_kafka.
    """

    def __init__(self, consumer: Any, address: TopicAddress, uri: str, seconds: float) -> None:
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
            raise UserError(explain_kafka_error(error, uri))
        self.partitions = sorted(found[address.topic].partitions)

    def at(self, offsets: Mapping[int, int]) -> list[Any]:
        """Return partitions with offsets, in confluent_kafka's type."""
        from confluent_kafka import TopicPartition

        return [TopicPartition(self._address.topic, number, at) for number, at in sorted(offsets.items())]

    def range(self, partition: int) -> tuple[int, int]:
        """Return a partition's first offset and the one after its last."""
        low, high = self.consumer.get_watermark_offsets(*self.at({partition: 0}), timeout=self._seconds)
        return low, high

    def bounds(self, position: Mapping[str, int] | None, full: bool) -> tuple[dict[int, int], dict[int, int]]:
        """Return the first offset (with `full`, the first one kept) and the end offset of each partition.

        Raises:
            UserError: rows that were never read, or a partition, no longer exist.
        """
        known = {int(number): offset for number, offset in (position or {}).items()}
        if gone := sorted(set(known) - set(self.partitions)):
            raise UserError(
                f'Partition {gone[0]} of "{self._uri}" no longer exists (it was read up to offset '
                f"{known[gone[0]]}): the topic was created again; ingest all of it with `ml ingest --full`."
            )
        others = self.at(dict.fromkeys(set(self.partitions) - set(known), 0)) if not full else []
        committed = self.consumer.committed(others, self._seconds) if others else []
        group_offsets = {p.partition: p.offset for p in committed if p.offset >= 0}
        known |= group_offsets
        begin, end, passed = {}, {}, 0
        for number in self.partitions:
            first, end[number] = self.range(number)
            begin[number] = known.get(number, first)
            if not first <= begin[number] <= end[number]:
                raise UserError(explain_lost(self._uri, number, begin[number], first, end[number]))
            passed += begin[number] - first if number in group_offsets else 0
        if passed:  # intended, or earlier rows of the group were lost: only the user knows
            log.warning(say_begun(self._uri, self._address.group, passed))
        return begin, end


@contextlib.contextmanager
def open_topic(address: TopicAddress, uri: str, fetch: Fetch) -> Iterator[Topic]:
    """Open a connection to the topic, and close it.

    Raises:
        UserError: librdkafka does not know a setting, no broker answers, or there is no such topic.
    """
    from confluent_kafka import Consumer, KafkaException

    refused: list[Any] = []  # wrong credentials are reported here; other requests only time out
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
        raise UserError(explain_kafka_error(error.args[0], uri)) from None
    try:
        yield Topic(consumer, address, uri, fetch.timeout_seconds)
    except KafkaException as error:
        consumer.poll(0)  # calls `error_cb`
        raise UserError(explain_kafka_error(error.args[0], uri, refused)) from None
    finally:
        consumer.close()


def _silent() -> logging.Logger:
    """Return a disabled logger, so that librdkafka's lines do not mix with those of a run."""
    logger = logging.getLogger("ondol.ingestion.kafka.librdkafka")
    logger.setLevel(logging.CRITICAL)
    return logger


MESSAGES = 5_000  # messages requested from librdkafka at once
POLL_SECONDS = 1.0
Offsets = dict[int, int]


class KafkaSource(RecordSource):
    """A topic, read from a position to the ends of its partitions at the start of the read.

    Its partitions are assigned, not subscribed to, so other consumers that join or leave cause no rebalancing. Only
    `commit` commits.

    Attributes:
        key: The topic and the group; a position stays valid if brokers, settings or dropped members change.
        position: The next offset of each partition, by its number as text, after the last row was yielded; before that,
            the start position.
        tombstones: The number of skipped messages without a value.
    """

    def __init__(self, uri: str, reading: Reading, address: TopicAddress) -> None:
        """Store the address; no connection is made yet."""
        super().__init__(uri, reading)
        self._address = address
        self.key = ["kafka", address.topic, address.group]
        self.position: dict[str, int] | None = None
        self._full = False
        self._reached: dict[str, int] | None = None
        self.tombstones = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; see `ondol.ingestion.sources.Source`."""
        yield from super().batches()
        self.position = self._reached

    def resume(self, position: Any, full: bool = False) -> None:
        """Start at `position`; other partitions start at the group's offset, with `full` at their start."""
        self._full = full
        self.position = None if position is None else {str(key): int(value) for key, value in position.items()}
        self._spool = None

    def commit(self, position: Any) -> None:
        """Commit `position` for the group, and wait for the brokers' confirmation.

        Raises:
            UserError: they refuse it.
        """
        offsets = {int(key): value for key, value in (position or {}).items()}
        if not offsets:
            return
        with open_topic(self._address, self.uri, self.reading.fetch) as topic:
            done = topic.consumer.commit(offsets=topic.at(offsets), asynchronous=False)
        for partition in done or []:
            if partition.error is not None:
                raise UserError(explain_kafka_error(partition.error, self.uri))

    def _pages(self) -> Pages:
        """Yield the messages up to where the partitions end now."""
        with open_topic(self._address, self.uri, self.reading.fetch) as topic:
            reached, end = topic.bounds(self.position, self._full)
            self.tombstones = 0
            yield from self._read(topic, reached, end)
        self._reached = {str(number): offset for number, offset in sorted(reached.items())}

    def _read(self, topic: Any, begin: Offsets, end: Offsets) -> Pages:
        """Yield pages until each partition is at its end; gaps from compaction and transactions are ignored.

        Afterwards, `begin` holds the next offset of each partition.
        """
        behind = {number for number, at in begin.items() if at < end[number]}
        topic.consumer.assign(topic.at({number: begin[number] for number in behind}))
        seconds = self.reading.fetch.timeout_seconds
        limit = time.monotonic() + seconds
        while behind:
            page: list[Row] = []
            for message in topic.consumer.consume(MESSAGES, POLL_SECONDS):
                number = message.partition()
                if self._is_event(message, topic, begin):
                    limit = time.monotonic() + seconds
                    if message.error() is None and message.offset() < end[number]:
                        page.extend(self._row(message))
                    done = message.error() is not None or message.offset() + 1 >= end[number]
                    begin[number] = min(message.offset() + (message.error() is None), end[number])
                    behind -= {number} if done else set()
            if page:
                yield page
                limit = time.monotonic() + seconds
            if behind and time.monotonic() > limit:
                number = min(behind)
                raise UserError(
                    f'"{self.uri}" returns no more of partition {number} within {seconds:g} seconds, though it '
                    f"continues to offset {end[number]}: see that its leader is up, and run this again."
                )

    def _is_event(self, message: Any, topic: Any, reached: Offsets) -> bool:
        """Return True if a message is a row or the end of its partition; False for a temporary failure.

        Raises:
            UserError: it is a permanent failure.
        """
        from confluent_kafka import KafkaError

        error = message.error()
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            return True
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            number = message.partition()
            raise UserError(explain_lost(self.uri, number, reached[number], *topic.range(number)))
        if error.retriable() or error.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
            return False
        raise UserError(explain_kafka_error(error, self.uri))

    def _row(self, message: Any) -> list[Row]:
        """Return a message's row; none for a skipped message or for one without a value, which marks a deleted key."""
        value, place = message.value(), f"Offset {message.offset()} of partition {message.partition()}"
        number = f"{message.partition()}:{message.offset()}"
        if number in self._address.skip:
            return []
        if value is None:
            self.tombstones += 1
            return []
        record = parse_object(value, self.uri)
        if record is None:
            raise UserError(
                f'{place} of "{self.uri}" is not a JSON object: let producers write {{"name": value, …}}, and skip '
                f"this message with &skip={number} in the address."
            )
        return [flatten(record, self.uri, place, self._address.drop)]


def open_kafka(uri: str, reading: Reading) -> KafkaSource:
    """Return the source at `uri`; no connection is made yet.

    Raises:
        UserError: the address is invalid, or the client library is missing.
    """
    require_library("confluent_kafka", "confluent-kafka", uri)
    return KafkaSource(uri, reading, parse_topic_address(uri))
