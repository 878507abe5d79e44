"""What all canary tests share: the canaries, where they are planted, and the look at every outcome."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

from cqrs_brokers import Broker, BrokerError, DeliveryError, Message, Receipt
from cqrs_brokers_testkit.canary import Canary, CanaryScanner


class Planted:
    """One canary per place, and a scanner for all of them.

    Args:
        password: One that a server knows.

    Attributes:
        password: As given.
        nasty: A password full of characters that mean something in a URL.
        seen: The class of each outcome and error that was looked at itself (not as a cause).
    """

    def __init__(self, password: Canary) -> None:
        self.password = password
        self.nasty = Canary("the nasty password", between="/é%2+@ &#?:")
        self.body = Canary("the body", between='"é\n')
        self.key = Canary("the key", between="/é ")
        self.header = Canary("a header value", between="=é; ")
        self.scanner = CanaryScanner(self.password, self.nasty, self.body, self.key, self.header)
        self.observer = self.scanner.observer()
        self.seen: set[type] = set()

    def message(self, topic: str = "t", payload: object = None, **changes: Any) -> Message:
        """A message with a canary in body, key and header value."""
        fields: dict[str, Any] = {"key": self.key.text, "headers": {"h": self.header.text}, **changes}
        return Message("Happened", topic, {"x": self.body.text} if payload is None else payload, **fields)

    async def outcome(self, sending: Awaitable[object]) -> object:
        """Awaits a send or a connect, and looks at how it ended."""
        try:
            ended = await sending
        except BrokerError as error:
            self.look_at(error)
            return error
        if isinstance(ended, Receipt):
            self.look_at(ended)
        return ended

    async def outcomes(self, broker: Broker, messages: Iterable[Message]) -> list[object]:
        """Sends each by itself, all at once; the order of calls is the order of the messages."""
        return await asyncio.gather(*(self.outcome(broker.send_message(message)) for message in messages))

    def look_at(self, ended: Receipt | BrokerError) -> None:
        """Looks at an outcome or error."""
        self.seen.add(type(ended))
        if isinstance(ended, BrokerError):
            self.scanner.error("an error", ended)
        else:
            self.scanner.value("a receipt", ended)

    async def look_at_broker(self, broker: Broker) -> None:
        """Looks at all that a `Broker` says about itself."""
        parts = {
            "a broker": broker,
            "its URL": broker.url,
            "describe()": broker.describe(),
            "its driver": broker.driver,
            "its capabilities": broker.capabilities,
            "health()": await broker.health(),
        }
        for where, part in parts.items():
            self.scanner.value(where, part)
        for option in broker.describe()["options"].values():
            self.scanner.value("an option", option)

    def delivered(self, *classes: type[DeliveryError]) -> None:
        """Asserts that these are the errors that were seen, besides receipts."""
        assert self.seen - {Receipt} == set(classes)
