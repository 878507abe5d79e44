"""One soak: publishers and faults side by side, then the broker's log against the ledger."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Protocol

from confluent_kafka import KafkaException
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError

from cqrs_brokers import Broker, open_broker
from cqrs_brokers_testkit.servers import ServerFailed

from .ledger import NOT_DELIVERED, UNKNOWN, Ledger
from .publishers import HOWS, Publisher
from .report import Outage, Report
from .schedule import Fault, Plan
from .verdict import Found, judge

__all__ = ["PIKA_ERRORS", "Progress", "Side", "soak"]

Progress = Callable[[str], None]

PIKA_ERRORS = (AMQPError, AMQPConnectorException, OSError)
"""What pika raises of a server that does not do. A handshake longer than `stack_timeout` is no `AMQPError`."""
PUBLISHERS = 32
APART = 8
"""Further publishers, for the topics whose destinations are broken apart from the others."""
DEADLINES = {"patient": 30.0, "hasty": 2.0}
"""The brokers and their delivery_timeout: one waits faults out, the other reports them."""
HASTY_SHARE = 4
"""Every so many groups of publishers, one uses the hasty broker."""
QUIET = 2.0
"""Seconds without a fault after each."""
STUCK = 90.0
"""Without any receipt for so long the run is given up."""


class Side(Protocol):
    """What differs between brokers: servers, faults, reader. All methods but `inflict` block.

    Attributes:
        version: Of the server.
        topics: Where most publishers send to.
        stuck: A topic whose destination takes nothing at times, while all others do.
        remade: A topic whose destination is deleted and made anew.
        remade_at: When: from its last reading until it was there again, in seconds (monotonic).
        logs_of_topic: In which logs a message of a topic must be.
        percentile: At which percentile recovery is held against its goal.
    """

    version: str
    topics: Sequence[str]
    stuck: str
    remade: str
    remade_at: list[tuple[float, float]]
    logs_of_topic: Mapping[str, Sequence[str]]
    percentile: float

    def url(self) -> str:
        """The config string, through the fault proxies."""

    async def inflict(self, fault: Fault) -> Outage:
        """Does what the fault says and waits until the servers are whole again."""

    def read(self) -> dict[str, list[Found]]:
        """What is in the broker's logs, read by a client that is not ours."""


