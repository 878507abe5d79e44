"""Cases about programs and event loops: their end, with and without `close()`, the next loop, and a fork."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
import warnings

from cqrs_brokers import Receipt, WrongLoopError, open_broker
from cqrs_brokers_testkit.conformance._case import (
    Context,
    case,
    check,
    check_all_receipts,
    check_truth,
    outcome_of,
    show,
)
from cqrs_brokers_testkit.conformance._probes import FORKED, INTERRUPTED, NEVER_CLOSED, USE_AND_CLOSE, Probed, probe
from cqrs_brokers_testkit.leaks import Leak, no_leaks_sync

# -- programs ----------------------------------------------------------------------------------------------------------


@case("lifecycle.exits-without-a-word", "live")
def exits_without_a_word(ctx: Context) -> None:
    """A program that uses and closes the broker prints nothing and no warning, under `-X dev -W error`."""
    probed = probe(USE_AND_CLOSE, *arguments(ctx), flags=("-X", "dev", "-W", "error"))
    check(probed.answer == "done" and probed.code == 0, f"it ended with {probed.code}: {probed.stderr[-400:]}")
    printed = probed.stderr or probed.stdout
    check(not printed, f"it printed: {printed[-400:]}")


@case("lifecycle.run-ends-without-close", "live")
def run_ends_without_close(ctx: Context) -> None:
    """Leaving `asyncio.run` without `close()` gives one `ResourceWarning` of ours and no traceback."""
    probed = probe(NEVER_CLOSED, *arguments(ctx), flags=("-X", "dev"))
    check(probed.answer == "done" and probed.code == 0, f"it ended with {probed.code}: {probed.stderr[-400:]}")
    _check_one_warning(probed)
    check("Traceback" not in probed.stderr, f"a traceback was printed: {probed.stderr[-400:]}")


@case("lifecycle.interrupted-without-close", "live")
def interrupted_without_close(ctx: Context) -> None:
    """Ctrl-C during sends gives Python's own `KeyboardInterrupt` and one `ResourceWarning` of ours, and no more."""
    probed = probe(INTERRUPTED, *arguments(ctx), flags=("-X", "dev"))
    check(probed.code == -signal.SIGINT, f"it ended with {probed.code}: {probed.stderr[-400:]}")
    _check_one_warning(probed)
    # `asyncio.run` makes a KeyboardInterrupt of the main task's CancelledError.
    ends = re.findall(r"^Traceback \(most recent call last\):\n(?:  .*\n)+(\S*)", probed.stderr, re.MULTILINE)
    expected = ["asyncio.exceptions.CancelledError", "KeyboardInterrupt"]
    check(ends == expected, f"other tracebacks than Python's own: {probed.stderr[-400:]}")
    for noise in ("never retrieved", "never awaited", "was destroyed", "nclosed "):
        check(noise not in probed.stderr, f"{noise!r} was printed: {probed.stderr[-400:]}")


def _check_one_warning(probed: Probed) -> None:
    count = probed.stderr.count(": ResourceWarning: ")  # the line of source that follows has the word without colons
    check(count == 1, f"{count} ResourceWarnings instead of one: {probed.stderr[-400:]}")
    check("was not closed" in probed.stderr, f"the warning is not ours: {probed.stderr[-400:]}")


def arguments(ctx: Context) -> tuple[str, str, str]:
    return ctx.url, ctx.new_topic(), json.dumps(dict(ctx.harness.options))


# -- event loops -------------------------------------------------------------------------------------------------------


@case("lifecycle.works-in-the-next-loop", "live")
def works_in_the_next_loop(ctx: Context) -> None:
    """A broker whose loop was closed (a job per `asyncio.run`) works in the next loop, and leaves no socket behind."""
    topic = ctx.new_topic()
    messages = [ctx.message(topic) for _ in range(3)]

    def jobs() -> None:
        broker = open_broker(ctx.url, distribution=ctx.harness.distribution, **ctx.harness.options)
        for number, message in enumerate(messages):

            async def job(message: object = message, last: bool = number == 2) -> None:
                await broker.send_message(message)  # type: ignore[arg-type]
                if last:
                    await broker.close()

            asyncio.run(job())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with no_leaks_sync():
                jobs()
        except Leak as leak:
            check(False, str(leak))
    ours = [str(warning.message) for warning in caught if "was not closed" in str(warning.message)]
    check(len(ours) == 2, f"two connections were dropped with their loops, and there were {len(ours)} warnings")
    if ctx.harness.lacks("read_back") is None:
        check_truth(messages, [Receipt(m.message_id, topic, "") for m in messages], ctx.read_now(topic, 3))


@case("lifecycle.other-loop-is-refused", "live")
async def other_loop_is_refused(ctx: Context) -> None:
    """While the first loop runs, a send from another loop is `WrongLoopError`, and sends in the first loop succeed."""
    broker, topic = ctx.open(), await ctx.topic()
    await broker.send_message(ctx.message(topic))
    told: list[object] = []

    def other() -> None:
        told.append(asyncio.run(outcome_of(broker.send_message(ctx.message(topic)))))

    thread = threading.Thread(target=other)
    thread.start()
    await asyncio.to_thread(thread.join, 10.0)
    check(type(told[0]) is WrongLoopError, f"a send from another loop got {show(told[0])}")
    check_all_receipts([await outcome_of(broker.send_message(ctx.message(topic)))])


@case("lifecycle.forked-child-is-refused", "live")
def forked_child_is_refused(ctx: Context) -> None:
    """After a fork, a send of the child is `WrongLoopError`, and the parent works on."""
    probed = probe(FORKED, *arguments(ctx))
    check(probed.code == 0, f"the parent failed: {probed.stderr[-400:]}")
    check(probed.answer == "WrongLoopError", f"the child was told: {probed.answer}")
