"""What a real Kafka does only at a moment that no test can choose: a node of our own does it on demand."""

import asyncio

import pytest

from cqrs_brokers import DeliveryError, Message, UnreachableError, open_broker
from tests.kafka.stub import PRODUCER_ID, SASL_AUTHENTICATE, VERSIONS, stub_kafka

LOGIN = "&security_protocol=SASL_PLAINTEXT&sasl_plain_username=u&sasl_plain_password=p"


@pytest.mark.parametrize(
    ("step", "options"), [(SASL_AUTHENTICATE, LOGIN), (VERSIONS, "")], ids=["the log-in", "the versions"]
)
async def test_a_node_that_hangs_up_after_its_last_answer(step: int, options: str) -> None:
    """A connection that ends while it is made is made again: when the node is well, it is used without a connect()."""
    async with stub_kafka() as node:
        async with open_broker(f"{node.url}?delivery_timeout=2s{options}") as broker:
            assert (await broker.send_message(Message("n", "t", 1, key="k"))).offset == 5
            node.hangs_up_after = step
            node.hang_up()
            await asyncio.sleep(0.05)  # or the message would be written to a connection that is closed already
            with pytest.raises(DeliveryError, match="cannot be reached"):
                await broker.send_message(Message("n", "t", 1, key="k"))
            node.hangs_up_after = None
            assert (await broker.send_message(Message("n", "t", 1, key="k"))).offset == 5


async def test_no_producer_id_within_the_time_of_a_request() -> None:
    """The text names the time for which we have waited, also when a request may take less than the whole connect()."""
    async with stub_kafka() as node:
        node.answers[PRODUCER_ID] = lambda: None
        broker = open_broker(f"{node.url}?request_timeout_ms=1000")
        with pytest.raises(UnreachableError, match=r"node 1 .* gave no producer id within 1(\.\d)? s"):
            await broker.connect()
        await broker.close()
