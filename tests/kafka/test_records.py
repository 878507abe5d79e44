"""What goes on the wire: the golden vectors of the Kafka wire table."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cqrs_broker_kafka._records import Record, RecordMaker
from cqrs_brokers import Message

ID = UUID("018f3c1e-7b6a-4c9d-9e21-5f0a6b7c8d9e")


class Holder:
    """Stands for a delivery: only its message is read."""

    def __init__(self, message: Message) -> None:
        self.message = message


def record(message: Message) -> Record:
    holder: Any = Holder(message)
    return RecordMaker().record(holder)


def test_golden_vector() -> None:
    """Every field of a full message is where the wire table says."""
    message = Message(
        "OrderPlaced",
        "orders",
        {"id": 1, "name": "Zoë"},
        ID,
        key="käse",
        headers={"trace": "ab-cd", "città": "è"},
        timestamp=datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2))),
    )
    made = record(message)
    assert made.value == '{"id":1,"name":"Zoë"}'.encode()
    assert made.key == "käse".encode()
    assert made.timestamp == 1714972089123
    assert made.headers() == [
        ("message-id", b"018f3c1e-7b6a-4c9d-9e21-5f0a6b7c8d9e"),
        ("message-name", b"OrderPlaced"),
        ("content-type", b"application/json"),
        ("trace", b"ab-cd"),
        ("città", "è".encode()),
    ]


def test_bytes_and_no_key() -> None:
    """A bytes payload goes verbatim as application/octet-stream; without a key the record has none."""
    made = record(Message("Raw", "raw", b"\x00\xff", ID))
    assert (made.value, made.key) == (b"\x00\xff", None)
    assert ("content-type", b"application/octet-stream") in made.headers()


def test_own_content_type() -> None:
    """A message's own content type is kept, beside another message of the same name without one."""
    maker = RecordMaker()
    first: Any = Holder(Message("E", "t", {}, content_type="application/x-avro"))
    second: Any = Holder(Message("E", "t", {}))
    assert ("content-type", b"application/x-avro") in maker.record(first).headers()
    assert ("content-type", b"application/json") in maker.record(second).headers()


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)))
@example(datetime(2110, 1, 1, 0, 0, 0, 4999, tzinfo=UTC))
def test_timestamp_is_rounded_down_to_the_millisecond(when: datetime) -> None:
    """No float error moves a timestamp into another millisecond."""
    expected = (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert record(Message("E", "t", {}, timestamp=when)).timestamp == expected


@pytest.mark.parametrize("size", [0, 1, 200, 70_000])
def test_size_is_never_below_what_a_batch_takes(size: int) -> None:
    """`Record.size` is an upper bound of what the record adds to a batch."""
    from cqrs_broker_kafka._client import batch_builder

    made = record(Message("Näme", "t", b"x" * size, key="k" * 50, headers={"héader": "välue" * 10}))
    builder = batch_builder("none", 1, 0, 0, 10**6)
    before = builder.size()
    builder.append(0, made.timestamp, made.key, made.value, made.headers())
    assert builder.size() - before <= made.size()
