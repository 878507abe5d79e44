"""What we rely on inside aiormq, so that a new release turns a test red and not a user; and the way without it."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import aiormq
import pamqp.frame
import pytest
from aiormq.abc import ChannelFrame
from pamqp import commands

from cqrs_broker_amqp import _channels, _client, _fallback
from cqrs_broker_amqp._driver import AMQPDriver
from cqrs_broker_amqp._errors import HandshakeRefused
from cqrs_broker_amqp._rendering import Renderer
from cqrs_broker_amqp._session import Session
from cqrs_brokers import (
    Broker,
    ConnectionLostError,
    Message,
    NackedError,
    Receipt,
    UnroutableError,
    open_broker,
)
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQServer


def test_overridden_methods_are_there() -> None:
    """Each method that our Connection overrides exists in aiormq, with the parameters that we take."""
    base, ours = aiormq.Connection, _client.Connection
    assert list(inspect.signature(base._rpc).parameters) == list(inspect.signature(ours._rpc).parameters)[1:]
    for name in (
        "_credentials_class",
        "_on_reader_done",
        "_Connection__handle_connection_blocked",
        "_Connection__handle_connection_unblocked",
    ):
        assert len(inspect.signature(getattr(base, name)).parameters) == len(
            inspect.signature(getattr(ours, name)).parameters
        ), name
    assert isinstance(inspect.getattr_static(base, "_rpc"), staticmethod)


def test_channel_frame() -> None:
    """A Channel.Close of ours is bytes for the writer task, which neither waits for it nor ends after it."""
    close = commands.Channel.Close(reply_code=200, class_id=0, method_id=0)
    frame = ChannelFrame.marshall(channel_number=3, frames=[close])
    assert frame.payload == pamqp.frame.marshal(close, 3)
    assert not frame.should_drain
    assert not frame.should_close


def test_what_aiormq_does_with_a_return() -> None:
    """aiormq takes a returned message's future out of its table, marks it there, and gives the future the error."""
    source = inspect.getsource(aiormq.channel.Channel._on_return_frame)
    assert re.findall(r"self\.confirmations\S*", source) == [
        "self.confirmations.pop(delivery_tag,",
        "self.confirmations[delivery_tag]",
    ]
    assert re.findall(r"confirmation\.(\w+)", source) == ["set_exception", "set_result"]
    assert "self.message_id_delivery_tag.get(message_id)" in source


def test_where_aiormq_uses_its_table_of_confirms() -> None:
    """Nothing but publishing, returns and the reading of confirms, which we replace, looks into the table."""
    methods = inspect.getmembers(aiormq.channel.Channel, inspect.isfunction)
    users = {
        name
        for name, method in methods
        if method.__module__ == "aiormq.channel" and "self.confirmations" in inspect.getsource(method)
        # Python 3.14 makes a function of a class's annotations, whose source is that of the whole class.
        if method.__name__ != "__annotate__"
    }
    assert users == {"__init__", "basic_publish", "_on_return_frame", "_confirm_delivery", "_on_confirm_frame"}
    assert "await self._on_confirm_frame(frame)" in inspect.getsource(aiormq.channel.Channel._reader)


class FakeDelivery:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def confirm(self) -> None:
        self.told.append("confirmed")


@pytest.fixture
def _fakes_are_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Core's `confirm_all` looks into real deliveries."""
    monkeypatch.setattr(_channels, "confirm_all", lambda deliveries: [delivery.confirm() for delivery in deliveries])


@pytest.mark.usefixtures("_fakes_are_confirmed")
async def test_answers_of_every_form() -> None:
    """Single, multiple and zero tags, acks and nacks, in any order: each message has one answer, and only its own."""
    loop = asyncio.get_running_loop()
    channel: Any = SimpleNamespace(delivery_tag=0, number=1, loop=loop)
    sockets = SimpleNamespace(open_for_writing=True, write=lambda frames: True)
    connection: Any = SimpleNamespace(
        frame_max=131_072, channels={1: channel}, sockets=sockets, names_capabilities=True
    )
    resolved: list[object] = []
    lane = _channels.FastChannel(
        connection,
        channel,
        failed=lambda _, entry, error: entry[0].told.append(type(error).__name__),
        answered=lambda channel, deliveries: resolved.append(list(deliveries)),
    )
    sent: list[Any] = [FakeDelivery() for _ in range(12)]
    entries: list[Any] = [(delivery, number, b"x", b"", None, False) for number, delivery in enumerate(sent, 1)]
    lane.send(entries, 5.0)
    told = [delivery.told for delivery in sent]
    await lane._confirmed(commands.Basic.Ack(delivery_tag=13, multiple=True))  # never sent
    await lane._confirmed(commands.Basic.Ack(delivery_tag=2**63, multiple=True))
    assert not any(told)
    await lane._confirmed(commands.Basic.Ack(delivery_tag=3))
    await lane._confirmed(commands.Basic.Nack(delivery_tag=2))
    lane._returned(5, RuntimeError())
    await lane._confirmed(commands.Basic.Ack(delivery_tag=5))  # the ack that follows a return
    assert lane.oldest() is sent[0]
    assert [entry[1] for entry in lane.entries()] == [1, 4, 6, 7, 8, 9, 10, 11, 12]
    await lane._confirmed(commands.Basic.Ack(delivery_tag=6, multiple=True))
    await lane._confirmed(commands.Basic.Ack(delivery_tag=4, multiple=True))  # again, and late
    await lane._confirmed(commands.Basic.Nack(delivery_tag=8, multiple=True))
    assert sorted(lane.in_flight) == [9, 10, 11, 12]
    assert not resolved
    lane.watched = True
    await lane._confirmed(commands.Basic.Ack(delivery_tag=0, multiple=True))
    assert resolved == [sent[8:]]
    ok, nack = ["confirmed"], ["DeliveryError"]
    assert told == [ok, nack, ok, ok, ["RuntimeError"], ok, nack, nack, ok, ok, ok, ok]
    assert not lane.in_flight
    assert lane.oldest() is None


