"""Cases about rules for one message that must also hold in a crowd, on a later connection, and in pieces."""

from __future__ import annotations

import asyncio
import os
import tempfile
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cqrs_brokers import Message, Receipt, TLSError, open_broker
from cqrs_brokers.url import BrokerURL
from cqrs_brokers_testkit.conformance._case import (
    Context,
    NotApplicable,
    case,
    check,
    check_all_receipts,
    check_receipt,
    check_truth,
    outcome_of,
    show,
    tally,
)
from cqrs_brokers_testkit.conformance._connecting import connect_error
from cqrs_brokers_testkit.conformance._failing import certificates, has_tls_options, with_authority
from cqrs_brokers_testkit.readers import Record

_SIZES = (0, 1, 125, 126, 127, 255, 257, 16_383, 65_535, 65_537, *(2**n for n in range(7, 18)))
"""Sizes of bodies, in bytes. Protocols write lengths in one, two or four bytes, or in groups of seven bits. Sizes of
buffers are powers of two."""
_CROWD = 60


def _crowd(ctx: Context, topic: str) -> list[Message]:
    """Makes messages that differ from one another in everything."""
    keeps, now = ctx.capabilities, datetime.now(UTC)
    messages = []
    for n in range(_CROWD):
        body = os.urandom(_SIZES[n]) if n < len(_SIZES) else f"body {n}".encode()
        fields: dict[str, Any] = {"content_type": f"application/x-{n}", "timestamp": now - timedelta(seconds=n)}
        if keeps.ordering_key and n % 4:
            fields["key"] = f"key-{n}"
        if keeps.headers and n % 3:
            fields["headers"] = {f"h{n}": f"value-{n}", "in all": str(n)}
        messages.append(ctx.message(topic, body, name=f"Event{n}", **fields))
    return messages


def _differs(message: Message, record: Record) -> list[str]:
    """Returns the parts of a message that arrived changed."""
    at = record.timestamp
    pairs = {
        "body": (record.body, message.body if message.body is not None else message.payload),
        "name": (record.name, message.message_name),
        "key": (record.key, message.key),
        "headers": (dict(record.headers), dict(message.headers)),
        "content type": (record.content_type, message.content_type),
        "time": (at is not None and abs(at - message.timestamp) < timedelta(seconds=1), True),
    }
    return [what for what, (got, sent) in pairs.items() if got != sent]


@case("messages.crowd-arrives-whole", "live", needs=["read_back"], limit=60.0)
async def crowd_arrives_whole(ctx: Context) -> None:
    """60 messages that differ in everything are sent at the same time, and each arrives with its own parts.

    The sizes of the bodies are near the limits at which a length is written in another form. The case also sends
    messages that wait for a connection.
    """
    for connected in (True, False):
        broker, topic = ctx.open(), await ctx.topic()
        if connected:
            await broker.connect()
        messages = _crowd(ctx, topic)
        check_all_receipts(await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in messages)))
        records = {record.message_id: record for record in await ctx.read(topic, len(messages))}
        for number, message in enumerate(messages):
            record = records.get(str(message.message_id))
            check(record is not None, f"message {number} of {len(messages)} got a receipt and is not in the broker")
            assert record is not None
            wrong = _differs(message, record)
            size = f" of {len(record.body)} bytes" if "body" in wrong and record.body is not None else ""
            check(not wrong, f"message {number} of {len(messages)} arrived with another {' and '.join(wrong)}{size}")


@case(
    "delivery.dead-connection-confirms-nothing-new",
    "fault",
    needs=["proxy", "read_back"],
    capability="confirms",
    limit=120.0,
    waits=True,
)
async def dead_connection_confirms_nothing_new(ctx: Context) -> None:
    """The answers of a connection that was given up confirm no message that was sent on a later connection."""
    proxy, within = ctx.proxy, ctx.harness.notices_within
    before, topic, other = set(proxy.connections), await ctx.topic(), await ctx.topic()
    broker = ctx.open(delivery_timeout=2.0)
    check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
    dead = [each for each in proxy.connections if each not in before]
    try:
        for connection in dead:
            await ctx.do(lambda connection=connection: connection.stall("down"))  # type: ignore[misc]
        early = [ctx.message(topic) for _ in range(60)]
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in early]
        outcomes: list[object] = list(await asyncio.gather(*sends))
        await ctx.works_again(broker, other, within)
        for connection in list(proxy.connections):
            if connection not in dead and connection not in before:
                await ctx.do(lambda connection=connection: connection.stall("up"))  # type: ignore[misc]
        late = [ctx.message(topic) for _ in range(60)]
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in late]
        await asyncio.sleep(0.3)
        for connection in dead:
            await ctx.do(lambda connection=connection: connection.resume())  # type: ignore[misc]
        done, _ = await asyncio.wait(sends, timeout=0.7)
        early_receipts = [each.result() for each in done if isinstance(each.result(), Receipt)]
        check(
            not early_receipts, f"nothing got through on the connection in use, and {len(early_receipts)} got receipts"
        )
        outcomes += await asyncio.gather(*sends)
    finally:
        await ctx.do(proxy.heal)
    await asyncio.sleep(0.5)
    check_truth([*early, *late], outcomes, await ctx.read(topic, 1))


