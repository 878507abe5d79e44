"""On a real Kafka: what was published is what an independent client reads, in the order of calls."""

import asyncio
import gc
import random
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from cqrs_broker_kafka import KafkaMessageBroker, KafkaProducerAdapter
from cqrs_brokers import (
    DestinationNotFoundError,
    InvalidMessageError,
    Message,
    MessageTooLargeError,
    Receipt,
    RejectedError,
    open_broker,
)
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.readers import Record, drain_topic
from cqrs_brokers_testkit.servers import KafkaServer

pytestmark = pytest.mark.live

Name = Callable[[str], str]


async def read(kafka: KafkaServer, topic: str, count: int) -> list[Record]:
    return await asyncio.to_thread(drain_topic, kafka.reader_bootstrap_servers, topic, count, 20.0)


def in_log_order(records: list[Record]) -> dict[str | None, list[int]]:
    """The numbers in the bodies, by key, as they lie in the log; every key must be in one partition."""
    numbers = defaultdict(list)
    partitions = defaultdict(set)
    for record in records:
        numbers[record.key].append(int(record.body[-10:]))  # numbers are padded to the size wanted
        partitions[record.key].add(record.partition)
    assert all(len(some) == 1 for key, some in partitions.items() if key is not None)
    return numbers


async def test_everything_arrives(kafka: KafkaServer, unique_name: Name) -> None:
    """Body, key, headers, timestamp, name and id arrive; the receipt has the record's partition and offset."""
    topic = unique_name("all")
    kafka.create_topic(topic, 3)
    when = datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=UTC)
    message = Message("OrderPlaced", topic, {"id": 1}, key="käse", headers={"trace": "ä"}, timestamp=when)
    async with no_leaks():
        async with open_broker(kafka.url) as broker:
            receipt = await broker.send_message(message)
    (record,) = await read(kafka, topic, 1)
    assert (record.body, record.key, record.name) == (b'{"id":1}', "käse", "OrderPlaced")
    assert (record.message_id, record.content_type) == (str(message.message_id), "application/json")
    assert dict(record.headers) == {"trace": "ä"}
    assert record.timestamp == when
    assert receipt == Receipt(message.message_id, topic, "kafka", True, record.partition, record.offset)


async def test_the_same_partition_as_librdkafka(kafka: KafkaServer, unique_name: Name) -> None:
    """A key goes where librdkafka's murmur2 partitioner puts it."""
    from confluent_kafka import Producer

    topic = unique_name("same")
    kafka.create_topic(topic, 7)
    other = Producer({"bootstrap.servers": kafka.bootstrap_servers, "partitioner": "murmur2_random"})
    keys = [f"key-{number}" for number in range(50)] + ["ключ", "k" * 300]
    for key in keys:
        other.produce(topic, b"0", key=key.encode())
    other.flush(10)
    async with open_broker(kafka.url) as broker:
        await broker.send_messages(Message("E", topic, b"1", key=key) for key in keys)
    in_log_order(await read(kafka, topic, 2 * len(keys)))


async def test_order_per_key(kafka: KafkaServer, unique_name: Name) -> None:
    """5000 messages over 1000 keys, at once and one by one: log order is call order; offsets are the log's."""
    topic = unique_name("order")
    kafka.create_topic(topic, 6)
    chance = random.Random(1)
    messages = [Message("E", topic, b"%d" % number, key=f"k{chance.randrange(1000)}") for number in range(5000)]
    receipts: list[Any] = []
    async with open_broker(kafka.url) as broker:
        receipts += await asyncio.gather(*(broker.send_message(message) for message in messages[:2000]))
        receipts += await broker.send_messages(messages[2000:4500])
        receipts += [await broker.send_message(message) for message in messages[4500:]]
    records = await read(kafka, topic, 5000)
    assert len(records) == 5000
    assert all(numbers == sorted(numbers) for numbers in in_log_order(records).values())
    places = {record.message_id: (record.partition, record.offset) for record in records}
    assert all(places[str(receipt.message_id)] == (receipt.partition, receipt.offset) for receipt in receipts)


@pytest.mark.parametrize("sizes", [[100], [100, 480, 6000]], ids=["even", "mixed"])
async def test_order_of_a_hot_key(kafka: KafkaServer, unique_name: Name, sizes: list[int]) -> None:
    """2500 messages of one key, 20 new ones per turn of the loop: 0 inversions (plain aiokafka: 1840 of 2500)."""
    topic = unique_name("hot")
    kafka.create_topic(topic, 3)
    tasks = []
    async with open_broker(kafka.url) as broker:
        for number in range(2500):
            body = b"%0*d" % (sizes[number % len(sizes)], number)
            tasks.append(asyncio.create_task(broker.send_message(Message("E", topic, body, key="hot"))))
            if number % 20 == 19:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
    assert in_log_order(await read(kafka, topic, 2500)) == {"hot": list(range(2500))}


