"""A topic is read from its position without losses or duplicates, and committed only by `commit`."""

import json
import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from sources_support import Cluster

from ondol import redaction as secrets
from ondol.config import Fetch
from ondol.errors import UserError
from ondol.ingestion import spool
from ondol.ingestion.kafka import explain_kafka_error, explain_lost
from ondol.ingestion.sources import Reading, StreamingSource, SupportsSince, open_source, read_through

RETRYING = Reading(fetch=Fetch(timeout_seconds=60))
HURRIED = Reading(fetch=Fetch(timeout_seconds=2))


@pytest.fixture(scope="module")
def cluster():
    return Cluster()


def _read(source) -> list[dict]:
    return read_through(source, lambda batches: [row for batch in batches for row in batch.to_pylist()])


def _refusal(uri, position=None, reading=RETRYING):
    with pytest.raises(UserError) as caught:
        source = open_source(uri, reading)
        source.resume(position)
        _read(source)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    return sentence


def test_topic_is_read_to_its_end_and_nothing_is_committed(cluster):
    cluster.send("whole", [{"id": n, "at": {"city": "서울"}} for n in range(1000)])
    source = open_source(cluster.uri("whole"), RETRYING)
    assert (
        isinstance(source, StreamingSource) and not isinstance(source, SupportsSince) and source.fingerprint() is None
    )
    rows = _read(source)
    assert sorted(row["id"] for row in rows) == list(range(1000)) and rows[0]["at.city"] == "서울"
    assert source.position == {"0": 334, "1": 333, "2": 333, "3": 0}
    assert json.loads(json.dumps(source.position)) == source.position
    assert cluster.committed("whole") == {}
    assert _read(source) == rows  # from the local file


def test_many_cuts_lose_and_double_nothing(cluster):
    """Messages come in portions of random size; after each, a new source continues at the position or the group's."""
    draw = random.Random(4)
    cuts = sorted({0, 600, *draw.sample(range(1, 600), 12)})
    read: list[int] = []
    position = None
    for begin, end in pairwise(cuts):
        cluster.send("cuts", [{"id": n} for n in range(begin, end)])
        source = open_source(cluster.uri("cuts"), RETRYING)
        source.resume(position)
        read += [row["id"] for row in _read(source)]
        position = source.position
        if draw.random() < 0.5:
            source.commit(position)
            position = None
    assert sorted(read) == list(range(600))


def test_full_goes_before_the_group(cluster):
    cluster.send("again", [{"id": n} for n in range(20)])
    source = open_source(cluster.uri("again"), RETRYING)
    _read(source)
    source.commit(source.position)
    source.resume(None)
    assert _read(source) == []
    source.resume(None, full=True)
    assert len(_read(source)) == 20


def test_position_goes_before_the_group(cluster):
    cluster.send("both", [{"id": n} for n in range(30)])
    source = open_source(cluster.uri("both"), RETRYING)
    source.commit({"0": 9, "1": 10})
    assert cluster.committed("both") == {0: 9, 1: 10}
    assert sorted(row["id"] for row in _read(source)) == [*range(2, 27, 3), 27, 29]
    source.resume({"0": 0, "1": 10, "2": 10, "3": 0})
    assert [row["id"] for row in _read(source)] == list(range(0, 30, 3))


def test_key_is_what_a_position_holds_in(cluster):
    source = open_source("kafka://one:1,two:2/orders?group=churn&security.protocol=SSL&drop=a")
    assert source.key == open_source("kafka://${BROKER}/orders?group=churn").key
    assert source.key != open_source("kafka://one:1,two:2/orders?group=other").key
    assert source.key != open_source("kafka://one:1,two:2/other?group=churn").key


def test_beginning_at_the_offset_of_the_group_is_reported(cluster, caplog):
    cluster.send("midway", [{"id": n} for n in range(30)])
    source = open_source(cluster.uri("midway"), RETRYING)
    assert len(_read(source)) == 30 and not caplog.records
    source.commit({"0": 9, "1": 10})
    source.resume({"0": 9, "1": 9, "2": 10, "3": 0})
    assert len(_read(source)) == 2 and not caplog.records
    source.resume(None)
    assert len(_read(source)) == 11
    [said] = [record.getMessage() for record in caplog.records]
    assert 'group "churn": 19 earlier messages' in said and "ml ingest --full" in said
    source.resume(None, full=True)
    assert len(_read(source)) == 30 and len(caplog.records) == 1


