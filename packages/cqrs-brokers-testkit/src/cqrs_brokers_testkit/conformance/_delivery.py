"""Cases about the truth of each outcome: receipt, not delivered, unknown."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter

from cqrs_brokers import (
    ConnectionLostError,
    DeliveryUnknownError,
    DestinationNotFoundError,
    Message,
    NackedError,
    NotDeliveredError,
    PublishForbiddenError,
    Receipt,
    UnroutableError,
)
from cqrs_brokers.driver import PipelinedDriver
from cqrs_brokers_testkit.conformance._case import (
    Clock,
    Context,
    case,
    check,
    check_all_receipts,
    check_receipt,
    check_truth,
    outcome_of,
    show,
    tally,
)

_MIB = 2**20
_GRACE = 1.0
"""By contract an outcome comes at most this many seconds after the deadline."""

# -- receipts ----------------------------------------------------------------------------------------------------------


@case("delivery.receipt-means-it-is-there", "live", needs=["read_back"], capability="confirms")
async def receipt_means_it_is_there(ctx: Context) -> None:
    """When `send_message` returns, the receipt is confirmed and the message is in the broker."""
    broker = ctx.open()
    for _ in range(3):
        topic = await ctx.topic()
        message = ctx.message(topic)
        receipt = await broker.send_message(message)
        records = ctx.read_held(topic)
        records = records or [r for r in await ctx.read(topic, 1) if ctx.harness.wire]  # readers need a moment to start
        check(receipt.confirmed, "the receipt is not confirmed")
        there = [record.message_id for record in records]
        check(there == [str(message.message_id)], "the receipt came before the message was in the broker")


@case("delivery.unconfirmed-is-said", "live", without="confirms")
async def unconfirmed_is_said(ctx: Context) -> None:
    """A driver that declares no confirms gives receipts that are not confirmed."""
    receipt = await ctx.open().send_message(ctx.message(await ctx.topic()))
    check(not receipt.confirmed, "the receipt is confirmed, and the driver does not declare confirms")


@case("delivery.discarding-promises-nothing", "live", without="confirms")
async def discarding_promises_nothing(ctx: Context) -> None:
    """A broker that keeps nothing declares nothing that it would have to keep."""
    if ctx.harness.discards:
        check(not ctx.capabilities.durable, "it discards what it takes and declares durable")
        check(not ctx.capabilities.unroutable_detection, "it discards what it takes and declares unroutable_detection")


@case("delivery.discards-only-without-confirms", "live", capability="confirms")
async def discards_only_without_confirms(ctx: Context) -> None:
    """A broker that confirms keeps the confirmed messages, so its harness must be able to read them back."""
    check(not ctx.harness.discards, "the harness says that the broker discards, and the driver declares confirms")


@case("delivery.receipt-names-the-message", "live")
async def receipt_names_the_message(ctx: Context) -> None:
    """A receipt carries the message's id and topic and the broker's name; where there are offsets, each is unique."""
    broker, topic = ctx.open(), await ctx.topic()
    messages = [ctx.message(topic) for _ in range(10)]
    receipts = await asyncio.gather(*(broker.send_message(message) for message in messages))
    for message, receipt in zip(messages, receipts, strict=True):
        wanted = (message.message_id, topic, broker.name)
        check((receipt.message_id, receipt.topic, receipt.broker) == wanted, f"{receipt} is not that of {message}")
    places = Counter((r.partition, r.offset) for r in receipts if r.offset is not None)
    check(all(times == 1 for times in places.values()), "two receipts name the same partition and offset")


@case("delivery.no-receipt-before-the-answer", "live", needs=["lose_answers"], capability="confirms")
async def no_receipt_before_the_answer(ctx: Context) -> None:
    """There is no receipt while the broker's answers do not come, and there is one when they come."""
    broker, topic = ctx.open(delivery_timeout=10.0), await ctx.topic()
    await broker.send_message(ctx.message(topic))
    await ctx.do(ctx.harness.lose_answers)
    try:
        sending = asyncio.ensure_future(broker.send_message(ctx.message(topic)))
        done, _ = await asyncio.wait([sending], timeout=0.7)
        check(not done, "the send ended before the broker had answered")
    finally:
        await ctx.do(ctx.harness.resume)
    outcome = await outcome_of(sending)
    check_receipt(outcome, "the answer came, and the send")


