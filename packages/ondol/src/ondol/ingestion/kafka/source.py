"""Kafka topics as sources: JSON objects, read on from where the last snapshot ended.

`kafka://host:9092,host2:9092/topic?group=churn&security.protocol=SASL_SSL&sasl.username=ann&sasl.password=${PASSWORD}`:
what follows `?` are librdkafka's settings, and `group`, the readers whose offsets are committed. See docs/data.md.
"""

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ondol.errors import UserError
from ondol.ingestion.json_text import parse
from ondol.ingestion.kafka.address import Address, connect, split_uri
from ondol.ingestion.kafka.errors import explain, explain_lost
from ondol.ingestion.records import Row, flatten
from ondol.ingestion.sources import Reading
from ondol.ingestion.spool import Pages, RecordSource
from ondol.storage.addresses import require_library

MESSAGES = 5_000  # asked of librdkafka at once
POLL_SECONDS = 1.0
Offsets = dict[int, int]


class KafkaSource(RecordSource):
    """A topic from a position to where its partitions ended when reading began.

    Its partitions are assigned, not subscribed to: nobody else's coming or going moves them. Nothing is committed but
    by `settle`.

    Attributes:
        key: The topic and the group: brokers, settings and what is dropped may change under a position.
        position: The next offset of each partition, by its number as text, after the last row was yielded; until
            then where reading begins.
        tombstones: How many messages without a value were passed over.
    """

    def __init__(self, uri: str, reading: Reading, address: Address) -> None:
        """Remember the topic; nothing is asked of it yet."""
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
        """Begin at `position`; partitions that are not in it where the group stands, with `full` at their start."""
        self._full = full
        self.position = None if position is None else {str(key): int(value) for key, value in position.items()}
        self._spool = None

    def settle(self, position: Any) -> None:
        """Commit `position` for the group, and wait until the brokers have it.

        Raises:
            UserError: they do not take it.
        """
        offsets = {int(key): value for key, value in (position or {}).items()}
        if not offsets:
            return
        with connect(self._address, self.uri, self.reading.fetch) as topic:
            done = topic.consumer.commit(offsets=topic.at(offsets), asynchronous=False)
        for partition in done or []:
            if partition.error is not None:
                raise UserError(explain(partition.error, self.uri))

    def _pages(self) -> Pages:
        """Yield the messages up to where the partitions end now."""
        with connect(self._address, self.uri, self.reading.fetch) as topic:
            reached, end = topic.bounds(self.position, self._full)
            self.tombstones = 0
            yield from self._read(topic, reached, end)
        self._reached = {str(number): offset for number, offset in sorted(reached.items())}

    def _read(self, topic: Any, begin: Offsets, end: Offsets) -> Pages:
        """Yield pages until each partition is at its end; gaps, as compaction and transactions leave, do not count.

        Afterwards `begin` says where each partition was left.
        """
        behind = {number for number, at in begin.items() if at < end[number]}
        topic.consumer.assign(topic.at({number: begin[number] for number in behind}))
        patience = self.reading.fetch.timeout_seconds
        limit = time.monotonic() + patience
        while behind:
            page: list[Row] = []
            for message in topic.consumer.consume(MESSAGES, POLL_SECONDS):
                number = message.partition()
                if self._is_event(message, topic, begin):
                    limit = time.monotonic() + patience
                    if message.error() is None and message.offset() < end[number]:
                        page.extend(self._row(message))
                    done = message.error() is not None or message.offset() + 1 >= end[number]
                    begin[number] = min(message.offset() + (message.error() is None), end[number])
                    behind -= {number} if done else set()
            if page:
                yield page
                limit = time.monotonic() + patience
            if behind and time.monotonic() > limit:
                number = min(behind)
                raise UserError(
                    f'"{self.uri}" gives nothing more of partition {number} within {patience:g} seconds, though it '
                    f"goes on to offset {end[number]}: see that its leader is up, and run this again."
                )

    def _is_event(self, message: Any, topic: Any, reached: Offsets) -> bool:
        """Tell whether a message is a row or the end of its partition; False for a failure that passes by itself.

        Raises:
            UserError: it is a failure that stays.
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
        raise UserError(explain(error, self.uri))

    def _row(self, message: Any) -> list[Row]:
        """Return a message's row; none of one that is passed over, or has no value, which marks a deleted key."""
        value, place = message.value(), f"Offset {message.offset()} of partition {message.partition()}"
        number = f"{message.partition()}:{message.offset()}"
        if number in self._address.skip:
            return []
        if value is None:
            self.tombstones += 1
            return []
        try:
            record = parse(value, self.uri)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UserError(
                f'{place} of "{self.uri}" is no JSON object: have producers write {{"name": value, …}}, and pass this '
                f"message over by &skip={number} in the address."
            )
        return [flatten(record, self.uri, place, self._address.drop)]


def open_kafka(uri: str, reading: Reading) -> KafkaSource:
    """Return the source at `uri`; nothing is asked yet.

    Raises:
        UserError: the address is no such address, or the client library is missing.
    """
    require_library("confluent_kafka", "confluent-kafka", uri)
    return KafkaSource(uri, reading, split_uri(uri))
