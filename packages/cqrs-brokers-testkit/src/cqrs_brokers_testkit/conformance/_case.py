"""Defines cases, and everything that a case uses: the registry, the checks, and the context that opens brokers and
reads messages back.

This file is longer than 400 lines because a case imports everything from one module.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from cqrs_brokers import Broker, Capabilities, DeliveryError, Message, NotDeliveredError, Receipt, open_broker
from cqrs_brokers.driver import ContractBreach, id_text
from cqrs_brokers.hooks import load_plugin
from cqrs_brokers_testkit.conformance._harness import Harness, NotApplicable, Unsupported
from cqrs_brokers_testkit.conformance._standstill import WatchedSelector
from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import Record, TooFewRecords

Kind = Literal["static", "live", "fault"]
CaseFunction = Callable[["Context"], Awaitable[None] | None]
Outcome = Receipt | BaseException

CASES: dict[str, Case] = {}
"""Every case by its id, in the order in which the cases run."""


class CaseFailed(AssertionError):  # noqa: N818 - names what happened
    """The broker under test did not do what the case demands. The text says what happened."""


@dataclass(frozen=True)
class Case:
    """One thing that a plugin must prove.

    Attributes:
        id: The section and the name of the case, as `section.what-holds`.
        kind: "static": the case needs no server. "live": it needs a server. "fault": it breaks the server or the
            connection to the server.
        function: The check. A plain function runs its own event loops.
        needs: The methods and attributes that the harness must offer, by name.
        capability: The capability to whose profile the case belongs. None: the case belongs to `core`.
        without: The case is only for drivers that do not declare this capability.
        waivable: Whether the harness may declare the case not applicable (`Harness.not_applicable`).
        like: Another case about the same thing. If that case is waived, this case is waived too.
        limit: A case that runs for longer than this many seconds has failed.
        waits: Whether the case mostly waits, and shares nothing with other cases. Such cases run at the same time.
            Their calls of the harness must be quick, because only one case at a time may call the harness. If the case
            needs `proxy`, it gets a proxy of its own; if it cannot have one, it runs alone.
    """

    id: str
    kind: Kind
    function: CaseFunction
    needs: tuple[str, ...]
    capability: str | None
    without: str | None
    waivable: bool
    like: str | None
    limit: float
    waits: bool = False

    @property
    def title(self) -> str:
        """The statement that the case proves, as a sentence."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    @property
    def profile(self) -> str:
        """The capability to which the case belongs, or `core`."""
        return self.capability or "core"


def case(
    case_id: str,
    kind: Kind,
    *,
    needs: Sequence[str] = (),
    capability: str | None = None,
    without: str | None = None,
    waivable: bool = False,
    like: str | None = None,
    limit: float | None = None,
    waits: bool = False,
) -> Callable[[CaseFunction], CaseFunction]:
    """Registers a function as a case. `Case` describes the arguments."""

    def register(function: CaseFunction) -> CaseFunction:
        if case_id in CASES:
            raise ValueError(f"two cases are called {case_id}")
        seconds = limit if limit is not None else {"static": 20.0, "live": 30.0, "fault": 60.0}[kind]
        CASES[case_id] = Case(
            case_id, kind, function, tuple(needs), capability, without, waivable, like, seconds, waits
        )
        return function

    return register


def check(condition: object, text: str) -> None:
    """Fails the case with this text unless the condition holds."""
    if not condition:
        raise CaseFailed(text)


def show(outcome: object) -> str:
    """Describes an outcome in a few words."""
    if isinstance(outcome, Receipt):
        return "a receipt" if outcome.confirmed else "an unconfirmed receipt"
    if isinstance(outcome, BaseException):
        return f"{type(outcome).__name__}: {outcome}"[:300]
    return f"{outcome!r}"[:300]