@pytest.fixture
async def session(rabbitmq: RabbitMQServer, exchange: str) -> AsyncIterator[Session]:
    bind_queue(rabbitmq.url, exchange)
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        assert isinstance(broker.driver, AMQPDriver)
        assert broker.driver._session is not None
        yield broker.driver._session


@pytest.mark.live
async def test_a_real_connection_has_what_the_fast_lane_needs(session: Session) -> None:
    """Nothing is unexpected on a real channel, and each missing part would be noticed."""
    lane = session._channels[0]
    channel = lane.channel
    assert type(lane) is _channels.FastChannel
    with pytest.MonkeyPatch.context() as patch:  # as it was before the lane took its parts over
        patch.setattr(channel, "confirmations", {})
        patch.setattr(channel, "message_id_delivery_tag", {})
        patch.delattr(channel, "_on_confirm_frame")
        _each_part_is_missed(session, channel)


def _each_part_is_missed(session: Session, channel: Any) -> None:
    assert _fallback.unexpected(session.connection, channel) is None
    for name in (
        "confirmations",
        "message_id_delivery_tag",
        "delivery_tag",
        "number",
        "frames",
        "_on_confirm_frame",
        "_on_return_frame",
    ):

        class Without:
            def __init__(self, hidden: str) -> None:
                self.hidden = hidden

            def __getattr__(self, asked: str) -> object:
                if asked == self.__dict__["hidden"]:
                    raise AttributeError(asked)
                return getattr(channel, asked)

        assert name in (_fallback.unexpected(session.connection, Without(name)) or ""), name


@pytest.mark.live
async def test_a_closed_channel_is_forgotten_before_it_is_answered(session: Session) -> None:
    """aiormq takes a channel out of `channels` when it reads Channel.Close: from there on we write nothing to it."""
    lane = session._channels[0]
    assert lane.open
    seen = []
    put = lane.channel.write_queue.put_nowait

    def watch(frame: ChannelFrame) -> None:
        seen.append(lane.open)
        put(frame)

    lane.channel.write_queue.put_nowait = watch
    with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
        await lane.channel.rpc(commands.Queue.Declare(queue=f"missing-{uuid4()}", passive=True))
    # The declaration itself, then aiormq's Channel.CloseOk.
    assert seen[:2] == [True, False]