@case("lifecycle.next-loop-sends-nothing-again", "fault", needs=["lose_answers", "read_back"], limit=60.0)
def next_loop_sends_nothing_again(ctx: Context) -> None:
    """If an event loop ends while answers are missing, the next loop sends nothing again, and new messages arrive."""
    topic, other, harness = ctx.new_topic(), ctx.new_topic(), ctx.harness
    options = {**harness.options, "delivery_timeout": 8.0}
    broker = open_broker(ctx.url, distribution=harness.distribution, **options)
    unheard, last = [ctx.message(topic) for _ in range(5)], ctx.message(topic)

    async def lose() -> None:
        check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
        await asyncio.to_thread(harness.lose_answers)
        sends = [asyncio.ensure_future(outcome_of(broker.send_message(message))) for message in unheard]
        await ctx.read(topic, 2)  # at least one of them is there
        await asyncio.sleep(0.3)
        for send in sends:
            send.cancel()

    async def go_on() -> object:
        async with broker:
            outcome = await outcome_of(broker.send_message(last))
            await asyncio.to_thread(harness.lose_answers)
            try:
                early = await outcome_of(broker.send_message(ctx.message(other), timeout=0.7))
            finally:
                await asyncio.to_thread(harness.resume)
            check(not isinstance(early, Receipt), f"in the next loop no answer came, and a send got {show(early)}")
            return outcome

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the first loop leaves the broker open
        try:
            asyncio.run(lose())
        finally:
            harness.resume()
        outcome = asyncio.run(go_on())
    check_receipt(outcome, "in the next event loop a good message")
    check_truth([*unheard, last], [*[None] * len(unheard), outcome], ctx.read_now(topic, 3))


@case(
    "delivery.tls-reads-new-certificates",
    "live",
    needs=["tls_destination"],
    waivable=True,
    like="delivery.tls-failure",
    limit=60.0,
    waits=True,
)
async def tls_reads_new_certificates(ctx: Context) -> None:
    """If the file of authorities is replaced, the next connection uses the new authorities, without a new broker.

    The authorities of one broker are not used for another broker.
    """
    target = await ctx.do(ctx.harness.tls_destination)
    known = BrokerURL.parse(target.url)
    right = known.query.get("ssl_cafile")
    if not has_tls_options(ctx, known.scheme) or not isinstance(right, str):
        raise NotApplicable("its config string names no file of authorities that could be replaced")
    async with certificates() as made:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "authorities.pem")

            def replace(by: Path) -> None:
                new = file.with_suffix(".new")
                new.write_bytes(by.read_bytes())
                new.replace(file)

            replace(made.other_ca)
            broker = ctx.open(with_authority(target.url, file), connect_timeout=3.0)
            error = await connect_error(broker.connect())
            check(type(error) is TLSError, f"its authority is not trusted: expected TLSError, got {show(error)}")
            replace(Path(right))
            await ctx.works_again(broker, target.topic, 15.0)
            await broker.close(1.0)
            broker = ctx.open(with_authority(target.url, made.other_ca), connect_timeout=3.0)
            error = await connect_error(broker.connect())
            check(type(error) is TLSError, f"another broker came through, this one trusts nobody: got {show(error)}")


_PIECES = 1_000
"""Bytes per second on the way down. The proxy passes on a fiftieth of that at a time, so an answer has several
pieces."""


@case("delivery.answers-may-come-in-pieces", "fault", needs=["proxy", "read_back"], capability="confirms", waits=True)
async def answers_may_come_in_pieces(ctx: Context) -> None:
    """If answers come in pieces of 20 bytes, each is still the answer to its own message, and nothing breaks."""
    broker, topic = ctx.open(delivery_timeout=20.0), await ctx.topic()
    check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
    messages = [ctx.message(topic) for _ in range(20)]
    async with ctx.healed() as proxy:
        before = proxy.accepted
        await ctx.do(lambda: proxy.throttle(_PIECES, way="down"))
        outcomes = await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in messages))
        made = proxy.accepted - before
    check(not made, f"answers came in pieces, and the connection was made anew {made} times: {tally(outcomes)}")
    check_all_receipts(outcomes)
    records = await ctx.read(topic, 1 + len(messages))
    check_truth(messages, outcomes, records)
    places = {record.message_id: (record.partition, record.offset) for record in records}
    for outcome in outcomes:
        assert isinstance(outcome, Receipt)
        partition, offset = places[str(outcome.message_id)]
        same = offset is None or outcome.offset is None or (outcome.partition, outcome.offset) == (partition, offset)
        check(same, f"the receipt says offset {outcome.offset}, and the message is at {offset}")


_AGAIN = 14.0
"""How long answers are lost, in seconds. Clients send again after 1, 2, 5 or 10 seconds."""


@case(
    "delivery.time-sends-nothing-again",
    "fault",
    needs=["proxy", "forged_answers", "read_back"],
    capability="confirms",
    limit=60.0,
    waits=True,
)
async def time_sends_nothing_again(ctx: Context) -> None:
    """If answers are lost for 14 s on living connections, no message is sent again, and none is confirmed."""
    forgeries = await ctx.once(ctx.harness.forged_answers)
    lost = [forgery.apply for forgery in forgeries.values() if forgery.meaning == "lost"]
    if not lost:
        raise NotApplicable("the harness loses no single answers")
    before, topic = set(ctx.proxy.connections), await ctx.topic()
    broker = ctx.open(delivery_timeout=_AGAIN)
    check_receipt(await outcome_of(broker.send_message(ctx.message(topic))))
    ctx.proxy.on_connection = lost[0]  # a driver may give up the connection
    try:
        for connection in [each for each in ctx.proxy.connections if each not in before]:
            await ctx.do(lambda connection=connection: lost[0](connection))  # type: ignore[misc]
        messages = [ctx.message(topic) for _ in range(5)]
        outcomes = await asyncio.gather(*(outcome_of(broker.send_message(message)) for message in messages))
    finally:
        ctx.proxy.on_connection = None
    check(not any(isinstance(each, Receipt) for each in outcomes), f"no answer came: {tally(outcomes)}")
    check_truth(messages, outcomes, await ctx.read_those_of(messages, topic, 2))
