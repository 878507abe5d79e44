"""Contract tests for each undocumented thing of aiokafka that `internals` uses: red here means aiokafka has changed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.produce import ProduceRequest

from cqrs_broker_kafka import KafkaOptions
from cqrs_broker_kafka.internals import Producer
from cqrs_broker_kafka.produce import encode_once
from cqrs_broker_kafka.settings import KafkaSettings
from cqrs_brokers.url import BrokerURL
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.servers import KafkaCluster, KafkaServer

Name = Callable[[str], str]


def make(servers: str, ended: Callable[[Producer], None] = lambda _: None, **options: Any) -> Producer:
    url = BrokerURL.build("kafka", hosts=servers.split(","))
    settings = KafkaSettings(url, KafkaOptions(**options))
    return Producer(settings, settings.hosts[0], ended)


def batch_of(producer: Producer, *values: bytes) -> Any:
    builder = producer.create_batch()
    for value in values:
        assert builder.append(timestamp=1_700_000_000_000, key=None, value=value, headers=[("h", b"v")]) is not None
    return builder


@pytest.fixture
async def producer(kafka: KafkaServer) -> AsyncIterator[Producer]:
    """A started producer."""
    made = make(kafka.bootstrap_servers)
    await made.start()
    yield made
    await made.stop(2)


@pytest.fixture
async def topic(kafka: KafkaServer, producer: Producer, unique_name: Name) -> str:
    """A topic that the producer knows."""
    name = unique_name("internals")
    kafka.create_topic(name, 2)
    while not producer.partitions(name):
        await producer.refresh([name])
    return name


@pytest.mark.parametrize("version", ProduceRequest._CLASSES, ids=lambda version: f"v{version.API_VERSION}")
def test_encoding_a_request_once(version: Any) -> None:
    """Header, size and records in one copy are the bytes that aiokafka itself writes, in each version it knows."""
    topics = [("tøpic", [(0, b"records"), (3, b"")]), ("b", [(1, b"x" * 1000)])]
    request = ProduceRequest(None, -1, 40_000, topics)
    plain = request.build(version).encode()
    encode_once(request)
    message = b"header" + request.build(version).encode()
    assert len(message) == len(b"header" + plain)
    assert b"size" + message == b"size" + b"header" + plain


@pytest.mark.live
async def test_appending_a_batch(producer: Producer, topic: str) -> None:
    """`_append_batch` queues a batch; its `future` gets the base offset, and `retry_count` counts its sends."""
    first = await producer.append(batch_of(producer, b"a", b"b"), topic, 1).future
    assert (first.offset, first.partition) == (0, 1)
    handle = producer.append(batch_of(producer, b"c"), topic, 1)
    assert handle.retry_count == 0
    assert (await handle.future).offset == 2
    assert handle.retry_count == 1
    assert not producer.may_be_written(topic, 1)


@pytest.mark.live
async def test_timestamps_are_milliseconds(producer: Producer, topic: str, kafka: KafkaServer) -> None:
    """`BatchBuilder.append(timestamp=)` takes milliseconds (its documentation says seconds)."""
    from cqrs_brokers_testkit.readers import drain_topic

    await producer.append(batch_of(producer, b"a"), topic, 0).future
    (record,) = await asyncio.to_thread(drain_topic, kafka.reader_bootstrap_servers, topic, 1)
    assert record.timestamp is not None
    assert record.timestamp.timestamp() == 1_700_000_000


@pytest.mark.live
async def test_sequence_numbers_belong_to_the_producer(producer: Producer, topic: str) -> None:
    """aiokafka counts sequence numbers per partition at the first send: what makes replacing a producer necessary."""
    await producer.append(batch_of(producer, b"a", b"b"), topic, 0).future
    numbers = producer._client._txn_manager._sequence_numbers
    assert {partition.partition: number for partition, number in numbers.items() if number} == {0: 2}


@pytest.mark.live
async def test_what_a_stopped_producer_says(kafka: KafkaServer, producer: Producer, topic: str) -> None:
    """A producer that was stopped refuses a batch without queueing it."""
    other = make(kafka.bootstrap_servers)
    await other.start()
    await other.refresh([topic])
    await other.stop(1)
    with pytest.raises(Exception, match="ProducerClosed"):
        other.append(batch_of(other, b"a"), topic, 0)
    assert not other._client._message_accumulator._batches


@pytest.mark.live
async def test_metadata_of_an_unknown_topic(producer: Producer) -> None:
    """A refresh is answered and the topic has no partitions; once forgotten it is not asked for again."""
    assert await producer.refresh(["no-such-topic"])
    await producer.refresh()
    assert producer.partitions("no-such-topic") == 0
    producer.forget("no-such-topic")
    assert "no-such-topic" not in producer._client.client._topics


@pytest.mark.live
async def test_listener_and_nodes(producer: Producer, kafka: KafkaServer) -> None:
    """The cluster's listeners are called at each refresh, and its nodes have host and port."""
    calls: list[object] = []
    producer.watch_metadata(calls.append)
    await producer.refresh()
    assert calls
    assert producer.nodes() == kafka.bootstrap_servers.split(",")
    await producer.ping()