@case("delivery.every-message-is-answered", "live")
async def every_message_is_answered(ctx: Context) -> None:
    """Every submitted message gets its outcome long before the deadline, and frees its place in the window."""
    broker, topic = ctx.open(), await ctx.topic()
    await broker.connect()
    sends = [asyncio.ensure_future(outcome_of(broker.send_message(ctx.message(topic)))) for _ in range(200)]
    done, pending = await asyncio.wait(sends, timeout=10.0)
    check(not pending, f"{len(pending)} of 200 messages had no outcome after 10 s")
    check_all_receipts([send.result() for send in done])
    in_flight = (await broker.health()).in_flight
    check(in_flight == 0, f"all have their outcome, and the driver still holds {in_flight}")


# -- refused -----------------------------------------------------------------------------------------------------------


@case("delivery.nack-is-not-success", "live", needs=["nacking_destination", "read_back"], waivable=True)
async def nack_is_not_success(ctx: Context) -> None:
    """A nack is `NackedError`, an unknown outcome: one queue refused the message, and another queue holds it once."""
    target = await ctx.do(ctx.harness.nacking_destination)
    broker = ctx.open(target.url)
    nacked = [ctx.message(target.topic) for _ in range(3)]
    for message in nacked:
        outcome = await outcome_of(broker.send_message(message))
        check(type(outcome) is NackedError, f"a nack became {show(outcome)}")
    neighbours = await ctx.topic()
    for later in (False, True):
        if later:
            if ctx.harness.lacks("reset") is not None:
                break
            await ctx.do(ctx.harness.reset)
            await ctx.works_again(broker, neighbours)
        mixed = [ctx.message(target.topic if n % 2 else neighbours) for n in range(20)]
        outcomes = await broker.send_messages(mixed)
        nacked += [message for message in mixed if message.topic == target.topic]
        wrong = [o for n, o in enumerate(outcomes) if type(o) is not (NackedError if n % 2 else Receipt)]
        check(not wrong, f"of 20 messages every second one is nacked: {tally(wrong)}")
    await asyncio.sleep(0.3)
    there = len(await ctx.read(target.topic, len(nacked)))
    check(there == len(nacked), f"{len(nacked)} messages were nacked, and the free queue holds {there}: a blind resend")


@case("delivery.refused-is-not-delivered", "live", needs=["refuse_next", "read_back"], waivable=True)
async def refused_is_not_delivered(ctx: Context) -> None:
    """A refused message gets `NotDeliveredError` and is not in the broker, and the next message succeeds."""
    refusal = await ctx.do(ctx.harness.refuse_next)
    broker = ctx.open(refusal.url, delivery_timeout=10.0)
    outcome = await outcome_of(broker.send_message(refusal.message))
    check(isinstance(outcome, NotDeliveredError), f"a refused message got {show(outcome)}")
    good = ctx.message(refusal.topic)
    async with ctx.spared_by_the_broker():
        check_receipt(await outcome_of(broker.send_message(good)), "the next good message")
    ids = [record.message_id for record in await ctx.read(refusal.topic, 1)]
    check(ids == [str(good.message_id)], "the refused message is in the broker, or the good one is not")


@case("delivery.refused-spares-its-neighbours", "live", needs=["refuse_next", "read_back"], waivable=True)
async def refused_spares_its_neighbours(ctx: Context) -> None:
    """In a batch only the refused message fails; its neighbours are delivered and get their own receipts."""
    refusal = await ctx.do(ctx.harness.refuse_next)
    good = [ctx.message(refusal.topic) for _ in range(20)]
    messages = [refusal.message, *good]
    async with ctx.spared_by_the_broker():
        outcomes = await ctx.open(refusal.url, delivery_timeout=10.0).send_messages(messages)
        check(isinstance(outcomes[0], NotDeliveredError), f"the refused message got {show(outcomes[0])}")
        check_all_receipts(outcomes[1:])
    check_truth(messages, outcomes, await ctx.read(refusal.topic, len(good)))


@case("delivery.unroutable-is-reported", "live", needs=["make_unroutable"], capability="unroutable_detection")
async def unroutable_is_reported(ctx: Context) -> None:
    """A message that no queue takes gets `UnroutableError`, each time, and the next good message succeeds."""
    target = await ctx.do(ctx.harness.make_unroutable)
    broker, topic = ctx.open(target.url), await ctx.topic()
    for _ in range(2):
        outcome = await outcome_of(broker.send_message(ctx.message(target.topic)))
        check(type(outcome) is UnroutableError, f"an unroutable message got {show(outcome)}")
    good = await outcome_of(broker.send_message(ctx.message(topic)))
    check_receipt(good, "the next good message")
    for later in (False, True):
        if later:
            if ctx.harness.lacks("reset") is not None:
                break
            await ctx.do(ctx.harness.reset)
            await ctx.works_again(broker, topic)
        mixed = [ctx.one_of_many(target.topic if n % 3 else topic, n, 12_000) for n in range(60)]
        outcomes = await broker.send_messages(mixed)
        wrong = [o for n, o in enumerate(outcomes) if type(o) is not (UnroutableError if n % 3 else Receipt)]
        check(not wrong, f"of 60 messages two in three are unroutable: {tally(wrong)}")


