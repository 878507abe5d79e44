"""Error codes that a real broker won't give on demand, from librdkafka's mock cluster (without sequence checks)."""

import asyncio

import pytest

from cqrs_brokers import (
    Broker,
    DeliveryError,
    DeliveryUnknownError,
    InvalidMessageError,
    Message,
    MessageTooLargeError,
    PublishForbiddenError,
    Receipt,
    RejectedError,
    UnreachableError,
    open_broker,
)
from cqrs_brokers_testkit.kafka_mock import INIT_PRODUCER_ID, PRODUCE, KafkaMock
from cqrs_brokers_testkit.leaks import no_leaks

pytestmark = pytest.mark.live

UNSAFE = "?acks=1&enable_idempotence=false&allow_unsafe=true&request_timeout_ms=500"

REFUSED = {
    2: RejectedError,
    10: MessageTooLargeError,
    17: InvalidMessageError,
    18: MessageTooLargeError,
    29: PublishForbiddenError,
    31: PublishForbiddenError,
    32: RejectedError,
    44: RejectedError,
    45: DeliveryUnknownError,
    47: DeliveryUnknownError,
    59: DeliveryUnknownError,
    74: DeliveryUnknownError,
    87: RejectedError,
    89: DeliveryUnknownError,
    -1: DeliveryUnknownError,
}


def numbers(driver: object) -> tuple[int, int, int]:
    """Producer id, epoch and next sequence number of the topic's only partition."""
    (partition,) = driver.topics["t"].partitions  # type: ignore[attr-defined]
    return partition._producer_id, partition._epoch, partition._sequence


@pytest.mark.parametrize(("code", "expected"), REFUSED.items())
async def test_one_typed_error_and_then_it_goes_on(
    kafka_mock: KafkaMock, code: int, expected: type[DeliveryError]
) -> None:
    """A refused batch gives one error, of the table's class; its numbers are used again only if it was not written."""
    kafka_mock.create_topic("t")
    async with open_broker(kafka_mock.url) as broker:
        await broker.send_message(Message("E", "t", {}, key="k"))
        before = numbers(broker.driver)
        kafka_mock.push_errors(PRODUCE, code)
        with pytest.raises(DeliveryError) as caught:
            await broker.send_message(Message("E", "t", {}, key="k"))
        assert type(caught.value) is expected
        assert (await broker.send_message(Message("E", "t", {}, key="k"))).confirmed
        producer_id, epoch, sequence = before
        if expected is not DeliveryUnknownError:
            assert numbers(broker.driver) == (producer_id, epoch, sequence + 1)
        else:
            assert numbers(broker.driver)[:2] != (producer_id, epoch)
            assert numbers(broker.driver)[2] == 1


@pytest.mark.parametrize("code", [3, 5, 6, 7, 19, 20, 56])
async def test_idempotent_retries_are_transparent(kafka_mock: KafkaMock, code: int) -> None:
    """What passes, and what is in doubt, is repeated with the same sequence number; the send succeeds."""
    kafka_mock.create_topic("t")
    async with open_broker(kafka_mock.url) as broker:
        await broker.send_message(Message("E", "t", {}, key="k"))
        kafka_mock.push_errors(PRODUCE, code, code)
        assert (await broker.send_message(Message("E", "t", {}, key="k"))).confirmed


async def test_known_duplicate_is_a_success_without_an_offset(kafka_mock: KafkaMock) -> None:
    """Code 46 means that the batch is in the log, where the broker does not say: the receipt has no offset."""
    kafka_mock.create_topic("t")
    async with open_broker(kafka_mock.url) as broker:
        await broker.send_message(Message("E", "t", {}, key="k"))
        kafka_mock.push_errors(PRODUCE, 46)
        receipt = await broker.send_message(Message("E", "t", {}, key="k"))
    assert (receipt.confirmed, receipt.offset) == (True, None)


@pytest.mark.parametrize("mode", ["", UNSAFE])
async def test_a_refusal_after_certain_refusals_is_certain(kafka_mock: KafkaMock, mode: str) -> None:
    """A fresh topic answers "not leader" first: that wrote nothing, so a refusal after it is still a proof."""
    kafka_mock.create_topic("t")
    async with open_broker(kafka_mock.url + mode) as broker:
        await broker.send_message(Message("E", "t", {}, key="k"))
        kafka_mock.push_errors(PRODUCE, 6, 3, 10)
        with pytest.raises(MessageTooLargeError):
            await broker.send_message(Message("E", "t", {}, key="k"))
        kafka_mock.push_errors(PRODUCE, 6, 10)
        outcomes = await broker.send_messages(Message("E", "t", {}, key="k") for _ in range(8))
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)


@pytest.mark.parametrize("codes", [(7, 10), (20, 29), (7, 44), (56, 87)])
async def test_a_refusal_after_a_retry_is_unknown(kafka_mock: KafkaMock, codes: tuple[int, ...]) -> None:
    """A refusal proves nothing when an earlier attempt's answer was a timeout, and nothing is sent again."""
    kafka_mock.create_topic("t")
    async with open_broker(kafka_mock.url) as broker:
        await broker.send_message(Message("E", "t", {}, key="k"))
        kafka_mock.push_errors(PRODUCE, *codes)
        outcomes = await broker.send_messages(Message("E", "t", {}, key="k") for _ in range(4))
        assert {type(outcome) for outcome in outcomes} == {DeliveryUnknownError}
        assert (await broker.send_message(Message("E", "t", {}, key="k"))).confirmed


