"""Contract tests for each undocumented thing of aiokafka that we use: red here means aiokafka has changed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.protocol.metadata import MetadataResponse_v0
from aiokafka.protocol.produce import ProduceRequest

from cqrs_broker_kafka import KafkaOptions
from cqrs_broker_kafka.batches import QueuedBatch
from cqrs_broker_kafka.connections import Greeting, greet
from cqrs_broker_kafka.internals import Producer
from cqrs_broker_kafka.produce import encode_once
from cqrs_broker_kafka.settings import KafkaSettings
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.servers import KafkaCluster, KafkaServer

Name = Callable[[str], str]


def make(
    servers: str,
    ended: Callable[[Producer], None] = lambda _: None,
    heard: Callable[[], None] = lambda: None,
    **options: Any,
) -> Producer:
    url = BrokerURL.build("kafka", hosts=servers.split(","))
    settings = KafkaSettings(url, KafkaOptions(**options))
    return Producer(settings, settings.hosts[0], ended, heard)


async def start(producer: Producer) -> None:
    await producer.start(await greet(producer._settings, producer._settings.hosts[0]))


class Values(QueuedBatch):
    """A batch of such values; `outcome` gets its offset, or its error."""

    def __init__(self, producer: Producer, topic: str, partition: int, *values: bytes) -> None:
        super().__init__(producer, topic, partition)
        self.values = list(values)
        self.filled = 0
        self.outcome: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    def fill(self, append: Callable[..., Any]) -> bool:
        """See `QueuedBatch`."""
        self.filled += 1
        for value in self.values:
            assert append(timestamp=1_700_000_000_000, key=None, value=value, headers=[("h", b"v")]) is not None
        return True

    def answered(self, offset: int | None, error: BaseException | None) -> None:
        """See `QueuedBatch`."""
        if error is None:
            self.outcome.set_result(offset)
        else:
            self.outcome.set_exception(error)


def append(producer: Producer, topic: str, partition: int, *values: bytes) -> Values:
    batch = Values(producer, topic, partition, *values)
    producer.append(batch)
    return batch


@pytest.fixture
async def producer(kafka: KafkaServer) -> AsyncIterator[Producer]:
    """A started producer."""
    made = make(kafka.bootstrap_servers)
    await start(made)
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
    """A batch is queued at once, and gets the offset of its first record."""
    first = append(producer, topic, 1, b"a", b"b")
    assert producer.has_queued
    assert await first.outcome == 0
    assert not producer.has_queued
    assert await append(producer, topic, 1, b"c").outcome == 2
    assert not producer.may_be_written(topic, 1)


@pytest.mark.live
@pytest.mark.parametrize("idempotent", [True, False])
async def test_a_batch_is_filled_when_it_is_taken(kafka: KafkaServer, unique_name: Name, idempotent: bool) -> None:
    """The sender asks for the count first, in a later turn of the loop: what came until then is in the batch, once."""
    options: dict[str, Any] = {} if idempotent else {"acks": "1", "enable_idempotence": False, "allow_unsafe": True}
    name = unique_name("filled")
    kafka.create_topic(name, 1)
    made = make(kafka.bootstrap_servers, **options)
    await start(made)
    try:
        while not made.partitions(name):
            await made.refresh([name])
        batch = append(made, name, 0, b"a")
        assert (batch.taken, batch.filled) == (False, 0)
        batch.values += [b"b", b"c"]
        assert await batch.outcome == 0
        assert (batch.taken, batch.filled) == (True, 1)
        assert await append(made, name, 0, b"d").outcome == 3
    finally:
        await made.stop(2)


@pytest.mark.live
async def test_an_empty_batch_is_not_sent(producer: Producer, topic: str) -> None:
    """A batch that has nothing when the sender takes it is over at once, and takes no sequence number."""
    assert await append(producer, topic, 0).outcome is None
    assert await append(producer, topic, 0, b"a").outcome == 0


@pytest.mark.live
async def test_a_batch_that_is_withdrawn(producer: Producer, topic: str) -> None:
    """A batch that was not taken can be withdrawn, and the next one for its partition goes."""
    withdrawn = append(producer, topic, 0, b"a")
    following = append(producer, topic, 0, b"b")
    producer.withdraw(withdrawn)
    assert await following.outcome == 0
    assert not withdrawn.taken
    alone = append(producer, topic, 0, b"c")
    producer.withdraw(alone)
    assert not producer.has_queued
    producer.withdraw(alone)
    assert await append(producer, topic, 0, b"d").outcome == 1


@pytest.mark.live
async def test_a_batch_knows_before_its_future(producer: Producer, topic: str) -> None:
    """`done` tells the batch in the turn of the loop in which the answer is read."""
    told: list[bool] = []

    class Early(Values):
        def answered(self, offset: int | None, error: BaseException | None) -> None:
            super().answered(offset, error)
            told.append(called == [])

    called: list[object] = []
    batch = Early(producer, topic, 0, b"a")
    batch.future.add_done_callback(called.append)
    producer.append(batch)
    await batch.outcome
    assert told == [True]


@pytest.mark.live
async def test_a_full_batch_and_a_spoiled_one(producer: Producer, topic: str) -> None:
    """`append` says None when the batch is full, but takes one record whatever its size; a spoiled one begins again."""
    taken: list[bool] = []

    class Large(Values):
        def fill(self, append: Callable[..., Any]) -> bool:
            large = b"x" * 500_000
            for value in (large, b"x"):
                taken.append(append(timestamp=1, key=b"k", value=value, headers=[]) is not None)
            return len(taken) > 2

    batch = Large(producer, topic, 0)
    producer.append(batch)
    assert await batch.outcome == 0
    assert taken == [True, False, True, False]
    assert await append(producer, topic, 0, b"next").outcome == 1


@pytest.mark.live
async def test_stopping_when_the_sender_has_ended(kafka: KafkaServer, topic: str) -> None:
    """Batches that are queued when the sender task ends are failed by stop(); no task of aiokafka waits for them."""
    async with no_leaks():
        made = make(kafka.bootstrap_servers)
        await start(made)
        while not made.partitions(topic):
            await made.refresh([topic])
        made._client._sender.sender_task.cancel()
        batch = append(made, topic, 0, b"a")
        await asyncio.sleep(0.05)
        assert not made.alive
        await made.stop(1)
        with pytest.raises(Exception, match="ProducerClosed"):
            await batch.outcome


@pytest.mark.live
async def test_timestamps_are_milliseconds(producer: Producer, topic: str, kafka: KafkaServer) -> None:
    """`BatchBuilder.append(timestamp=)` takes milliseconds (its documentation says seconds)."""
    from cqrs_brokers_testkit.readers import drain_topic

    await append(producer, topic, 0, b"a").outcome
    (record,) = await asyncio.to_thread(drain_topic, kafka.reader_bootstrap_servers, topic, 1)
    assert record.timestamp is not None
    assert record.timestamp.timestamp() == 1_700_000_000


@pytest.mark.live
async def test_sequence_numbers_belong_to_the_producer(producer: Producer, topic: str) -> None:
    """aiokafka counts sequence numbers per partition at the first send: what makes replacing a producer necessary."""
    await append(producer, topic, 0, b"a", b"b").outcome
    numbers = producer._client._txn_manager._sequence_numbers
    assert {partition.partition: number for partition, number in numbers.items() if number} == {0: 2}


@pytest.mark.live
async def test_what_a_stopped_producer_says(kafka: KafkaServer, producer: Producer, topic: str) -> None:
    """A producer that was stopped refuses a batch without queueing it."""
    other = make(kafka.bootstrap_servers)
    await start(other)
    await other.refresh([topic])
    await other.stop(1)
    with pytest.raises(Exception, match="ProducerClosed"):
        append(other, topic, 0, b"a")
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
    assert list(map(str, producer.nodes())) == kafka.bootstrap_servers.split(",")
    await producer.ping()


@pytest.mark.live
async def test_the_sender_task_is_watched(kafka: KafkaServer) -> None:
    """`_sender.sender_task` is the task without which nothing is sent; we are told when it ends."""
    ended: list[Producer] = []
    made = make(kafka.bootstrap_servers, ended.append)
    await start(made)
    made._client._sender.sender_task.cancel()
    await asyncio.sleep(0.05)
    assert ended == [made]
    async with asyncio.timeout(1):
        await made.stop(0.5)
    assert ended == [made]


@pytest.mark.live
async def test_a_sender_task_that_fails(kafka: KafkaServer, topic: str) -> None:
    """When the sender raises we are told once, and nothing complains in the event loop."""
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    ended: list[Producer] = []
    async with no_leaks():
        made = make(kafka.bootstrap_servers, ended.append)
        await start(made)
        while not made.partitions(topic):
            await made.refresh([topic])

        def drain(**_: object) -> None:
            raise RuntimeError("a fault of the client")

        made._client._message_accumulator.drain_by_nodes = drain
        batch = append(made, topic, 0, b"a")
        await asyncio.sleep(0.05)
        assert ended == [made]
        await made.stop(1)
        with pytest.raises(Exception, match="ProducerClosed"):
            await batch.outcome
    assert not noise


@pytest.mark.live
async def test_answers_are_heard(kafka: KafkaServer, topic: str) -> None:
    """An answered produce request is news from the cluster; a batch that had nothing is not."""
    heard: list[bool] = []
    made = make(kafka.bootstrap_servers, heard=lambda: heard.append(True))
    await start(made)
    try:
        while not made.partitions(topic):
            await made.refresh([topic])
        await append(made, topic, 0).outcome
        assert not heard
        await append(made, topic, 0, b"a").outcome
        assert heard
    finally:
        await made.stop(1)


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
        nowhere = MetadataResponse_v0(brokers=[(1, "127.0.0.1", 1)], topics=[])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await made.start(Greeting(Host("127.0.0.1", 1), nowhere))
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
        await start(made)
        while not made.partitions(topic):
            await made.refresh([topic])
        await append(made, topic, 0, b"a").outcome
        await asyncio.to_thread(getattr(kafka_node, fate))
        try:
            await asyncio.sleep(0.5)
            pending = [append(made, topic, partition, b"b") for partition in (0, 1)]
            await asyncio.sleep(0.5)
            loop = asyncio.get_running_loop()
            started = loop.time()
            await made.stop(0.5)
            assert loop.time() - started < 1.3
            for batch in pending:
                assert batch.outcome.done()
                batch.outcome.exception()
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
        await start(made)
        while not made.partitions(topic):
            await made.refresh([topic])
        kafka_node.pause()
        try:
            await asyncio.sleep(0.3)
            batch = append(made, topic, 0, b"b")
            await asyncio.sleep(0.1)
            made.abort()
            assert batch.outcome.done()
            batch.outcome.exception()
            await asyncio.sleep(0.3)
        finally:
            kafka_node.resume()
    assert not noise
