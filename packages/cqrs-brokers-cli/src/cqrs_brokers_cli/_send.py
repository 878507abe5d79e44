"""`send`: sends one message, or a message for each line of NDJSON, and reports the outcome of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cqrs_brokers import Broker, Message

from ._lines import Line, Lines
from ._output import say
from ._report import Report

__all__ = ["Input", "send_body", "send_lines"]

AT_A_TIME = 250
"""How many messages one `send_messages` has."""
MOST = 4
"""How many calls of `send_messages` run at a time. Together they fill the window."""


@dataclass(frozen=True)
class Input:
    """How a message is made.

    Attributes:
        topic: Where it goes.
        name: Its message name.
        key: Its key.
        key_field: A field of the body whose value is the key, instead of `key`.
        id_field: A field of the body whose value is the message id, a UUID. None: each message gets a new id.
        headers: Its headers.
        content_type: The content type. None: that of JSON, or of text for a body that is not JSON.
    """

    topic: str
    name: str
    key: str | None
    key_field: str | None
    id_field: str | None
    headers: Mapping[str, str]
    content_type: str | None

    def message(self, body: bytes, *, lines: bool) -> Message:
        """The message with that body.

        Args:
            body: The body as it will be sent.
            lines: Whether the body is a line of NDJSON. Then it must be JSON.

        Raises:
            ValueError: The body is not UTF-8, or a line is not JSON, or a field is missing or wrong, or the body nests
                too deeply. The error does not quote the body.
        """
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8") from None
        try:  # given as text: of bytes, Python would take UTF-16 and a byte order mark for JSON too
            content: Any = json.loads(text, parse_constant=_refuse_constant)
            content_type = "application/json"
        except RecursionError:
            raise ValueError("it nests too deeply to be read as JSON") from None
        except ValueError:
            if lines:
                raise ValueError("it is not JSON") from None
            content, content_type = None, "text/plain; charset=utf-8"
        key, message_id = self.key, None
        if self.key_field is not None:
            key = _field(content, self.key_field)
        if self.id_field is not None:
            try:
                message_id = UUID(_field(content, self.id_field))
            except ValueError:
                raise ValueError(f"its field {self.id_field!r} is not a UUID") from None
        return Message(
            message_name=self.name,
            topic=self.topic,
            payload=body,
            message_id=message_id,
            key=key,
            headers=self.headers,
            content_type=self.content_type or content_type,
        )


def _refuse_constant(name: str) -> NoReturn:
    """Python reads NaN and the infinities. JSON has no such numbers, and other readers fail."""
    raise ValueError(name)


def _field(content: Any, name: str) -> str:
    value = content.get(name) if isinstance(content, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"it has no field {name!r} with a text or a whole number")  # noqa: TRY004 - about the input
    return str(value)


async def send_body(broker: Broker, made: Input, body: bytes) -> Report:
    """Sends one message. Ctrl-C waits for its outcome. A second Ctrl-C ends at once.

    Raises:
        ConnectError: The broker cannot be connected to.
        ValueError: No message can be made of the body: see `Input.message`.
    """
    message = made.message(body, lines=False)
    async with _sending(broker, made) as sending:
        await sending.one(message)
    return sending.report


async def send_lines(broker: Broker, made: Input, descriptor: int, *, progress: bool) -> Report:
    """Sends a message for each line. Ctrl-C ends the reading and waits for the messages that are under way. A second
    Ctrl-C ends at once.

    Args:
        broker: The broker to send to.
        made: Makes the messages.
        descriptor: Where lines are read from.
        progress: Show a bar on stderr.

    Raises:
        ConnectError: The broker cannot be connected to.
        OSError: The input cannot be read, and no message has an outcome. If one has, the report has the error.
    """
    async with _sending(broker, made) as sending:
        with _bar(sending, descriptor, wanted=progress):
            await sending.run(descriptor)
    return sending.report


@contextlib.asynccontextmanager
async def _sending(broker: Broker, made: Input) -> AsyncIterator[_Sending]:
    """Connects, and closes at the end. An error is noted in the report if messages have outcomes already: those must be
    shown, whatever happens."""
    await broker.connect()
    sending = _Sending(broker, made)
    with _interrupts(sending.stop):
        try:
            try:
                yield sending
            finally:
                await sending.close()
        except Exception as error:
            if not sending.report.count:
                raise
            sending.report.failure = error


class _Sending:
    """Reads, sends, counts."""

    def __init__(self, broker: Broker, made: Input) -> None:
        self.report = Report()
        self.read_bytes = 0
        self._broker, self._made = broker, made
        self._limit = broker.max_message_bytes
        self._all_read = False
        self._stopped = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    def stop(self) -> None:
        """Ends the reading. The second call ends the messages that are under way at once, with the outcome that is
        known then."""
        if not self._stopped.is_set():
            self._stopped.set()
            self.report.interrupted = not self._all_read
            say("\ncqrs-brokers: waiting for the messages that are under way; Ctrl-C again ends at once")
        elif self._ending is None:
            self._ending = self._loop.create_task(self._broker.close(0))

    async def one(self, message: Message) -> None:
        """Sends one message."""
        self._all_read = True
        try:
            await self._outcomes([1], [message])
        finally:
            self.report.seconds = self._loop.time() - self._began

    async def run(self, descriptor: int) -> None:
        """Runs until the end of the input, or until `stop()`. At its end every message that is under way has its
        outcome, also if the input cannot be read to its end."""
        stopped = self._loop.create_task(self._stopped.wait())
        try:
            try:
                await self._read(descriptor, stopped)
            finally:
                if self._running:
                    await asyncio.wait(self._running)
            if self._failure is not None:
                raise self._failure
        finally:
            stopped.cancel()
            for task in self._running:
                task.cancel()
            self.report.seconds = self._loop.time() - self._began

    async def close(self) -> None:
        """Closes the broker."""
        if self._ending is not None:
            await self._ending
        await self._broker.close()

    async def _read(self, descriptor: int, stopped: asyncio.Task[Any]) -> None:
        lines = Lines(descriptor, self._limit)
        while not stopped.done() and self._failure is None:
            reading = self._loop.create_task(lines.next())
            await asyncio.wait((reading, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.cancel()
                break
            piece = reading.result()
            if piece is None:
                self._all_read = True
                self.report.interrupted = False
                break
            await self._send(piece, stopped)

    async def _send(self, piece: list[Line], stopped: asyncio.Task[Any]) -> None:
        for start in range(0, len(piece), AT_A_TIME):
            while len(self._running) >= MOST:
                await asyncio.wait((*self._running, stopped), return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    return
            task = self._loop.create_task(self._deliver(piece[start : start + AT_A_TIME]))
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        failure = None if task.cancelled() else task.exception()
        if isinstance(failure, Exception) and self._failure is None:
            self._failure = failure

    async def _deliver(self, lines: list[Line]) -> None:
        numbers, messages = [], []
        for line in lines:
            if line.content is None:
                self.report.invalid(line.number, f"it has more than the {self._limit:,} bytes of max_message_bytes")
                continue
            if not line.content.strip():
                continue
            try:
                messages.append(self._made.message(line.content, lines=True))
                numbers.append(line.number)
            except ValueError as error:
                self.report.invalid(line.number, str(error))
        await self._outcomes(numbers, messages)
        self.read_bytes = max(self.read_bytes, lines[-1].end)

    async def _outcomes(self, numbers: list[int], messages: list[Message]) -> None:
        try:
            outcomes = await self._broker.send_messages(messages)
        except Exception as error:
            for number, message in zip(numbers, messages, strict=True):
                self.report.lost(number, message, error)
            raise
        for number, message, outcome in zip(numbers, messages, outcomes, strict=True):
            self.report.outcome(number, message, outcome)


@contextlib.contextmanager
def _interrupts(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` on Ctrl-C, and when a container is ended (SIGTERM)."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    try:
        for number in signals:
            loop.add_signal_handler(number, stop)
    except NotImplementedError:  # Windows
        yield
        return
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _bar(sending: _Sending, descriptor: int, *, wanted: bool) -> Iterator[None]:
    """A progress bar with the count and the rate. For a file it shows the share of bytes that were read. For a pipe the
    bar shows no share."""
    if not wanted:
        yield
        return
    status = os.fstat(descriptor)
    total = status.st_size if stat.S_ISREG(status.st_mode) else None
    columns = (BarColumn(), *((TaskProgressColumn(),) if total else ()), TextColumn("{task.fields[said]}"))
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=total, said="")
    loop = asyncio.get_running_loop()
    began = loop.time()

    def update() -> None:
        count, seconds = sending.report.count, loop.time() - began
        said = f"{count:,} messages, {count / seconds:,.0f} per second" if seconds > 0 else ""
        bar.update(task, completed=sending.read_bytes, said=said)

    async def keep_updating() -> None:
        while True:
            update()
            await asyncio.sleep(0.2)

    with bar:
        updating = loop.create_task(keep_updating())
        try:
            yield
        finally:
            updating.cancel()
            update()