def tally(outcomes: Iterable[object]) -> str:
    """Counts the outcomes of each kind. Adds the text of the first error of each kind."""
    first: dict[str, object] = {}
    kinds: Counter[str] = Counter()
    for outcome in outcomes:
        kind = "receipt" if isinstance(outcome, Receipt) else type(outcome).__name__
        kinds[kind] += 1
        first.setdefault(kind, outcome)
    return ", ".join(
        f"{count} {kind}" + ("" if kind == "receipt" else f" ({first[kind]})"[:300])
        for kind, count in kinds.most_common()
    )


def check_receipt(outcome: object, what: str = "a good message") -> None:
    """Demands that the outcome is a receipt. `what` names the message, for the failure's text."""
    check(isinstance(outcome, Receipt), f"{what} got {show(outcome)}")


async def outcome_of(sending: Awaitable[Receipt]) -> Receipt | DeliveryError:
    """Returns the receipt or the delivery error. Other errors are raised."""
    try:
        return await sending
    except DeliveryError as error:
        return error


async def send_from_tasks(broker: Broker, messages: Sequence[Message], tasks: int) -> list[Receipt | DeliveryError]:
    """Sends from this many tasks. Each task sends its share, one message after the other. Returns one outcome per
    message, in the order of the messages."""
    outcomes: list[Any] = [None] * len(messages)

    async def work(first: int) -> None:
        for index in range(first, len(messages), tasks):
            outcomes[index] = await outcome_of(broker.send_message(messages[index]))

    await asyncio.gather(*(work(first) for first in range(min(tasks, len(messages)))))
    return outcomes


def breach_text(breach: ContractBreach) -> str:
    """Describes a breach of the driver's contract in a few words."""
    about = "" if breach.message_id is None else f" for message {breach.message_id}"
    return f"{breach.what if '(' in breach.what else f'{breach.method}() {breach.what}'}{about}"


def check_all_receipts(outcomes: Sequence[object]) -> None:
    """Demands that every outcome is a receipt."""
    wrong = [outcome for outcome in outcomes if not isinstance(outcome, Receipt)]
    check(not wrong, f"{len(outcomes)} good messages were sent and got {tally(outcomes)}")


def check_truth(messages: Sequence[Message], outcomes: Sequence[object], records: Sequence[Record]) -> None:
    """Demands that messages with a receipt are in the broker, that messages that were "not delivered" are not, and that
    no message is there twice. Each message must be as it was sent, and at the place that its receipt names."""
    seen = Counter(record.message_id for record in records)
    twice = [message_id for message_id, times in seen.items() if times > 1]
    check(not twice, f"{len(twice)} of {len(messages)} messages are in the broker more than once ({twice[:3]})")
    pairs = [(str(message.message_id), outcome) for message, outcome in zip(messages, outcomes, strict=True)]
    lost = [key for key, outcome in pairs if isinstance(outcome, Receipt) and not seen[key]]
    check(not lost, f"{len(lost)} messages got a receipt and are not in the broker ({lost[:3]})")
    lied = {key: outcome for key, outcome in pairs if isinstance(outcome, NotDeliveredError) and seen[key]}
    check(
        not lied,
        f"{len(lied)} messages were reported as not delivered and are in the broker ({list(lied)[:3]}): "
        f"{tally(lied.values())}",
    )
    there = {record.message_id: record for record in records}
    for message, outcome in zip(messages, outcomes, strict=True):
        record = there.get(str(message.message_id))
        if record is not None:
            _check_whole(message, record)
            if isinstance(outcome, Receipt):
                _check_place(outcome, record)


def _check_whole(message: Message, record: Record) -> None:
    headers = {name: record.headers.get(name) for name in message.headers}
    pairs = {
        "body": (record.body or b"", message.body or b""),
        "name": (record.name, message.message_name),
        "key": (record.key if message.key is not None else None, message.key),
        "headers": (headers, dict(message.headers)),
    }
    wrong = [what for what, (got, sent) in pairs.items() if got != sent]
    check(not wrong, f"message {message.message_id} is in the broker with another {' and '.join(wrong)}")


