"""Finds the facts that `cqrs-brokers check` shows about RabbitMQ, over AMQP. Nothing is published, created or changed.

A passive declaration shows whether an exchange or a queue exists, and how many messages and consumers a queue has.
Three other questions show more. The check asks each question only if the question cannot change anything:

* With `declare=exchange` and `declare=queue` the check declares the existing exchange, as every connection does.
  RabbitMQ's answer names what differs.
* With `declare=queue` the check declares the existing queue of a topic.
* The check removes a binding that does not exist (its routing key is random). RabbitMQ first checks whether the user
  may write to the exchange.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from cqrs_brokers.exceptions import ConnectError, UnreachableError
from cqrs_brokers.inspection import Endpoint, Finding, Inspection
from cqrs_brokers.url import Host

from ._channels import ConfirmChannel
from ._connecting import connect
from ._errors import ACCESS_REFUSED, NOT_FOUND, channel_reply
from ._logs import redact_client_logs
from ._session import Session
from ._settings import AMQPSettings
from ._topology import declare_exchange, find_exchange, queue_error

__all__ = ["AMQPInspection"]

_SEND_ONE = "send one message with --send"


class AMQPInspection(Inspection):
    """See `Inspection`.

    Args:
        settings: Where and how to connect.
    """

    def __init__(self, settings: AMQPSettings) -> None:
        self._settings = settings
        self._options = settings.options
        self._sessions: list[Session] = []
        """One session for each endpoint that accepted the log-in. Questions about exchanges and queues use the first
        session."""

    def endpoints(self) -> Sequence[Endpoint]:
        """See `Inspection.endpoints`."""
        return [Endpoint(Host(*host), self._settings.tls) for host in self._settings.hosts]

    async def close(self) -> None:
        """See `Inspection.close`."""
        sessions, self._sessions = self._sessions, []
        await asyncio.gather(*(session.close(0.5) for session in sessions))

    # -- the server ---------------------------------------------------------------------------------------------------

    async def server(self, endpoints: Sequence[Endpoint], /) -> AsyncIterator[Finding]:
        """See `Inspection.server`. The exchange is checked here too, because every message needs it."""
        redact_client_logs()
        tried = await asyncio.gather(*map(self._log_in, endpoints))
        for endpoint, one in zip(endpoints, tried, strict=True):
            if isinstance(one, Session):
                for finding in self._welcome(one, str(endpoint)):
                    yield finding
            else:
                failure = Finding.of(one, str(endpoint))
                yield failure._replace(level="warn") if self._sessions else failure
        if self._sessions:
            async for finding in self._exchange(self._sessions[0]):
                yield finding

    async def _log_in(self, endpoint: Endpoint) -> Session | ConnectError:
        host, port = endpoint.host
        assert port is not None
        only = replace(
            self._settings, hosts=((host, port),), options=self._options.model_copy(update={"declare": "never"})
        )
        try:
            session, _, _ = await connect(only, 0, _NobodyListens(), known=False, channel_limit=None)
        except ConnectError as error:
            return error
        self._sessions.append(session)
        return session

    def _welcome(self, session: Session, where: str) -> list[Finding]:
        connection = session.connection
        known = connection.server_properties or {}
        cluster = f", cluster {known['cluster_name']!s}" if known.get("cluster_name") else ""
        return [
            Finding("login", "ok", where, f"logged in as {self._settings.username}"),
            Finding("access", "ok", where, f"the user may use the virtual host {self._settings.vhost!r}"),
            Finding("server", "ok", where, f"{connection.server}{cluster}"),
        ]

    # -- the exchange -------------------------------------------------------------------------------------------------

    async def _exchange(self, session: Session) -> AsyncIterator[Finding]:
        options = self._options
        subject = f"exchange {options.exchange!r}"
        if not options.exchange:
            yield Finding("topic", "ok", "the default exchange", "routes to the queue that is named like the topic")
            return
        found = await session.run(self._find(session), options.connect_timeout, declaring=True)
        if found is None:
            yield Finding("topic", "unseen", subject, "the server does not show it to this user")
        elif not found:
            yield self._missing(subject)
            return
        elif options.declare in ("exchange", "queue"):
            yield await self._declared(session, subject)
        else:
            yield Finding("topic", "ok", subject, "is there")
            text = "its type and its alternate exchange: AMQP shows them only to somebody who declares it"
            yield Finding("topic", "unseen", subject, text, _with(session, "list_exchanges name type arguments"))
        yield await self._write_permission(session, subject)

    async def _find(self, session: Session) -> bool | None:
        return await find_exchange(await session.raw_channel(confirms=False), self._options)

    def _missing(self, subject: str) -> Finding:
        options = self._options
        if options.declare in ("exchange", "queue") and not options.exchange.startswith("amq."):
            text = f"is not there; the first connection declares it (durable, {options.exchange_type})"
            if options.declare == "queue":
                return Finding("topic", "ok", subject, f"{text}, and the first message its queue")
            remedy = "bind a queue to it before the first message, or use declare=queue"
            return Finding("topic", "warn", subject, text, remedy)
        return Finding("topic", "fail", subject, "is not there", "create it, or use declare=exchange")

    async def _declared(self, session: Session, subject: str) -> Finding:
        options = self._options
        try:
            await declare_exchange(await session.raw_channel(confirms=False), options)
        except ConnectError as error:
            return Finding.of(error, subject)
        text = f"is there: durable, {options.exchange_type}, without an alternate exchange of its own"
        return Finding("topic", "ok", subject, text)

    async def _write_permission(self, session: Session, subject: str) -> Finding:
        unseen = Finding("topic", "unseen", subject, "whether the user may publish to it", _SEND_ONE)
        if not session.connection.server_capabilities.get("exchange_exchange_bindings"):
            return unseen
        name = self._options.exchange
        source = "amq.topic" if name != "amq.topic" else "amq.direct"
        channel = await session.raw_channel(confirms=False)
        nobody = f"cqrs-brokers-check-{uuid.uuid4().hex}"
        try:
            await channel.exchange_unbind(destination=name, source=source, routing_key=nobody)
        except Exception as error:
            code, reply = channel_reply(error)
            if code == ACCESS_REFUSED and f"exchange '{source}'" not in reply:
                text = f"the user may not publish to it ({reply})"
                remedy = "grant write permission with rabbitmqctl set_permissions"
                return Finding("topic", "fail", subject, text, remedy)
            if code != ACCESS_REFUSED:  # else writing is allowed: only reading from `source` is not
                return unseen
        return Finding("topic", "ok", subject, "the user may publish to it")

    # -- a topic ------------------------------------------------------------------------------------------------------

    async def topic(self, topic: str, /) -> AsyncIterator[Finding]:
        """See `Inspection.topic`."""
        options = self._options
        if not self._sessions or self._sessions[0].over:
            raise UnreachableError("the connection was lost")
        session = self._sessions[0]
        if not options.exchange or options.declare == "queue":
            async for finding in self._queue(session, topic):
                yield finding
        if options.exchange and options.declare != "queue":
            text = f"whether a queue is bound to exchange {options.exchange!r} for it, and of which kind"
            yield Finding("topic", "unseen", topic, text, f"{_SEND_ONE}, or {_with(session, 'list_bindings')}")
        text = "policies, topic permissions, limits of size and alarms: AMQP shows them only when a message is sent"
        yield Finding("topic", "unseen", topic, text, "send one message with --send")

    async def _queue(self, session: Session, topic: str) -> AsyncIterator[Finding]:
        options = self._options
        try:
            queue = await (await session.raw_channel(confirms=False)).queue_declare(topic, passive=True)
        except Exception as error:
            code, reply = channel_reply(error)
            if code == NOT_FOUND and options.declare == "queue":
                kind = options.queue_type or "of the virtual host's default type"
                yield Finding("topic", "ok", topic, f"there is no such queue; the first message declares it ({kind})")
            elif code == NOT_FOUND:
                yield Finding("topic", "fail", topic, "there is no such queue", "create it, or use declare=queue")
            elif code:
                yield Finding("topic", "unseen", topic, f"the server does not show the queue to this user ({reply})")
            else:
                raise UnreachableError("the connection was lost while looking for a queue") from None
            return
        messages, consumers = queue.message_count or 0, queue.consumer_count or 0
        count = f"{messages} message{'' if messages == 1 else 's'} in it, "
        count += f"{consumers} consumer{'' if consumers == 1 else 's'}"
        yield Finding("topic", "ok", topic, f"the queue is there: {count}")
        if options.declare == "queue":
            yield await self._declared_queue(session, topic)

    async def _declared_queue(self, session: Session, topic: str) -> Finding:
        kind: str | None = self._options.queue_type
        arguments = None if kind is None else {"x-queue-type": kind}
        try:
            channel: Any = await session.raw_channel(confirms=False)
            await channel.queue_declare(topic, durable=True, arguments=arguments)
        except Exception as error:
            return Finding("topic", "fail", topic, queue_error(error, topic).text)
        text = f"the queue is as declare=queue wants it: durable, {kind or 'of the default type'}"
        return Finding("topic", "ok", topic, text)


def _with(session: Session, command: str) -> str:
    """The advice how to look at the server itself. Only RabbitMQ has rabbitmqctl."""
    is_rabbitmq = session.connection.server.startswith("RabbitMQ")
    return f"look with rabbitmqctl {command}" if is_rabbitmq else "look at the server itself"


class _NobodyListens:
    """A `SessionListener` for a connection on which only a few questions are asked. It ignores all events, because each
    question notices its own failure."""

    callbacks: dict[str, Any] = {  # noqa: RUF012 - a constant
        "failed": lambda *_: None,
        "answered": lambda *_: None,
    }

    def session_ended(self, session: Session, error: BaseException | None) -> None:
        """See `SessionListener`."""

    def channel_closed(self, channel: ConfirmChannel, error: BaseException | None) -> None:
        """See `SessionListener`."""

    def blocked(self, reason: str) -> None:
        """See `SessionListener`."""

    def unblocked(self) -> None:
        """See `SessionListener`."""
