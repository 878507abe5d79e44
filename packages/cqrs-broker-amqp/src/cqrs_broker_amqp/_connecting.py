"""Makes one pass over the hosts. A pass that succeeds ends with an open confirm channel on one of the hosts.

`Broker` decides when the next pass begins.
"""

from __future__ import annotations

import asyncio

from cqrs_brokers.dialing import Address
from cqrs_brokers.exceptions import ConnectError, TLSError, TopologyError
from cqrs_brokers.pipeline import error_of_pass

from ._channels import ConfirmChannel
from ._errors import hung_up
from ._foreign import name_the_peer
from ._session import Session, SessionListener
from ._settings import AMQPSettings

__all__ = ["connect"]

SECOND_TRY = 0.3
"""Seconds between the two attempts to connect to a host that closed a TLS connection without a reason (see
`connect`)."""


async def connect(
    settings: AMQPSettings, first: int, listener: SessionListener, *, known: bool, channel_limit: int | None
) -> tuple[Session, ConfirmChannel, int]:
    """Tries one host after the other, starting with index `first`. Each host gets an equal share of the time that is
    left of `connect_timeout`, and at least 0.1 s. If an address of a host accepts the TCP connection, and the attempt
    then fails with an error that is not permanent, the host's other addresses are tried while time is left.

    With TLS 1.3 the client's handshake ends before the server checks the client certificate. If the certificate is
    missing, the server sends an alert and closes the connection, and we may see only the close. A node that restarts
    also closes its connections. So such a close becomes a `TLSError` only if a host closes two connections in a row
    without a reason, and only with settings that have never worked.

    A Kafka broker also closes a connection after the first bytes of AMQP. So without TLS, and with settings that have
    never worked, `name_the_peer` is asked about a host that closed the connection without a reason.

    Args:
        settings: Where to connect and how.
        first: The index of the first host in `settings.hosts`.
        listener: The listener of the sessions.
        known: Whether these settings have worked before.
        channel_limit: How many channels this user may open. None: the number is not known.

    Returns:
        The session, its first channel, and the index of its host.

    Raises:
        ConnectError: The pass failed on every host. If there is an error that a person must fix, the first such error
            is raised, else the first error. The text of the raised error contains the texts of all errors. A
            `TopologyError` is raised at once, without trying the other hosts.
    """
    loop = asyncio.get_running_loop()
    hosts = settings.hosts
    end = loop.time() + settings.options.connect_timeout
    errors: list[ConnectError] = []
    for turn in range(len(hosts)):
        number = (first + turn) % len(hosts)
        once_more = settings.tls is not None and not known
        addresses: list[Address] | None = None
        failure: ConnectError | None = None
        while True:
            share = max(0.1, (end - loop.time()) / (len(hosts) - turn))
            listener.unblocked()  # an alarm that an attempt has met ends with the attempt
            session = Session(settings, hosts[number], listener, channel_limit, addresses)
            try:
                channel = await session.run(session.open(share), share)
            except TopologyError:
                raise  # every node of a cluster says the same
            except ConnectError as error:
                found = error if error.permanent or failure is None else failure
                if session.other_addresses and not error.permanent and loop.time() < end:
                    failure, addresses = found, session.other_addresses
                    continue
                if once_more and hung_up(found):
                    once_more, failure, addresses = False, None, None
                    await asyncio.sleep(SECOND_TRY)
                    continue
                if not known and hung_up(found):
                    found = _twice(found, session) if settings.tls else await name_the_peer(found, hosts[number])
                errors.append(found)
                break
            else:
                return session, channel, number
    raise error_of_pass(errors)


def _twice(error: ConnectError, session: Session) -> TLSError:
    found = TLSError(
        f"{session.where} closes the connection during or after the TLS handshake: does it ask for a client "
        "certificate, and is this its TLS port?"
    )
    found.__cause__ = error.__cause__
    return found
