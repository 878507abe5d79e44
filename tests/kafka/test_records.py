"""What goes on the wire: the golden vectors of the Kafka wire table, and batches that other clients can read."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cqrs_broker_kafka._batch import batch_encoder
from cqrs_broker_kafka._client import CODECS
from cqrs_broker_kafka._records import HEAD_SIZE, RecordMaker, Records, key_of, varints
from cqrs_brokers import TOMBSTONE, Message

ID = UUID("018f3c1e-7b6a-4c9d-9e21-5f0a6b7c8d9e")
Fields = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]


class Holder:
    """Stands for a delivery: only its message is read."""

    def __init__(self, message: Message) -> None:
        self.message = message


def records_of(*messages: Message, maker: RecordMaker | None = None) -> Records:
    maker, records = maker or RecordMaker(), Records()
    for message in messages:
        holder: Any = Holder(message)
        maker.add(holder, records)
    return records


def read(data: bytes) -> list[Fields]:
    """The records of a batch as aiokafka's consumer reads them, after a look at the checksum."""
    batch = DefaultRecordBatch(data)
    assert batch.validate_crc()
    return [(found.timestamp, found.key, found.value, found.headers) for found in batch]


def as_sent(message: Message) -> Fields:
    (fields,) = read(batch_encoder("none")(records_of(message), -1, -1, -1))
    return fields


def test_golden_vector() -> None:
    """Every field of a full message is where the wire table says."""
    message = Message(
        "OrderPlaced",
        "orders",
        {"id": 1, "name": "Zoë"},
        ID,
        key="käse",
        headers={"trace": "ab-cd", "città": "è", "raw": b"\x00\xff", "none": None, "empty": ""},
        timestamp=datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2))),
    )
    assert as_sent(message) == (
        1714972089123,
        "käse".encode(),
        '{"id":1,"name":"Zoë"}'.encode(),
        [
            ("message-id", b"018f3c1e-7b6a-4c9d-9e21-5f0a6b7c8d9e"),
            ("message-name", b"OrderPlaced"),
            ("content-type", b"application/json"),
            ("trace", b"ab-cd"),
            ("città", "è".encode()),
            ("raw", b"\x00\xff"),
            ("none", None),
            ("empty", b""),
        ],
    )


def test_bytes_and_no_key() -> None:
    """A bytes payload goes verbatim as application/octet-stream; without a key the record has none."""
    _, key, value, headers = as_sent(Message("Raw", "raw", b"\x00\xff", ID))
    assert (value, key) == (b"\x00\xff", None)
    assert ("content-type", b"application/octet-stream") in headers


def test_a_tombstone_and_an_empty_body() -> None:
    """A tombstone has no value and no content type; an empty body is a value without bytes."""
    _, key, value, headers = as_sent(Message("Gone", "t", TOMBSTONE, ID, key="k"))
    assert (key, value) == (b"k", None)
    assert [name for name, _ in headers] == ["message-id", "message-name"]
    assert as_sent(Message("E", "t", b"", ID, key=""))[1:3] == (b"", b"")


def test_what_is_remembered_is_not_mixed_up() -> None:
    """Messages of one name with another content type, another number of headers, another value or type of one."""
    maker = RecordMaker()
    encode = batch_encoder("none")
    for headers in ({}, {"a": "1"}, {"a": b"1"}, {"a": "2"}, {"a": "1", "b": None}, {"b": None, "a": "1"}, {"a": None}):
        for content_type in (None, "application/x-avro"):
            for _ in range(2):
                message = Message("E", "t", {}, ID, headers=headers, content_type=content_type)
                ((_, _, _, found),) = read(encode(records_of(message, maker=maker), -1, -1, -1))
                own = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers.items()]
                named = (content_type or "application/json").encode()
                assert found == [
                    ("message-id", str(ID).encode()),
                    ("message-name", b"E"),
                    ("content-type", named),
                    *own,
                ]


def test_headers_that_repeat() -> None:
    """After many equal headers, those that differ in value, type, order or number are written as they are."""
    maker = RecordMaker()
    usual: dict[str, Any] = {"a": "1", "b": "2"}
    others: list[dict[str, Any]] = [{"a": "1", "b": b"2"}, {"b": "2", "a": "1"}, {"a": "1"}, {}, {"a": "1", "b": "3"}]
    given = [usual] * 5
    for other in others:
        given += [other, usual, usual]
    for at_once in (1, 2, len(given)):
        for start in range(0, len(given), at_once):
            part = given[start : start + at_once]
            records = records_of(*(Message("E", "t", {}, ID, headers=each) for each in part), maker=maker)
            found = [fields[3][3:] for fields in read(batch_encoder("none")(records, -1, -1, -1))]
            as_bytes = [[(n, v.encode() if isinstance(v, str) else v) for n, v in each.items()] for each in part]
            assert found == as_bytes
    usual["b"] = "changed in place"
    records = records_of(*[Message("E", "t", {}, ID, headers=usual)] * 3, maker=maker)
    for fields in read(batch_encoder("none")(records, -1, -1, -1)):
        assert fields[3][3:] == [("a", b"1"), ("b", b"changed in place")]


