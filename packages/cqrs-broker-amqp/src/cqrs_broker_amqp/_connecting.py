"""Makes one pass over the hosts. A pass that succeeds ends with an open confirm channel on one of the hosts.

`Broker` decides when to try again, and `_publisher` knows what is in flight.
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
"""Seconds between two attempts to connect to a host that closes the connection. A single reset proves nothing, because
it may come from a proxy."""


async def connect(
    settings: AMQPSettings, first: int, listener: SessionListener, *, known: bool, channel_limit: int | None
) -> tuple[Session, ConfirmChannel, int]:
    """Tries one host after the other, starting with number `first`. Each host gets its share of `connect_timeout`. If
    an address of a host accepts the connection, and then closes it or gives no answer, the host's other addresses are
    tried.

    With TLS 1.3 a server learns only after the handshake that the client certificate is missing. It sends an alert and
    resets the connection. We may see only the reset. But a node that restarts also resets its connections. So the
    missing certificate counts as the reason only if two resets come in a row, and only with settings that have never
    worked (`known` is False).

    Returns:
        The session, its first channel, and the number of its host.

    Raises:
        ConnectError: The pass failed on every host. If there is an error that a person must fix, the first such error
            is raised, else the first error. A `TopologyError` is raised at once, without trying the other hosts.
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