async def test_keyless_messages_use_all_partitions(kafka: KafkaServer, unique_name: Name) -> None:
    """Without a key, messages go round: one after another, and many at once."""
    topic = unique_name("keyless")
    kafka.create_topic(topic, 4)
    async with open_broker(kafka.url) as broker:
        single = {(await broker.send_message(Message("E", topic, b"0"))).partition for _ in range(12)}
        receipts = await asyncio.gather(*(broker.send_message(Message("E", topic, b"0")) for _ in range(900)))
    assert single == {0, 1, 2, 3}
    assert {receipt.partition for receipt in receipts} == {0, 1, 2, 3}


async def test_a_partition_is_not_poisoned(kafka: KafkaServer, unique_name: Name) -> None:
    """After a record that is too large, on a warm partition: 1000 good ones, in order, without duplicates (K1)."""
    topic = unique_name("poison")
    kafka.create_topic(topic, 1, config={"max.message.bytes": "1000"})
    async with open_broker(kafka.url) as broker:
        for number in range(5):
            await broker.send_message(Message("E", topic, b"%d" % number, key="k"))
        with pytest.raises(MessageTooLargeError):
            await broker.send_message(Message("E", topic, b"x" * 2000, key="k"))
        for number in range(5, 505):
            await broker.send_message(Message("E", topic, b"%d" % number, key="k"))
        await asyncio.gather(
            *(broker.send_message(Message("E", topic, b"%d" % number, key="k")) for number in range(505, 1005))
        )
    assert in_log_order(await read(kafka, topic, 1005)) == {"k": list(range(1005))}


async def test_a_record_larger_than_a_segment(kafka: KafkaServer, unique_name: Name) -> None:
    """It alone fails, and its error names the setting that the broker goes by."""
    topic = unique_name("segment")
    kafka.create_topic(topic, 1, config={"max.message.bytes": "5000000", "segment.bytes": str(2**20)})
    async with open_broker(kafka.url, max_message_bytes=3_000_000, max_batch_size=4_000_000) as broker:
        bodies = [b"small", b"x" * 1_500_000, b"small"]
        outcomes = await asyncio.gather(
            *(broker.send_message(Message("E", topic, body)) for body in bodies), return_exceptions=True
        )
    assert [type(outcome) for outcome in outcomes] == [Receipt, MessageTooLargeError, Receipt]
    assert "raise the topic's segment.bytes" in str(outcomes[1])
    assert len(await read(kafka, topic, 2)) == 2


async def test_only_the_large_one_of_many_fails(kafka: KafkaServer, unique_name: Name) -> None:
    """Large records in the midst of 1000 others: they alone fail, the others arrive once and in order."""
    topic = unique_name("amidst")
    kafka.create_topic(topic, 1, config={"max.message.bytes": "20000"})
    large = {0, 333, 334, 999}
    async with open_broker(kafka.url) as broker:
        await broker.send_message(Message("E", topic, b"-1", key="k"))
        bodies = [b"%0*d" % (30_000 if number in large else 10, number) for number in range(1000)]
        outcomes = await broker.send_messages(Message("E", topic, body, key="k") for body in bodies)
    assert {i for i, outcome in enumerate(outcomes) if type(outcome) is MessageTooLargeError} == large
    assert all(isinstance(outcome, Receipt) for i, outcome in enumerate(outcomes) if i not in large)
    expected = [-1, *(number for number in range(1000) if number not in large)]
    assert in_log_order(await read(kafka, topic, len(expected))) == {"k": expected}


async def test_small_messages_in_a_topic_with_a_small_limit(kafka: KafkaServer, unique_name: Name) -> None:
    """A topic limit far below our batch size refuses no small message: 1000 of 1000 arrive, in order."""
    topic = unique_name("limit")
    kafka.create_topic(topic, 2, config={"max.message.bytes": "1000"})
    async with open_broker(kafka.url) as broker:
        messages = [Message("E", topic, b"%d" % number, key=f"k{number % 7}") for number in range(1000)]
        receipts = await asyncio.gather(*(broker.send_message(message) for message in messages))
    assert all(receipt.confirmed for receipt in receipts)
    records = await read(kafka, topic, 1000)
    assert len(records) == 1000
    assert all(numbers == sorted(numbers) for numbers in in_log_order(records).values())


