"""Publishes to JetStream: each message says where its answer goes, and the answers come in any order.

A refusal by the server's permissions is no such answer: it names the subject, not the message. The order of publishes
on one subject is that of the refusals, so it belongs to the oldest one without an answer.
"""

from collections.abc import Sequence

from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver
from cqrs_brokers.exceptions import ConnectError, MessageTooLargeError, PublishForbiddenError, UnreachableError
from cqrs_brokers.pipeline import Pipeline, connect_to_any
from cqrs_brokers.tls import TLSContext
from cqrs_brokers.url import BrokerURL, Host
from nats.aio.msg import Msg

from .connecting import Session
from .errors import ack_of
from .frames import Frame, refusal_of_subject
from .options import NatsOptions

__all__ = ["NatsDriver"]


class NatsDriver(PipelinedDriver):
    """What NATS needs; the queues and tasks are the pipeline's."""

    def __init__(self, url: BrokerURL, options: NatsOptions, tls: TLSContext | None) -> None:
        self._url, self._options, self._tls = url, options, tls
        self._session: Session | None = None
        self._pipeline = Pipeline[Frame](self._lost, ping_after=options.ping_after, ping_timeout=options.ping_after)

    @property
    def capabilities(self) -> Capabilities:
        """Not durable: as it is installed, the server tells the disk to keep what it has every two minutes."""
        return Capabilities(confirms=True, ordering_key=True, headers=True)

    def bind(self, link: Link) -> None:
        """Keeps the link, to report a lost connection."""
        self._link = link

    def refuse_topic(self, topic: str) -> str | None:
        """What is no subject."""
        return refusal_of_subject(topic)

    async def connect(self) -> None:
        """Connects to the first host that answers, and opens the pipeline."""
        await self._pipeline.end()
        self._drop()
        timeout = self._options.connect_timeout
        session = self._session = await connect_to_any(self._url.hosts, self._open, timeout, drop=Session.drop)

        async def write(batch: Sequence[tuple[int, Frame]]) -> None:
            await session.write([line for token, frame in batch for line in frame.lines(f"{session.inbox}.{token}")])

        self._pipeline.open(write, ping=session.ping)

    async def _open(self, host: Host) -> Session:
        context = None if self._tls is None else self._tls.current()
        return await Session(self._answered, self._refused, self._ended).open(host, self._url, self._options, context)

    async def ping(self) -> None:
        """Asks on the connection that is used."""
        if self._session is None:
            raise UnreachableError("not connected")
        try:
            await self._session.ping()
        except Exception as error:
            raise UnreachableError(f"the server does not answer a ping ({type(error).__name__})") from error

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        """Queues the frames. They are made now, because the caller may change a message later."""
        limit = self._session.max_payload if self._session is not None else None
        for delivery in deliveries:
            frame = Frame(delivery.message)
            if limit is not None and frame.size > limit:  # the server would close the connection
                text = f"with its headers it has {frame.size} bytes, and the server's max_payload is {limit}"
                delivery.fail(MessageTooLargeError(text))
            else:
                self._pipeline.put(delivery, frame, frame.size)

    def _answered(self, token: str, msg: Msg) -> None:
        ack = ack_of(msg)
        if ack is None:  # some subscriber's answer: the stream's may still come
            return
        delivery = self._pipeline.answered(int(token))
        if delivery is not None and ack.error is not None:
            delivery.fail(ack.error)
        elif delivery is not None:
            delivery.confirm(offset=ack.sequence)

    def _refused(self, subject: str) -> None:
        token = self._pipeline.oldest(lambda delivery: delivery.topic == subject)
        delivery = None if token is None else self._pipeline.answered(token)
        if delivery is not None:
            text = "the user may not publish to this subject, or not get answers: see the server's permissions"
            delivery.fail(PublishForbiddenError(text))

    def _ended(self, session: Session, error: Exception) -> None:
        if session is self._session:
            self._pipeline.broken(error)

    def _lost(self, error: ConnectError) -> None:
        self._drop()
        self._link.lost(error)

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.drop()

    async def close(self, grace: float) -> None:
        """Drops the connection: by now every message has its outcome, and NATS expects no farewell."""
        session = self._session
        self._drop()
        if session is not None:
            await session.gone()
        await self._pipeline.close()

    def abort(self) -> None:
        """Drops everything, also when the loop is closed."""
        self._drop()
        self._pipeline.abort()
