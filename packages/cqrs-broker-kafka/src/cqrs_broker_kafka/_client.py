"""All that touches aiokafka: its connections, its requests for metadata and producer ids, its checksum and codecs.

`_inspection` makes requests of its own from aiokafka's documented classes.

We use no client and no producer of aiokafka, only one connection at a time. The connection connects, negotiates
versions and logs in. From then on, a connection for produce requests is ours. aiokafka's reader gets nothing from it
any more, but still notices when it ends. Eight names that aiokafka does not document are used, all of
`AIOKafkaConnection`:

| name | used for |
|---|---|
| `_closed_fut`, `_reader`, `_writer`, `_read_task`, `_create_reader_task` | a connection over a socket of our own |
| `_do_version_lookup`, `_do_sasl_handshake` | what its `connect()` does next |
| `_versions` | whether the broker knows the version of our produce requests |

`why_unsupported` looks for them before anything is connected, and tests/kafka/test_client.py has a test for each use.
"""

from __future__ import annotations

import asyncio
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
from aiokafka.record.util import calc_crc32c as crc32c

from cqrs_brokers.dialing import dial
from cqrs_brokers.tasks import drop_task, drop_transport
from cqrs_brokers.url import Host

from . import _produce as produce
from ._settings import KafkaSettings

__all__ = [
    "CODECS",
    "Connection",
    "DescribeConfigsRequest",
    "OldBrokerError",
    "TokenError",
    "api",
    "crc32c",
    "errors",
    "types",
    "why_unsupported",
]

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
"""How many bytes a connection reads before somebody takes them."""
LOOK_AT_BUFFER = 0.002
"""How often a transport's buffer is looked at until it is empty, in seconds: asyncio does not tell it."""
SHARE_OF_TIMEOUT = 0.8
"""One step of connecting may take so much of `connect_timeout`: what is cut off by that itself has no reason."""
SHARE_OF_SESSION = 0.8
"""A connection is replaced when so much of the time is over for which its login is good."""

CODECS: dict[str, tuple[int, Callable[[bytes], bytes] | None]] = {
    "none": (0, None),
    "gzip": (1, gzip_encode),
    "snappy": (2, snappy_encode),
    "lz4": (3, lz4_encode),
    "zstd": (4, zstd_encode),
}
"""The number of a compression in a batch's attributes, and the function; by the option `compression_type`."""


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


class OldBrokerError(Exception):
    """The broker does not know our version of the produce request."""


class TokenError(Exception):
    """The token provider gave no token. Its own error may hold secrets, so it is no cause of this one."""


class _Protocol(AIOKafkaProtocol):  # type: ignore[misc]
    """Hands what arrives to aiokafka's reader, until the connection is used for produce requests.

    From then on a response is read in the turn of the event loop in which it arrives. By way of aiokafka's reader,
    which is a task, it would be two turns later.
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
    """A connection to one host, made with `open`.

    Attributes:
        replace_at: When its login ends soon, in the event loop's time; None: it does not end.
    """

    replace_at: float | None = None
    _settings: KafkaSettings
    _protocol: _Protocol
    _socket: asyncio.Transport
    """Without TLS that of the connection, else the one below."""

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
        timeout = min(options.request_timeout_ms / 1000, SHARE_OF_TIMEOUT * options.connect_timeout)
        raw = await dial(self.host, self.port, timeout=timeout)
        self._closed_fut = loop.create_future()
        reader = asyncio.StreamReader(limit=READ_AHEAD, loop=loop)
        self._protocol = protocol = _Protocol(self._closed_fut, reader, loop=loop)
        self._socket, _ = await loop.create_connection(lambda: protocol, sock=raw)
        writer = asyncio.StreamWriter(self._socket, protocol, reader, loop)
        try:
            async with asyncio.timeout(options.request_timeout_ms / 1000):
                if tls is not None:
                    await writer.start_tls(tls, server_hostname=self.host)
        except BaseException:
            self._socket.abort()
            raise
        self._reader, self._writer = reader, writer
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
        """As aiokafka's. It also remembers for how long a login is good."""
        answer = super().send(request, expect_response)
        return self._logged_in(answer) if isinstance(request, SaslAuthenticateRequest) else answer

    async def _logged_in(self, answer: Any) -> Any:
        response = await answer
        lifetime = getattr(response, "session_lifetime_ms", 0)
        if lifetime > 0:
            self.replace_at = asyncio.get_running_loop().time() + lifetime / 1000 * SHARE_OF_SESSION
        return response

    def login_ends(self) -> bool:
        """Whether its login ends soon, so that another connection is needed."""
        return self.replace_at is not None and asyncio.get_running_loop().time() >= self.replace_at

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

    def write(self, request: bytes, answered: Callable[[list[bytes]], None]) -> None:
        """Writes a request. The connection is the caller's from then on: aiokafka is not asked to send on it any more.

        Args:
            request: All of it.
            answered: Gets every response from now on, without its size, as soon as it is there.

        Raises:
            KafkaConnectionError: The connection is closed; nothing was written.
        """
        writer: asyncio.StreamWriter | None = self._writer
        if writer is None:
            raise KafkaConnectionError
        self._protocol.answered = answered
        writer.write(request)

    async def written(self) -> None:
        """Waits until the operating system has all that was written.

        Raises:
            OSError: The connection ended before.
        """
        writer: asyncio.StreamWriter | None = self._writer
        if writer is None:
            raise ConnectionResetError
        await writer.drain()
        # It returns while some is left; and with TLS what is encrypted waits in the transport below.
        while self._writer is writer and (  # noqa: ASYNC110 # no event tells it
            writer.transport.get_write_buffer_size() or self._socket.get_write_buffer_size()
        ):
            await asyncio.sleep(LOOK_AT_BUFFER)
        if self._writer is not writer:
            raise ConnectionResetError

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
        self._timeout = SHARE_OF_TIMEOUT * settings.options.connect_timeout
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
