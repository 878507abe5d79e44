"""librdkafka's mock cluster, seen by a client that is not librdkafka."""

import time

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from cqrs_brokers_testkit.kafka_mock import PRODUCE, KafkaMock


async def send(mock: KafkaMock, topic: str = "t", request_timeout_ms: int = 1000) -> int:
    producer = AIOKafkaProducer(bootstrap_servers=mock.bootstrap_servers, request_timeout_ms=request_timeout_ms)
    await producer.start()
    try:
        return int((await producer.send_and_wait(topic, b"x")).offset)
    finally:
        await producer.stop()


async def test_a_record_is_confirmed(kafka_mock: KafkaMock) -> None:
    """A healthy mock gives offsets."""
    kafka_mock.create_topic("t")
    assert [await send(kafka_mock), await send(kafka_mock)] == [0, 1]


async def test_pushed_errors_are_given_once_each(kafka_mock: KafkaMock) -> None:
    """The pushed code reaches the client, and the request after it succeeds."""
    kafka_mock.create_topic("t")
    kafka_mock.push_errors(PRODUCE, 29)
    with pytest.raises(TopicAuthorizationFailedError):
        await send(kafka_mock)
    assert await send(kafka_mock) == 0
    kafka_mock.push_errors(PRODUCE, 29)
    kafka_mock.clear_errors(PRODUCE)
    assert await send(kafka_mock) == 1


async def test_a_broker_that_is_down_cannot_be_reached_until_it_is_up(kafka_mock: KafkaMock) -> None:
    """down() and up() do what they say."""
    kafka_mock.create_topic("t")
    kafka_mock.down()
    producer = AIOKafkaProducer(bootstrap_servers=kafka_mock.bootstrap_servers)
    with pytest.raises(KafkaError):
        await producer.start()
    await producer.stop()
    kafka_mock.up()
    assert await send(kafka_mock) == 0


async def test_round_trips_are_delayed(kafka_mock: KafkaMock) -> None:
    """Every answer comes that much later."""
    kafka_mock.create_topic("t")
    kafka_mock.set_round_trip(300)
    began = time.monotonic()
    await send(kafka_mock, request_timeout_ms=5000)
    assert time.monotonic() - began >= 0.6  # metadata and produce, at least


async def test_leaders_and_topic_errors() -> None:
    """A moved leader is followed, and a topic's error reaches metadata."""
    with KafkaMock(nodes=2) as mock:
        mock.create_topic("t", replication=2)
        for node in (1, 2):
            mock.set_leader("t", 0, node)
            await send(mock)
        mock.set_topic_error("t", 29)
        with pytest.raises(TopicAuthorizationFailedError):
            await send(mock)


def test_a_closed_mock_says_so() -> None:
    """Closing twice is fine; using it afterwards is an error, not a crash."""
    mock = KafkaMock()
    mock.close()
    mock.close()
    with pytest.raises(RuntimeError, match="closed"):
        mock.create_topic("t")


def test_a_refused_call_says_so(kafka_mock: KafkaMock) -> None:
    """Creating a topic twice, or taking down a broker that is not there, is an error."""
    kafka_mock.create_topic("t")
    with pytest.raises(RuntimeError, match="topic_create"):
        kafka_mock.create_topic("t")
