"""The trace goes on: to a consumer of real brokers, and from a writer through the outbox to the broker."""

import asyncio
import functools
from pathlib import Path

import pytest
from opentelemetry.propagate import extract
from opentelemetry.trace import get_current_span
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from cqrs_brokers import Broker, Message, UnroutableError, open_broker
from cqrs_brokers_opentelemetry.outbox import OutboxObserver
from cqrs_brokers_outbox import Outbox, Relay
from cqrs_brokers_outbox.status import Lag
from cqrs_brokers_testkit.pytest_plugin import UniqueName
from cqrs_brokers_testkit.readers import bind_queue, drain_queue, drain_topic
from cqrs_brokers_testkit.servers import KafkaServer
from tests.core.drivers import Scripted

from .recording import Recording


@pytest.mark.live
@pytest.mark.parametrize("kind", ["rabbitmq", "kafka"])
async def test_a_consumer_finds_the_context(kind: str, request: pytest.FixtureRequest, unique_name: UniqueName) -> None:
    """What an independent client reads back names the span of the message; the receipt's place is in the span."""
    server = request.getfixturevalue(kind)
    topic = unique_name("orders")
    if isinstance(server, KafkaServer):
        server.create_topic(topic)
        url, read = server.url, functools.partial(drain_topic, server.reader_bootstrap_servers, topic)
    else:
        exchange = unique_name("exchange")
        queue = bind_queue(server.url, exchange, topic)
        url, read = f"{server.url}?exchange={exchange}", functools.partial(drain_queue, server.url, queue)
    recording = Recording()
    async with open_broker(url, observers=[recording.observer()]) as broker:
        await broker.send_messages([Message("OrderPlaced", topic, {"n": n}) for n in range(2)])
    records = await asyncio.to_thread(read, 2)
    carried = {get_current_span(extract(record.headers)).get_span_context().span_id for record in records}
    created = [span for span in recording.spans if span.name == f"create {topic}"]
    assert carried == {span.context.span_id for span in created if span.context}
    for span in created:
        attributes = dict(span.attributes or {})
        assert attributes["messaging.system"] == kind
        assert attributes["server.port"] == int(server.url.rpartition(":")[2].split("/")[0])
        assert ("messaging.kafka.offset" in attributes) is (kind == "kafka")


async def test_from_the_writer_through_the_row_to_the_broker(tmp_path: Path) -> None:
    """The relay's span is a child of the writer's, whatever else runs in the relay's process."""
    recording, driver = Recording(), Scripted(automatic=True)
    tracer = recording.tracers.get_tracer("test")
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    outbox = Outbox()
    await outbox.create_table(engine)
    with tracer.start_as_current_span("command") as command:
        async with AsyncSession(engine) as session, session.begin():
            outbox.add(session, Message("OrderPlaced", "orders", {"id": 1}, key="1"))
    broker = Broker(driver, observers=[recording.observer()])
    metrics = OutboxObserver(meter_provider=recording.meters)
    async with broker, Relay(engine, broker, outbox, observers=[metrics]):
        async with asyncio.timeout(20):
            while not recording.metrics().get("cqrs_brokers.outbox.sent"):
                await asyncio.sleep(0.02)
    await engine.dispose()
    span = recording.spans[-1]
    assert span.name == "send orders"
    assert span.parent is not None
    assert span.parent.span_id == command.get_span_context().span_id
    assert span.context is not None
    assert f"{span.context.span_id:016x}" in str(driver.seen[0].headers["traceparent"])
    assert recording.metrics()["cqrs_brokers.outbox.sent"] == [({"messaging.destination.name": "orders"}, 1)]
    assert [value for _, value in recording.metrics()["cqrs_brokers.outbox.partitions"]] != []


def test_rows_that_are_parked_and_refused_now() -> None:
    """A gauge for each, by topic; no value where there is none. They are read, so a restart forgets none."""
    recording = Recording()
    observer = OutboxObserver(meter_provider=recording.meters)
    topic = "messaging.destination.name"
    gauges = [f"cqrs_brokers.outbox.{state}.rows" for state in ("parked", "refused")]
    observer.lag(
        [
            Lag("orders", 0, 5, 90.0, parked=1),
            Lag("orders", 1, 2, 120.0, parked=2),
            Lag("stock", 0, 1, 3.0, refused=1),
            Lag("bills", 0, 9, 1.0),
        ]
    )
    read = recording.metrics()
    assert [read[gauge] for gauge in gauges] == [[({topic: "orders"}, 3)], [({topic: "stock"}, 1)]]
    observer.lag([])
    read = recording.metrics()
    assert [read.get(gauge, []) for gauge in gauges] == [[], []]


def test_topics_of_an_outbox_without_end() -> None:
    """As those of a broker: routing keys with ids cost no memory."""
    recording = Recording()
    observer = OutboxObserver(meter_provider=recording.meters)
    for number in range(1_010):
        observer.sent(number, Message("n", f"t{number}", b""), UnroutableError("no queue"))
    observer.lag([Lag("t1", 0, 5, 90.0), Lag("another", 0, 2, 120.0), Lag("one more", 0, 1, 3.0)])
    topic, read = "messaging.destination.name", recording.metrics()
    sent = {attributes[topic]: count for attributes, count in read["cqrs_brokers.outbox.sent"]}
    assert len(sent) == 1_001
    assert sent["_OTHER"] == 10
    assert read["cqrs_brokers.outbox.unsent"] == [({topic: "t1"}, 5), ({topic: "_OTHER"}, 3)]
    assert read["cqrs_brokers.outbox.lag"] == [({topic: "t1"}, 90.0), ({topic: "_OTHER"}, 120.0)]


def test_the_metrics_of_an_outbox() -> None:
    """Lag and rows by topic, what was parked and refused and why, and what keeps the relay from working."""
    recording = Recording()
    observer = OutboxObserver(meter_provider=recording.meters)
    observer.lag([Lag("orders", 0, 5, 90.0), Lag("orders", 1, 2, 120.0), Lag("stock", 0, 1, 3.0)])
    observer.parked(7, "orders", "InvalidMessageError", "text")
    observer.refused("stock", "DestinationNotFoundError", "text")
    observer.fenced(3)
    observer.leases_changed([1, 2, 3])
    observer.trouble("claim", "the database failed")
    observer.sent(1, Message("n", "orders", b""), UnroutableError("no queue"))
    topic, kind = "messaging.destination.name", "error.type"
    assert {name: points for name, points in recording.metrics().items() if name.startswith("cqrs_brokers.outbox")} == {
        "cqrs_brokers.outbox.lag": [({topic: "orders"}, 120.0), ({topic: "stock"}, 3.0)],
        "cqrs_brokers.outbox.unsent": [({topic: "orders"}, 7), ({topic: "stock"}, 1)],
        "cqrs_brokers.outbox.parked": [({topic: "orders", kind: "InvalidMessageError"}, 1)],
        "cqrs_brokers.outbox.refused": [({topic: "stock", kind: "DestinationNotFoundError"}, 1)],
        "cqrs_brokers.outbox.fenced": [({}, 3)],
        "cqrs_brokers.outbox.partitions": [({}, 3)],
        "cqrs_brokers.outbox.trouble": [({"what": "claim"}, 1)],
        "cqrs_brokers.outbox.sent": [({topic: "orders", kind: "UnroutableError"}, 1)],
    }
