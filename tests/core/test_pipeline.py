"""The kit for drivers: what it keeps, in which order, and what it says when a connection breaks."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqrs_brokers import Broker, ConnectionLostError, DeliveryTimeoutError, Message, Receipt, UnreachableError
from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver
from cqrs_brokers.exceptions import AuthenticationError, ConnectError, ProtocolError
from cqrs_brokers.pipeline import Pipeline, connect_to_any, header_name, header_text, header_value
from cqrs_brokers.tasks import drop_task
from cqrs_brokers.url import Host


class Wire(PipelinedDriver):
    """A driver whose broker is the test: what is written is in `written`, and the test answers."""

    def __init__(
        self,
        *,
        in_order: bool = False,
        ping_after: float = 60.0,
        window: int | None = None,
        this_ping_after: float | None = None,
    ) -> None:
        self.limits: dict[str, Any] = {"window": window, "ping_after": this_ping_after}
        self.pipeline = Pipeline[bytes](
            self.lost, in_order=in_order, batch_bytes=100, ping_after=ping_after, ping_timeout=0.1
        )
        self.written: list[tuple[int, bytes]] = []
        self.room = asyncio.Event()
        self.room.set()
        self.silent = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(confirms=True)

    def bind(self, link: Link) -> None:
        self.link = link

    async def connect(self) -> None:
        await self.pipeline.end()
        self.pipeline.open(self.write, ping=self.ping, **self.limits)

    async def ping(self) -> None:
        if self.silent:
            await asyncio.Event().wait()

    async def write(self, batch: Sequence[tuple[int, bytes]]) -> None:
        self.written += batch
        await self.room.wait()

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            body = delivery.message.body or b""
            self.pipeline.put(delivery, body, len(body))

    def lost(self, error: ConnectError) -> None:
        self.link.lost(error)

    async def close(self, grace: float) -> None:
        await self.pipeline.close()

    def abort(self) -> None:
        self.pipeline.abort()

    def confirm(self, token: int | None = None) -> None:
        delivery = self.pipeline.answered(token)
        if delivery is not None:
            delivery.confirm()


def message(body: bytes) -> Message:
    return Message("E", "orders", body)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answers_may_come_in_any_order() -> None:
    """Each answer's token says which message it means."""
    wire = Wire()
    async with Broker(wire) as broker:
        sends = [asyncio.ensure_future(broker.send_message(message(b"%d" % n))) for n in range(3)]
        await settled()
        tokens = {body: token for token, body in wire.written}
        wire.confirm(tokens[b"2"])
        await settled()
        assert [send.done() for send in sends] == [False, False, True]
        wire.confirm(tokens[b"0"])
        wire.confirm(tokens[b"1"])
        assert [receipt.confirmed for receipt in await asyncio.gather(*sends)] == [True] * 3


async def test_only_a_batch_is_handed_over_while_the_client_is_full() -> None:
    """What is not with the client when the deadline passes is not delivered; what is with it is unknown."""
    wire = Wire()
    wire.room.clear()
    async with Broker(wire, delivery_timeout=0.2) as broker:
        outcomes = await broker.send_messages([message(bytes(60)) for _ in range(5)])
        unknown = [isinstance(outcome, DeliveryTimeoutError) for outcome in outcomes]
        assert unknown == [True, True, False, False, False]
        await asyncio.sleep(0.2)
        assert (await broker.health()).in_flight == 0
        wire.room.set()
        await settled()
        assert len(wire.written) == 2


