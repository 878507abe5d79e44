"""For plugin authors: parts from which the driver of a networked broker can be made.

    submit → waiting → writer ── handed_over ──▶ client → broker → answered → confirm / fail
                 ▲                                  │
                 └── kept, in order ◀── broken ─────┴──▶ ConnectionLostError

* `Pipeline` keeps the messages of a `PipelinedDriver` between `submit` and the broker's answers. Its tasks write
  messages, read answers, and ping the broker. Messages that still wait when a connection ends are written to the next
  connection.
* `connect_to_any` tries the hosts one after the other until one is connected. Each host gets a share of the time.
* `header_name` and `header_value` percent-encode headers for brokers whose headers are lines of text. `header_text`
  decodes them.

The driver itself makes the connection, encodes messages for the wire, and decides what an answer means.

This file is longer than 400 lines because its docstrings are the documentation of the API for plugin authors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, unquote

from .driver import Delivery
from .exceptions import ConnectError, ConnectionLostError, ProtocolError, UnreachableError
from .tasks import Tasks, drop_task, patient_timeout, retrieve_exception
from .url import Host

__all__ = ["Pipeline", "connect_to_any", "error_of_pass", "header_name", "header_text", "header_value"]

T = TypeVar("T")
C = TypeVar("C")

LET_GO_AFTER: Final = 0.1
"""The pipeline looks for messages to release this many seconds after the earliest deadline."""
END_WITHIN: Final = 0.4
"""How long the pipeline waits until the tasks of a connection have ended, and how long `connect_to_any` waits until an
attempt that it cancelled has ended (in seconds)."""
LEAST_SHARE: Final = 0.1
"""The shortest time that `connect_to_any` gives to one host, in seconds."""


class Pipeline(Generic[T]):
    """Keeps the messages of a driver between `submit` and the broker's answers. It uses one connection at a time.

    The driver calls `put` with each delivery and its form on the wire. It calls `open` for each new connection, and
    `answered` for each answer of the broker. `answered` returns the delivery, and the driver then confirms or fails it.
    The pipeline does the rest. It hands over only as many messages as the client takes. When the connection breaks, the
    pipeline fails the messages that were handed over and have no answer, and keeps the messages that wait. When the
    deadline of a message has passed, the pipeline releases the message. The pipeline pings the broker when the broker
    was silent for too long, and when a message that was handed over was released without an answer.

    Args:
        lost: The pipeline calls this function once for each opened connection that breaks, after the messages that were
            handed over have failed. The argument is an error whose cause is the reason. The function must drop the
            connection and call `link.lost` with this error.
        in_order: True: the broker answers in the order in which it got the messages, and its answers contain no number
            of a message. False: each answer contains the number of its message (the token).
        batch_bytes: About how many bytes are handed over and written at a time. A batch ends with the message that
            reaches this size. With the value 1, each batch has one message.
        ping_after: Seconds of silence after which the broker is pinged; `open` may set another time.
        ping_timeout: If the broker does not answer a ping within this many seconds, the connection counts as broken.
    """

    def __init__(
        self,
        lost: Callable[[ConnectError], None],
        *,
        in_order: bool = False,
        batch_bytes: int = 64 * 1024,
        ping_after: float = 10.0,
        ping_timeout: float = 5.0,
    ) -> None:
        self._lost = lost
        self._in_order = in_order
        self._batch_bytes = batch_bytes
        self._usual_ping_after = self._ping_after = ping_after
        self._ping_timeout = ping_timeout
        self._tasks = Tasks()
        self._opened = False
        self._waiting: deque[tuple[Delivery, T, int]] = deque()
        self._write_to: Callable[[Sequence[tuple[int, T]]], Awaitable[None]]
        self._window: int | None = None
        self._unanswered: dict[int, Delivery | asyncio.Future[None] | None] = {}
        """The messages and questions without an answer, by token. The value None stands for a message that was released
        without an answer. Its entry stays if the answers come in order, or if the connection has a window."""
        self._in_window = 0
        """How many entries of `_unanswered` are messages. The number counts only while there is a connection."""
        self._questions: set[asyncio.Future[None]] = set()
        """The questions of `ask` without an answer, including the questions that are not written yet."""
        self._token = 0
        self._heard_at = 0.0
        self._more = asyncio.Event()
        self._doubt = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that has not broken."""
        return self._opened

    # -- from the Broker ----------------------------------------------------------------------------------------------

    def put(self, delivery: Delivery, item: T, size: int) -> None:
        """Adds a message to the messages that wait to be written. The driver's `submit` calls this method.

        Args:
            delivery: The message.
            item: The message's form on the wire, which `write` gets later. The driver makes the item in `submit`,
                because the application may change the message later.
            size: About how many bytes the item has on the wire.
        """
        self._waiting.append((delivery, item, size))
        self._more.set()
        self._watch_deadline(delivery.deadline)

    # -- from the connection ------------------------------------------------------------------------------------------

    def open(
        self,
        write: Callable[[Sequence[tuple[int, T]]], Awaitable[None]],
        *,
        read: Coroutine[Any, Any, None] | None = None,
        ping: Callable[[], Awaitable[None]] | None = None,
        window: int | None = None,
        ping_after: float | None = None,
    ) -> None:
        """Starts to write to a new connection. The messages that already wait are written first. Call this method at
        the end of the driver's `connect`, when nothing can fail any more.

        Args:
            write: Writes a batch of pairs (token, item), in order. It must write the whole batch before its first
                `await`. It must return only when the client's own buffer has room again (`drain()`). Then the pipeline
                hands over the next batch and calls `write` with it. While `write` waits for room, the pipeline may call
                `write` again, with a question (see `ask`).
            read: Reads answers until the connection ends. None: the client reads the answers in a task of its own. When
                the connection ends, `read` may return or raise an exception: the pipeline does the same in both cases.
                `read` must ignore an incomplete answer. If an answer ends the connection, as STOMP's ERROR does, `read`
                must call `answered` for this answer before `read` ends.
            ping: Sends a ping, and returns when the answer has come. None: the pipeline sends no pings.
            window: The most messages without an answer that the broker takes (MQTT calls it Receive Maximum, other
                protocols call it credit). Further messages wait. A message that was released after its deadline still
                counts until the broker answers the message. None: no limit.
            ping_after: Seconds of silence before a ping on this connection, if the broker sets the time. None: the
                pipeline's own `ping_after`. If the driver calls `heard` for each heartbeat of the broker, the broker is
                never silent. Then the pipeline pings the broker only after it has released a message without an answer.
                If such a broker also expects heartbeats from the client, switch the broker's heartbeats off, or send
                the client's heartbeats from a task of your own.
        """
        self._leave(None)
        self._write_to, self._window, self._in_window = write, window, 0
        self._ping_after = self._usual_ping_after if ping_after is None else ping_after
        self._opened = True
        self._heard_at = asyncio.get_running_loop().time()
        self._more, self._doubt = asyncio.Event(), asyncio.Event()
        self._more.set()
        self._tasks.spawn(self._until_broken(self._write()))
        if read is not None:
            self._tasks.spawn(self._until_broken(read))
        if ping is not None:
            self._tasks.spawn(self._until_broken(self._watch(ping)))

    def answered(self, token: int | None = None) -> Delivery | None:
        """Removes the message that the broker has answered, and returns its delivery.

        Args:
            token: The message's number. None: the oldest message without an answer, for a broker that answers in order.

        Returns:
            The delivery. The driver must then confirm or fail the message. None: the message was released before, or no
            message has this token (a question of `ask` may have it).

        Raises:
            ProtocolError: The token is None, and either nothing waits for an answer, or a question of `ask` has waited
                longest. Do not catch this error in `read`: the connection must end.
        """
        found: Delivery | None = self._take(token, question=False)
        return found

    def answered_question(self, token: int | None = None) -> None:
        """Reports that the answer to a question of `ask` came. The token has the same meaning as in `answered`. If the
        token is None, and a message has waited longest for an answer or nothing waits, this method raises a
        `ProtocolError`."""
        found: asyncio.Future[None] | None = self._take(token, question=True)
        if found is not None and not found.done():
            found.set_result(None)

    def oldest(self, wanted: Callable[[Delivery], bool]) -> int | None:
        """The token of the oldest message that may belong to an answer, for answers that contain no token. None: there
        is no such message.

        Args:
            wanted: Says whether the answer may belong to a delivery, for example by comparing the topic.
        """
        return next((token for token, found in self._handed() if wanted(found)), None)

    def heard(self) -> None:
        """Notes that something came from the broker, so that the broker does not count as silent. `answered` and
        `answered_question` note the same."""
        self._heard_at = asyncio.get_running_loop().time()

    async def ask(self, item: T) -> None:
        """Writes a question (a request that is no message, such as a ping), and waits for the answer.

        The question needs no place in the window. The pipeline writes it even while an earlier call of `write` waits
        for room in the client's buffer. But the client sends the question after everything that is in its buffer
        already. So the caller of `ask` must limit the wait, as `Broker.health()` does.

        For the answer to a question the driver calls `answered_question`, not `answered`. The answers to questions and
        to messages may have the same form, as with STOMP's RECEIPT. In that case, put a prefix before a question's
        number on the wire, so that the driver can tell the two kinds of answers apart.

        Raises:
            UnreachableError: There is no connection, or the connection broke or was dropped before the answer came.
        """
        if not self._opened:
            raise UnreachableError("there is no connection")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(retrieve_exception)
        self._questions.add(answer)
        # In a task of the pipeline: a client may end the connection when one of its writes is cancelled.
        self._tasks.spawn(self._write_question(answer, item))
        await answer

    def broken(self, error: Exception) -> None:
        """Reports that the connection is lost. Call this method if the client reports the loss by a callback.

        The pipeline fails the messages that were handed over and not answered, and the questions of `ask`. The pipeline
        keeps the messages that wait, and calls `lost`. A second call does nothing until `open` is called again. After
        that, do not call this method for the earlier connection: the call would break the new connection.
        """
        if not self._opened:
            return
        self._leave(error)
        broke = UnreachableError(f"the connection broke ({type(error).__name__}): see the broker's log")
        broke.__cause__ = error
        self._lost(broke)

    def _leave(self, cause: Exception | None) -> None:
        """Drops the tasks of a connection, and fails the messages and questions that were written to it and have no
        answer. No answer of a later connection may count for them, even if the driver has not reported the loss."""
        self._opened = False
        for task in self._tasks:
            if task is not asyncio.current_task():
                drop_task(task)
        handed = [*self._handed()]
        self._unanswered.clear()
        self._end_questions()
        for _, found in handed:
            lost = ConnectionLostError("the connection was lost before the broker answered")
            lost.__cause__ = cause
            found.fail(lost)

    def _end_questions(self) -> None:
        questions, self._questions = self._questions, set()
        for question in questions:
            if not question.done() and not question.get_loop().is_closed():
                question.set_exception(UnreachableError("the connection was lost before the broker answered"))

    # -- the end ------------------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Cancels the tasks of the last connection, waits at most 0.4 s for them, and keeps the messages that wait. If
        that connection has not broken, its messages and questions without an answer fail as in `broken`. Call this
        method at the start of the driver's `connect`."""
        self._leave(None)
        await self._tasks.end(END_WITHIN)

    async def close(self) -> None:
        """Cancels the tasks, waits at most 0.4 s for them, forgets every message, and ends every question. Call this
        method in the driver's `close`, after the driver has dropped the connection."""
        await self.end()
        self.abort()
        await asyncio.sleep(0)  # asyncio closes an aborted socket in the next round of its loop

    def abort(self) -> None:
        """Drops the tasks, forgets every message, and ends every question with an `UnreachableError`, without awaiting.
        This method also works when the event loop is closed. Call it in the driver's `abort`."""
        self._opened = False
        self._tasks.abort()
        self._waiting.clear()
        self._end_questions()
        self._unanswered.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- writing and reading ------------------------------------------------------------------------------------------

    async def _until_broken(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # even one that no client should raise: the connection cannot be trusted any more
            self.broken(error)
        else:
            self.broken(ConnectionResetError("the broker closed the connection"))

    async def _write(self) -> None:
        while True:
            await self._more.wait()
            batch = self._next_batch()
            if not self._waiting or self._is_full():
                self._more.clear()
            if batch:
                await self._write_to(batch)

    async def _write_question(self, answer: asyncio.Future[None], item: T) -> None:
        try:
            await self._write_to([(self._number(answer), item)])
        except Exception as error:
            self.broken(error)

    def _is_full(self) -> bool:
        return self._window is not None and self._in_window >= self._window

    def _next_batch(self) -> list[tuple[int, T]]:
        """Hands over the messages that fit into the batch and the window, and returns them. The others wait, because a
        message that was not handed over is certainly not delivered."""
        batch: list[tuple[int, T]] = []
        size = 0
        while self._waiting and size < self._batch_bytes and not self._is_full():
            delivery, item, its_size = self._waiting.popleft()
            if delivery.handed_over():
                batch.append((self._number(delivery), item))
                self._in_window += 1
                size += its_size
        return batch

    def _handed(self) -> Iterator[tuple[int, Delivery]]:
        """The messages that were handed over and neither answered nor released, each with its token."""
        for token, found in self._unanswered.items():
            if found is not None and not isinstance(found, asyncio.Future):
                yield token, found

    def _number(self, entry: Delivery | asyncio.Future[None]) -> int:
        self._token += 1
        self._unanswered[self._token] = entry
        return self._token

    def _take(self, token: int | None, *, question: bool) -> Any:
        self.heard()
        if token is None:
            token = next(iter(self._unanswered), None)
            if token is None or isinstance(self._unanswered[token], asyncio.Future) is not question:
                # The message stays, and fails when the connection ends. The connection must end now.
                text = "the broker sent an answer, and nothing that was written waits for it: the connection must end"
                raise ProtocolError(text)
        elif token not in self._unanswered:
            return None
        found: Any = self._unanswered[token]
        if isinstance(found, asyncio.Future) is not question:
            return None
        del self._unanswered[token]
        if question:
            self._questions.discard(found)
        else:
            self._in_window -= 1
            if self._waiting:
                self._more.set()  # for what waited for room
        return found

    # -- what is never answered ---------------------------------------------------------------------------------------

    def _watch_deadline(self, deadline: float) -> None:
        when = deadline + LET_GO_AFTER
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._let_go)

    def _let_go(self) -> None:
        """Releases all messages whose deadline has passed and that are `done`."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        keep: deque[tuple[Delivery, T, int]] = deque()
        for entry in self._waiting:
            if entry[0].done and entry[0].deadline <= now:
                entry[0].release()
            else:
                keep.append(entry)
        self._waiting = keep
        handed = [*self._handed()]
        for token, found in handed:
            if found.done and found.deadline <= now:
                found.release()
                self._doubt.set()
                if self._in_order or self._window is not None:
                    self._unanswered[token] = None
                else:
                    del self._unanswered[token]
                    self._in_window -= 1
        due = [found.deadline for _, found in handed if not found.done or found.deadline > now]
        due += [entry[0].deadline for entry in keep]
        if due:
            self._watch_deadline(max(min(due), now))

    async def _watch(self, ping: Callable[[], Awaitable[None]]) -> None:
        """Pings the broker when it was silent for too long, and when a message was released without an answer."""
        loop = asyncio.get_running_loop()
        while True:
            silence = loop.time() - self._heard_at
            if silence < self._ping_after and not self._doubt.is_set():
                try:
                    async with asyncio.timeout(self._ping_after - silence):
                        await self._doubt.wait()
                except TimeoutError:
                    continue
            self._doubt.clear()
            try:
                async with patient_timeout(self._ping_timeout):
                    await ping()
            except TimeoutError:
                raise UnreachableError(f"the broker did not answer a ping within {self._ping_timeout:g} s") from None
            self.heard()


async def connect_to_any(
    hosts: Sequence[Host],
    connect: Callable[[Host], Coroutine[Any, Any, C]],
    timeout: float,
    *,
    drop: Callable[[C], object],
) -> C:
    """Tries the hosts in their order, and stops at the first host to which it can connect. This is one *pass* over the
    hosts.

    Each host gets an equal share of the time that is left, and at least 0.1 s. So a silent host leaves time for the
    others.

    Args:
        hosts: The hosts of the config string.
        connect: Connects to one host. This function must leave nothing open when it fails or is cancelled. If the
            function raises an exception other than `ConnectError` and `TimeoutError`, the pass ends with that
            exception.
        timeout: Seconds for the whole pass. Pass the value of the option `connect_timeout`.
        drop: Drops a connection without awaiting. This function is called for a connection that comes too late, when
            nobody waits for it any more, for example because a client ignored the cancellation of its `connect`.

    Returns:
        The result of `connect`.

    Raises:
        ConnectError: No connection to any host was possible. The error is the first permanent error, or the first error
            if none is permanent. Its text contains the texts of all errors. If a host does not answer in its share of
            the time, its error is an `UnreachableError`.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    errors: list[ConnectError] = []
    for number, host in enumerate(hosts):
        share = max(LEAST_SHARE, (end - loop.time()) / (len(hosts) - number))
        try:
            return await _within(share, connect(host), drop)
        except ConnectError as error:
            errors.append(error)
        except TimeoutError:
            errors.append(UnreachableError(f"{host} does not answer within {share:.3g} s: check address and network"))
    raise error_of_pass(errors or [UnreachableError("there is no host to connect to")])


