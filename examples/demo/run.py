"""Runs the shop of `shop.py` once for each config string, and shows what an independent client reads back.

    python examples/demo/run.py      or, which also installs what it needs:  nox -s demo

`devnull://` and `memory://` need nothing. For RabbitMQ and Kafka the test kit finds a server here, or starts a private
one on loopback for as long as the demo runs. Where it can do neither, that part is skipped, and it is said what would
help. The exit code is 0 when everything that should be in a broker was read back (and, with CI=true, nothing skipped).
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable

import report
import shop

from cqrs_broker_memory import published
from cqrs_brokers import BrokerError, DeliveryError, Message, Observer, Receipt
from cqrs_brokers_python_cqrs import message_broker
from cqrs_brokers_testkit.readers import Record, drain_queue, drain_topic
from cqrs_brokers_testkit.servers import KafkaServer, ServerUnavailable, kafka, rabbitmq

# Name and ordering key of what one day in the shop publishes.
EXPECTED = [("OrderPlaced", "order-1"), ("OrderPlaced", "order-2"), ("OrderShipped", "order-1")]

Read = Callable[[], list[Record]]


class Receipts(Observer):
    """An observer of the broker: it is told what became of each message. python-cqrs itself hands on no receipts."""

    def __init__(self) -> None:
        self.by_id: dict[str, tuple[str, Receipt]] = {}

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        if isinstance(outcome, Receipt):
            self.by_id[str(message.message_id)] = message.message_name, outcome

    def connection_changed(self, state: str, reason: str) -> None:
        report.progress(f"the broker is {state}")


def run_shop(config_string: str, read: Read | None, read_with: str = "") -> str:
    """One day in the shop on the broker of a config string, then a look at what is in that broker.

    Args:
        config_string: The broker. Nothing else differs between one broker and another.
        read: Reads back what is there. None: there is nothing to read.
        read_with: What `read` reads with.

    Returns:
        What to say in the summary.

    Raises:
        AssertionError: Something was not read back as it was published.
    """
    receipts = Receipts()
    broker = message_broker(config_string, observers=[receipts])
    mediator = shop.make_mediator(broker)
    report.said(f"config string: {broker.broker.url}")

    async def day() -> list[Record]:
        async with broker:
            await shop.one_day(mediator)
            return await asyncio.to_thread(read) if read is not None else []

    records = {record.message_id: record for record in asyncio.run(day())}
    report.said(f"read back with {read_with}:" if read is not None else "there is nothing to read back:")
    for message_id, (name, receipt) in receipts.by_id.items():
        report.message(name, records.get(message_id), receipt)
    if read is None:
        assert len(receipts.by_id) == len(EXPECTED), f"expected {len(EXPECTED)} receipts, got {len(receipts.by_id)}"
        return f"{len(EXPECTED)} events published and discarded, as {config_string} does"
    check(
        [(records[message_id], receipt) for message_id, (_, receipt) in receipts.by_id.items() if message_id in records]
    )
    return f"{len(EXPECTED)} events published and read back with {read_with}"


def check(found: list[tuple[Record, Receipt]]) -> None:
    """Each event is there as it was published, and where its receipt says."""
    names_and_keys = [(record.name, record.key) for record, _ in found]
    assert names_and_keys == EXPECTED, f"expected {EXPECTED}, read back {names_and_keys}"
    for record, receipt in found:
        event = record.json()
        assert record.topic == shop.TOPIC, f"the topic is {record.topic!r}"
        assert event["event_id"] == record.message_id, "the message id is not the event's"
        assert event["payload"]["order_id"] == record.key, "the key is not the order's"
        assert receipt.confirmed, "the broker did not confirm"
        where = record.partition, record.offset
        assert where == (receipt.partition, receipt.offset), "it is not where its receipt says"
    (placed, _), _, (shipped, _) = found
    if placed.offset is not None and shipped.offset is not None:
        assert placed.partition == shipped.partition, "events of one order are in two partitions"
        assert placed.offset < shipped.offset, "an order was shipped before it was placed"


# -- The four brokers --------------------------------------------------------------------------------------------------


def on_devnull() -> str:
    return run_shop("devnull://", None)


def on_memory() -> str:
    return run_shop("memory://demo", read_memory, "cqrs_broker_memory.published")


def on_rabbitmq() -> str:
    with rabbitmq(shared=True, progress=report.progress) as server:
        # declare=queue: a durable queue for each topic, so that there is somebody to keep the messages.
        url = f"{server.url}?declare=queue"
        return run_shop(url, lambda: drain_queue(server.url, shop.TOPIC, len(EXPECTED)), "pika")


def on_kafka() -> str:
    with kafka(shared=True, progress=report.progress) as server:
        create_topic(server)
        address = server.reader_bootstrap_servers
        return run_shop(server.url, lambda: drain_topic(address, shop.TOPIC, len(EXPECTED)), "confluent-kafka")


def create_topic(server: KafkaServer) -> None:
    try:
        drain_topic(server.reader_bootstrap_servers, shop.TOPIC)
    except LookupError:
        report.progress(f"creating topic {shop.TOPIC} with 3 partitions")
        server.create_topic(shop.TOPIC, partitions=3)


def read_memory() -> list[Record]:
    return [
        Record(
            topic=record.topic,
            key=record.key,
            name=record.name,
            message_id=str(record.message_id),
            headers={name: str(value) for name, value in record.headers.items()},
            body=record.body or b"",
            content_type=record.content_type,
            timestamp=record.timestamp,
        )
        for record in published("demo")
    ]


def outbox() -> str:
    """An order and its event in one transaction; a relay that is killed; the next one sends the event."""
    import shop_outbox  # it needs SQLAlchemy, which the other parts do without

    return shop_outbox.run()


PARTS = {
    "nowhere (devnull://)": on_devnull,
    "memory (memory://)": on_memory,
    "RabbitMQ (amqp://)": on_rabbitmq,
    "Apache Kafka (kafka://)": on_kafka,
    "the outbox (SQLite, memory://)": outbox,
}


def main() -> int:
    logging.basicConfig(stream=sys.stdout, format="  ... %(levelname)s %(message)s")
    logging.getLogger("cqrs").setLevel(logging.WARNING)  # python-cqrs sets it to DEBUG when it is imported
    print("One python-cqrs application, four brokers. What differs is the config string.")
    rows: list[tuple[str, str]] = []
    failed = False
    commands: list[str] = []
    for name, run in PARTS.items():
        report.title(name)
        try:
            rows.append((name, f"ok: {run()}"))
        except ServerUnavailable as unavailable:
            reason = str(unavailable).partition(". To make it available")[0]
            report.said(f"SKIPPED. {reason}")
            rows.append((name, f"SKIPPED: {reason}"))
            commands.append(unavailable.command)
        except (AssertionError, BrokerError, TimeoutError) as error:
            failed = True
            report.said(f"FAILED. {type(error).__name__}: {error}")
            rows.append((name, f"FAILED: {type(error).__name__}: {error}"))
    report.summary(rows, commands)
    return 1 if failed or (commands and os.environ.get("CI", "").lower() in ("true", "1")) else 0


if __name__ == "__main__":
    sys.exit(main())