@case("delivery.unroutable-twin-is-told-apart", "live", needs=["make_unroutable"], capability="unroutable_detection")
async def unroutable_twin_is_told_apart(ctx: Context) -> None:
    """With two equal message ids in flight, only the unroutable message is reported."""
    target = await ctx.do(ctx.harness.make_unroutable)
    broker, topic = ctx.open(target.url), await ctx.topic()
    await broker.connect()
    for _ in range(5):
        good = ctx.message(topic)
        twin = ctx.message(target.topic, message_id=good.message_id)
        pair = [twin, good] if _ % 2 else [good, twin]
        outcomes = await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in pair))
        for message, outcome in zip(pair, outcomes, strict=True):
            wanted = Receipt if message is good else UnroutableError
            check(isinstance(outcome, wanted), f"expected {wanted.__name__} for {message.topic}, got {show(outcome)}")


@case("delivery.missing-destination", "live", needs=["missing_destination"], waivable=True)
async def missing_destination(ctx: Context) -> None:
    """With a destination that does not exist, opening works, and a send raises `DestinationNotFoundError`."""
    target = await ctx.do(ctx.harness.missing_destination)
    broker = ctx.open(target.url, delivery_timeout=10.0)
    for _ in range(2):
        outcome = await outcome_of(broker.send_message(ctx.message(target.topic)))
        check(type(outcome) is DestinationNotFoundError, f"a missing destination became {show(outcome)}")


@case("delivery.forbidden-destination", "live", needs=["forbidden_destination"], waivable=True)
async def forbidden_destination(ctx: Context) -> None:
    """A send to a destination that the credentials may not publish to raises `PublishForbiddenError`."""
    target = await ctx.once(ctx.harness.forbidden_destination)
    outcome = await outcome_of(ctx.open(target.url, delivery_timeout=10.0).send_message(ctx.message(target.topic)))
    check(type(outcome) is PublishForbiddenError, f"a refused permission became {show(outcome)}")


# -- lost answers, stalls, cuts ----------------------------------------------------------------------------------------


@case("delivery.lost-answer-is-unknown", "fault", needs=["lose_answers"], capability="confirms")
async def lost_answer_is_unknown(ctx: Context) -> None:
    """If the broker's answer is lost, the outcome is `DeliveryUnknownError`: neither success nor "not delivered"."""
    broker, topic = ctx.open(delivery_timeout=2.0), await ctx.topic()
    await broker.send_message(ctx.message(topic))
    await ctx.do(ctx.harness.lose_answers)
    try:
        with Clock() as clock:
            outcome = await outcome_of(broker.send_message(ctx.message(topic)))
    finally:
        await ctx.do(ctx.harness.resume)
    check(isinstance(outcome, DeliveryUnknownError), f"a lost answer became {show(outcome)}")
    check(clock.seconds <= 2.0 + _GRACE, f"it took {clock.seconds:.1f} s, with delivery_timeout=2")


@case(
    "delivery.lost-answer-is-not-resent", "fault", needs=["lose_answers", "reset", "read_back"], capability="confirms"
)
async def lost_answer_is_not_resent(ctx: Context) -> None:
    """If a message was written and its answer was lost with the connection, the broker has it only once."""
    broker, topic = ctx.open(delivery_timeout=8.0), await ctx.topic()
    first = ctx.message(topic)
    messages: list[Message] = [first]
    outcomes: list[object] = [await outcome_of(broker.send_message(first))]
    for _ in range(3):
        received = sum(isinstance(outcome, Receipt) for outcome in outcomes)
        await ctx.do(ctx.harness.lose_answers)
        sent = [ctx.message(topic) for _ in range(5)]
        sending = asyncio.ensure_future(broker.send_messages(sent))
        await ctx.read(topic, received + 1)  # at least the first of them is written
        await ctx.do(ctx.harness.reset)
        await ctx.do(ctx.harness.resume)
        last = ctx.message(topic)
        messages += [*sent, last]
        outcomes += [*await sending, await outcome_of(broker.send_message(last))]
        check_receipt(outcomes[-1], "after the reconnect a good message")
    await asyncio.sleep(0.2)  # what was sent again has come
    received = sum(isinstance(outcome, Receipt) for outcome in outcomes)
    check_truth(messages, outcomes, await ctx.read(topic, received))


