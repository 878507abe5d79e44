"""The parts of aiokafka that the plugin uses: connections, requests and their types, errors, codecs, a checksum.

The other modules get aiokafka's classes from this module. Only `_options` imports the base class of token providers.

We use aiokafka's class `AIOKafkaConnection`, but neither aiokafka's client nor its producer. aiokafka's code negotiates
versions and logs in. Only the messages for a login with OAUTHBEARER come from our code (`_TokenLogin`). After the first
produce request on a connection, our code writes all requests and gets all received data. aiokafka's reader then gets no
data, but still notices when the connection ends. We use eight private members of `AIOKafkaConnection`:

| name | used for |
|---|---|
| `_closed_fut`, `_reader`, `_writer`, `_read_task`, `_create_reader_task` | connecting, writing, closing |
| `_do_version_lookup`, `_do_sasl_handshake` | the next steps of `AIOKafkaConnection.connect()` |
| `_versions` | the versions of requests that the broker knows |

`why_unsupported` checks that aiokafka's class still has these names. tests/kafka/test_client.py tests each use.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from aiokafka import errors
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.conn import AIOKafkaConnection, AIOKafkaProtocol
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol import api, types
from aiokafka.protocol.admin import DescribeConfigsRequest, SaslAuthenticateRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.util import calc_crc32c

from cqrs_brokers.dialing import Address, BufferedReads, look_up, open_socket, other_addresses
from cqrs_brokers.exceptions import ProtocolError
from cqrs_brokers.tasks import drop_task, drop_transport
from cqrs_brokers.url import Host

from . import _produce as produce
from ._settings import KafkaSettings

with warnings.catch_warnings():  # google-crc32c warns if its C extension is missing; aiokafka's function is used then
    warnings.simplefilter("ignore", RuntimeWarning)
    import google_crc32c

__all__ = [
    "CODECS",
    "Connection",
    "DescribeConfigsRequest",
    "TokenError",
    "api",
    "crc32c",
    "errors",
    "types",
    "why_unsupported",
]

crc32c: Callable[[bytes], int] = google_crc32c.value if google_crc32c.implementation == "c" else calc_crc32c
"""Computes the checksum of a batch. Google's extension uses the processor's CRC instruction. For 600 bytes the
extension takes about 0.1 µs, and aiokafka's function takes about 0.3 µs."""
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
)
READ_AHEAD = 2**16
LARGEST_ANSWER = 2**28
"""The most bytes that an answer may have while aiokafka's reader reads the answers."""
LOOK_AT_BUFFER = 0.002
"""Seconds between two checks whether the write buffers of a connection are empty. `StreamWriter.drain()` does not wait
for empty buffers."""
SHARE_OF_TIMEOUT = 0.8
"""The look-up of a host and the TCP connections to its addresses may together take this share of `connect_timeout`, or
`request_timeout_ms` if that is shorter. A token provider may take the same share of `connect_timeout`. If one of these
steps took all of `connect_timeout`, the error would not name the step."""
SHARE_OF_SESSION = 0.8
"""After this share of the time for which a login is valid, the connection gets no further requests."""

CODECS: dict[str, tuple[int, Callable[[bytes], bytes] | None]] = {
    "none": (0, None),
    "gzip": (1, gzip_encode),
    "snappy": (2, snappy_encode),
    "lz4": (3, lz4_encode),
    "zstd": (4, zstd_encode),
}
"""For each value of `compression_type`: its number in the attributes of a batch, and the function that compresses."""


def why_unsupported(connection: type = AIOKafkaConnection) -> str | None:
    """Returns the reason why the plugin cannot use the installed version of aiokafka. None: no reason was found."""
    known = set(dir(connection))
    for member in vars(connection).values():
        code = getattr(getattr(member, "__func__", member), "__code__", None)
        known.update(() if code is None else code.co_names)
    missing = [name for name in PRIVATE if name not in known]
    if not missing:
        return None
    return (
        f"aiokafka {version('aiokafka')} is not supported, because its connections have no {', '.join(missing)}: "
        f"install a version that this plugin was tested with ({KNOWN_TO_WORK})"
    )


