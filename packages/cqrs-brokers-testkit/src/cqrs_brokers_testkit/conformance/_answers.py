"""Cases about single answers: forged answers, lost answers beside others that come, and a farewell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from cqrs_brokers import Broker, DeliveryError, DeliveryUnknownError, Message, NotDeliveredError, Receipt
from cqrs_brokers_testkit.canary import chain, shown
from cqrs_brokers_testkit.conformance._case import (
    Context,
    NotApplicable,
    case,
    check,
    check_all_receipts,
    check_receipt,
    check_truth,
    outcome_of,
    tally,
)
from cqrs_brokers_testkit.conformance._harness import LOST_BEFORE_A_REFUSAL, Forgery
from cqrs_brokers_testkit.proxy import ProxyConnection

_DEADLINE = 3.0
_LATEST = 100.0
"""The deadline of a message whose answer comes last, in seconds."""
_MANY = 30
_ON_THEIR_WAY = 0.5
"""After this many seconds the answers to some messages have come."""
_MORE_THAN_16_BITS = 66_000
_BATCH = 5_000
_CANARIES = {"the body": "canary-body-71", "the key": "canary-key-72", "a header": "canary-header-73"}


class _Forged:
    """A broker whose answers to messages are forged, and the messages that it has sent."""

    def __init__(
        self, ctx: Context, broker: Broker, topic: str, connections: Sequence[ProxyConnection], count: int
    ) -> None:
        self.broker, self.topic, self.connections = broker, topic, connections
        fields: dict[str, Any] = {"key": _CANARIES["the key"]} if ctx.capabilities.ordering_key else {}
        if ctx.capabilities.headers:
            fields["headers"] = {"h": _CANARIES["a header"]}
        self.messages = [ctx.message(topic, {"b": _CANARIES["the body"]}, **fields) for _ in range(count)]
        self.sends: list[asyncio.Future[Receipt | DeliveryError]] = []
        self.begun: list[Any] = []
        """The results of the forgery, one for each connection."""

    @classmethod
    async def of(cls, ctx: Context, timeout: float = _DEADLINE, count: int = 3, *, later: bool = False) -> _Forged:
        """Opens a broker, sends one message with it, and notes the connections that it made through the proxy.

        With `later`, these connections are reset, and the connections that the broker makes afterwards are noted.
        """
        before = set(ctx.proxy.connections)
        broker, topic = ctx.open(delivery_timeout=timeout), await ctx.topic()
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
        if later:
            first = [each for each in ctx.proxy.connections if each not in before]
            before.update(first)
            for connection in first:
                await ctx.do(connection.reset)
            await ctx.works_again(broker, await ctx.topic())
        return cls(ctx, broker, topic, [each for each in ctx.proxy.connections if each not in before], count)

    def send(self) -> None:
        self.sends = [asyncio.ensure_future(outcome_of(self.broker.send_message(each))) for each in self.messages]

    async def check_truth(self, ctx: Context) -> None:
        """Checks the outcomes against the topic. A message that was never written must not be in the topic."""
        records = await ctx.read_those_of(self.messages, self.topic, 2)
        check_truth(self.messages, [send.result() for send in self.sends], records)

    async def apply(self, ctx: Context, change: Callable[[ProxyConnection], object]) -> None:
        self.begun = [await ctx.do(lambda each=each: change(each)) for each in self.connections]  # type: ignore[misc]


async def _tried(ctx: Context, meaning: str, count: int = 3, *, ends: bool = False) -> dict[str, _Forged]:
    """Sends messages whose answers are forged, and returns their outcomes by the name of the forgery.

    Forgeries with the meanings `refused` and `unknown` are also tried on a later connection.

    Args:
        ctx: The case's context.
        meaning: Only the forgeries with this meaning are used.
        count: How many messages are sent at the same time.
        ends: Whether the connections are then closed in good order.
    """
    forgeries: dict[str, Forgery] = await ctx.once(ctx.harness.forged_answers)
    tried = {}
    for says, forgery in forgeries.items():
        for later in (False, True) if meaning in ("refused", "unknown") else (False,):
            if forgery.meaning == meaning:
                forged = await _Forged.of(ctx, count=count, later=later)
                await forged.apply(ctx, forgery.apply)
                tried[f"{says}, on a later connection" if later else says] = forged
    if not tried:
        raise NotApplicable(f"the harness has no forged answer whose meaning is {meaning!r}")
    for forged in tried.values():
        forged.send()
    if ends:
        await asyncio.sleep(_ON_THEIR_WAY)
        for forged in tried.values():
            await forged.apply(ctx, lambda connection: connection.close_connections())
    for forged in tried.values():
        await asyncio.gather(*forged.sends)
    return tried


@case(
    "delivery.unknown-answers-prove-nothing",
    "fault",
    needs=["proxy", "forged_answers", "read_back"],
    capability="confirms",
)
async def unknown_answers_prove_nothing(ctx: Context) -> None:
    """An answer with a number or code that does not exist gives neither a receipt nor "not delivered"."""
    for says, forged in (await _tried(ctx, "unknown")).items():
        outcomes = [send.result() for send in forged.sends]
        unknown = any(isinstance(outcome, DeliveryUnknownError) for outcome in outcomes)
        lied = any(isinstance(outcome, Receipt) for outcome in outcomes)
        check(unknown and not lied, f"the broker's answers were turned into {says}, and sends got {tally(outcomes)}")
        await forged.check_truth(ctx)


@case("delivery.refusal-codes-are-no-confirms", "fault", needs=["proxy", "forged_answers"], capability="confirms")
async def refusal_codes_are_no_confirms(ctx: Context) -> None:
    """An answer that refuses a message, with any code, gives no receipt, and its error quotes nothing."""
    for says, forged in (await _tried(ctx, "refused")).items():
        outcomes = [send.result() for send in forged.sends]
        lied = any(isinstance(outcome, Receipt) for outcome in outcomes)
        check(not lied, f"the broker's answers were turned into {says}, and sends got {tally(outcomes)}")
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        leaks = shown(_CANARIES, [f"{each} {each!r}" for error in errors for each in chain(error)])
        check(not leaks, f"{' and '.join(leaks)} can be read in the error after {says}")


@case(
    "delivery.cut-answers-prove-nothing",
    "fault",
    needs=["proxy", "forged_answers", "read_back"],
    capability="confirms",
)
async def cut_answers_prove_nothing(ctx: Context) -> None:
    """If the connection is closed in the middle of an answer, no message gets a receipt or "not delivered"."""
    for says, forged in (await _tried(ctx, "cut", _MANY, ends=True)).items():
        outcomes = [send.result() for send in forged.sends]
        lied = any(isinstance(outcome, Receipt) for outcome in outcomes)
        check(not lied, f"of the broker's answers came {says}, and then the end, and sends got {tally(outcomes)}")
        await forged.check_truth(ctx)
        await forged.broker.connect()
        good = await outcome_of(forged.broker.send_message(ctx.message(forged.topic)))
        check_receipt(good, f"of the broker's answers came {says}, then the end: on the next connection a good message")


@case(
    "delivery.refusal-is-about-one-message",
    "fault",
    needs=["proxy", "forged_answers", "read_back"],
    capability="confirms",
    waits=True,
)
async def refusal_is_about_one_message(ctx: Context) -> None:
    """If answers are lost before a refusal, the refusal confirms no earlier message and refuses no other message."""
    lost = LOST_BEFORE_A_REFUSAL
    for says, forged in (await _tried(ctx, "one refused", _MANY)).items():
        outcomes = [send.result() for send in forged.sends]
        told = f"{lost} answers were lost, the next one said {says}, the others came: sends got {tally(outcomes)}"
        received = sum(isinstance(outcome, Receipt) for outcome in outcomes)
        came = sum(answers_since() for answers_since in forged.begun)
        check(received <= came, f"{came} confirms came, and there are {received} receipts: {told}")
        check(received < _MANY - lost, f"what was refused, or had no answer, got a receipt: {told}")
        there = {record.message_id for record in await ctx.read_those_of(forged.messages, forged.topic, received)}
        denied = [
            message
            for message, outcome in zip(forged.messages, outcomes, strict=True)
            if isinstance(outcome, NotDeliveredError) and str(message.message_id) in there
        ]
        check(len(denied) <= 1, f"{len(denied)} messages are in the broker and were reported as not delivered: {told}")
        good = await outcome_of(forged.broker.send_message(ctx.message(forged.topic)))
        check_receipt(good, f"after one answer said {says}, a good message to the same topic")


@case("delivery.pings-confirm-nothing", "fault", needs=["proxy", "read_back"], capability="confirms")
async def pings_confirm_nothing(ctx: Context) -> None:
    """If the answers to messages are lost, the answers to pings give no receipt."""
    forged = await _Forged.of(ctx, 20.0)
    await forged.apply(ctx, await _losing_all_but_pings(ctx, forged))
    forged.send()
    await ctx.read(forged.topic, 2)  # at least one of them is there
    await asyncio.sleep(0.2)  # its answer, and the acknowledgements of others, have come and are lost
    health = await forged.broker.health()
    await asyncio.sleep(0.2)
    done = [send.result() for send in forged.sends if send.done()]
    lied = any(isinstance(outcome, Receipt) for outcome in done)
    check(not lied, f"the answers to messages are lost (health: {health.reason or 'ok'}), and sends got {tally(done)}")
    for send in forged.sends:
        send.cancel()


async def _losing_all_but_pings(ctx: Context, forged: _Forged) -> Callable[[ProxyConnection], object]:
    """Returns a function that loses every answer except the answers to pings.

    The function comes from the harness, or it is made here. It then lets through only bytes that a ping brought before.
    This works only if all answers to pings are the same.
    """
    try:
        forgeries: dict[str, Forgery] = await ctx.once(ctx.harness.forged_answers)
        lost = [forgery.apply for forgery in forgeries.values() if forgery.meaning == "lost"]
    except NotApplicable:
        lost = []
    if lost:
        return lost[0]
    brought: list[bytes] = []
    learning = True

    def rewrite(data: bytes) -> bytes:
        if learning:
            brought.append(data)
            return data
        return data if data in brought else b""

    await forged.apply(ctx, lambda connection: connection.rewrite(rewrite))
    for _ in range(3):
        health = await forged.broker.health()
        check(health.ok, f"health() of a broker that works: {health}")
    if len(set(brought)) != 1:
        raise NotApplicable("the answers to its pings differ, and the harness forges no answers")
    learning = False
    return lambda _: None


@case(
    "delivery.late-answer-finds-its-message",
    "fault",
    needs=["proxy", "forged_answers", "read_back"],
    capability="confirms",
    limit=120.0,
    waits=True,
)
async def late_answer_finds_its_message(ctx: Context) -> None:
    """An answer that comes after those to 66 000 later messages still belongs to its message, with its offset."""
    forgeries: dict[str, Forgery] = await ctx.once(ctx.harness.forged_answers)
    late = [forgery for forgery in forgeries.values() if forgery.meaning == "late"]
    if not late:
        raise NotApplicable("the harness keeps no single answer back")
    forged, letting_through = await _Forged.of(ctx, _LATEST), []
    for connection in forged.connections:
        letting_through.append(await ctx.do(lambda connection=connection: late[0].apply(connection)))  # type: ignore[misc]
    early = asyncio.ensure_future(outcome_of(forged.broker.send_message(forged.messages[0])))
    records = await ctx.read_those_of(forged.messages[:1], forged.topic, 2)
    await asyncio.sleep(0.2)  # its answer has come, and is kept back
    check(not early.done(), "its answer is kept back, and its send has ended")
    topic, left = await ctx.topic(), ctx.count(_MORE_THAN_16_BITS)
    while left > 0:
        batch = [ctx.message(topic, b"") for _ in range(min(left, _BATCH))]
        check_all_receipts(await forged.broker.send_messages(batch))
        left -= len(batch)
    for let_through in letting_through:
        await ctx.do(let_through)
    done, _ = await asyncio.wait([early], timeout=10.0)
    check(done, "an answer came after those to many later messages, and its message waits for it")
    outcome = early.result()
    check_receipt(outcome, "a message whose answer came after those to many later ones")
    assert isinstance(outcome, Receipt)
    at = (outcome.partition, outcome.offset)
    check(at in ((None, None), (records[0].partition, records[0].offset)), f"it is not where its receipt says: {at}")


@case("delivery.farewells-confirm-nothing", "fault", needs=["proxy", "dismiss_clients", "read_back"], limit=150.0)
async def farewells_confirm_nothing(ctx: Context) -> None:
    """If the broker ends the connection in good order while messages or answers are on their way, no outcome lies."""
    broker, topic = ctx.open(delivery_timeout=20.0), await ctx.topic()
    check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
    messages: list[Message] = [ctx.message(topic) for _ in range(20)]
    async with ctx.healed() as proxy:
        for connection in list(proxy.connections):
            await ctx.do(lambda connection=connection: connection.stall("up"))  # type: ignore[misc]
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages]
        await asyncio.sleep(0.3)
        for _ in range(20):  # on a busy machine the time may be over before the driver had a turn to write
            await asyncio.sleep(0)
        await ctx.do(ctx.harness.dismiss_clients)
    outcomes = await asyncio.gather(*sends)
    await ctx.works_again(broker, await ctx.topic(), 20.0)
    received = sum(isinstance(outcome, Receipt) for outcome in outcomes)
    check_truth(messages, outcomes, await ctx.read_those_of(messages, topic, received))
    await _dismissed_without_answers(ctx)


async def _dismissed_without_answers(ctx: Context) -> None:
    """Demands the same for messages that reached the broker and whose answers the harness can lose."""
    with contextlib.suppress(NotApplicable):
        forgeries: dict[str, Forgery] = await ctx.once(ctx.harness.forged_answers)
        for losing in [forgery for forgery in forgeries.values() if forgery.meaning == "lost"][:1]:
            forged = await _Forged.of(ctx, 20.0)
            await forged.apply(ctx, losing.apply)
            forged.send()
            await ctx.read(forged.topic, 2)  # at least one of them is there
            await asyncio.sleep(0.2)
            await ctx.do(ctx.harness.dismiss_clients)
            await asyncio.gather(*forged.sends)
            await forged.check_truth(ctx)