@case("delivery.stall-ends-at-the-deadline", "fault", needs=["stall"])
async def stall_ends_at_the_deadline(ctx: Context) -> None:
    """If nothing gets through, every send ends at its deadline, and no send succeeds."""
    broker, topic = ctx.open(delivery_timeout=2.0), await ctx.topic()
    await broker.send_message(ctx.message(topic))
    await ctx.do(ctx.harness.stall)
    try:
        with Clock() as clock:
            outcomes = await asyncio.gather(*(outcome_of(broker.send_message(ctx.message(topic))) for _ in range(20)))
    finally:
        await ctx.do(ctx.harness.resume)
    check(clock.seconds <= 2.0 + _GRACE, f"the last outcome came after {clock.seconds:.1f} s, with delivery_timeout=2")
    check(not any(isinstance(o, Receipt) for o in outcomes), f"nothing got through, outcomes {tally(outcomes)}")


@case("delivery.cancel-is-not-success", "fault", needs=["stall"])
async def cancel_is_not_success(ctx: Context) -> None:
    """A send that is cancelled before the broker answers raises `CancelledError`, also with the driver itself."""
    broker = ctx.open()
    topic = await ctx.known_topic(broker)
    await ctx.do(ctx.harness.stall)
    try:
        sends = [asyncio.ensure_future(broker.send_message(ctx.message(topic)))]
        if not isinstance(broker.driver, PipelinedDriver):
            sends.append(asyncio.ensure_future(broker.driver.send_message(ctx.message(topic))))  # type: ignore[arg-type]
        await asyncio.sleep(0.2)
        for send in sends:
            send.cancel()
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
    finally:
        await ctx.do(ctx.harness.resume)
    for outcome in outcomes:
        check(isinstance(outcome, asyncio.CancelledError), f"a cancelled send got {show(outcome)}")


@case("delivery.reset-leaves-the-truth", "fault", needs=["stall", "lose_answers", "reset", "read_back"])
async def reset_leaves_the_truth(ctx: Context) -> None:
    """If the connection is reset with 500 messages in flight, each message gets an outcome, and it is true."""
    broker, harness = ctx.open(delivery_timeout=8.0), ctx.harness
    topic = await ctx.known_topic(broker)
    half = max(ctx.count(250, 150), min(harness.most_unanswered or 0, 1_000) + 10)
    messages = [ctx.message(topic) for _ in range(2 * half)]
    await ctx.do(harness.lose_answers)
    sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages[:half]]
    await asyncio.sleep(0.2)
    await ctx.do(harness.stall)
    sends += [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in messages[half:]]
    await asyncio.sleep(0.2)
    await ctx.do(harness.reset)
    await ctx.do(harness.resume)
    outcomes = await asyncio.gather(*sends)
    await asyncio.sleep(0.2)
    check_truth(messages, outcomes, await ctx.read(topic, 1 + sum(isinstance(o, Receipt) for o in outcomes)))
    strange = [o for o in outcomes if not isinstance(o, Receipt | ConnectionLostError | NotDeliveredError)]
    strange = [o for o in strange if not isinstance(o, DeliveryUnknownError)]
    check(not strange, f"unexpected outcomes: {tally(strange)}")
    await ctx.works_again(broker, await ctx.topic())  # what was lost keeps no place
    check_all_receipts(await broker.send_messages([ctx.message(topic) for _ in range(20)]))


@case("delivery.memory-is-bounded", "fault", needs=["stall"], limit=30.0)
async def memory_is_bounded(ctx: Context) -> None:
    """While the broker takes nothing, the driver keeps no more than the window, however much is sent."""
    window = 1 * _MIB
    broker = ctx.open(delivery_timeout=0.3, max_in_flight_bytes=window, max_in_flight=100)
    topic = await ctx.topic()
    await broker.connect()
    await ctx.do(ctx.harness.stall)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(12):
            bodies = [bytes([n]) * 50_000 for n in range(20)]
            sends = [outcome_of(broker.send_message(ctx.message(topic, body))) for body in bodies]
            outcomes = await asyncio.gather(*sends)
            check(not any(isinstance(o, Receipt) for o in outcomes), f"nothing got through, outcomes {tally(outcomes)}")
        del bodies, sends, outcomes
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await ctx.do(ctx.harness.resume)
    kept = (after - before) / _MIB
    check(kept < 5, f"12 MB were sent into a stalled connection, and {kept:.1f} MiB are kept; the window is 1 MiB")
