"""Publishers: tasks that send through the public API, each in its own way, and retry nothing.

Every publisher has keys of its own and shares others with all publishers of its broker, so that the order of calls is
tested within a task and across tasks.
"""

import asyncio
import random
import time
from collections.abc import Sequence

from cqrs_brokers import Broker, DeliveryError, Message

from .ledger import Entry, Ledger

__all__ = ["HOWS", "Publisher"]

HOWS = ("one by one", "in bursts", "send_messages", "with cancels")
MOST_PENDING = 64
"""Sends that one publisher has under way at most."""
CATCH_UP = 3.0
"""How many seconds of its pace a publisher makes up for after it had to wait."""


class Publisher:
    """One publisher.

    Args:
        number: From 0; with the seed it decides what is sent.
        seed: The run's seed.
        broker: Where to send.
        label: The broker's name in the ledger.
        deadline: The broker's delivery_timeout, in seconds.
        topics: Where messages go.
        rate: Messages per second to try.
        ledger: Where outcomes are noted.
    """

    def __init__(
        self,
        number: int,
        *,
        seed: int,
        broker: Broker,
        label: str,
        deadline: float,
        topics: Sequence[str],
        rate: float,
        ledger: Ledger,
    ) -> None:
        self._dice = random.Random(f"{seed}/{number}")
        self._how = HOWS[number % len(HOWS)]
        self._broker, self._label, self._deadline = broker, label, deadline
        self._topics = topics
        own = [f"{label}-{number}-{letter}" for letter in "abc"]
        self._keys = [*own, *own, *(f"{label}-shared-{index}" for index in range(6))]
        self._rate = rate
        self._ledger = ledger
        self._sends: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Sends until told to stop, then waits for what is under way."""
        dice = self._dice
        due = time.monotonic() + dice.uniform(0, 1)
        while not stop.is_set():
            count = {"one by one": 1, "send_messages": dice.randint(2, 15)}.get(self._how, dice.randint(1, 6))
            now = time.monotonic()
            due = max(due, now - CATCH_UP) + dice.uniform(0.5, 1.5) * count / self._rate
            if due > now:
                await asyncio.sleep(due - now)
            while len(self._sends) >= MOST_PENDING:
                await asyncio.wait(self._sends, return_when=asyncio.FIRST_COMPLETED)
            messages = [self._message() for _ in range(count)]
            if self._how == "one by one":
                await self._send(messages[0])
            elif self._how == "send_messages":
                await self._send_all(messages)
            else:
                self._send_in_tasks(messages)
        if self._sends:
            await asyncio.wait(self._sends)

    def _message(self) -> Message:
        dice = self._dice
        size = 20_000 if dice.random() < 0.01 else 100
        key = dice.choice(self._keys)
        return Message("Soaked", dice.choice(self._topics), {"key": key, "fill": "x" * size}, key=key)

    def _send_in_tasks(self, messages: Sequence[Message]) -> None:
        loop = asyncio.get_running_loop()
        for message in messages:
            task = asyncio.create_task(self._send(message))
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)
            if self._how == "with cancels" and self._dice.random() < 0.25:
                loop.call_later(self._dice.choice([0.0, 0.001, 0.003, 0.01, 0.5]), task.cancel)

    async def _send(self, message: Message) -> None:
        ledger, deadline = self._ledger, self._deadline
        entry = ledger.begin(message, self._label, self._how)
        try:
            ledger.end(entry, await self._broker.send_message(message), deadline=deadline)
        except DeliveryError as error:
            ledger.end(entry, error, deadline=deadline)
        except asyncio.CancelledError as error:
            self._cancelled([entry], error)
        except Exception as error:
            ledger.broke([entry], error)

    async def _send_all(self, messages: Sequence[Message]) -> None:
        ledger = self._ledger
        entries = [ledger.begin(message, self._label, self._how) for message in messages]
        try:
            outcomes = await self._broker.send_messages(messages)
        except asyncio.CancelledError as error:
            self._cancelled(entries, error)
        except Exception as error:
            ledger.broke(entries, error)
        else:
            for entry, outcome in zip(entries, outcomes, strict=True):
                ledger.end(entry, outcome, deadline=self._deadline)

    def _cancelled(self, entries: Sequence[Entry], error: asyncio.CancelledError) -> None:
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            self._ledger.broke(entries, error)
            return
        for entry in entries:
            self._ledger.end(entry, None, deadline=self._deadline)
