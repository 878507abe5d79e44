"""What `cqrs-brokers check` says about a string of `memory://`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from cqrs_brokers.inspection import Endpoint, Finding, Inspection

from ._options import MemoryOptions

__all__ = ["MemoryInspection"]


class MemoryInspection(Inspection):
    """There is no server. The findings say what happens to messages, and which faults the string plays.

    Args:
        name: The broker's name, as in `memory://name`.
        options: The size and the faults.
    """

    def __init__(self, name: str, options: MemoryOptions) -> None:
        self._name = name
        self._options = options

    def endpoints(self) -> Sequence[Endpoint]:
        """Returns no endpoints, because nothing connects."""
        return []

    async def server(self, endpoints: Sequence[Endpoint], /) -> AsyncIterator[Finding]:
        """Says what the broker does with messages, and which faults the string plays."""
        text = (
            f"messages stay in the process that sends them, up to {self._options.capacity}, and are gone with it: "
            "nobody else reads them"
        )
        remedy = "this is for an application's own tests: name a real broker where a message must arrive"
        yield Finding("server", "warn", self._name, text, remedy)
        # `error` plays nothing by itself: it says how the messages of `fail` and `fail_at` fail.
        plays = sorted(name for name, value in vars(self._options.faults).items() if value and name != "error")
        if plays:
            text = f"the string plays faults on purpose: {', '.join(plays)}"
            yield Finding("server", "warn", self._name, text, "leave them out where sends are to succeed")

    async def topic(self, topic: str, /) -> AsyncIterator[Finding]:
        """Says that the broker takes every topic."""
        yield Finding("topic", "ok", topic, "every topic is taken; nothing has to be created")