@pytest.mark.parametrize("code", [7, 13, 20, 56])
async def test_without_idempotence_doubt_is_not_repeated(kafka_mock: KafkaMock, code: int) -> None:
    """A lost answer is unknown at once: without idempotence a repeat could be in the log twice."""
    kafka_mock.create_topic("t")
    async with open_broker(kafka_mock.url + UNSAFE) as broker:
        await broker.send_message(Message("E", "t", {}, key="k"))
        kafka_mock.push_errors(PRODUCE, code)
        with pytest.raises(DeliveryUnknownError):
            await broker.send_message(Message("E", "t", {}, key="k"))
        assert (await broker.send_message(Message("E", "t", {}, key="k"))).confirmed


async def test_written_to_too_few_replicas_is_unknown(kafka_mock: KafkaMock) -> None:
    """Code 20 as the last word: the message may stay written."""
    kafka_mock.create_topic("t")
    async with open_broker(kafka_mock.url + UNSAFE) as broker:
        await broker.send_message(Message("E", "t", {}, key="k"))
        kafka_mock.push_errors(PRODUCE, *[20] * 100)
        with pytest.raises(DeliveryError, match=r"min\.insync\.replicas.* may have been written") as caught:
            await broker.send_message(Message("E", "t", {}, key="k"))
        assert type(caught.value) is DeliveryUnknownError
        kafka_mock.clear_errors(PRODUCE)
        assert (await broker.send_message(Message("E", "t", {}, key="k"))).confirmed


async def doubt(kafka_mock: KafkaMock, broker: Broker) -> None:
    """Lets the next batch be one that may be written, in a partition that then has no leader."""
    kafka_mock.create_topic("t")
    await broker.send_message(Message("E", "t", {}, key="k"))
    kafka_mock.push_errors(PRODUCE, 20, 6)
    kafka_mock.set_leader("t", 0, -1)


async def test_doubt_waits_for_a_leader(kafka_mock: KafkaMock) -> None:
    """What may be written is repeated when a leader is there again, however long after request_timeout_ms."""
    async with open_broker(f"{kafka_mock.url}?request_timeout_ms=500") as broker:
        await doubt(kafka_mock, broker)
        send = asyncio.create_task(broker.send_message(Message("E", "t", {}, key="k")))
        await asyncio.sleep(2)
        kafka_mock.set_leader("t", 0, 1)
        assert (await send).confirmed


async def test_doubt_outlives_the_deadline(kafka_mock: KafkaMock) -> None:
    """What may be written is unknown at its deadline, and is repeated all the same: then the partition goes on."""
    async with open_broker(f"{kafka_mock.url}?request_timeout_ms=500&delivery_timeout=1.5s") as broker:
        await doubt(kafka_mock, broker)
        with pytest.raises(DeliveryUnknownError, match=r"NOT_LEADER|NOT_ENOUGH"):
            await broker.send_message(Message("E", "t", {}, key="k"))
        before = numbers(broker.driver)
        kafka_mock.set_leader("t", 0, 1)
        receipt = await broker.send_message(Message("E", "t", {}, key="k"))
        assert numbers(broker.driver) == (*before[:2], before[2] + 2)
        assert receipt.offset == 2  # behind the one that was repeated


async def test_neighbours_of_a_refused_record(kafka_mock: KafkaMock) -> None:
    """A batch of ten that is refused once as too large is split and sent again: ten receipts."""
    kafka_mock.create_topic("t", 1)
    async with open_broker(kafka_mock.url) as broker:
        await broker.send_message(Message("E", "t", {}, key="k"))
        kafka_mock.push_errors(PRODUCE, 10)
        outcomes = await broker.send_messages(Message("E", "t", {}, key="k") for _ in range(10))
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)


async def test_topic_without_permission(kafka_mock: KafkaMock) -> None:
    """A topic that the user may not see is PublishForbiddenError."""
    kafka_mock.create_topic("t")
    kafka_mock.set_topic_error("t", 29)
    async with open_broker(kafka_mock.url) as broker:
        with pytest.raises(PublishForbiddenError):
            await broker.send_message(Message("E", "t", {}, key="k"))


async def test_producer_id_is_waited_for(kafka_mock: KafkaMock) -> None:
    """A coordinator that is still loading delays connect(), no more."""
    kafka_mock.create_topic("t")
    kafka_mock.push_errors(INIT_PRODUCER_ID, 15, 14, 15)
    async with open_broker(kafka_mock.url) as broker:
        assert (await broker.send_message(Message("E", "t", {}, key="k"))).confirmed


async def test_producer_id_is_refused_for_ever(kafka_mock: KafkaMock) -> None:
    """UnreachableError at connect_timeout, which says that a node was reached; nothing is left; later it works."""
    kafka_mock.create_topic("t")
    kafka_mock.push_errors(INIT_PRODUCER_ID, *[15] * 2000)
    loop = asyncio.get_running_loop()
    broker = open_broker(f"{kafka_mock.url}?connect_timeout=1500ms")
    async with no_leaks():
        started = loop.time()
        with pytest.raises(UnreachableError, match=r"node 1 .* reached, but gave no producer id") as caught:
            await broker.connect()
        assert 1.4 < loop.time() - started < 2.5
    assert type(caught.value) is UnreachableError
    assert "advertised" not in str(caught.value)
    kafka_mock.clear_errors(INIT_PRODUCER_ID)
    assert (await broker.send_message(Message("E", "t", {}, key="k"))).confirmed
    await broker.close()


async def test_sends_before_the_topic_exists(kafka_mock: KafkaMock) -> None:
    """A topic that appears within the grace is waited for."""
    kafka_mock.set_topic_error("late", 3)
    async with open_broker(kafka_mock.url) as broker:
        send = asyncio.create_task(broker.send_message(Message("E", "late", {}, key="k")))
        await asyncio.sleep(0.5)
        kafka_mock.set_topic_error("late", 0)
        assert (await send).confirmed
