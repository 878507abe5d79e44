"""All that touches aiokafka: its connections, its requests for metadata and producer ids, its record-batch builder.

`_inspection` makes requests of its own from aiokafka's documented classes.

Of aiokafka we use no client and no producer, only one connection at a time. A produce request is written beside
`AIOKafkaConnection.send`, and in the connection's queue of requests stands an `AwaitedAnswer` for it. Ten names that
aiokafka does not document are used, all of `AIOKafkaConnection`:

| name | used for |
|---|---|
| `_closed_fut`, `_reader`, `_writer`, `_read_task`, `_create_reader_task` | a connection over a socket of our own |
| `_do_version_lookup`, `_do_sasl_handshake` | what its `connect()` does next |
| `_versions` | whether the broker knows the version of our produce requests |
| `_next_correlation_id`, `_requests` | a request of our own |

`why_unsupported` looks for them before anything is connected, and tests/kafka/test_client.py has a test for each use.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from importlib.metadata import version
from struct import Struct
from typing import Any

from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection, AIOKafkaProtocol
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import SaslAuthenticateRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from cqrs_brokers.dialing import dial
from cqrs_brokers.tasks import drop_task, drop_transport
from cqrs_brokers.url import Host

from . import _produce as produce
from ._settings import KafkaSettings

__all__ = ["AwaitedAnswer", "Connection", "OldBrokerError", "TokenError", "batch_builder", "errors", "why_unsupported"]

KNOWN_TO_WORK = "0.13 and 0.14"
PRIVATE = (
    "_closed_fut",
    "_reader",
    "_writer",
    "_read_task",
    "_create_reader_task",
    "_do_version_lookup",
    "_do_sasl_handshake",
    "_versions",
    "_next_correlation_id",
    "_requests",
)
READ_AHEAD = 2**16
"""How many bytes a connection reads before somebody takes them."""
SHARE_OF_SESSION = 0.8
"""A connection is replaced when so much of the time is over for which its login is good."""

_read_int32 = Struct(">i").unpack_from
_CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def why_unsupported(connection: type = AIOKafkaConnection) -> str | None:
    """Why the plugin cannot use the aiokafka that is installed; None: it can."""
    known = set(dir(connection))
    for member in vars(connection).values():
        code = getattr(getattr(member, "__func__", member), "__code__", None)
        known.update(() if code is None else code.co_names)
    missing = [name for name in PRIVATE if name not in known]
    if not missing:
        return None
    return (
        f"aiokafka {version('aiokafka')} is not supported, its connections have no {', '.join(missing)}: "
        f"install a version that this plugin was tested with ({KNOWN_TO_WORK})"
    )


def batch_builder(
    compression: str, producer_id: int, epoch: int, sequence: int, size: int
) -> DefaultRecordBatchBuilder:
    """Builds the bytes of one record batch.

    Args:
        compression: The option `compression_type`.
        producer_id: Of an idempotent producer; else -1.
        epoch: The same.
        sequence: The sequence number of the first record; the same.
        size: Where the batch is full, in bytes. The first record always fits.
    """
    return DefaultRecordBatchBuilder(2, _CODECS[compression], 0, producer_id, epoch, sequence, size)


class OldBrokerError(Exception):
    """The broker does not know our version of the produce request."""


class TokenError(Exception):
    """The token provider gave no token. Its own error may hold secrets, so it is no cause of this one."""


class AwaitedAnswer:
    """Stands in a connection's queue of requests, as the future and as the request that decodes the answer.

    aiokafka calls it while it reads a frame or closes the connection, in the midst of its own work on that queue. So it
    only keeps what it is given, and calls back in a later turn of the event loop; it never raises, writes or closes.

    Args:
        loop: The event loop.
        arrived: Called then, once.

    Attributes:
        frame: The answer without its correlation id; None: there is none.
        error: Why the connection was closed.
    """

    __slots__ = ("frame", "error", "_loop", "_arrived")

    API_KEY = produce.API_KEY

    class RESPONSE_TYPE:  # noqa: N801 # aiokafka's name
        """Decodes nothing."""

        @staticmethod
        def decode(frame: io.BytesIO) -> bytes:
            """All that follows the correlation id."""
            return frame.read()

    class _Header:
        __slots__ = ("correlation_id",)

        def __init__(self, correlation_id: int) -> None:
            self.correlation_id = correlation_id

    def __init__(self, loop: asyncio.AbstractEventLoop, arrived: Callable[[AwaitedAnswer], None]) -> None:
        self.frame: bytes | None = None
        self.error: BaseException | None = None
        self._loop = loop
        self._arrived: Callable[[AwaitedAnswer], None] | None = arrived

    @classmethod
    def parse_response_header(cls, frame: io.BytesIO) -> AwaitedAnswer._Header:
        """Reads the correlation id; what is too short for one has none, and the connection is out of step."""
        start = frame.read(4)
        return cls._Header(_read_int32(start)[0] if len(start) == 4 else -1)

    def done(self) -> bool:
        """See `asyncio.Future`."""
        return self._arrived is None

    def set_result(self, frame: bytes) -> None:
        """See `asyncio.Future`."""
        self.frame = frame
        self._tell()

    def set_exception(self, error: BaseException) -> None:
        """See `asyncio.Future`."""
        self.error = error
        self._tell()

    def _tell(self) -> None:
        arrived, self._arrived = self._arrived, None
        if arrived is not None and not self._loop.is_closed():
            self._loop.call_soon(arrived, self)


class Connection(AIOKafkaConnection):  # type: ignore[misc]
    """A connection to one host, made with `open`.

    Attributes:
        replace_at: When its login ends soon, in the event loop's time; None: it does not end.
    """

    replace_at: float | None = None
    _settings: KafkaSettings

    @classmethod
    async def open(
        cls, settings: KafkaSettings, host: Host, closed: Callable[[Connection], None] | None = None
    ) -> Connection:
        """Connects, asks for the broker's versions and logs in.

        Args:
            settings: How.
            host: Where.
            closed: Called when it was closed, by whomever.

        Raises:
            OSError, ssl.SSLError, KafkaError, TimeoutError, TokenError: It cannot.
        """
        on_close = None if closed is None else lambda connection, _: closed(connection)
        connection = cls(host.host, host.port, on_close=on_close, **settings.client_arguments())
        connection._settings = settings
        await connection.connect()
        return connection

    async def connect(self) -> None:
        """As aiokafka's, over a socket that was connected with a look at all addresses of the host."""
        loop = asyncio.get_running_loop()
        options = self._settings.options
        tls = self._settings.ssl_context
        raw = await dial(self.host, self.port, timeout=options.request_timeout_ms / 1000)
        self._closed_fut = loop.create_future()
        reader = asyncio.StreamReader(limit=READ_AHEAD, loop=loop)
        protocol = AIOKafkaProtocol(self._closed_fut, reader, loop=loop)
        try:
            async with asyncio.timeout(options.request_timeout_ms / 1000):
                transport, _ = await loop.create_connection(
                    lambda: protocol, sock=raw, ssl=tls, server_hostname=None if tls is None else self.host
                )
        except BaseException:
            raw.close()
            raise
        self._reader, self._writer = reader, asyncio.StreamWriter(transport, protocol, reader, loop)
        self._read_task = self._create_reader_task()
        try:
            await self._do_version_lookup()
            if options.security_protocol.startswith("SASL_"):
                await self._do_sasl_handshake()
        except BaseException:
            self.drop()
            raise

    # -- logging in ---------------------------------------------------------------------------------------------------

    def authenticator_oauth(self) -> Any:
        """In place of aiokafka's, which does not look at the answer to a token."""
        return _TokenLogin(self._settings)

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """As aiokafka's; of a login it keeps for how long it is good."""
        answer = super().send(request, expect_response)
        return self._logged_in(answer) if isinstance(request, SaslAuthenticateRequest) else answer

    async def _logged_in(self, answer: Any) -> Any:
        response = await answer
        lifetime = getattr(response, "session_lifetime_ms", 0)
        if lifetime > 0:
            self.replace_at = asyncio.get_running_loop().time() + lifetime / 1000 * SHARE_OF_SESSION
        return response

    # -- questions ----------------------------------------------------------------------------------------------------

    async def metadata(self, topics: list[str]) -> Any:
        """Asks for the nodes and for these topics, which the broker may create.

        Raises:
            KafkaError, TimeoutError: There is no answer.
        """
        return await self.send(MetadataRequest(topics))

    async def producer_id(self) -> tuple[int, int, int]:
        """Asks for a producer id: the error code, the id and its epoch.

        Raises:
            KafkaError, TimeoutError: There is no answer.
        """
        timeout = self._settings.options.request_timeout_ms
        answer = await self.send(InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=timeout))
        return answer.error_code, answer.producer_id, answer.producer_epoch

    # -- produce requests ---------------------------------------------------------------------------------------------

    def check_version(self) -> None:
        """Whether the broker understands our produce requests.

        Raises:
            OldBrokerError: It does not.
        """
        oldest, newest = self._versions.get(produce.API_KEY, (0, 0))
        if not oldest <= produce.API_VERSION <= newest:
            raise OldBrokerError

    @property
    def versions(self) -> dict[int, tuple[int, int]]:
        """The oldest and the newest version of each request that the broker knows, by the request's API key."""
        return dict(self._versions)

    def next_correlation_id(self) -> int:
        """The number of the next request."""
        return int(self._next_correlation_id())

    def write(self, request: bytes, correlation_id: int, answer: AwaitedAnswer | None) -> None:
        """Writes a request.

        Args:
            request: All of it.
            correlation_id: Its number.
            answer: Gets its answer; None: there will be none (acks=0).

        Raises:
            KafkaConnectionError: The connection is closed; nothing was written.
        """
        writer: asyncio.StreamWriter | None = self._writer
        if writer is None:
            raise KafkaConnectionError
        if answer is not None:
            self._requests.append((correlation_id, answer, answer))
        writer.write(request)

    def hold_nothing_back(self) -> None:
        """From now on `written()` waits until the transport's buffer is empty."""
        # asyncio's TLS transport pauses at `high`, also with nothing in its buffer; its plain one pauses above it.
        transport = self._writer.transport
        transport.set_write_buffer_limits(high=1 if transport.get_extra_info("ssl_object") else 0, low=0)

    async def written(self) -> None:
        """Waits until the operating system has all that was written.

        Raises:
            OSError: The connection ended before.
        """
        writer: asyncio.StreamWriter | None = self._writer
        if writer is None:
            raise ConnectionResetError
        await writer.drain()

    # -- the end ------------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Closes it at once; whoever waits for an answer gets an error. Also when its event loop is closed."""
        writer: asyncio.StreamWriter | None = self._writer
        task = self._read_task
        if writer is None:
            return
        if self._closed_fut.get_loop().is_closed():
            self._reader = self._writer = None  # type: ignore[assignment] # aiokafka's own type for "closed"
            self._read_task = None
            self._requests.clear()
            drop_task(task)
        else:
            self.close()
        drop_transport(writer.transport)

    async def ended(self) -> None:
        """Waits until its socket is closed, after `drop()`."""
        if self._closed_fut is not None:
            await asyncio.wait((self._closed_fut,), timeout=0.2)


class _TokenLogin:
    """OAUTHBEARER: a token goes out, and a refusal has a reason that the broker says when it is asked (RFC 7628)."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._provider: Any = settings.options.sasl_oauth_token_provider
        # A part of connect_timeout: the attempt would end without the reason.
        self._timeout = 0.8 * settings.options.connect_timeout
        self._sent = False

    async def step(self, answer: bytes | None) -> tuple[bytes, bool] | None:
        """What aiokafka sends next; None: that was all."""
        if self._sent:
            return (b"\x01", True) if answer else None  # the broker answers to it with an error
        self._sent = True
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                token = await self._provider.token()
            extensions = self._provider.extensions() if callable(getattr(self._provider, "extensions", None)) else {}
            fields = [f"auth=Bearer {token}", *(f"{name}={value}" for name, value in (extensions or {}).items())]
            return ("n,," + "".join(f"\x01{field}" for field in fields) + "\x01\x01").encode(), True
        except Exception as error:
            if limit.expired():
                text = f"the token provider did not answer within {self._timeout:g} s (most of connect_timeout)"
            else:
                text = f"the token provider raised {type(error).__name__}"
        raise TokenError(text)