def _check_place(receipt: Receipt, record: Record) -> None:
    said, found = (receipt.partition, receipt.offset), (record.partition, record.offset)
    same = all(a == b for a, b in zip(said, found, strict=True) if a is not None and b is not None)
    check(same, f"a receipt says partition and offset {said}, and its message is at {found}")


def check_order(messages: Sequence[Message], outcomes: Sequence[object], records: Sequence[Record]) -> None:
    """Demands that, for each key, the messages with a receipt are in the broker in the order of the calls."""
    place = {str(message.message_id): number for number, message in enumerate(messages)}
    confirmed = {
        str(message.message_id) for message, o in zip(messages, outcomes, strict=True) if isinstance(o, Receipt)
    }
    by_key: dict[str | None, list[int]] = defaultdict(list)
    for record in records:
        if record.message_id in confirmed:
            by_key[record.key].append(place[record.message_id])
    wrong = [key for key, places in by_key.items() if places != sorted(places)]
    check(not wrong, f"{len(wrong)} of {len(by_key)} keys are out of order in the broker")
    check(None not in by_key, "messages with a key arrived without one")


class _TimedOut(Exception):  # noqa: N818 - names what happened
    """Stands for a `TimeoutError` of the harness, which is its cause."""


def _kept(action: Callable[[], Any]) -> Any:
    """Runs the action and wraps its `TimeoutError`. asyncio would replace such an error by one without traceback."""
    try:
        return action()
    except TimeoutError as error:
        raise _TimedOut(str(error)) from error


_HANGS_UP_WITHIN = 0.2
"""If a broker ends the connection after a refusal, it does so within this many seconds."""
_NO_REFUSALS = (TypeError, AttributeError, NameError, LookupError, AssertionError, _TimedOut)
"""Errors that never mean that a broker refuses a topic's name."""


