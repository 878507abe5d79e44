"""Broken variations of `mutant_broker.Sound`: order, who is hit, what is left behind, what is told, and when."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from cqrs_brokers import Receipt
from cqrs_brokers.driver import Capabilities, Delivery, Driver, Message
from cqrs_brokers.exceptions import (
    DeliveryUnknownError,
    MessageTooLargeError,
    NotDeliveredError,
)
from cqrs_brokers.options import BrokerOptions
from cqrs_brokers.url import BrokerURL
from tests.conformance.mutant_broker import (
    Entry,
    Kept,
    MutantOptions,
    Session,
    Sound,
    log,
    mutant,
    server,
)

# ordering


@mutant("ordering.many-tasks-lose-nothing", "lifecycle.close-flushes", "ordering.bad-ones-fail-alone")
class Duplicates(Sound):
    """Sends every fiftieth message twice."""

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        if self._session is not None and self._token % 50 == 49:
            self._session.publish(entry[1], lambda _: None)


@mutant("ordering.many-tasks-lose-nothing", "lifecycle.close-flushes", "ordering.bad-ones-fail-alone")
class LosesSome(Sound):
    """Confirms every fiftieth message without sending it."""

    def hand_over(self, entry: Entry) -> None:
        self._count = getattr(self, "_count", 0) + 1
        if self._count % 50 == 49 and entry[0].handed_over():
            entry[0].confirm()
        else:
            super().hand_over(entry)


@mutant("ordering.keys-keep-their-order", "ordering.batch-keeps-its-order")
class SwapsTwo(Sound):
    """Swaps the messages at the ends of what waits."""

    def flush(self) -> None:
        if len(self._outbox) > 20:
            self._outbox[0], self._outbox[-1] = self._outbox[-1], self._outbox[0]
        super().flush()


@mutant("ordering.keys-keep-their-order", "ordering.batch-keeps-its-order")
class SwapsAtTheFullWindow(Sound):
    """Lets the next message go first when there is room for one only."""

    held: Entry | None = None

    def hand_over(self, entry: Entry) -> None:
        if self.held is None and self._outbox and len(self._in_flight) == self.CREDIT - 1:
            self.held = entry
            return
        super().hand_over(entry)
        held, self.held = self.held, None
        if held is not None:
            super().hand_over(held)


@mutant("ordering.order-survives-a-reset")
class ReversesAfterReconnect(Sound):
    """Sends what had waited in the wrong order after a reconnect."""

    def lost(self) -> None:
        self._outbox.reverse()
        super().lost()


@mutant("ordering.first-sends-share-a-connection")
class ConnectsPerSender(Sound):
    """Makes a connection of its own for each message that finds none ready."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for _ in range(len(deliveries) if not self._in_flight else 0):
            Session(self._server, lambda: None, lambda _: None)
        super().submit(deliveries)


@mutant("ordering.cancel-hits-one-caller", "ordering.failing-sibling-hits-nobody-else")
class CancelHitsAll(Sound):
    """Takes one message that nobody waits for any more as the end of all that are in flight."""

    def hand_over(self, entry: Entry) -> None:
        if entry[0].done:
            self._end_all()
        super().hand_over(entry)

    def answered(self, token: int, verdict: str) -> None:
        if token in self._in_flight and self._in_flight[token][0].done:
            self._end_all()
        super().answered(token, verdict)

    def _end_all(self) -> None:
        for token in list(self._in_flight):
            self._in_flight.pop(token)[0].fail(DeliveryUnknownError("cancelled"))


# lifecycle


@mutant("lifecycle.two-brokers-side-by-side")
class SharedState(Sound):
    """Shares its connection among all brokers of the process."""

    shared: ClassVar[list[Session]] = []

    async def connect(self) -> None:
        if self.shared and self.shared[0].loop is asyncio.get_running_loop():
            self._session = self.shared[0]
            return
        await super().connect()
        if self._session is not None:
            self.shared[:] = [self._session]


@mutant("lifecycle.reconnects-after-a-reset", "faults.down-for-a-while")
class NeverReconnects(Sound):
    """Does not tell that its connection was lost, nor answer what was in flight."""

    def lost(self) -> None:
        return


@mutant("lifecycle.no-wire-opens-no-socket", "lifecycle.nothing-is-left-behind")
class LeaksSocket(Sound):
    """Opens a socket with each connection and never closes it."""

    left: ClassVar[list[socket.socket]] = []

    async def connect(self) -> None:
        self.left.extend(socket.socketpair())
        await super().connect()


@mutant("lifecycle.nothing-is-left-behind")
class LeaksTask(Sound):
    """Starts a task with each connection and never ends it."""

    async def connect(self) -> None:
        self._task = asyncio.create_task(asyncio.sleep(3600), name="left behind")
        await super().connect()


@mutant("lifecycle.nothing-is-left-behind")
class LeaksThread(Sound):
    """Starts a thread with each connection and never ends it."""

    async def connect(self) -> None:
        threading.Thread(target=time.sleep, args=(20,), daemon=True, name="left behind").start()
        await super().connect()


@mutant("lifecycle.close-while-down", "faults.close-after-a-reset", "faults.close-while-stalled")
class BlocksInClose(Sound):
    """Stops the event loop in `close()` until something happens that never does."""

    async def close(self, grace: float) -> None:
        time.sleep(4)
        await super().close(grace)


@mutant("lifecycle.close-is-idempotent")
class HangsOnClose(Sound):
    """Waits in `close()` for something that never comes."""

    async def close(self, grace: float) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        await asyncio.sleep(30)