async def test_what_waits_is_written_to_the_next_connection_in_order() -> None:
    """A connection that breaks takes only what was handed over with it."""
    wire = Wire()
    wire.room.clear()
    async with Broker(wire) as broker:
        sending = asyncio.ensure_future(broker.send_messages([message(b"%d" % n + bytes(60)) for n in range(5)]))
        await settled()
        wire.room.set()
        handed = len(wire.written)
        wire.pipeline.broken(ConnectionResetError())
        wire.written.clear()
        while len(wire.written) < 3:
            await asyncio.sleep(0.01)
        assert [body[:1] for _, body in wire.written] == [b"2", b"3", b"4"]
        for token, _ in wire.written:
            wire.confirm(token)
        outcomes = await sending
        assert handed == 2
        assert [type(outcome) for outcome in outcomes] == [ConnectionLostError] * 2 + [Receipt] * 3


async def test_an_answer_of_the_wrong_kind_leaves_the_message_in_the_pipeline() -> None:
    """An answer out of step ends the connection, and the message it would have hit is told so."""
    wire = Wire(in_order=True)
    async with Broker(wire) as broker:
        send = asyncio.ensure_future(broker.send_message(message(b"1")))
        await settled()
        with pytest.raises(ProtocolError, match="nothing that was written waits for it"):
            wire.pipeline.answered_question()
        wire.pipeline.broken(ConnectionResetError())
        with pytest.raises(ConnectionLostError):
            await send
        assert broker.contract_breaches == ()


async def test_in_order_a_message_that_was_let_go_keeps_its_turn() -> None:
    """The late answer to a message whose caller has given up is not taken for that to the next one."""
    wire = Wire(in_order=True)
    async with Broker(wire, delivery_timeout=0.1) as broker:
        with pytest.raises(DeliveryTimeoutError):
            await broker.send_message(message(b"late"))
        await asyncio.sleep(0.15)
        send = asyncio.ensure_future(broker.send_message(message(b"next")))
        await settled()
        wire.confirm()
        await settled()
        assert not send.done()
        wire.confirm()
        assert (await send).confirmed


async def test_a_shorter_deadline_behind_a_longer_one_is_let_go_in_time() -> None:
    """Deadlines of single calls need not be in the order of the calls."""
    wire = Wire()
    async with Broker(wire) as broker:
        long = asyncio.ensure_future(broker.send_message(message(b"long")))
        await settled()
        with pytest.raises(DeliveryTimeoutError):
            await broker.send_message(message(b"short"), timeout=0.1)
        await asyncio.sleep(0.2)
        assert (await broker.health()).in_flight == 1
        wire.confirm(wire.written[0][0])
        assert (await long).confirmed


async def test_a_silent_connection_that_answers_no_ping_is_broken() -> None:
    """What was handed over is unknown, and a new connection is made."""
    wire = Wire(ping_after=0.1)
    async with Broker(wire) as broker:
        wire.silent = True
        with pytest.raises(ConnectionLostError):
            await broker.send_message(message(b"1"))


async def test_a_connection_may_have_a_time_of_its_own_until_it_is_asked() -> None:
    """What the broker demands of this connection is kept, whatever the driver wanted."""
    wire = Wire(this_ping_after=0.1)
    async with Broker(wire) as broker:
        wire.silent = True
        with pytest.raises(ConnectionLostError):
            await broker.send_message(message(b"1"), timeout=5.0)


@pytest.mark.parametrize("in_order", [True, False])
async def test_no_more_is_written_than_the_window_takes(in_order: bool) -> None:
    """The rest waits for answers, is not handed over, and goes in its order; a question waits for nobody."""
    wire = Wire(in_order=in_order, window=2)
    async with Broker(wire) as broker:
        sending = asyncio.ensure_future(broker.send_messages([message(b"%d" % n) for n in range(5)]))
        await settled()
        assert [body for _, body in wire.written] == [b"0", b"1"]
        asking = asyncio.ensure_future(wire.pipeline.ask(b"?"))
        await settled()
        assert wire.written[-1][1] == b"?"
        wire.confirm(None if in_order else wire.written[0][0])
        await settled()
        assert [body for _, body in wire.written] == [b"0", b"1", b"?", b"2"]
        for token, body in wire.written[1:]:
            (wire.pipeline.answered_question if body == b"?" else wire.confirm)(None if in_order else token)
        await asking
        await settled()
        assert [body for _, body in wire.written][4:] == [b"3", b"4"]
        for token, _ in wire.written[4:]:
            wire.confirm(token)
        assert all(isinstance(outcome, Receipt) for outcome in await sending)