class TokenError(Exception):
    """The token provider gave no usable token. The provider's own error is not kept as `__cause__`, because that error
    may contain secrets."""


class _Reader(asyncio.StreamReader):
    """A reader that refuses a huge answer. The first bytes of another protocol may look like a huge size."""

    async def readexactly(self, n: int) -> bytes:
        """Reads as StreamReader's method does, but raises a `ConnectionError` for more than `LARGEST_ANSWER` bytes."""
        if n > LARGEST_ANSWER:
            raise ConnectionError(f"an answer of {n} bytes is announced: this is not Kafka")
        return await super().readexactly(n)


class _Protocol(AIOKafkaProtocol, BufferedReads):  # type: ignore[misc]
    """Hands received data to aiokafka's reader, until the first produce request is written.

    From then on this class hands a response to `answered` in the turn of the event loop in which the response arrives.
    aiokafka's reader is a task. With this reader, the caller would get the response two turns later.
    """

    answered: Callable[[list[bytes]], None] | None = None
    _partial = b""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.answered is None:
            super().data_received(data)
            return
        frames, self._partial = produce.split_frames(self._partial + data if self._partial else data)
        if frames:
            self.answered(frames)


class Connection(AIOKafkaConnection):  # type: ignore[misc]
    """A connection to one host. The method `open` makes it."""

    replace_at: float | None = None
    """From this time on (event loop's time) a new connection is needed, because the login ends soon. None: no end of
    the login is known, or there was no login."""
    _settings: KafkaSettings
    _addresses: list[Address]
    """Before the TCP connection exists: the addresses to try. Afterwards: the host's other addresses, which `open`
    tries if a later step fails."""
    _until: float
    """The time by which the TCP connection must exist (event loop's time). If there are other addresses, the TLS
    handshake may take the remaining time divided by the number of all addresses. The question for the broker's versions
    may take as long."""
    _protocol: _Protocol
    _socket: asyncio.Transport
    """The transport of the TCP connection. With TLS it is the transport below the TLS transport."""

    @classmethod
    async def open(
        cls, settings: KafkaSettings, host: Host, closed: Callable[[Connection], None] | None = None
    ) -> Connection:
        """Connects, asks for the broker's versions and logs in.

        An address of the host may accept the connection, and then close the connection, give no answer or fail in the
        TLS handshake. Then the other addresses are tried, until the time for TCP connections is over (`_until`).

        Args:
            settings: How to connect.
            host: Where to connect to.
            closed: A function that is called with each connection that was closed, by us or by the broker. The function
                is not called if the TLS handshake failed, or if the event loop is closed.

        Raises:
            OSError, ssl.SSLError, KafkaError, TimeoutError, TokenError: One of the steps failed. If several addresses
                failed, the first error is raised.
        """
        loop = asyncio.get_running_loop()
        options = settings.options
        timeout = min(options.request_timeout_ms / 1000, SHARE_OF_TIMEOUT * options.connect_timeout)
        until = loop.time() + timeout
        assert host.port is not None  # the settings have filled it in
        on_close = None if closed is None else lambda connection, _: closed(connection)
        addresses = await look_up(host.host, host.port, timeout=timeout)
        failure: Exception | None = None
        while True:
            connection = cls(host.host, host.port, on_close=on_close, **settings.client_arguments())
            connection._settings = settings
            connection._addresses, connection._until = addresses, until
            try:
                await connection.connect()
            except (OSError, KafkaConnectionError, errors.RequestTimedOutError) as error:
                failure = failure or error
                addresses = connection._addresses
                if not addresses or loop.time() >= until:
                    raise failure from failure.__cause__
            else:
                return connection

    async def connect(self) -> None:
        """Connects as aiokafka's method does, but over a socket of our own, to one of `_addresses`."""
        loop = asyncio.get_running_loop()
        options = self._settings.options
        tls = self._settings.ssl_context
        addresses, self._addresses = self._addresses, []
        raw = await open_socket(addresses, timeout=max(0.0, self._until - loop.time()))
        self._addresses = other_addresses(addresses, raw)
        # Without other addresses each step may take request_timeout_ms.
        share = max(0.0, self._until - loop.time()) / len(addresses) if self._addresses else None
        self._closed_fut = loop.create_future()
        reader = _Reader(limit=READ_AHEAD, loop=loop)
        self._protocol = protocol = _Protocol(self._closed_fut, reader, loop=loop)
        self._socket, _ = await loop.create_connection(lambda: protocol, sock=raw)
        writer = asyncio.StreamWriter(self._socket, protocol, reader, loop)
        try:
            async with asyncio.timeout(options.request_timeout_ms / 1000 if share is None else share):
                if tls is not None:
                    await writer.start_tls(tls, server_hostname=self.host)
        except BaseException:
            self._socket.abort()
            raise
        self._reader, self._writer = reader, writer
        self._read_task = self._create_reader_task()
        try:
            async with asyncio.timeout(share):
                await self._do_version_lookup()
            if options.security_protocol.startswith("SASL_"):
                await self._do_sasl_handshake()
            if not self.connected():  # the broker closed it directly after its last answer
                raise KafkaConnectionError
        except BaseException:
            self.drop()
            raise

    # -- logging in ---------------------------------------------------------------------------------------------------

    def authenticator_oauth(self) -> Any:
        """Replaces aiokafka's authenticator, which ignores the broker's answer to a token."""
        return _TokenLogin(self._settings)

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Sends a request as aiokafka's method does. If the request is a login, its answer may set `replace_at`."""
        answer = super().send(request, expect_response)
        return self._logged_in(answer) if isinstance(request, SaslAuthenticateRequest) else answer

    async def _logged_in(self, answer: Any) -> Any:
        response = await answer
        lifetime = getattr(response, "session_lifetime_ms", 0)
        if lifetime > 0:
            self.replace_at = asyncio.get_running_loop().time() + lifetime / 1000 * SHARE_OF_SESSION
        return response

    def login_ends(self) -> bool:
        """Whether the login ends soon (see `replace_at`)."""
        return self.replace_at is not None and asyncio.get_running_loop().time() >= self.replace_at

    # -- questions ----------------------------------------------------------------------------------------------------

    async def metadata(self, topics: list[str]) -> Any:
        """Asks for the nodes and for these topics. If a topic does not exist, the broker may create it.

        Raises:
            KafkaError, TimeoutError: There is no answer.
        """
        return await self.send(MetadataRequest(topics))

    async def producer_id(self) -> tuple[int, int, int]:
        """Asks for a producer id. Returns the error code, the producer id and the epoch.

        Raises:
            KafkaError, TimeoutError: There is no answer.
        """
        timeout = self._settings.options.request_timeout_ms
        answer = await self.send(InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=timeout))
        return answer.error_code, answer.producer_id, answer.producer_epoch

    # -- produce requests ---------------------------------------------------------------------------------------------

    def check_version(self) -> None:
        """Raises a `ProtocolError` if the broker does not know our version of the produce request."""
        oldest, newest = self._versions.get(produce.API_KEY, (0, 0))
        if not oldest <= produce.API_VERSION <= newest:
            raise ProtocolError("the broker is older than Kafka 2.4, which this plugin needs: upgrade it")

    @property
    def versions(self) -> dict[int, tuple[int, int]]:
        """For each API key, the oldest and the newest version of the request that the broker knows."""
        return dict(self._versions)

    def write(self, request: bytes, answered: Callable[[list[bytes]], None]) -> None:
        """Writes a produce request. Afterwards the caller must not call `metadata` or `producer_id`, because aiokafka
        gets no answers any more.

        Args:
            request: The whole request, with its size field.
            answered: A function that is called with the responses that arrive from now on, each without its size field,
                as soon as they are complete.

        Raises:
            KafkaConnectionError: The connection is closed; nothing was written.
        """
        writer: asyncio.StreamWriter | None = self._writer
        if writer is None:
            raise KafkaConnectionError
        self._protocol.answered = answered
        writer.write(request)

    async def written(self) -> None:
        """Waits until the operating system has taken all bytes that were written. Raises an `OSError` if the connection
        ends before."""
        writer: asyncio.StreamWriter | None = self._writer
        if writer is None:
            raise ConnectionResetError
        await writer.drain()
        # drain() may return while some bytes are left. With TLS, encrypted bytes also wait in the transport below.
        while self._writer is writer and (  # noqa: ASYNC110 # no event says that both buffers are empty
            writer.transport.get_write_buffer_size() or self._socket.get_write_buffer_size()
        ):
            await asyncio.sleep(LOOK_AT_BUFFER)
        if self._writer is not writer:
            raise ConnectionResetError

    # -- the end ------------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Closes the connection at once, also when its event loop is closed. If the loop is open, each call of `send`
        that waits for its answer fails."""
        if self._writer is not None:
            self.close()

    def close(self, reason: Any = None, exc: BaseException | None = None) -> Any:
        """Closes as aiokafka's method does, and also drops the transport. With aiokafka's method alone, the transport
        might wait for the peer, with TLS for up to 30 s."""
        writer: asyncio.StreamWriter | None = self._writer
        if writer is not None and self._closed_fut.get_loop().is_closed():
            drop_task(self._read_task)
            self._reader = self._writer = self._read_task = None  # type: ignore[assignment] # aiokafka's "closed"
        else:
            super().close(reason, exc)
        drop_transport(writer.transport if writer is not None else None)
        return self._closed_fut

    async def ended(self) -> None:
        """Waits until the transport is closed, for at most 0.2 s. The caller must have called `drop()`."""
        await asyncio.wait((self._closed_fut,), timeout=0.2)


class _TokenLogin:
    """Logs in with OAUTHBEARER (RFC 7628). If the token is refused, one more message asks for the broker's error."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._provider: Any = settings.options.sasl_oauth_token_provider
        self._timeout = SHARE_OF_TIMEOUT * settings.options.connect_timeout
        self._sent = False

    async def step(self, answer: bytes | None) -> tuple[bytes, bool] | None:
        """Returns the next message that aiokafka must send, and True, because an answer is expected. None: there is
        nothing more to send.

        Raises:
            TokenError: The token provider raised an error, gave no answer in time, or gave an unusable token.
        """
        if self._sent:
            return (b"\x01", True) if answer else None  # the broker answers this with an error
        self._sent = True
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                token = await self._provider.token()
            extensions = self._provider.extensions() if callable(getattr(self._provider, "extensions", None)) else {}
            text = _why_no_token(token)
            if text is None:
                fields = [f"auth=Bearer {token}", *(f"{name}={value}" for name, value in (extensions or {}).items())]
                return ("n,," + "".join(f"\x01{field}" for field in fields) + "\x01\x01").encode(), True
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # our own task was cancelled, not the provider's
            if limit.expired():
                text = f"did not answer within {self._timeout:g} s (most of connect_timeout)"
            else:
                text = f"raised {type(error).__name__}"
        raise TokenError(f"the token provider {text}")


def _why_no_token(token: object) -> str | None:
    """Returns what is visibly wrong with the token, or None. A token with a fault is not sent, so that the error can
    name the fault."""
    if not isinstance(token, str):
        return f"gave {type(token).__name__} in the place of text"
    if not token:
        return "gave an empty text"
    return None if token.isprintable() else "gave a token with a line break or another character that is not printed"
