"""What `cqrs-brokers check` says about `devnull://`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from cqrs_brokers.inspection import Endpoint, Finding, Inspection

__all__ = ["DevnullInspection"]


class DevnullInspection(Inspection):
    """The findings for `devnull://`: there is no server, and no message arrives."""

    def endpoints(self) -> Sequence[Endpoint]:
        """Returns no endpoints, because nothing connects."""
        return []

    async def server(self, endpoints: Sequence[Endpoint], /) -> AsyncIterator[Finding]:
        """Says what happens to messages."""
        text = "every message is discarded, with warnings in the log, and no receipt is confirmed"
        yield Finding("server", "warn", "", text, "name a real broker where a message must arrive")

    async def topic(self, topic: str, /) -> AsyncIterator[Finding]:
        """Says the same for every topic: messages are discarded."""
        yield Finding("topic", "warn", topic, "messages to it are discarded, as all others")
