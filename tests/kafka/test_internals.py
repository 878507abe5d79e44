"""Contract tests for each undocumented thing of aiokafka that `internals` uses: red here means aiokafka has changed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.produce import ProduceRequest

from cqrs_broker_kafka import KafkaOptions
from cqrs_broker_kafka.internals import Builder, Producer
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


class Values:
    """Contents of a batch: `future` gets its offset, or its error."""

    def __init__(self, *values: bytes) -> None:
        self.values = list(values)
        self.filled = False
        self.future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    def fill(self, builder: Builder) -> None:
        """See `Contents`."""
        assert not self.filled
        self.filled = True
        for value in self.values:
            taken = builder.append(timestamp=1_700_000_000_000, key=None, value=value, headers=[("h", b"v")])
            assert taken is not None

    def answered(self, offset: int | None, error: BaseException | None) -> None:
        """See `Contents`."""
        if error is None:
            self.future.set_result(offset)
        else:
            self.future.set_exception(error)


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
    """A batch is queued at once; its contents get the base offset, and `retry_count` counts its sends."""
    first = Values(b"a", b"b")
    producer.append(first, topic, 1)
    assert producer.has_queued
    assert await first.future == 0
    assert not producer.has_queued
    second = Values(b"c")
    handle = producer.append(second, topic, 1)
    assert handle.retry_count == 0
    assert await second.future == 2
    assert handle.retry_count == 1
    assert not producer.may_be_written(topic, 1)


@pytest.mark.live
@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_batch_is_filled_when_it_is_taken(kafka: KafkaServer, unique_name: Name, idempotent: bool) -> None:
    """The sender asks `record_count` first, in a later turn of the loop: what came until then is in the batch."""
    options: dict[str, Any] = {} if idempotent else {"acks": "1", "enable_idempotence": False, "allow_unsafe": True}
    name = unique_name("filled")
    kafka.create_topic(name, 1)
    made = make(kafka.bootstrap_servers, **options)
    await made.start()
    try:
        while not made.partitions(name):
            await made.refresh([name])
        contents = Values(b"a")
        made.append(contents, name, 0)
        assert not contents.filled
        contents.values += [b"b", b"c"]
        assert await contents.future == 0
        after = Values(b"d")
        made.append(after, name, 0)
        assert await after.future == 3
    finally:
        await made.stop(2)


@pytest.mark.live
async def test_an_empty_batch_is_not_sent(producer: Producer, topic: str) -> None:
    """A batch that has nothing when the sender takes it is over at once, and takes no sequence number."""
    empty = Values()
    producer.append(empty, topic, 0)
    assert await empty.future is None
    full = Values(b"a")
    producer.append(full, topic, 0)
    assert await full.future == 0


@pytest.mark.live
async def test_contents_know_before_the_future(producer: Producer, topic: str) -> None:
    """`done` tells the contents at once, and lets go of them: a cycle would keep every message."""
    told: list[bool] = []

    class Early(Values):
        def answered(self, offset: int | None, error: BaseException | None) -> None:
            super().answered(offset, error)
            told.append(handle.contents is None)

    contents = Early(b"a")
    handle = producer.append(contents, topic, 0)
    await contents.future
    assert told == [True]


async def test_a_full_builder_and_a_cleared_one() -> None:
    """`append` says None when the batch is full, but takes one record whatever its size; `clear` begins again."""
    builder = Builder(200, 0, None)
    for _ in range(2):
        assert builder.append(timestamp=1, key=b"k", value=b"x" * 500, headers=[]) is not None
        assert builder.append(timestamp=1, key=b"k", value=b"x", headers=[]) is None
        assert builder.record_count() == 1
        builder.clear()
    assert builder.record_count() == 0


@pytest.mark.live
async def test_timestamps_are_milliseconds(producer: Producer, topic: str, kafka: KafkaServer) -> None:
    """`BatchBuilder.append(timestamp=)` takes milliseconds (its documentation says seconds)."""
    from cqrs_brokers_testkit.readers import drain_topic

    contents = Values(b"a")
    producer.append(contents, topic, 0)
    await contents.future
    (record,) = await asyncio.to_thread(drain_topic, kafka.reader_bootstrap_servers, topic, 1)
    assert record.timestamp is not None
    assert record.timestamp.timestamp() == 1_700_000_000


@pytest.mark.live
async def test_sequence_numbers_belong_to_the_producer(producer: Producer, topic: str) -> None:
    """aiokafka counts sequence numbers per partition at the first send: what makes replacing a producer necessary."""
    contents = Values(b"a", b"b")
    producer.append(contents, topic, 0)
    await contents.future
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
        other.append(Values(b"a"), topic, 0)
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
        first = Values(b"a")
        made.append(first, topic, 0)
        await first.future
        await asyncio.to_thread(getattr(kafka_node, fate))
        try:
            await asyncio.sleep(0.5)
            pending = [Values(b"b"), Values(b"c")]
            for partition, contents in enumerate(pending):
                made.append(contents, topic, partition)
            await asyncio.sleep(0.5)
            loop = asyncio.get_running_loop()
            started = loop.time()
            await made.stop(0.5)
            assert loop.time() - started < 1.3
            for contents in pending:
                assert contents.future.done()
                contents.future.exception()
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
            contents = Values(b"b")
            made.append(contents, topic, 0)
            await asyncio.sleep(0.1)
            made.abort()
            assert contents.future.done()
            contents.future.exception()
            await asyncio.sleep(0.3)
        finally:
            kafka_node.resume()
    assert not noise