@pytest.mark.parametrize("mode", ["", "?acks=1&enable_idempotence=false&allow_unsafe=true"])
async def test_a_bad_timestamp_is_one_messages_fault(kafka: KafkaServer, unique_name: Name, mode: str) -> None:
    """A record that the topic refuses for its timestamp fails alone, also without idempotence."""
    topic = unique_name("timestamp")
    kafka.create_topic(topic, 1, config={"message.timestamp.before.max.ms": "3600000"})
    old = datetime.now(UTC) - timedelta(days=2)
    async with open_broker(kafka.url + mode) as broker:
        await broker.send_message(Message("E", topic, b"-1", key="k"))
        messages = [Message("E", topic, b"%d" % number, key="k") for number in range(100)]
        messages[50].timestamp = old
        outcomes = await broker.send_messages(messages)
    assert [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, Receipt)] == [50]
    assert type(outcomes[50]) is RejectedError
    expected = [-1, *(number for number in range(100) if number != 50)]
    assert in_log_order(await read(kafka, topic, 100)) == {"k": expected}


async def test_unknown_topic(kafka_node: KafkaServer, unique_name: Name) -> None:
    """DestinationNotFoundError within 5 s; at once while it is remembered; a good topic beside it is not delayed."""
    good, bad = unique_name("good"), unique_name("bad")
    kafka_node.create_topic(good)
    loop = asyncio.get_running_loop()
    async with open_broker(kafka_node.url) as broker:
        await broker.send_message(Message("E", good, b"0"))
        started = loop.time()
        lost = [asyncio.create_task(broker.send_message(Message("E", bad, b"0"))) for _ in range(100)]
        await asyncio.sleep(0)
        await asyncio.gather(*(broker.send_message(Message("E", good, b"0")) for _ in range(100)))
        assert loop.time() - started < 1.5
        outcomes = await asyncio.gather(*lost, return_exceptions=True)
        assert loop.time() - started < 5
        assert {type(outcome) for outcome in outcomes} == {DestinationNotFoundError}
        again = loop.time()
        with pytest.raises(DestinationNotFoundError):
            await broker.send_message(Message("E", bad, b"0"))
        assert loop.time() - again < 0.1
        kafka_node.create_topic(bad)
        await asyncio.sleep(3.1)  # as long as it is remembered
        assert (await broker.send_message(Message("E", bad, b"0"))).offset == 0


@pytest.mark.parametrize("topic", ["bad topic!", "a/b", "ü", ".", "..", "t" * 250])
async def test_illegal_topics_are_refused_locally(topic: str) -> None:
    """A name that Kafka cannot have is InvalidMessageError before any I/O: there is no broker here."""
    broker = open_broker("kafka://127.0.0.1:1")
    with pytest.raises(InvalidMessageError):
        await broker.send_message(Message("E", topic, {}))
    await broker.close()


async def test_more_partitions(kafka: KafkaServer, unique_name: Name) -> None:
    """Partitions that a topic gains are used after `metadata_max_age`, keys as other clients place them."""
    import confluent_kafka.admin

    admin: Any = confluent_kafka.admin  # its names are re-exported in a way that mypy does not accept

    topic = unique_name("grow")
    kafka.create_topic(topic, 1)
    async with open_broker(f"{kafka.url}?metadata_max_age=1s") as broker:
        await broker.send_message(Message("E", topic, b"0", key="k"))
        client = admin.AdminClient({"bootstrap.servers": kafka.reader_bootstrap_servers})
        client.create_partitions([admin.NewPartitions(topic, 5)])[topic].result(10)
        await asyncio.sleep(2.5)
        receipts = await broker.send_messages(Message("E", topic, b"0", key=f"k{n}") for n in range(200))
    assert {receipt.partition for receipt in receipts if isinstance(receipt, Receipt)} == {0, 1, 2, 3, 4}


async def test_sequence_numbers_never_wrap(kafka: KafkaServer, unique_name: Name) -> None:
    """After 2**30 records a partition goes on under a higher epoch, at sequence 0."""
    topic = unique_name("wrap")
    kafka.create_topic(topic)
    async with open_broker(kafka.url) as broker:
        receipts = [await broker.send_message(Message("E", topic, b"0", key="k"))]
        driver: Any = broker.driver
        (partition,) = driver.topics[topic].partitions
        # The broker must know such a number, or it would refuse a gap: as if this batch had been its first one.
        partition._begin_epoch()
        partition._epoch += 1
        partition._sequence = 0
        receipts += [await broker.send_message(Message("E", topic, b"0", key="k"))]
        epoch, partition._sequence = partition._epoch, 2**30
        receipts += [await broker.send_message(Message("E", topic, b"0", key="k")) for _ in range(50)]
        assert (partition._epoch, partition._sequence) == (epoch + 1, 50)
    assert [receipt.offset for receipt in receipts] == list(range(52))


