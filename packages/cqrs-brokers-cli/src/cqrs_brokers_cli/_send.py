"""`send`: sends one message, or a message for each line of NDJSON, and reports the outcome of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cqrs_brokers import Broker, Message

from ._lines import Line, Lines
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
            ValueError: A line is not JSON, or a field is missing or wrong. The error does not quote the body.
        """
        try:
            content: Any = json.loads(body)
            content_type = "application/json"
        except ValueError:
            if lines:
                raise ValueError("it is no JSON") from None
            content, content_type = None, "text/plain; charset=utf-8"
        key, message_id = self.key, None
        if self.key_field is not None:
            key = _field(content, self.key_field)
        if self.id_field is not None:
            try:
                message_id = UUID(_field(content, self.id_field))
            except ValueError:
                raise ValueError(f"its field {self.id_field!r} is no UUID") from None
        return Message(
            message_name=self.name,
            topic=self.topic,
            payload=body,
            message_id=message_id,
            key=key,
            headers=self.headers,
            content_type=self.content_type or content_type,
        )


def _field(content: Any, name: str) -> str:
    value = content.get(name) if isinstance(content, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"it has no field {name!r} with a text or a whole number")  # noqa: TRY004 - about the input
    return str(value)


async def send_body(broker: Broker, made: Input, body: bytes) -> Report:
    """Sends one message.

    Raises:
        ConnectError: The broker cannot be connected to.
        ValueError: A field is missing in the body, or has a wrong value.
    """
    report, loop = Report(), asyncio.get_running_loop()
    began = loop.time()
    message = made.message(body, lines=False)
    async with broker:
        (outcome,) = await broker.send_messages([message])
    report.outcome(1, message, outcome)
    report.seconds = loop.time() - began
    return report


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
        OSError: The input cannot be read.
    """
    await broker.connect()
    sending = _Sending(broker, made, descriptor)
    try:
        with _interrupts(sending.stop), _bar(sending, descriptor, wanted=progress):
            await sending.run()
    finally:
        await broker.close()
    return sending.report


class _Sending:
    """Reads, sends, counts."""

    def __init__(self, broker: Broker, made: Input, descriptor: int) -> None:
        self.report = Report()
        self.read_bytes = 0
        self._broker, self._made, self._descriptor = broker, made, descriptor
        self._stopped = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    def stop(self) -> None:
        """Ends the reading. The second call ends the messages that are under way at once, with the outcome that is
        known then."""
        if not self._stopped.is_set():
            self._stopped.set()
            self.report.interrupted = True
            text = "waiting for the messages that are under way; Ctrl-C again ends at once"
            print(f"\ncqrs-brokers: {text}", file=sys.stderr, flush=True)
        elif self._ending is None:
            self._ending = self._loop.create_task(self._broker.close(0))

    async def run(self) -> None:
        """Runs until the end of the input, or until `stop()`."""
        lines = Lines(self._descriptor)
        stopped = self._loop.create_task(self._stopped.wait())
        try:
            while not stopped.done():
                reading = self._loop.create_task(lines.next())
                await asyncio.wait((reading, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    reading.cancel()
                    break
                piece = reading.result()
                if piece is None:
                    self.report.interrupted = False
                    break
                await self._send(piece, stopped)
            if self._running:
                await asyncio.wait(self._running)
            if self._failure is not None:
                raise self._failure
        finally:
            stopped.cancel()
            for task in self._running:
                task.cancel()
            if self._ending is not None:
                await self._ending
        self.report.seconds = self._loop.time() - self._began

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
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()

    async def _deliver(self, lines: list[Line]) -> None:
        numbers, messages = [], []
        for line in lines:
            if not line.content.strip():
                continue
            try:
                messages.append(self._made.message(line.content, lines=True))
                numbers.append(line.number)
            except ValueError as error:
                self.report.invalid(line.number, str(error))
        outcomes = await self._broker.send_messages(messages)
        for number, message, outcome in zip(numbers, messages, outcomes, strict=True):
            self.report.outcome(number, message, outcome)
        self.read_bytes = max(self.read_bytes, lines[-1].end)


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
