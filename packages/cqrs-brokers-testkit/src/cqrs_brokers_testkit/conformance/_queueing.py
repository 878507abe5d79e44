"""Cases whose messages fill the driver's own queue, and cases about answers that never come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cqrs_brokers import Broker, DeliveryError, DeliveryUnknownError, Message, NotDeliveredError, Receipt
from cqrs_brokers.observers import Observer
from cqrs_brokers_testkit.conformance._case import (
    Context,
    case,
    check,
    check_all_receipts,
    check_order,
    check_receipt,
    check_truth,
    outcome_of,
    show,
    tally,
)
from cqrs_brokers_testkit.proxy import Way

_LARGE = 40_000
"""The size of a message in bytes. A few hundred such messages fill a socket, a client's buffer and a driver's queue."""
_LARGEST = 700_000
_KEYS = 4
_CANCELLED, _HURRIED = 7, 11
"""Every message with such a number is cancelled, or has a short timeout."""
_SETTLE = 1.0
"""Within this many seconds after a fault the bytes arrive that were in a socket."""


def _large_messages(ctx: Context, topic: str, count: int, size: int = _LARGE) -> list[Message]:
    keyed = ctx.capabilities.ordering_key
    return [
        ctx.message(topic, n.to_bytes(4, "big") * (size // 4), key=f"key-{n // 4 % _KEYS}" if keyed else None)
        for n in range(count)
    ]


class _Told(Observer):
    """Notes the outcome of each message, also of one whose caller was cancelled."""

    def __init__(self) -> None:
        self._outcomes: dict[object, Receipt | DeliveryError] = {}

    def sent(self, message: Message, outcome: Receipt | DeliveryError, elapsed: float) -> None:
        self._outcomes[message.message_id] = outcome

    def of(self, messages: Sequence[Message]) -> list[object]:
        """Returns the outcomes of these messages. None: the outcome is not known yet."""
        return [self._outcomes.get(message.message_id) for message in messages]


async def _stalled_with_a_full_queue(
    ctx: Context, broker: Broker, messages: list[Message], wait: float, *, hurried: int | None = None
) -> list[asyncio.Future[Receipt | NotDeliveredError | DeliveryUnknownError]]:
    """Stalls the connection to the broker and sends messages. Then the client has some of them, and the driver still
    has the others. Every `hurried`th message has a short timeout."""
    await ctx.do(lambda: ctx.proxy.stall("up"))
    sends = [
        asyncio.ensure_future(
            outcome_of(broker.send_message(message, timeout=0.6 if hurried and n % hurried == 0 else None))
        )
        for n, message in enumerate(messages)
    ]
    await asyncio.sleep(wait)
    return sends  # type: ignore[return-value] # every delivery error is one of the two


@case(
    "ordering.queued-messages-keep-their-order",
    "fault",
    needs=["proxy", "read_back"],
    capability="ordering_key",
    limit=90.0,
)
async def queued_messages_keep_their_order(ctx: Context) -> None:
    """If the connection breaks while 400 messages of 40 kB wait in the driver's queue, order and truth survive.

    Some callers were cancelled before. Their messages are not sent if they were not handed over. The answers to the
    first attempt to connect again are lost.
    """
    proxy, told = ctx.proxy, _Told()
    broker = ctx.open(
        delivery_timeout=25.0, connect_timeout=1.0, max_in_flight=1000, max_in_flight_bytes=2**27, observers=[told]
    )
    topic = await ctx.known_topic(broker)
    messages = _large_messages(ctx, topic, ctx.count(400, 200))
    try:
        sends = await _stalled_with_a_full_queue(ctx, broker, messages, 0.7)
        for send in sends[-40:-20:2]:
            send.cancel()
        await ctx.do(lambda: proxy.stall("down"))
        await ctx.do(proxy.reset)
        await ctx.do(lambda: proxy.resume("up"))
        await asyncio.sleep(1.3)
    finally:
        await ctx.do(proxy.heal)
    await asyncio.gather(*sends, return_exceptions=True)
    await asyncio.sleep(_SETTLE)
    outcomes = told.of(messages)
    records = await ctx.read(topic, 1 + sum(isinstance(outcome, Receipt) for outcome in outcomes))
    check_truth(messages, outcomes, records)
    check_order(messages, outcomes, records)
    check(isinstance(outcomes[-1], Receipt), f"what waited for the next connection was not sent: {tally(outcomes)}")


@case(
    "ordering.order-survives-a-stall",
    "fault",
    needs=["proxy", "read_back"],
    capability="ordering_key",
    limit=90.0,
)
async def order_survives_a_stall(ctx: Context) -> None:
    """If small and large messages, with and without headers, wait on a stuck connection, each key keeps its order.

    Some of their callers are cancelled meanwhile, or have a short timeout. The others get their receipts.
    """
    told = _Told()
    broker = ctx.open(delivery_timeout=25.0, max_in_flight=1000, max_in_flight_bytes=2**27, observers=[told])
    topic = await ctx.known_topic(broker)
    messages = [
        ctx.message(
            topic,
            bytes(_LARGE if n % 3 else 10),
            key=f"key-{n // 4 % _KEYS}",
            headers={"n": str(n)} if n % 5 == 0 and ctx.capabilities.headers else {},
        )
        for n in range(ctx.count(400, 200))
    ]
    try:
        sends = await _stalled_with_a_full_queue(ctx, broker, messages, 0.4, hurried=_HURRIED)
        for send in sends[::_CANCELLED]:
            send.cancel()
        await asyncio.sleep(0.4)  # those who do not wait for long have their outcome
    finally:
        await ctx.do(ctx.proxy.heal)
    await asyncio.gather(*sends, return_exceptions=True)
    outcomes = told.of(messages)
    check_all_receipts([o for n, o in enumerate(outcomes) if n % _CANCELLED and n % _HURRIED])
    await asyncio.sleep(_SETTLE)
    records = await ctx.read(topic, 1 + sum(isinstance(outcome, Receipt) for outcome in outcomes))
    check_truth(messages, outcomes, records)
    check_order(messages, outcomes, records)


@case("delivery.denied-never-arrives", "fault", needs=["proxy", "read_back"], limit=60.0)
async def denied_never_arrives(ctx: Context) -> None:
    """If the connection stalls beyond the deadline of 400 large messages, no message that was denied arrives later."""
    proxy, broker = ctx.proxy, ctx.open(delivery_timeout=1.5, max_in_flight=1000, max_in_flight_bytes=2**27)
    topic = await ctx.known_topic(broker)
    # Where the broker limits how many may be unanswered, only large ones fill the way to it.
    largest = min(_LARGEST, (ctx.capabilities.max_message_bytes or _LARGEST) - 1_000)
    messages = _large_messages(ctx, topic, 20, largest) + _large_messages(ctx, topic, ctx.count(380, 180))
    try:
        sends = await _stalled_with_a_full_queue(ctx, broker, messages, 0.0)
        outcomes = await asyncio.gather(*sends)
        within = ctx.harness.notices_within
        late = f"{within:g} s after the deadline the driver still holds what never got through"
        await ctx.wait_for(lambda: _window_is_empty(broker), within, late)
    finally:
        await ctx.do(proxy.heal)
    check(not any(isinstance(o, Receipt) for o in outcomes), f"nothing got through: {tally(outcomes)}")
    waited = isinstance(outcomes[-1], NotDeliveredError)
    check(waited, f"the last of {len(messages)} never came to the client, and got {show(outcomes[-1])}")
    await ctx.works_again(broker, topic)
    await asyncio.sleep(_SETTLE)
    check_truth(messages, outcomes, await ctx.read(topic, 2))


@case(
    "delivery.unanswered-is-let-go",
    "fault",
    needs=["proxy", "read_back"],
    capability="confirms",
    limit=120.0,
    waits=True,
)
async def unanswered_is_let_go(ctx: Context) -> None:
    """If one answer is lost on a living connection, the outcome is unknown, the place is free again, and sends work."""
    proxy = ctx.proxy
    broker = ctx.open(delivery_timeout=2.0, max_in_flight=8)
    # A topic each: a driver may let a message wait for the answer of the one before it.
    topics = [await ctx.topic() for _ in range(3)]
    for topic in topics:  # what the driver has to ask about a topic has been asked
        await broker.send_message(ctx.message(topic))
    lost = [ctx.message(topic) for topic in topics]
    await ctx.do(lambda: proxy.swallow("down"))
    try:
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in lost]
        for topic in topics:
            await ctx.read(topic, 2)
        await asyncio.sleep(0.3)
    finally:
        await ctx.do(proxy.heal)
    outcomes = await asyncio.gather(*sends)
    wrong = [outcome for outcome in outcomes if not isinstance(outcome, DeliveryUnknownError)]
    check(not wrong, f"their answers were lost, and they got {tally(outcomes)}")
    free_within = ctx.harness.notices_within
    await ctx.wait_for(
        lambda: _window_is_empty(broker),
        free_within,
        f"{free_within:g} s after the deadline the driver still holds messages that will never be answered",
    )
    await ctx.works_again(broker, topic, free_within)
    later = [await outcome_of(broker.send_message(ctx.message(topic))) for _ in range(6)]
    check_all_receipts(later)


async def _window_is_empty(broker: Broker) -> bool:
    return broker.in_flight == 0


@case("faults.dead-connection-is-noticed", "fault", needs=["proxy"], limit=180.0, waits=True)
async def dead_connection_is_noticed(ctx: Context) -> None:
    """If all connections are dead and new ones work, a send succeeds within the time that the harness declares.

    Messages on a dead connection, or on a connection without answers, get true outcomes.
    """
    proxy, topic, within = ctx.proxy, await ctx.topic(), ctx.harness.notices_within
    reads = ctx.harness.lacks("read_back") is None
    broker = ctx.open(delivery_timeout=2.0)
    await broker.send_message(ctx.message(topic))
    dead = list(proxy.connections)
    deaf = await _Patient.of(ctx, within + 5.0)
    unheard = set(proxy.connections) - {*dead}
    cut_off = await _Patient.of(ctx, within + 5.0)
    for connection in list(proxy.connections):
        way: Way = "down" if connection in unheard else "both"
        await ctx.do(lambda connection=connection, way=way: connection.stall(way))  # type: ignore[misc]
    for patient in (deaf, cut_off):
        patient.send()
    try:
        await ctx.works_again(broker, topic, within)
        for patient in (deaf, cut_off):
            outcomes = await patient.outcomes()
            if reads:  # while what was stalled is not there yet
                records = await ctx.read(patient.topic, 1 + sum(isinstance(outcome, Receipt) for outcome in outcomes))
                check_truth(patient.messages, outcomes, records)
    finally:
        await ctx.do(proxy.heal)
    await asyncio.sleep(_SETTLE if reads else 0.0)
    for patient in (deaf, cut_off):
        await ctx.works_again(patient.broker, topic)
        if reads:
            outcomes = await patient.outcomes()
            check_truth(patient.messages, outcomes, await ctx.read(patient.topic, 0))


class _Patient:
    """A broker that waits long for answers, and the messages that it has sent."""

    def __init__(self, ctx: Context, broker: Broker, topic: str) -> None:
        self.broker, self.topic = broker, topic
        self.messages = [ctx.message(topic) for _ in range(5)]
        self._sends: list[asyncio.Future[Receipt | DeliveryError]] = []

    @classmethod
    async def of(cls, ctx: Context, timeout: float) -> _Patient:
        """Makes a connected broker that has a topic of its own and has sent to it."""
        patient = cls(ctx, ctx.open(delivery_timeout=timeout), await ctx.topic())
        first = ctx.message(patient.topic)
        check_receipt(await outcome_of(patient.broker.send_message(first)))
        return patient

    def send(self) -> None:
        """Sends the messages, each from a task of its own."""
        self._sends = [asyncio.ensure_future(outcome_of(self.broker.send_message(each))) for each in self.messages]

    async def outcomes(self) -> list[Receipt | DeliveryError]:
        """Returns the outcomes of the messages."""
        return await asyncio.gather(*self._sends)
