"""A connection that breaks while a write is under way."""

import asyncio
import gc
import logging
from collections.abc import Callable

import pytest

from cqrs_brokers import BrokerError, Message, open_broker
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.servers import RabbitMQServer

pytestmark = [pytest.mark.live, pytest.mark.fault]


async def test_a_reset_during_a_write_leaves_no_complaint_of_asyncio(
    rabbitmq: RabbitMQServer, unique_name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """aiormq's writer task fails; nobody is told "Task exception was never retrieved" beside the outcomes."""
    exchange = unique_name("exchange")
    async with FaultProxy((rabbitmq.host, rabbitmq.port)) as proxy:
        url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/?exchange={exchange}&declare=queue&delivery_timeout=3s"
        async with open_broker(url) as broker:
            topic = f"{exchange}.topic"
            await broker.send_message(Message("n", topic, 1))
            for _ in range(4):
                proxy.stall("up")
                big = [Message("n", topic, b"x" * 400_000) for _ in range(40)]
                sends = [asyncio.create_task(broker.send_message(message)) for message in big]
                await asyncio.sleep(0.4)
                proxy.reset()
                proxy.heal()
                outcomes = await asyncio.gather(*sends, return_exceptions=True)
                assert any(isinstance(outcome, BrokerError) for outcome in outcomes)
                gc.collect()
    gc.collect()
    await asyncio.sleep(0)
    complaints = [r.getMessage() for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.ERROR]
    assert not complaints
