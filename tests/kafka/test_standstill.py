"""The process stood still while a request was in flight and further records waited behind it."""

import asyncio
import time
from collections.abc import Callable

import pytest

from cqrs_brokers import Message, NotDeliveredError, Receipt, open_broker
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaServer

pytestmark = pytest.mark.live


async def test_records_that_waited_are_not_written_after_their_deadline(
    kafka: KafkaServer, unique_name: Callable[[str], str]
) -> None:
    """The answer to the request counts. The records behind it are ended, not written late: a lease, for example, may
    rely on their deadline."""
    topic = unique_name("standstill")
    kafka.create_topic(topic)
    async with open_broker(f"{kafka.url}?max_batch_size=16384") as broker:
        await broker.send_message(Message("E", topic, {}, key="k"))
        messages = [Message("E", topic, b"x" * 1000, key="k") for _ in range(500)]
        sending = asyncio.create_task(broker.send_messages(messages, timeout=1.0))
        await asyncio.sleep(0)  # the first request is written in this turn
        time.sleep(2.0)
        outcomes = await sending
    receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    ended = [outcome for outcome in outcomes if isinstance(outcome, NotDeliveredError)]
    assert 0 < len(receipts) < 20  # one batch
    assert len(receipts) + len(ended) == 500
    stored = await asyncio.to_thread(drain_topic, kafka.bootstrap_servers, topic, len(receipts) + 1)
    assert len(stored) == len(receipts) + 1