def test_position_stays_until_all_is_read(cluster, monkeypatch):
    monkeypatch.setattr(spool, "BATCH_ROWS", 4)
    cluster.send("head", [{"id": n} for n in range(10)])
    source = open_source(cluster.uri("head"), RETRYING)
    source.resume({"0": 1})
    batches = source.batches()
    assert next(batches).num_rows == 4 and source.position == {"0": 1}
    assert sum(batch.num_rows for batch in batches) == 5
    assert source.position == {"0": 4, "1": 3, "2": 3, "3": 0}


def test_message_that_is_not_an_object_is_passed_over_where_the_address_says_so(cluster):
    cluster.send("mixed", [{"id": 0}, "oops", {"id": 2}], partition=1)
    assert "&skip=1:1" in _refusal(cluster.uri("mixed"))
    source = open_source(cluster.uri("mixed") + "&skip=1:1", RETRYING)
    source.resume(None)
    assert [row["id"] for row in _read(source)] == [0, 2] and source.position["1"] == 3
    with pytest.raises(UserError, match="skip=PARTITION:OFFSET"):
        open_source(cluster.uri("mixed") + "&skip=1", RETRYING)


def test_nothing_new_gives_no_rows_and_no_error(cluster):
    cluster.send("quiet", [{"id": 1}], partition=0)
    source = open_source(cluster.uri("quiet"), RETRYING)
    source.resume({"0": 1})
    assert _read(source) == [] and source.position == {"0": 1, "1": 0, "2": 0, "3": 0}


def test_late_types_hold_for_all_rows(cluster, monkeypatch):
    monkeypatch.setattr(spool, "HELD_BYTES", 1)
    monkeypatch.setattr(spool, "BATCH_ROWS", 7)
    monkeypatch.setattr("ondol.ingestion.kafka.MESSAGES", 5)
    cluster.send("late", [{"n": n} for n in range(40)] + [{"n": 0.5, "new": True}], partition=0)
    source = open_source(cluster.uri("late"), RETRYING)
    table = read_through(source, lambda batches: pa.Table.from_batches(list(batches)))
    assert table.schema == pa.schema([("n", pa.float64()), ("new", pa.bool_())]) and table.num_rows == 41


def test_tombstones_are_passed_over_and_counted(cluster):
    cluster.send("deleted", [{"id": 1}, None, {"id": 2}, None], partition=1)
    source = open_source(cluster.uri("deleted"), RETRYING)
    assert [row["id"] for row in _read(source)] == [1, 2]
    assert source.tombstones == 2 and source.position["1"] == 4


@pytest.mark.parametrize("value", [b"no json", b"[1]", b"", b"\xff"])
def test_value_that_is_not_an_object_names_partition_and_offset(cluster, value):
    topic = f"bad{value.hex()}"
    cluster.send(topic, [{"id": 1}, value], partition=2)
    assert "Offset 1 of partition 2" in _refusal(cluster.uri(topic))


def test_rows_that_retention_removed_unread_are_not_passed_over_in_silence(cluster):
    cluster.send("short", [{"id": 0}], partition=0)
    cluster.send("short", [{"text": "x" * 100_000}] * 120, partition=0)  # the mock keeps 5 MB of a partition
    consumer = Consumer({"bootstrap.servers": cluster.address, "group.id": "other"})
    first, end = consumer.get_watermark_offsets(TopicPartition("short", 0), timeout=60)
    consumer.close()
    assert 1 < first < end == 121
    assert f"read up to offset 1 and now begins at {first}" in _refusal(cluster.uri("short"), {"0": 1})
    assert len(_read(open_source(cluster.uri("short"), RETRYING))) == end - first


def test_topic_made_again_or_with_fewer_partitions_is_reported(cluster):
    cluster.send("again", [{"id": 0}], partition=0)
    assert "before offset 50" in _refusal(cluster.uri("again"), {"0": 50})
    assert "Partition 9" in _refusal(cluster.uri("again"), {"9": 1})