async def test_what_was_let_go_keeps_its_place_in_the_window() -> None:
    """The broker still counts it; its late answer makes room."""
    wire = Wire(window=1)
    async with Broker(wire, delivery_timeout=0.1) as broker:
        with pytest.raises(DeliveryTimeoutError):
            await broker.send_message(message(b"late"))
        await asyncio.sleep(0.15)
        send = asyncio.ensure_future(broker.send_message(message(b"next"), timeout=5.0))
        await settled()
        assert [body for _, body in wire.written] == [b"late"]
        wire.confirm(wire.written[0][0])
        await settled()
        wire.confirm(wire.written[1][0])
        assert (await send).confirmed


async def test_a_question_passes_a_write_that_waits_for_room() -> None:
    """It is written behind what the client's buffer holds, and nobody who is cancelled ends the write."""
    wire = Wire()
    async with Broker(wire) as broker:
        await broker.connect()
        wire.room.clear()
        send = asyncio.ensure_future(broker.send_message(message(b"1" * 200)))
        await settled()
        hasty = asyncio.ensure_future(wire.pipeline.ask(b"hasty"))
        asking = asyncio.ensure_future(wire.pipeline.ask(b"?"))
        await settled()
        hasty.cancel()
        await settled()
        assert [body[:5] for _, body in wire.written] == [b"11111", b"hasty", b"?"]
        wire.pipeline.answered_question(wire.written[2][0])
        await asking
        wire.room.set()
        wire.confirm(wire.written[0][0])
        assert (await send).confirmed


async def test_a_question_that_is_not_yet_written_ends_with_the_connection() -> None:
    """Nobody waits for ever for an answer that cannot come."""
    wire = Wire()
    async with Broker(wire) as broker:
        await broker.connect()
        asking = asyncio.ensure_future(wire.pipeline.ask(b"?"))
        await asyncio.sleep(0)
        wire.pipeline.broken(ConnectionResetError())
        with pytest.raises(UnreachableError):
            await asyncio.wait_for(asking, 1.0)


async def test_an_answer_to_the_other_kind_of_number_takes_nothing() -> None:
    """A message's number is no question's, nor the other way round: both still get their answers."""
    wire = Wire()
    async with Broker(wire) as broker:
        send = asyncio.ensure_future(broker.send_message(message(b"1")))
        await settled()
        asking = asyncio.ensure_future(wire.pipeline.ask(b"?"))
        await settled()
        numbers = {body: token for token, body in wire.written}
        assert wire.pipeline.answered(numbers[b"?"]) is None
        wire.pipeline.answered_question(numbers[b"1"])
        await settled()
        assert not asking.done()
        wire.pipeline.answered_question(numbers[b"?"])
        wire.confirm(numbers[b"1"])
        await asyncio.wait_for(asking, 1.0)
        assert (await asyncio.wait_for(send, 1.0)).confirmed


@pytest.mark.parametrize("ends", ["abort", "close", "end"])
async def test_a_question_ends_with_the_pipeline(ends: str) -> None:
    """Whether it is written or not, and also if the driver did not limit its wait."""
    wire = Wire()
    async with Broker(wire) as broker:
        await broker.connect()
        written = asyncio.ensure_future(wire.pipeline.ask(b"?"))
        await settled()
        unwritten = asyncio.ensure_future(wire.pipeline.ask(b"??"))
        await asyncio.sleep(0)
        if ends == "abort":
            wire.pipeline.abort()
        else:
            await (wire.pipeline.close if ends == "close" else wire.pipeline.end)()
        assert [body for _, body in wire.written] == [b"?"]
        for asking in (written, unwritten):
            with pytest.raises(UnreachableError):
                await asyncio.wait_for(asking, 1.0)


