"""How suspects are tried one at a time on the probe, and what is said of them, without a server."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cqrs_broker_amqp import AMQPOptions
from cqrs_broker_amqp._publisher import Publisher
from cqrs_broker_amqp._stalled import PROBE_PATIENCE, StalledDestinations
from cqrs_brokers import BackpressureError, Message
from cqrs_brokers.tasks import Tasks


def entry(topic: str, message_id: bytes) -> Any:
    """A message without an outcome."""
    delivery = SimpleNamespace(topic=topic, done=False, handed_over=lambda: True)
    return delivery, message_id, b"", b"", None, False


class FakeChannel:
    """A channel on which nothing is answered."""

    def __init__(self, *entries: Any) -> None:
        self.unanswered = list(entries)
        self.spent: set[bytes] = set()
        self.quiet_since = 0.0
        self.open, self.alone, self.watched = True, False, False

    @property
    def in_flight(self) -> list[bytes]:
        return [one[1] for one in self.unanswered]

    def entries(self) -> list[Any]:
        return list(self.unanswered)

    def take(self) -> list[Any]:
        taken, self.unanswered = self.unanswered, []
        return taken

    def send(self, entries: Any, now: float) -> None:
        assert self.open
        self.unanswered += entries
        self.quiet_since = now

    def close(self) -> None:
        self.open = False


class FakeSession:
    """A connection that allows any number of channels."""

    def __init__(self) -> None:
        self.opened: list[FakeChannel] = []

    async def open_another(self, tasks: Tasks) -> FakeChannel:
        self.opened.append(FakeChannel())
        return self.opened[-1]


def stalled_on(session: Any, *left: Any) -> StalledDestinations:
    """Stuck destinations: a channel with these messages was left."""
    channel: Any = FakeChannel(*left)
    stalled = StalledDestinations(Tasks(), ready=lambda entries: pytest.fail(str(entries)))
    stalled.use(session)
    stalled.leave(channel)
    return stalled


async def test_only_a_silent_destination_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspect may only have waited behind another destination: the error says so, until it was tried alone."""
    session = FakeSession()
    stalled = stalled_on(session, entry("dead", b"1"), entry("behind", b"2"))
    leaving = SimpleNamespace(stalled=stalled, leave_soon=None, look=None)
    monkeypatch.setattr("cqrs_broker_amqp._publisher.Leaving", lambda *_, **__: leaving)
    publisher = Publisher(AMQPOptions(), Tasks(), lambda error: pytest.fail(str(error)))

    def told(topic: str, *, handed: bool) -> str:
        error = publisher.why_late(topic, handed=handed)
        assert error is not None
        assert repr(topic) in error.text
        return error.text

    for handed in (True, False):
        for topic in ("dead", "behind"):
            assert "takes nothing" not in told(topic, handed=handed)
    for topic in ("dead", "behind"):
        assert stalled.holds(entry(topic, topic.encode()))
    stalled.look(1.0)
    await asyncio.sleep(0)
    assert session.opened[0].in_flight == [b"dead"]
    session.opened[0].quiet_since = 1.0
    stalled.look(1.0 + PROBE_PATIENCE)
    for handed in (True, False):
        assert "takes nothing for routing key 'dead'" in told("dead", handed=handed)
        assert "takes nothing" not in told("behind", handed=handed)
    assert publisher.why_late("healthy", handed=True) is None


async def test_a_queue_whose_declaration_nobody_has_asked_for() -> None:
    """A topic may still wait for a free channel: the error claims no question to which there was no answer."""
    publisher = Publisher(AMQPOptions(declare="queue"), Tasks(), lambda error: pytest.fail(str(error)))
    delivery: Any = SimpleNamespace(topic="t", done=False, message=Message("n", "t", 1))
    publisher.submit([delivery])
    error = publisher.why_late("t", handed=False)
    assert isinstance(error, BackpressureError)
    assert "has not declared queue 't' yet" in error.text


async def test_an_id_that_was_nacked_on_the_probe() -> None:
    """The return of a nacked message may still come (Apache Qpid): its id is sent again on another channel only."""
    session = FakeSession()
    stalled = stalled_on(session, entry("t", b"0"))
    for message_id in (b"1", b"2", b"1"):
        assert stalled.holds(entry("t", message_id))
    stalled.look(1.0)
    await asyncio.sleep(0)
    (probe,) = session.opened
    assert probe.in_flight == [b"1"]
    probe.take()
    probe.spent.add(b"1")  # nacked
    stalled.look(1.1)
    assert probe.in_flight == [b"2"]
    probe.take()
    stalled.look(1.2)
    await asyncio.sleep(0)
    assert not probe.open
    assert [one.in_flight for one in session.opened] == [[], [b"1"]]
