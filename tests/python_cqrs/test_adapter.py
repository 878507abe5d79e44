"""The adapter under python-cqrs' own bootstrap, in process."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import cqrs
import httpx
import pytest
from cqrs.message_brokers import protocol
from fastapi import FastAPI

from cqrs_brokers import (
    Broker,
    ConfigError,
    DeliveryError,
    InvalidMessageError,
    Message,
    Observer,
    PluginNotFoundError,
    Receipt,
)
from cqrs_brokers_python_cqrs import BrokerAdapter, lifespan, message_broker

from .application import (
    CoreOrderPlaced,
    Emit,
    Order,
    OrderPlaced,
    OrderSeen,
    OwnOrderPlaced,
    Recorder,
    key_of,
    mediator,
)


def test_a_mediator_built_without_an_event_loop_publishes_in_one() -> None:
    """Broker, adapter and mediator are made before any event loop runs; no I/O happens until the first message."""
    recorder = Recorder()
    adapter = message_broker(Broker(recorder))
    application = mediator(adapter)
    assert recorder.connects == 0

    async def run() -> None:
        await application.send(Emit(events=[OrderPlaced(payload=Order(order_id="7"))]))
        await adapter.broker.close()

    asyncio.run(run())
    assert [message.message_name for message in recorder.sent] == ["OrderPlaced"]


async def test_each_kind_of_event_arrives_with_its_name_id_topic_and_key() -> None:
    """Core's and the bridge's events say name and key themselves; for python-cqrs' own the callable says the key."""
    recorder = Recorder()
    events: list[Any] = [
        OrderPlaced(payload=Order(order_id="1")),
        OrderSeen(payload={"a": 1}, key="2"),
        CoreOrderPlaced(payload=Order(order_id="3"), event_name="core.placed"),
        OwnOrderPlaced(payload={"order_id": "4"}),
        OwnOrderPlaced(payload={}),
    ]
    async with message_broker(Broker(recorder), ordering_key=key_of) as adapter:
        await mediator(adapter).send(Emit(events=events))
    assert [(message.message_name, message.key) for message in recorder.sent] == [
        ("OrderPlaced", "1"),
        ("order.seen", "2"),
        ("core.placed", "3"),
        ("OwnOrderPlaced", "4"),
        ("OwnOrderPlaced", None),
    ]
    assert [message.message_id for message in recorder.sent] == [event.event_id for event in events]
    assert {message.topic for message in recorder.sent} == {"orders"}


async def test_the_key_and_the_name_are_no_fields_of_the_body() -> None:
    """The body has the event's fields and nothing else."""
    recorder = Recorder()
    event = OrderSeen(payload={"a": 1}, key="k")
    async with message_broker(Broker(recorder)) as adapter:
        await mediator(adapter).send(Emit(events=[event]))
    assert json.loads(recorder.sent[0].body) == {
        "event_id": str(event.event_id),
        "event_timestamp": event.event_timestamp.isoformat().replace("+00:00", "Z"),
        "event_name": "order.seen",
        "topic": "orders",
        "payload": {"a": 1},
    }


async def test_an_event_that_has_no_key_does_not_ask_the_callable() -> None:
    """`ordering_key=` is for python-cqrs' own events; core's say themselves that they have none."""
    recorder = Recorder()
    async with message_broker(Broker(recorder), ordering_key=lambda message: "never") as adapter:
        await mediator(adapter).send(Emit(events=[OrderSeen(payload={})]))
    assert recorder.sent[0].key is None


async def test_send_message_returns_none() -> None:
    """As python-cqrs' abstract class says; the receipt is for `Broker`'s callers."""
    async with message_broker(Broker(Recorder())) as adapter:
        send: Any = adapter.send_message
        assert await send(protocol.Message("name", "topic", {"a": 1})) is None


async def test_it_is_a_message_broker_of_python_cqrs_and_never_falsy() -> None:
    """The emitter tests `if not self._message_broker`."""
    adapter = message_broker(Broker(Recorder()))
    assert isinstance(adapter, protocol.MessageBroker)
    assert isinstance(adapter, BrokerAdapter)
    assert adapter


async def test_a_codec_s_content_type_headers_and_bytes_arrive_as_they_are() -> None:
    """python-cqrs' typed codecs set all three; the broker changes none."""
    recorder = Recorder()
    message = protocol.Message(
        "name",
        "topic",
        {"a": 1},
        payload_bytes=b"\x08\x01",
        content_type="application/x-protobuf",
        headers={"event_name": "name", "message_id": "x"},
    )
    async with message_broker(Broker(recorder)) as adapter:
        await adapter.send_message(message)
    (sent,) = recorder.sent
    assert (sent.body, sent.content_type) == (b"\x08\x01", "application/x-protobuf")
    assert dict(sent.headers) == {"event_name": "name", "message_id": "x"}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [({"secret-value": {1, 2}}, "encoding the payload raised"), ({"a": "\ud800secret"}, "encoding the payload raised")],
    ids=["a set", "a lone surrogate"],
)
async def test_a_payload_without_json_is_refused_without_being_quoted(payload: Any, reason: str) -> None:
    """The error names the message and the encoder's error class, never the payload."""
    recorder, message_id = Recorder(), uuid4()
    async with message_broker(Broker(recorder)) as adapter:
        with pytest.raises(InvalidMessageError, match=reason) as caught:
            await adapter.send_message(protocol.Message("name", "topic", payload, message_id))
    assert (caught.value.message_id, caught.value.topic) == (message_id, "topic")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert recorder.sent == []