@mutant("lifecycle.pending-at-close-is-no-success")
class SendsAfterClose(Sound):
    """Sends what is left over when it is closed, although its callers are told that it is not delivered."""

    async def close(self, grace: float) -> None:
        session, self._session = self._session, None
        if session is not None:
            for _, record in self._outbox:
                session.publish(record, lambda _: None)
        await super().close(grace)


@mutant("delivery.cancel-is-not-success")
class SuccessOnCancel(Driver):
    """Catches the cancellation of its send and returns a receipt."""

    options: ClassVar[type[BrokerOptions]] = MutantOptions

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        self._server = server(url.hosts[0].host if url.hosts else "default")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(confirms=True, headers=True)

    async def send_message(self, message: Message) -> Receipt:
        try:
            while self._server.stalled:
                await asyncio.sleep(0.02)
            self._server.keep(Sound.render(self, message))  # type: ignore[arg-type]
        except asyncio.CancelledError:
            pass
        return Receipt(message.message_id, message.topic, "mutant", confirmed=True)


@mutant("lifecycle.exits-without-a-word")
class WarnsOnUse(Sound):
    """Uses something that is deprecated."""

    async def connect(self) -> None:
        warnings.warn("this is deprecated", DeprecationWarning, stacklevel=2)
        await super().connect()


@mutant("lifecycle.run-ends-without-close", "lifecycle.interrupted-without-close")
class LoudAbort(Sound):
    """Adds a warning of its own when its loop ends without `close()`."""

    def abort(self) -> None:
        super().abort()
        warnings.warn("unclosed connection", ResourceWarning, stacklevel=2)


@mutant("lifecycle.works-in-the-next-loop")
class KeepsItsFirstLoop(Sound):
    """Remembers the first event loop for ever."""

    loop: asyncio.AbstractEventLoop | None = None

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.loop = self.loop or asyncio.get_running_loop()
        self._outbox.extend((delivery, self.render(delivery.message)) for delivery in deliveries)
        self.loop.call_soon(self.flush)


@mutant("lifecycle.health-when-healthy")
class HealthRaises(Sound):
    """Raises its client's exception in `ping()`."""

    async def ping(self) -> None:
        raise ValueError("not supported")


@mutant("lifecycle.health-when-stalled")
class HealthGuesses(Sound):
    """Takes a connection for alive because it was once made."""

    async def ping(self) -> None:
        return


@mutant("lifecycle.logger-levels-stay")
class SetsLoggerLevel(Sound):
    """Makes a logger louder when it connects."""

    async def connect(self) -> None:
        logging.getLogger("asyncio").setLevel(logging.DEBUG)
        await super().connect()


@mutant("lifecycle.nothing-confidential-is-logged")
class LogsPassword(Sound):
    """Logs the address that it connects to, with the password."""

    async def connect(self) -> None:
        log.debug("connecting to %s", self._url.render(reveal=True))
        await super().connect()


@mutant("lifecycle.nothing-confidential-is-logged")
class LogsTheLoginInHexadecimal(Sound):
    """Logs the bytes of its login, in hexadecimal."""

    def check_credentials(self) -> None:
        password = self._url.password.reveal() if self._url.password else ""
        log.debug("> %s", f"LOGIN\0{self._url.username}\0{password}".encode().hex(" "))
        super().check_credentials()


@mutant("lifecycle.nothing-confidential-is-logged")
class LogsBody(Sound):
    """Logs what it sends."""

    def render(self, message: Message) -> Kept:
        log.debug("sending %r", message.body)
        return super().render(message)


@mutant("lifecycle.nothing-confidential-is-logged")
class LogsInBase64(Sound):
    """Logs what it writes, in base64."""

    def hand_over(self, entry: Entry) -> None:
        log.debug("> %s", base64.b64encode(f"{entry[1]}".encode()).decode())
        super().hand_over(entry)


@mutant("lifecycle.nothing-confidential-is-told-of-what-is-large")
class NamesTheLongKey(Sound):
    """Refuses keys of more than 4 KiB, with the key in the error."""

    def hand_over(self, entry: Entry) -> None:
        delivery, record = entry
        if len(record.key or "") > 4096:
            delivery.fail(MessageTooLargeError(f"the key {record.key} is too long"))
        else:
            super().hand_over(entry)


@mutant("lifecycle.cancelled-task-may-clean-up")
class RefusesTheCancelled(Sound):
    """Fails every send while the task that was cancelled is the running one."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            for delivery in deliveries:
                delivery.fail(NotDeliveredError("cancelled"))
        else:
            super().submit(deliveries)


# faults and the contract


@mutant("faults.wall-clock-jumps")
class TrustsTheWallClock(Sound):
    """Measures by the wall clock for how long it has heard nothing, and takes a long silence for a lost connection."""

    def __init__(self, url: BrokerURL, options: BrokerOptions) -> None:
        super().__init__(url, options)
        self._heard = 0.0

    async def connect(self) -> None:
        await super().connect()
        self._heard = time.time()

    def answered(self, token: int, verdict: str) -> None:
        self._heard = time.time()
        super().answered(token, verdict)

    def hand_over(self, entry: Entry) -> None:
        super().hand_over(entry)
        asyncio.get_running_loop().call_later(1.0, self.look)

    def look(self) -> None:
        if self._in_flight and abs(time.time() - self._heard) > 600 and self._session is not None:
            self._session.cut()


@mutant("faults.restart-at-a-third", "faults.restart-at-half")
class NotDurable(Sound):
    """Declares durable and sends messages that the broker keeps only in memory."""

    def render(self, message: Message) -> Kept:
        return replace(super().render(message), persistent=False)


@mutant("contract.kept-in-every-case")
class ConfirmsTwice(Sound):
    """Confirms every message twice."""

    def settle(self, delivery: Delivery, verdict: str) -> None:
        super().settle(delivery, verdict)
        super().settle(delivery, verdict)