def test_topic_that_does_not_exist_names_the_nearest(cluster):
    cluster.send("orders", [{"id": 0}])
    assert 'Did you mean "orders"?' in _refusal(cluster.uri("odrers"))


def test_broker_that_is_not_there_is_reported_in_time():
    assert "no broker answers there" in _refusal("kafka://127.0.0.1:1/orders?group=g", reading=HURRIED)
    with pytest.raises(UserError, match="no broker answers there"):
        open_source("kafka://127.0.0.1:1/orders?group=g", HURRIED).commit({"0": 1})


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("kafka://h:1/t", "?group=name"),
        ("kafka://h:1?group=g", "?group=name"),
        ("kafka:///t?group=g", "?group=name"),
        ("kafka://h:1/t?group=g&a=1&a=2", "gives a twice"),
        ("kafka://h:1/t?group=g&enable.auto.commit=true", "not to be set"),
        ("kafka://h:1/t?group=g&sasl.password=hunter2", "plain text"),
        ("kafka://h:1/t?group=g&sasl.pasword=1", "No such configuration property"),
        ("kafka://h:1/t?group=g&sasl.password=${NOT_SET_ANYWHERE}", "needs NOT_SET_ANYWHERE"),
    ],
)
def test_grammar_is_checked(uri, said):
    sentence = _refusal(uri, reading=HURRIED)
    assert said in sentence and "hunter2" not in sentence


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (KafkaError._AUTHENTICATION, "user or password"),
        (KafkaError.SASL_AUTHENTICATION_FAILED, "user or password"),
        (KafkaError._SSL, "certificate"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "cannot be read by this user"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "lost its topic or a partition"),
        (KafkaError._RESOLVE, "no broker answers"),
        (KafkaError.KAFKA_STORAGE_ERROR, "cannot be read"),
    ],
)
def test_errors_are_put_in_words(code, said):
    assert said in explain_kafka_error(KafkaError(code), "kafka://h/t?group=g")
    timed_out = KafkaError(KafkaError._TRANSPORT)
    if code in (KafkaError._AUTHENTICATION, KafkaError._SSL):  # told on the way, while the request just times out
        assert said in explain_kafka_error(timed_out, "kafka://h/t?group=g", [KafkaError(code)])


def test_lost_rows_are_put_in_numbers():
    assert "partition 3 was read up to offset 5 and now begins at 9" in explain_lost("kafka://h/t", 3, 5, 9, 20)


def test_password_is_in_no_message(cluster, monkeypatch, capfd):
    monkeypatch.setattr(secrets, "_names", {})
    monkeypatch.setenv("KAFKA_PASSWORD", "planted-passw0rd")
    rest = "&security.protocol=SASL_PLAINTEXT&sasl.mechanism=PLAIN&sasl.username=ann&sasl.password=${KAFKA_PASSWORD}"
    said = _refusal(cluster.uri("orders", rest), reading=HURRIED)
    written = capfd.readouterr()
    assert "planted" not in said + written.out + written.err
    source = open_source(cluster.uri("orders", rest), HURRIED)
    assert "planted" not in repr(vars(source))


READER = """
import json, sys, time
from pathlib import Path
from ondol.config import Fetch
from ondol.ingestion.sources import Reading, open_source
source = open_source(sys.argv[1], Reading(fetch=Fetch(timeout_seconds=60)))
source.resume(None)
rows = [row["id"] for batch in source.batches() for row in batch.to_pylist()]
Path(sys.argv[2]).write_text(json.dumps([rows, source.position]), encoding="utf-8")
print("read", flush=True)
time.sleep(600)
source.commit(source.position)
"""


def test_reader_killed_between_reading_and_settling_is_read_again_whole(cluster, tmp_path):
    cluster.send("killed", [{"id": n} for n in range(500)])
    command = [sys.executable, "-c", READER, cluster.uri("killed"), str(tmp_path / "kept.json")]
    repository = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "read\n"
        os.kill(reader.pid, signal.SIGKILL)
    assert cluster.committed("killed") == {}
    rows, position = json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))
    assert sorted(rows) == list(range(500))
    again = open_source(cluster.uri("killed"), RETRYING)
    again.resume(None)
    assert sorted(row["id"] for row in _read(again)) == list(range(500))
    assert again.position == position
    again.commit(position)
    again.resume(None)
    assert _read(again) == []