@pytest.mark.live
async def test_the_sender_task_is_watched(kafka: KafkaServer) -> None:
    """`_sender.sender_task` is the task without which nothing is sent; we are told when it ends."""
    ended: list[Producer] = []
    made = make(kafka.bootstrap_servers, ended.append)
    await made.start()
    made._client._sender.sender_task.cancel()
    await asyncio.sleep(0.05)
    assert ended == [made]
    async with asyncio.timeout(1):
        await made.stop(0.5)
    assert ended == [made]


@pytest.mark.parametrize(
    ("code", "offset", "doubtful"),
    [(0, 5, False), (6, -1, False), (6, 5, True), (3, -1, False), (19, -1, False), (20, 5, True), (7, -1, True)],
)
async def test_what_an_answer_leaves_in_doubt(code: int, offset: int, doubtful: bool) -> None:
    """A refusal with an offset was appended first: real brokers answer (6, offset) when a leader steps down."""
    made = make("127.0.0.1:1")
    request = ProduceRequest(required_acks=-1, timeout=1000, topics=[("t", [(0, b"")])], transactional_id=None)

    async def answer(*_: object, **__: object) -> Any:
        return SimpleNamespace(topics=[("t", [(0, code, offset, -1, 0, [], None)])])

    made._send = answer
    await made._watched_send(1, request)
    assert made.may_be_written("t", 0) is doubtful
    await made.stop(0)


async def test_failed_start_leaves_nothing() -> None:
    """A start that fails, and one that was never tried, leave no task, no socket and no warning after stop()."""
    async with no_leaks():
        made = make("127.0.0.1:1")
        with pytest.raises(ConnectionRefusedError):
            await made.start()
        await made.stop(0)
        await make("127.0.0.1:1").stop(0)
        make("127.0.0.1:1").abort()


@pytest.mark.fault
@pytest.mark.parametrize("fate", ["pause", "kill"])
@pytest.mark.parametrize("idempotent", [True, False])
async def test_teardown(kafka_node: KafkaCluster, unique_name: Name, fate: str, idempotent: bool) -> None:
    """With batches pending on a frozen or killed broker, stop(0.5) ends within 1.3 s and leaves nothing."""
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    options: dict[str, Any] = {} if idempotent else {"acks": "1", "enable_idempotence": False, "allow_unsafe": True}
    topic = unique_name("teardown")
    kafka_node.create_topic(topic, 2)
    async with no_leaks(settle=0.1):
        made = make(kafka_node.bootstrap_servers, request_timeout_ms=3000, **options)
        await made.start()
        while not made.partitions(topic):
            await made.refresh([topic])
        await made.append(batch_of(made, b"a"), topic, 0).future
        await asyncio.to_thread(getattr(kafka_node, fate))
        try:
            await asyncio.sleep(0.5)
            handles = [made.append(batch_of(made, b"b"), topic, partition) for partition in (0, 1)]
            await asyncio.sleep(0.5)
            loop = asyncio.get_running_loop()
            started = loop.time()
            await made.stop(0.5)
            assert loop.time() - started < 1.3
            assert all(handle.future.done() for handle in handles)
            for handle in handles:
                handle.future.exception()
        finally:
            await asyncio.to_thread(kafka_node.resume if fate == "pause" else kafka_node.start)
    assert not noise


@pytest.mark.fault
async def test_abort(kafka_node: KafkaCluster, unique_name: Name) -> None:
    """abort() with batches pending on a frozen broker: no await; a moment later nothing is left, without noise."""
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    topic = unique_name("abort")
    kafka_node.create_topic(topic)
    async with no_leaks(settle=0.5):
        made = make(kafka_node.bootstrap_servers)
        await made.start()
        while not made.partitions(topic):
            await made.refresh([topic])
        kafka_node.pause()
        try:
            await asyncio.sleep(0.3)
            handle = made.append(batch_of(made, b"b"), topic, 0)
            await asyncio.sleep(0.1)
            made.abort()
            assert handle.future.done()
            handle.future.exception()
            await asyncio.sleep(0.3)
        finally:
            kafka_node.resume()
    assert not noise