async def test_topics_are_found_while_records_are_refused(kafka: KafkaServer, unique_name: Name) -> None:
    """New topics and refused records at the same time: every good message arrives."""
    names = [unique_name("many") for _ in range(8)]
    for name in names:
        kafka.create_topic(name, 1, config={"max.message.bytes": "1000"})
    async with no_leaks():
        async with open_broker(kafka.url) as broker:
            good, large = [], []
            for number in range(10):
                for name in names:
                    good.append(asyncio.create_task(broker.send_message(Message("E", name, b"0", key="k"))))
                    large.append(asyncio.create_task(broker.send_message(Message("E", name, b"x" * 2000, key="k"))))
                await asyncio.sleep(0.01 * number)
            assert all(receipt.confirmed for receipt in await asyncio.gather(*good))
            refused = await asyncio.gather(*large, return_exceptions=True)
    assert {type(outcome) for outcome in refused} == {MessageTooLargeError}


@pytest.mark.parametrize("acks", ["1", "0"])
async def test_weaker_settings_say_so(kafka: KafkaServer, unique_name: Name, acks: str) -> None:
    """acks=1 confirms without durability; acks=0 confirms nothing, and its receipt says that."""
    topic = unique_name("weak")
    kafka.create_topic(topic)
    url = f"{kafka.url}?acks={acks}&enable_idempotence=false&allow_unsafe=true"
    async with open_broker(url) as broker:
        receipt = await broker.send_message(Message("E", topic, b"0"))
        assert not broker.capabilities.durable
    assert receipt.confirmed is (acks == "1")
    assert len(await read(kafka, topic, 1)) == 1


@pytest.mark.parametrize("codec", ["gzip", "zstd", "lz4", "snappy"])
async def test_compression(kafka: KafkaServer, unique_name: Name, codec: str) -> None:
    """Compressed batches arrive whole."""
    if codec != "gzip":
        pytest.importorskip("cramjam")
    topic = unique_name(codec)
    kafka.create_topic(topic)
    async with open_broker(f"{kafka.url}?compression_type={codec}") as broker:
        await broker.send_messages(Message("E", topic, b"%d" % number, key="k") for number in range(500))
    assert in_log_order(await read(kafka, topic, 500)) == {"k": list(range(500))}


async def test_close_flushes(kafka: KafkaServer, unique_name: Name) -> None:
    """What was accepted before close() is delivered; nothing is left behind."""
    topic = unique_name("flush")
    kafka.create_topic(topic, 3)
    async with no_leaks():
        broker = open_broker(kafka.url)
        sends = [asyncio.create_task(broker.send_message(Message("E", topic, b"%d" % n))) for n in range(3000)]
        await asyncio.sleep(0)
        await broker.close(10)
        receipts = await asyncio.gather(*sends)
    assert len(receipts) == len(await read(kafka, topic, 3000)) == 3000


async def test_cancelled_senders(kafka: KafkaServer, unique_name: Name) -> None:
    """A storm of cancellations: every receipt's message is in the log once, neighbours are not touched."""
    topic = unique_name("cancel")
    kafka.create_topic(topic, 3)
    chance = random.Random(2)
    async with open_broker(kafka.url) as broker:
        await broker.connect()
        messages = [Message("E", topic, b"0", key=f"k{n % 50}") for n in range(2000)]
        tasks = [asyncio.create_task(broker.send_message(message)) for message in messages]
        for task in chance.sample(tasks, 1000):
            for _ in range(chance.randrange(2)):
                await asyncio.sleep(0)
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await broker.flush(10)
    confirmed = {str(outcome.message_id) for outcome in outcomes if isinstance(outcome, Receipt)}
    assert all(isinstance(outcome, Receipt | asyncio.CancelledError) for outcome in outcomes)
    ids = [record.message_id for record in await read(kafka, topic, len(confirmed))]
    assert len(ids) == len(set(ids))
    assert confirmed <= set(ids)


def test_one_broker_over_several_loops(kafka: KafkaServer, unique_name: Name, recwarn: pytest.WarningsRecorder) -> None:
    """A loop per job, never closed: each job's message arrives; the only warnings are our own."""
    topic = unique_name("loops")
    kafka.create_topic(topic)
    broker = KafkaMessageBroker(KafkaProducerAdapter(kafka.bootstrap_servers))
    errors: list[dict[str, Any]] = []

    async def job() -> Receipt:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        return await broker.send_message(Message("E", topic, {}, uuid4()))

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        offsets = [asyncio.run(job()).offset for _ in range(3)]
        loop = asyncio.new_event_loop()
        offsets.append(loop.run_until_complete(job()).offset)
        loop.close()
        gc.collect()
        offsets.append(asyncio.run(job()).offset)
        asyncio.run(broker.close())
        gc.collect()
    assert offsets == [0, 1, 2, 3, 4]
    assert not errors
    assert {warning.category for warning in recwarn} <= {ResourceWarning}
    assert all("was not closed" in str(warning.message) for warning in recwarn)