@pytest.mark.live
@pytest.mark.usefixtures("_fakes_are_confirmed")
async def test_writing_past_the_writer_task(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """What the socket does not take at once is told by `on_drained` when it has; frames stay whole and in order."""
    bind_queue(rabbitmq.url, exchange)
    _, frames, _ = Renderer(exchange).render(Message("n", "t", None, payload_bytes=b"x" * 4000))
    drained = asyncio.Event()
    sent: list[Any] = []
    async with FaultProxy((rabbitmq.host, rabbitmq.port)) as proxy:
        async with open_broker(f"amqp://guest:guest@127.0.0.1:{proxy.port}/?exchange={exchange}") as broker:
            assert isinstance(broker.driver, AMQPDriver)
            lane = broker.driver._publisher.channel
            assert lane is not None
            lane.connection.sockets.on_drained(drained.set)
            proxy.stall("up")
            while not lane.connection.sockets.must_wait():
                some: list[Any] = [FakeDelivery() for _ in range(128)]
                lane.send([(one, len(sent) + n, frames, b"", None, False) for n, one in enumerate(some)], 0.0)
                sent += some
                assert len(sent) < 20_000, "the socket takes everything from a server that reads nothing"
            await asyncio.sleep(0.05)
            assert not drained.is_set()
            proxy.resume("up")
            await asyncio.wait_for(drained.wait(), 10)
            # Were a frame broken or out of order, RabbitMQ would close the channel.
            assert isinstance(await lane.channel.rpc(commands.Queue.Declare(exclusive=True)), commands.Queue.DeclareOk)
            while lane.in_flight:
                await asyncio.sleep(0.01)
            assert {tuple(one.told) for one in sent} == {("confirmed",)}
            assert lane.open


@pytest.mark.live
async def test_tasks_are_known(session: Session) -> None:
    """The reader, the writer, the heartbeat and the channel's reader are among the tasks we can end."""
    assert len(session.connection.tasks) >= 4
    session.abort()
    await session.gone()
    assert session.connection.tasks == []


@pytest.mark.live
async def test_upstream_confuses_equal_message_ids(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """aiormq reports an ack for a returned message when its id is in flight twice: why we hold the second one back."""
    bind_queue(rabbitmq.url, exchange, "there")
    connection = await aiormq.connect(rabbitmq.url)
    channel = await connection.channel()
    message_id = str(uuid4())

    async def publish(key: str) -> object:
        properties = commands.Basic.Properties(message_id=message_id)
        return await channel.basic_publish(
            b"x", exchange=exchange, routing_key=key, properties=properties, mandatory=True
        )

    returned, routed = await asyncio.gather(publish("nowhere"), publish("there"), return_exceptions=True)
    assert isinstance(returned, commands.Basic.Ack), "fixed upstream? then the guard in the driver can go"
    assert isinstance(routed, aiormq.exceptions.PublishError)
    await connection.close()


@pytest.mark.live
async def test_a_refused_handshake_keeps_its_code(rabbitmq: RabbitMQServer) -> None:
    """Our _rpc gives code and text where aiormq gives neither."""
    broker = open_broker(rabbitmq.url.rpartition("/")[0] + "/not-there")
    with pytest.raises(Exception) as caught:
        await broker.connect()
    assert isinstance(caught.value.__cause__, HandshakeRefused)
    assert caught.value.__cause__.code == 530
    await broker.close()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fallback, "unexpected", lambda connection, channel: "it is not what it was")


@pytest.mark.live
@pytest.mark.usefixtures("plain")
async def test_without_the_internals(rabbitmq: RabbitMQServer, exchange: str, caplog: pytest.LogCaptureFixture) -> None:
    """When aiormq is not as expected, basic_publish is used and the log says why; every outcome stays true."""
    queue = bind_queue(rabbitmq.url, exchange, "there")
    limits: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    full = bind_queue(rabbitmq.url, exchange, "full", **limits)
    async with no_leaks():
        async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
            sends, topics = [], []
            for pair in range(50):
                message_id = uuid4()
                for topic in ("there", "nowhere"):
                    topics.append(topic)
                    message = Message("n", topic, pair, message_id, key="k", headers={"h": "v"})
                    sends.append(broker.send_message(message))
            outcomes = await asyncio.gather(*sends, return_exceptions=True)
            for topic, outcome in zip(topics, outcomes, strict=True):
                assert isinstance(outcome, Receipt if topic == "there" else UnroutableError)
            assert (await broker.send_message(Message("n", "full", 1))).confirmed
            with pytest.raises(NackedError):
                await broker.send_message(Message("n", "full", 2))
            assert (await broker.send_message(Message("n", "there", b"x" * 300_000))).confirmed
    assert "it is not what it was" in caplog.text
    records = await asyncio.to_thread(drain_queue, rabbitmq.url, queue, 51)
    assert [record.json() for record in records[:50]] == list(range(50))
    assert records[0].headers == {"h": "v"}
    assert records[0].key == "k"
    assert records[0].properties["delivery_mode"] == 2
    assert len(await asyncio.to_thread(drain_queue, rabbitmq.url, full, 1)) == 1


@pytest.mark.live
@pytest.mark.usefixtures("plain")
async def test_without_the_internals_a_lost_connection_is_told(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """Also without the fast lane a lost connection is ConnectionLostError, and the next send works."""
    bind_queue(rabbitmq.url, exchange)
    async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
        await broker.send_message(Message("n", "t", 0))
        sends = [asyncio.create_task(broker.send_message(Message("n", "t", number))) for number in range(200)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        _abort(broker)
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {ConnectionLostError, Receipt}
        assert ConnectionLostError in {type(outcome) for outcome in outcomes}
        assert (await broker.send_message(Message("n", "t", 0))).confirmed


def _abort(broker: Broker) -> None:
    driver = broker.driver
    assert isinstance(driver, AMQPDriver)
    assert driver._session is not None
    driver._session._sockets.abort()