@dataclass
class Context:
    """The objects and methods with which a case works.

    Attributes:
        harness: The harness of the plugin's author.
        url: The config string.
        capabilities: The capabilities that the driver declares.
        answers: Results of the methods of the harness that are called only once in a run, by name.
        breaches: The breaches of the driver contract in this case. A case with a breach has failed.
        made: The ids of all messages that cases of this run have made.
        step: The method of the harness that runs now or ran last.
        turns: The object that watches the turns of the case's event loop. None: the case is a plain function.
        lock: The lock that a case holds while it calls a method of the harness. A harness need not be thread-safe,
            although several cases run at the same time.
        own_proxy: The proxy of a case that runs beside others. None: the case uses the harness' proxy.
    """

    harness: Harness
    url: str
    capabilities: Capabilities
    answers: dict[str, Any] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)
    made: set[bytes] = field(default_factory=set)
    step: str = ""
    turns: WatchedSelector | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    own_proxy: FaultProxy | None = None
    _brokers: list[Broker] = field(default_factory=list)

    def watched_loop(self) -> asyncio.AbstractEventLoop:
        """Makes an event loop whose turns are watched."""
        self.turns = WatchedSelector()
        return asyncio.SelectorEventLoop(self.turns)

    def count(self, full: int, least: int = 20) -> int:
        """Returns how many messages to send: `full` at the harness' scale 1, fewer at a smaller scale."""
        return max(min(full, least), int(full * self.harness.scale))

    def open(self, url: str | None = None, /, **options: Any) -> Broker:
        """Opens a broker. The broker is closed when the case ends."""
        broker = open_broker(
            url or self.url, distribution=self.harness.distribution, **{**self.harness.options, **options}
        )
        self._brokers.append(broker)
        return broker

    def open_unowned(self, url: str | None = None, /, **options: Any) -> Broker:
        """Opens a broker that the case itself closes, inside a block that demands that nothing is left."""
        broker = self.open(url, **options)
        self._brokers.remove(broker)
        return broker

    def new_topic(self) -> str:
        """Creates a topic that nobody else uses, and returns its name."""
        topic = self.harness.new_topic_name()
        self.harness.create_topic(topic)
        return topic

    async def topic(self) -> str:
        """Does the same as `new_topic`, without blocking the loop."""
        return str(await self.do(self.new_topic))

    async def known_topic(self, broker: Broker) -> str:
        """Creates a topic, and sends one message to it. A driver that has to ask about a topic has then done so, and a
        fault that follows hits messages, not such a question."""
        topic = await self.topic()
        await self.works_again(broker, topic)
        return topic

    def message(self, topic: str, payload: object = None, *, name: str = "ConformanceEvent", **fields: Any) -> Message:
        """Makes a message for that topic."""
        message = Message(name, topic, {"n": uuid.uuid4().hex} if payload is None else payload, **fields)
        self.made.add(id_text(message))
        return message

    def one_of_many(self, topic: str, number: int, large: int) -> Message:
        """Makes one of many messages: every second one has a key, every fifth has headers, every fourth is large."""
        key = f"key-{number % 7}" if number % 2 and self.capabilities.ordering_key else None
        headers = {"n": str(number)} if number % 5 == 0 and self.capabilities.headers else {}
        return self.message(topic, bytes(large) if number % 4 == 0 else b"%d" % number, key=key, headers=headers)

    def read_now(self, topic: str, count: int) -> list[Record]:
        """Waits for `count` messages, and returns everything in the topic, even if fewer messages come. A message that
        no case has made is a breach."""
        try:
            with self.lock:
                records = list(self.harness.read_back(topic, count))
        except TooFewRecords as error:
            records = error.records
        strange = {record.message_id for record in records if record.message_id is not None}
        strange = {each for each in strange if each.lower().encode() not in self.made}
        if strange:
            self.made.update(each.lower().encode() for each in strange)  # it is told once
            self.breaches.append(f"{len(strange)} messages that nobody sent are in the broker, such as {min(strange)}")
        return records

    async def read(self, topic: str, count: int) -> list[Record]:
        """Does the same as `read_now`, without blocking the loop."""
        return await asyncio.to_thread(_kept, lambda: self.read_now(topic, count))

    async def read_those_of(self, messages: Iterable[Message], topic: str, count: int) -> list[Record]:
        """Does the same as `read`, but returns only the records of these messages."""
        sent = {str(message.message_id) for message in messages}
        return [record for record in await self.read(topic, count) if record.message_id in sent]

    async def read_one(self, topic: str) -> Record:
        """Returns the only message of a topic. The case fails if there is not exactly one."""
        records = await self.read(topic, 1)
        check(len(records) == 1, f"one message was sent and {len(records)} are in the broker")
        return records[0]

    def read_held(self, topic: str) -> list[Record]:
        """Returns the messages in a topic now. Meanwhile the event loop is blocked, so nothing can reach the driver.

        The harness reads in another thread. There the harness may use asyncio.
        """
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.read_now, topic, 0).result()

    async def once(self, action: Callable[[], Any]) -> Any:
        """Returns the result of a method of the harness. The method is called only once in a run, because it may make
        users and servers."""

        @functools.wraps(action)
        def answer() -> Any:
            if action.__name__ not in self.answers:
                self.answers[action.__name__] = action()
            return self.answers[action.__name__]

        return await self.do(answer)

    async def try_to_create(self, topic: str) -> bool:
        """Creates a topic with an odd name. Returns False if the broker or the harness cannot.

        Errors of another kind than a refusal are faults of the harness.
        """
        try:
            await asyncio.to_thread(_kept, lambda: self.harness.create_topic(topic))
        except _NO_REFUSALS:
            raise
        except Exception:
            return False
        return True

    @property
    def proxy(self) -> FaultProxy:
        """The fault proxy between driver and broker, for cases whose `needs` name it."""
        proxy = self.own_proxy or self.harness.proxy
        assert proxy is not None  # the runner has looked
        return proxy

    @contextlib.asynccontextmanager
    async def spared_by_the_broker(self) -> AsyncIterator[None]:
        """Makes a failed check not applicable if the broker hung up after it refused a message.

        Such a broker does not answer the other messages on the connection. The proxy delays the broker's answers a
        little. Without the delay, a driver that ends the connection on a refusal could end it before the broker does,
        and the proxy would not see that the broker hangs up.
        """
        proxy = self.harness.proxy
        if proxy is None:
            yield
            return
        before = proxy.hung_up
        await self.do(lambda: proxy.delay(_HANGS_UP_WITHIN, way="down"))
        try:
            yield
        except CaseFailed as failed:
            if proxy.hung_up > before:
                raise NotApplicable(f"the broker hangs up when it refuses a message ({failed})") from failed
            raise
        finally:
            await self.do(lambda: proxy.delay(0.0, way="down"))

    @contextlib.asynccontextmanager
    async def healed(self) -> AsyncIterator[FaultProxy]:
        """Yields the proxy. At the end of the block, heals the proxy and ends its connections."""
        try:
            yield self.proxy
        finally:
            await self.do(self.proxy.heal)
            await self.do(self.proxy.reset)

    async def wait_for(self, holds: Callable[[], Awaitable[bool]], within: float, otherwise: str) -> None:
        """Fails the case with this text if the condition does not hold within this many seconds."""
        give_up = time.monotonic() + within
        while not await holds():
            check(time.monotonic() < give_up, otherwise)
            await asyncio.sleep(0.05)

    async def works_again(self, broker: Broker, topic: str, within: float = 8.0) -> None:
        """Demands that sends succeed again within this many seconds.

        After a permanent error `Broker` tries again only after 5 s.
        """
        give_up = time.monotonic() + within
        outcome: object = None
        while time.monotonic() < give_up:
            outcome = await outcome_of(broker.send_message(self.message(topic)))
            if isinstance(outcome, Receipt):
                return
            await asyncio.sleep(0.3)
        check(False, f"{within:g} s after the fault a good message still got {show(outcome)}")

    async def do(self, action: Callable[[], Any]) -> Any:
        """Runs a blocking method of the harness."""

        def locked() -> Any:
            with self.lock:
                self.step = getattr(action, "__name__", "")
                return action()

        return await asyncio.to_thread(_kept, locked)

    @contextlib.asynccontextmanager
    async def entered(self, method: Callable[[], contextlib.AbstractContextManager[None]]) -> AsyncIterator[None]:
        """Enters and leaves a context manager of the harness, in other threads than the loop's."""
        context = await asyncio.to_thread(method)
        await asyncio.to_thread(context.__enter__)
        try:
            yield
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)

    async def clean_up(self) -> None:
        """Closes the brokers that the case left open, and collects their breaches."""
        for broker in self._brokers:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(broker.close(1.0), 4.0)
            self.breaches += map(breach_text, broker.contract_breaches)
        self._brokers.clear()


def takes_credentials(ctx: Context) -> bool:
    """Whether `Harness.url_with_credentials` makes a config string that the plugin accepts."""
    if type(ctx.harness).url_with_credentials is not Harness.url_with_credentials:
        return True
    scheme = ctx.url.partition("://")[0]
    return "userinfo" in load_plugin(scheme, ctx.harness.distribution).options_type().url_parts


class Clock:
    """Measures a block: `with Clock() as clock: ...; clock.seconds`."""

    seconds = 0.0

    def __enter__(self) -> Clock:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


__all__ = [
    "CASES",
    "Case",
    "CaseFailed",
    "Clock",
    "Context",
    "NotApplicable",
    "Unsupported",
    "case",
    "check",
    "check_all_receipts",
    "check_order",
    "check_receipt",
    "check_truth",
    "outcome_of",
    "send_from_tasks",
    "show",
    "takes_credentials",
    "tally",
]