async def test_a_failing_ordering_key_refuses_the_message() -> None:
    """A message whose key nobody knows is not sent unordered."""

    def fails(message: cqrs.message_brokers.Message) -> str | None:
        raise KeyError("secret")

    recorder = Recorder()
    async with message_broker(Broker(recorder), ordering_key=fails) as adapter:
        with pytest.raises(InvalidMessageError, match="ordering_key raised KeyError") as caught:
            await mediator(adapter).send(Emit(events=[OwnOrderPlaced(payload={})]))
    assert "secret" not in str(caught.value)
    assert recorder.sent == []


def test_a_string_becomes_a_broker_with_its_options() -> None:
    """Keyword options override the string's, as in `open_broker`."""
    adapter = message_broker("devnull://?delivery_timeout=5s", delivery_timeout=7.0)
    assert adapter.broker.name == "devnull"
    option = adapter.broker.describe()["options"]["delivery_timeout"]
    assert (option.value, option.origin) == ("7s", "keyword")


def test_without_a_string_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a string nor the variable is an error, never devnull."""
    monkeypatch.setenv("CQRS_BROKER_URL", "devnull://")
    assert message_broker().broker.name == "devnull"
    monkeypatch.delenv("CQRS_BROKER_URL")
    with pytest.raises(ConfigError, match="CQRS_BROKER_URL"):
        message_broker()


def test_an_unknown_scheme_is_told_at_once() -> None:
    """At start-up, where the string is, not at the first message."""
    with pytest.raises(PluginNotFoundError, match="nosuch"):
        message_broker("nosuch://localhost")


def test_options_beside_a_broker_are_refused() -> None:
    """They would have no effect, and nothing that is accepted is ignored."""
    with pytest.raises(ConfigError, match="delivery_timeout"):
        message_broker(Broker(Recorder()), delivery_timeout=3)


async def test_the_context_manager_connects_and_closes() -> None:
    """Start-up fails early, and nothing is left at the end."""
    recorder = Recorder()
    async with message_broker(Broker(recorder)) as adapter:
        assert recorder.connects == 1
    assert adapter.broker.describe()["state"] == "closed"


async def test_the_lifespan_connects_a_fastapi_application_and_closes_it() -> None:
    """`FastAPI(lifespan=lifespan(adapter))`: requests publish in between."""
    recorder = Recorder()
    adapter = message_broker(Broker(recorder))
    application = mediator(adapter)
    web = FastAPI(lifespan=lifespan(adapter))

    @web.post("/orders/{order_id}")
    async def place(order_id: str) -> None:
        await application.send(Emit(events=[OrderPlaced(payload=Order(order_id=order_id))]))

    async with (
        web.router.lifespan_context(web),  # what a server runs around the requests
        httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://web") as client,
    ):
        assert recorder.connects == 1
        assert (await client.post("/orders/7")).status_code == 200
    assert [message.key for message in recorder.sent] == ["7"]
    assert adapter.broker.describe()["state"] == "closed"


async def test_observers_are_told_of_every_message_and_may_add_headers() -> None:
    """Also of those that the bridge itself refuses; the trace context of the command goes along."""

    class Watching(Observer):
        def __init__(self) -> None:
            self.told: list[tuple[str, type]] = []

        def before_send(self, message: Message) -> dict[str, str]:
            return {"traceparent": "00-1-2-01"}

        def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
            self.told.append((message.message_name, type(outcome)))

    recorder, watching = Recorder(), Watching()
    async with message_broker(Broker(recorder, observers=[watching]), ordering_key=lambda message: 1 / 0) as adapter:
        await mediator(adapter).send(Emit(events=[OrderPlaced(payload=Order(order_id="1"))]))
        for payload in ({"a": 1}, {"a": object()}):
            with pytest.raises(InvalidMessageError):
                await adapter.send_message(
                    protocol.Message(message_name="own", topic="t", payload=payload, message_id=uuid4())
                )
    assert watching.told == [("OrderPlaced", Receipt), ("own", InvalidMessageError), ("own", InvalidMessageError)]
    assert [dict(message.headers) for message in recorder.sent] == [{"traceparent": "00-1-2-01"}]


def test_its_repr_shows_the_redacted_broker_only() -> None:
    """No secret in a log line."""
    adapter = message_broker(Broker(Recorder(), name="orders"))
    assert repr(adapter) == "<BrokerAdapter of <Broker orders idle>>"