def test_a_question_of_a_closed_event_loop_is_forgotten() -> None:
    """abort() works there, too."""
    wire = Wire()
    loop = asyncio.new_event_loop()

    async def leave() -> asyncio.Task[None]:
        await wire.connect()
        asking = asyncio.get_running_loop().create_task(wire.pipeline.ask(b"?"))
        await settled()
        return asking

    asking = loop.run_until_complete(leave())
    loop.close()
    wire.pipeline.abort()
    assert not asking.done()
    drop_task(asking)


@pytest.mark.parametrize("calls_end", [True, False])
async def test_an_answer_of_a_new_connection_confirms_nothing_that_was_written_to_an_unreported_one(
    calls_end: bool,
) -> None:
    """The driver's connect() failed after it had opened the pipeline: what was written then is lost with it."""
    wire = Wire(in_order=True)
    failures = [UnreachableError("refused")]
    asked: list[asyncio.Future[None]] = []

    async def connect() -> None:
        if calls_end:
            await wire.pipeline.end()
        wire.pipeline.open(wire.write)
        await settled()
        if wire.written and failures:
            asked.append(asyncio.ensure_future(wire.pipeline.ask(b"?")))
            await settled()
            raise failures.pop()

    wire.connect = connect  # type: ignore[method-assign]
    wire.room.clear()
    async with Broker(wire, retry_delay=0.01, close_timeout=0.5) as broker:
        sends = [asyncio.ensure_future(broker.send_message(message(bytes(100)))) for _ in range(2)]
        await settled()
        wire.pipeline.broken(ConnectionResetError())
        with pytest.raises(ConnectionLostError):
            await sends[0]
        wire.room.set()
        later = asyncio.ensure_future(broker.send_message(message(b"later")))
        while broker.state != "connected" or wire.written[-1][1] != b"later":
            await asyncio.sleep(0.01)
        wire.confirm()
    outcomes = await asyncio.gather(sends[1], later, asyncio.wait_for(asked[0], 1.0), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionLostError, Receipt, UnreachableError]
    assert broker.contract_breaches == ()


async def test_each_host_gets_a_share_of_the_time() -> None:
    """A silent host leaves time for the next one; the error names all of them."""
    tried: list[str] = []

    async def connect(host: Host) -> str:
        tried.append(host.host)
        if host.host == "silent":
            await asyncio.Event().wait()
        if host.host == "wrong":
            raise AuthenticationError("wrong: the password")
        return host.host

    hosts = [Host("silent"), Host("wrong"), Host("good")]
    assert await connect_to_any(hosts, connect, 0.6, drop=tried.append) == "good"
    assert tried == ["silent", "wrong", "good"]
    with pytest.raises(ConnectError, match=r"wrong: the password; silent does not answer") as raised:
        await connect_to_any(hosts[:2], connect, 0.2, drop=tried.append)
    assert type(raised.value) is AuthenticationError


async def test_a_connection_that_nobody_waits_for_any_more_is_dropped() -> None:
    """A client may swallow the cancellation of its connect."""
    dropped: list[str] = []

    async def stubborn(host: Host) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return host.host
        return ""

    with pytest.raises(UnreachableError):
        await connect_to_any([Host("a")], stubborn, 0.1, drop=dropped.append)
    connecting = asyncio.ensure_future(connect_to_any([Host("b")], stubborn, 60, drop=dropped.append))
    await settled()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert dropped == ["a", "b"]


@given(st.text())
def test_header_texts_survive_their_encoding(text: str) -> None:
    """Every text comes back, and what is written is printable ASCII without blanks."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        return
    for encode in (header_name, header_value):
        encoded = encode(text)
        assert header_text(encoded) == text
        assert encoded.isascii()
        assert not any(character.isspace() or not character.isprintable() for character in encoded)
    assert ":" not in header_name(text)