def error_of_pass(errors: Sequence[ConnectError]) -> ConnectError:
    """The error to raise after a pass in which no host could be connected: the first permanent error, or the first
    error if none is permanent. Its text then contains the texts of all errors.

    Args:
        errors: One error for each host, in the order of the hosts. The sequence is not empty.
    """
    chosen = next((error for error in errors if error.permanent), errors[0])
    chosen.text = "; ".join([chosen.text, *(error.text for error in errors if error is not chosen)])
    return chosen


async def _within(seconds: float, work: Coroutine[Any, Any, C], drop: Callable[[C], object]) -> C:
    """Runs a coroutine that makes a connection, and cancels the coroutine after the given time. If the coroutine
    ignores the cancellation and returns a connection later, that connection is dropped."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.wait((task,), timeout=seconds)
        if not task.done():
            raise TimeoutError
        return task.result()
    except BaseException:
        task.cancel()
        task.add_done_callback(lambda ended: _drop_result(ended, drop))
        await asyncio.wait((task,), timeout=END_WITHIN)
        raise


def _drop_result(task: asyncio.Task[C], drop: Callable[[C], object]) -> None:
    if not task.cancelled() and task.exception() is None:
        drop(task.result())


_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_IN_A_VALUE = _PRINTABLE.replace("%", "")
_IN_A_NAME = _IN_A_VALUE.replace(":", "")


def header_name(text: str) -> str:
    """Encodes a header's name for brokers whose headers are lines of text. A colon, and each byte of a character that
    `header_value` encodes, becomes `%XX`."""
    return quote(text, safe=_IN_A_NAME)


def header_value(text: str) -> str:
    """Encodes a header's value for brokers whose headers are lines of text. Each UTF-8 byte of a space, of `%`, of a
    control character (such as a line break or NUL) and of a character outside ASCII becomes `%XX`.

    NUL is encoded because many parsers take it as the end of a frame or of a text, and a protocol may have no escape
    for NUL.

    One byte may become three: the longest key or header value of a message, 32 767 bytes, may become 98 301 bytes. If
    your broker takes less, refuse the message (`MessageTooLargeError`), or split the value; never cut it.
    """
    return quote(text, safe=_IN_A_VALUE)


def header_text(encoded: str) -> str:
    """Decodes the result of `header_name` or `header_value`. Consumers read the headers with this function, or with any
    other function that decodes percent-encoded UTF-8."""
    return unquote(encoded)
