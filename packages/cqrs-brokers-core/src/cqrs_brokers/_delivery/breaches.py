"""Breaches of the driver contract. `Broker` logs every breach, and keeps the last 100 breaches for the tests of
drivers."""

from __future__ import annotations

import collections
import logging
from typing import NamedTuple
from uuid import UUID

__all__ = ["ContractBreach", "ContractBreaches"]

logger = logging.getLogger("cqrs_brokers.driver")

KEPT = 100


class ContractBreach(NamedTuple):
    """One call in which a driver did not do what the contract says.

    Attributes:
        method: The method's name.
        what: What was wrong. The text shows nothing of the message.
        message_id: The id of the message. None: the breach does not concern a single message.
    """

    method: str
    what: str
    message_id: UUID | None = None


class ContractBreaches:
    """The breaches of one broker's driver.

    Args:
        address: The broker's redacted URL, for the log.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self.kept: collections.deque[ContractBreach] = collections.deque(maxlen=KEPT)
        """The last 100 breaches."""

    def add(self, method: str, what: str, message_id: UUID | None = None, error: BaseException | None = None) -> None:
        """Logs a breach and keeps it. The broker continues to work."""
        self.kept.append(ContractBreach(method, what, message_id))
        about = "" if message_id is None else f" for message {message_id}"
        logger.error(
            "the driver of %s broke its contract%s: %s() %s", self._address, about, method, what, exc_info=error
        )
