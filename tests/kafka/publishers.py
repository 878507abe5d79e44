"""Publishers that go on while something is broken, and the check of what they were told against the log."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cqrs_brokers import Broker, DeliveryError, Message, NotDeliveredError, Receipt
from cqrs_brokers_testkit.readers import Record, drain_topic
from cqrs_brokers_testkit.servers import KafkaServer

Outcome = Receipt | DeliveryError


BURST = 4
"""A publisher sends so many messages in one turn of the event loop …"""
AT_ONCE = 12
"""… and has so many on their way at most, so that some wait behind those that the client has."""


class Publishers:
    """One publisher per key, which sends bursts of messages until `stop()` and does not wait for one before the next.

    Attributes:
        outcomes: By message id, in the order in which they came.
        slowest: The longest that a send took, in seconds.
    """

    def __init__(self, broker: Broker, topic: str, *, count: int = 12, body: bytes = b"{}", pause: float = 0.0) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.slowest = 0.0
        self._calls: dict[str, list[str]] = defaultdict(list)
        self._broker, self._topic, self._body, self._pause = broker, topic, body, pause
        self._stopped = False
        self._confirmed = 0
        self._most = count * AT_ONCE
        self._tasks = [asyncio.create_task(self._publish(f"k{number}")) for number in range(count)]

    async def _publish(self, key: str) -> None:
        sends: set[asyncio.Task[None]] = set()
        while not self._stopped:
            sends |= {asyncio.create_task(self._send(self._message(key))) for _ in range(BURST)}
            await asyncio.sleep(self._pause)
            while len(sends) > AT_ONCE - BURST:
                done, sends = await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(*done)
        await asyncio.gather(*sends)

    def _message(self, key: str) -> Message:
        message = Message("E", self._topic, self._body, key=key)
        self._calls[key].append(str(message.message_id))  # `create_task` keeps the order
        return message

    async def _send(self, message: Message) -> None:
        loop = asyncio.get_running_loop()
        message_id = str(message.message_id)
        started = loop.time()
        try:
            self.outcomes[message_id] = await self._broker.send_message(message)
            self._confirmed += 1
        except DeliveryError as error:
            self.outcomes[message_id] = error
        self.slowest = max(self.slowest, loop.time() - started)

    async def stop(self) -> None:
        """Ends the publishers; each send that is under way gets its outcome."""
        self._stopped = True
        await asyncio.gather(*self._tasks)

    @property
    def receipts(self) -> dict[str, Receipt]:
        return {name: outcome for name, outcome in self.outcomes.items() if isinstance(outcome, Receipt)}

    async def recovered(self, within: float) -> None:
        """Waits for more receipts than there are messages on their way; fails when they do not come in time.

        Args:
            within: Seconds, at most.
        """
        enough = self._confirmed + self._most
        async with asyncio.timeout(within):
            while self._confirmed <= enough:
                await asyncio.sleep(0.05)

    async def check(
        self, kafka: KafkaServer, *, duplicates: bool = False, lost: bool = False, timeout: float = 20.0
    ) -> list[Record]:
        """What every broker owes: nothing confirmed is lost, doubled or out of order, nothing refused is there.

        Args:
            kafka: Where to read.
            duplicates: The configuration allows them, and then any order.
            lost: The configuration allows confirmed messages to be lost.
            timeout: For reading, in seconds.
        """
        records: list[Record] = await asyncio.to_thread(
            drain_topic, kafka.reader_bootstrap_servers, self._topic, timeout=timeout
        )
        arrived: list[Any] = [record.message_id for record in records]
        receipts = self.receipts
        refused = {name for name, outcome in self.outcomes.items() if isinstance(outcome, NotDeliveredError)}
        assert not refused & set(arrived), "wrongly not delivered"
        if not lost:
            assert not set(receipts) - set(arrived), "lost"
        places = {(record.message_id, record.partition, record.offset) for record in records}
        for message_id, receipt in receipts.items():
            place = (message_id, receipt.partition, receipt.offset)
            assert receipt.offset is None or place in places, "in another place"
        if duplicates:
            return records
        assert len(arrived) == len(set(arrived)), "duplicated"
        order = {name: number for number, name in enumerate(arrived)}
        for calls in self._calls.values():
            numbers = [order[name] for name in calls if name in receipts]
            assert numbers == sorted(numbers), "out of order"
        return records


@asynccontextmanager
async def publishing(broker: Broker, topic: str, **how: Any) -> AsyncIterator[Publishers]:
    """Publishers for the length of a block."""
    publishers = Publishers(broker, topic, **how)
    try:
        yield publishers
    finally:
        await publishers.stop()
