"""Cases that run beside others have proxies of their own, if the driver writes to the hosts of the config string."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from cqrs_brokers_testkit.conformance import Harness
from cqrs_brokers_testkit.conformance._case import CASES, Case, Context, case
from cqrs_brokers_testkit.conformance._own_wire import has_own_wires
from cqrs_brokers_testkit.conformance._runner import session
from cqrs_brokers_testkit.harnesses.kafka import KafkaHarness
from cqrs_brokers_testkit.harnesses.rabbitmq import RabbitMQHarness
from cqrs_brokers_testkit.proxy import FaultProxy
from tests.conformance.few import quiet

RUNNER = "cqrs_brokers_testkit.conformance._runner"


class Seen:
    """What two cases saw that need the proxy."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        self.proxies: list[tuple[FaultProxy, str]] = []
        self.together = 0
        self._running = 0

    async def look(self, ctx: Context) -> None:
        """It notes its proxy."""
        self.proxies.append((ctx.proxy, ctx.url))
        self._running += 1
        self.together = max(self.together, self._running)
        await asyncio.sleep(0.5)
        self._running -= 1


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    noted = Seen()

    async def look(ctx: Context) -> None:
        """It notes its proxy."""
        await noted.look(ctx)

    for name in ("one", "two"):
        case(f"test.{name}", "static", needs=["proxy"], waits=True)(look)
    noted.cases = {name: CASES.pop(name) for name in list(CASES) if name.startswith("test.")}
    monkeypatch.setattr(f"{RUNNER}.CASES", noted.cases)
    return noted


@pytest.fixture
def harness() -> Iterator[Harness]:
    with FaultProxy(("127.0.0.1", 9)) as proxy:
        made = Harness(f"amqp://{proxy.address}")
        made.proxy = proxy
        yield made


def _run(harness: Harness, cases: dict[str, Case]) -> None:
    with session(harness, progress=quiet) as running:
        running.chosen = cases
        assert [running.run_case(each).status for each in cases.values()] == ["passed", "passed"]


def test_each_has_a_proxy_of_its_own(seen: Seen, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config string leads through it, and it leads to the server."""
    monkeypatch.setattr(f"{RUNNER}.has_own_wires", lambda harness: True)
    _run(harness, seen.cases)
    assert seen.together == 2
    assert len({*seen.proxies, (harness.proxy, harness.url)}) == 3
    for proxy, url in seen.proxies:
        assert proxy.target == ("127.0.0.1", 9)
        assert url == f"amqp://{proxy.address}"


def test_without_such_a_proxy_they_run_alone(seen: Seen, harness: Harness) -> None:
    """Nobody can show that messages go through it: there is no server."""
    _run(harness, seen.cases)
    assert seen.together == 1
    assert seen.proxies == [(harness.proxy, harness.url)] * 2


@pytest.mark.parametrize(("of", "has"), [(RabbitMQHarness, True), (KafkaHarness, False)])
def test_where_messages_go(of: type[Harness], has: bool) -> None:
    """RabbitMQ is where the config string says; Kafka names an address of its own."""
    harness, found = of(), list[bool]()
    try:
        harness.start()
        asking = threading.Thread(target=lambda: found.append(has_own_wires(harness)))
        asking.start()
        asking.join()
    finally:
        harness.stop()
    assert found == [has]