def test_what_is_remembered_is_bounded() -> None:
    """Headers that are long, or that never come again, do not stay."""
    maker = RecordMaker()
    for number in range(5000):
        headers = {"trace": str(number), "long": str(number) * 200, f"name-{number}": None}
        records_of(Message(f"E{number}", "t", {}, headers=headers), maker=maker)
    assert len(maker._known) <= 1000
    assert len(maker._known._names) <= 1000
    assert len(maker._first) <= 1000
    assert max(map(len, maker._known.values())) <= 256


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)))
@example(datetime(2110, 1, 1, 0, 0, 0, 4999, tzinfo=UTC))
def test_timestamp_is_rounded_down_to_the_millisecond(when: datetime) -> None:
    """No float error moves a timestamp into another millisecond."""
    expected = (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert records_of(Message("E", "t", {}, timestamp=when)).timestamps == [expected]


@given(st.none() | st.text(st.characters(codec="utf-8"), max_size=100))
@example(None)
@example("")
@example("k" * 70_000)
def test_the_key_of_a_record(key: str | None) -> None:
    """The key can be read from a record, so that the record can go to another partition."""
    (record,) = records_of(Message("E", "t", {}, key=key)).each()
    assert key_of(record) == key


@given(st.integers(-(2**62), 2**62))
@example(0)
@example(-1)
@example(63)
@example(64)
def test_varints(number: int) -> None:
    """Integers are written as aiokafka writes them."""
    from aiokafka.record.util import encode_varint_py

    expected = bytearray()
    encode_varint_py(number, expected.append)
    assert varints[number] == varints[number] == expected
    assert len(varints) <= 20_001


MESSAGES = st.builds(
    lambda body, key, headers, when: Message("Näme", "t", body, key=key, headers=headers, timestamp=when),
    st.binary(max_size=300),
    st.none() | st.text(st.characters(codec="utf-8"), max_size=20),
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=10),
        st.none() | st.binary(max_size=300) | st.text(st.characters(codec="utf-8"), max_size=10),
        max_size=4,
    ),
    st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MESSAGES, min_size=1, max_size=8), st.sampled_from([("none", 0), ("gzip", 1)]))
def test_a_batch_is_what_aiokafka_builds(messages: list[Message], codec: tuple[str, int]) -> None:
    """Byte for byte, also when it is compressed: numbers, timestamps in any order, keys, values and headers."""
    name, number = codec
    records = records_of(*messages)
    builder = DefaultRecordBatchBuilder(2, number, 0, 4711, 3, 99, 10**6)
    for place, (timestamp, message) in enumerate(zip(records.timestamps, messages, strict=True)):
        headers: list[tuple[str, bytes | None]] = [
            ("message-id", str(message.message_id).encode()),
            ("message-name", "Näme".encode()),
            ("content-type", b"application/octet-stream"),
        ]
        for header, value in message.headers.items():
            headers.append((header, value.encode() if isinstance(value, str) else value))  # type: ignore[arg-type]
        key = None if message.key is None else message.key.encode()
        builder.append(place, timestamp, key, message.payload, headers)
    expected, built = bytes(builder.build()), batch_encoder(name)(records, 4711, 3, 99)
    if number and built != expected:  # gzip writes the time of day
        assert read(built) == read(expected)
    else:
        assert built == expected


@pytest.mark.parametrize("codec", CODECS)
def test_a_compressed_batch_can_be_read(codec: str) -> None:
    """Each compression is one that consumers know, and what it does not make smaller goes without."""
    if codec not in ("none", "gzip"):
        pytest.importorskip("cramjam")
    encode = batch_encoder(codec)
    large, small = Message("E", "t", b"x" * 5000, ID), Message("E", "t", b"x", ID)
    data = encode(records_of(large, large, large), 1, 0, 0)
    assert len(read(data)) == 3
    assert DefaultRecordBatch(data).compression_type == CODECS[codec][0]
    assert DefaultRecordBatch(encode(records_of(small), 1, 0, 0)).compression_type == 0
    assert codec == "none" or len(data) < 1000


@pytest.mark.parametrize("size", [0, 1, 200, 70_000])
def test_size_is_never_below_what_a_batch_takes(size: int) -> None:
    """`Records.sizes` are upper bounds of what the records add to a batch."""
    message = Message("Näme", "t", b"x" * size, key="k" * 50, headers={"héader": "välue" * 10})
    encode = batch_encoder("none")
    one, many = records_of(message), records_of(*[message] * 300)
    assert len(encode(one, 1, 0, 0)) - HEAD_SIZE <= sum(one.sizes())
    assert len(encode(many, 1, 0, 0)) - HEAD_SIZE <= sum(many.sizes())
