"""Discards messages, and logs warnings about them."""

from __future__ import annotations

import logging
import os
import time

from cqrs_brokers.driver import Capabilities, Driver, Message
from cqrs_brokers.exceptions import ConfigError

from ._options import DevnullOptions

__all__ = ["DevnullDriver"]

_log = logging.getLogger("cqrs_broker_devnull")

ENVIRONMENT_VARIABLE = "CQRS_BROKERS_ENV"
LOGGED_EACH = 10
"""The first messages, up to this number, get a warning each. After them there is at most one warning per `LOG_INTERVAL`
seconds."""
LOG_INTERVAL = 1.0


class DevnullDriver(Driver):
    """Discards every message. A warning with the name, the id and the topic is logged for each of the first 10
    messages, and then for at most one message per second.

    Args:
        options: The options of `devnull://`.

    Attributes:
        discarded: How many messages were discarded.

    Raises:
        ConfigError: The environment variable `CQRS_BROKERS_ENV` is `production`, and `allow_in_production` is False.
    """

    def __init__(self, options: DevnullOptions) -> None:
        production = os.environ.get(ENVIRONMENT_VARIABLE, "").strip().lower() == "production"
        if production and not options.allow_in_production:
            raise ConfigError(
                f"devnull:// discards every message, and {ENVIRONMENT_VARIABLE} is production: name a real broker, or "
                "set allow_in_production=true"
            )
        self.discarded = 0
        self._logged = 0
        self._next_log = 0.0

    @property
    def capabilities(self) -> Capabilities:
        """The driver confirms nothing and keeps nothing. It takes keys, headers of every type and tombstones, so that
        any application can use the driver."""
        return Capabilities(
            ordering_key=True,
            headers=True,
            header_types=frozenset({str, bytes, int, float, bool, type(None)}),
            tombstones=True,
        )

    async def send_message(self, message: Message) -> None:
        """Discards the message."""
        self.discarded += 1
        if self.discarded <= LOGGED_EACH:
            self._warn("discarded", message)
        elif (now := time.monotonic()) >= self._next_log:
            self._next_log = now + LOG_INTERVAL
            self._warn(f"discarded {self.discarded - self._logged} more, the last was", message)

    async def close(self, grace: float) -> None:
        """Logs how many messages were discarded, if there were any."""
        if self.discarded:
            noun = "message" if self.discarded == 1 else "messages"
            _log.warning("devnull:// discarded %d %s in all", self.discarded, noun)

    def _warn(self, what: str, message: Message) -> None:
        self._logged = self.discarded
        _log.warning("devnull:// %s %r, id %s, topic %r", what, message.message_name, message.message_id, message.topic)