class _Run:
    def __init__(self, side: Side, plan: Plan, progress: Progress) -> None:
        self.side, self.plan, self.progress = side, plan, progress
        self.ledger = Ledger(apart=(side.stuck, side.remade))
        self.outages: list[Outage] = []
        self.troubles: list[str] = []
        self.lag = 0.0
        self.now = "no fault yet"
        self.started = time.monotonic()

    def say(self, what: str) -> None:
        """One line of progress."""
        ledger = self.ledger
        counts = ledger.counts
        self.progress(
            f"{time.monotonic() - self.started:6.1f} s  {ledger.receipts:6} receipts, {counts[NOT_DELIVERED]} not "
            f"delivered, {counts[UNKNOWN]} unknown, {ledger.pending} under way | {what}"
        )

    async def publish(self) -> None:
        """Starts everything and ends when there were enough receipts and all faults."""
        stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            brokers = {
                label: await stack.enter_async_context(open_broker(self.side.url(), delivery_timeout=deadline))
                for label, deadline in DEADLINES.items()
            }
            publishers = [
                asyncio.create_task(self._publisher(number, brokers).run(stop)) for number in range(PUBLISHERS + APART)
            ]
            async with _background(self._watch_lag()), _background(self._report_progress()):
                try:
                    async with asyncio.timeout(self.plan.limit):
                        await self._inflict_all()
                        while self.ledger.receipts < self.plan.receipts:
                            await self._pause(0.1)
                except TimeoutError:
                    self.troubles.append(f"not done after {self.plan.limit:g} s ({self.now})")
                except (ServerFailed, *PIKA_ERRORS, KafkaException) as error:
                    # What was published until then is judged all the same.
                    self.troubles.append(f"the run could not go on: {error!r} ({self.now})")
                except _Stuck as error:
                    health = {label: (await broker.health()).reason for label, broker in brokers.items()}
                    self.troubles.append(f"{error} ({self.now}); health: {health}")
                stop.set()
                _, hanging = await asyncio.wait(publishers, timeout=max(DEADLINES.values()) + 5)
            for task in hanging:
                task.cancel()
            if hanging:
                self.troubles.append(f"{len(hanging)} publishers and {self.ledger.pending} calls hang")
                await asyncio.wait(hanging, timeout=5)
            for task in publishers:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    self.troubles.append(f"a publisher raised {task.exception()!r}")
            closing = time.monotonic()
        if time.monotonic() - closing > 5:
            self.troubles.append(f"close() took {time.monotonic() - closing:.1f} s with nothing in flight")

    def _publisher(self, number: int, brokers: Mapping[str, Broker]) -> Publisher:
        label = "hasty" if number // len(HOWS) % HASTY_SHARE == 0 else "patient"
        return Publisher(
            number,
            seed=self.plan.seed,
            broker=brokers[label],
            label=label,
            deadline=DEADLINES[label],
            topics=self.side.topics if number < PUBLISHERS else ((self.side.stuck, self.side.remade)[number // 2 % 2],),
            rate=self.plan.rate / PUBLISHERS,
            ledger=self.ledger,
        )

    async def _inflict_all(self) -> None:
        for fault in self.plan.faults:
            self.now = "before the next fault"
            while self.ledger.receipts < fault.at:
                await self._pause(0.05)
            self.now = f"fault {fault}"
            self.say(self.now)
            outage = await self.side.inflict(fault)
            self.outages.append(outage)
            self.say(f"fault {fault.number} is over after {outage.ended - outage.began:.1f} s{_away(outage)}")
            self.now = "after a fault"
            await self._pause(QUIET)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        latest = max((times[-1] for times in self.ledger.receipt_times.values()), default=self.started)
        if time.monotonic() - latest > STUCK:
            raise _Stuck(f"no receipt for {STUCK:g} s")

    async def _watch_lag(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.05)
            self.lag = max(self.lag, time.monotonic() - before - 0.05)

    async def _report_progress(self) -> None:
        while True:
            await asyncio.sleep(10)
            self.say(self.now)


class _Errors(logging.Handler):
    """Errors in the log, of ours or of the event loop: a broken contract, an exception that nobody saw."""

    LOGGERS = ("asyncio", "cqrs_brokers", "cqrs_broker_amqp", "cqrs_broker_kafka")

    def __init__(self, troubles: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._troubles = troubles

    def emit(self, record: logging.LogRecord) -> None:
        """Notes the record."""
        self._troubles.append(f"logged by {record.name}: {self.format(record)}")

    def __enter__(self) -> "_Errors":
        for name in self.LOGGERS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeHandler(self)


class _Stuck(Exception):  # noqa: N818 - names what happened
    """No receipt for long."""


def _away(outage: Outage) -> str:
    """When the broker was away, counted from the fault."""
    periods = [
        f"{'' if partition is None else f'{partition}: '}{start - outage.began:.1f}-{end - outage.began:.1f}"
        for partition, found in outage.away.items()
        for start, end in found
    ]
    return f", away {', '.join(periods)}" if periods else ""


@contextlib.asynccontextmanager
async def _background(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def soak(side: Side, plan: Plan, progress: Progress) -> Report:
    """Runs a soak against servers that run already.

    Args:
        side: The broker's side.
        plan: The schedule.
        progress: Called with each line of progress.

    Returns:
        The report; `missed()` says whether the goals are met.
    """
    progress(f"seed {plan.seed}: {plan.receipts} receipts, {len(plan.faults)} faults, {plan.rate:g} messages/s")
    for fault in plan.faults:
        progress(f"  {fault}")
    run = _Run(side, plan, progress)
    with _Errors(run.troubles):
        await run.publish()
    seconds = time.monotonic() - run.started
    progress(f"{seconds:6.1f} s  published; reading back what is there ...")
    logs = await asyncio.to_thread(side.read)
    in_logs = sum(map(len, logs.values()))
    progress(f"{time.monotonic() - run.started:6.1f} s  read {in_logs} messages for {run.ledger.receipts} receipts")
    report = Report(
        broker=side.version,
        plan=plan,
        ledger=run.ledger,
        verdict=judge(run.ledger, logs, side.logs_of_topic, {side.remade: side.remade_at}),
        outages=run.outages,
        seconds=seconds,
        lag=run.lag,
        percentile=side.percentile,
        troubles=run.troubles,
    )
    progress("slowest recoveries:")
    for line in report.slowest():
        progress(f"  {line}")
    return report
