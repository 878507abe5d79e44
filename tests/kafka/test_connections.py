"""Metadata on a connection of its own: never behind a produce request, nor behind a node that is silent."""

import asyncio
import gc
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_broker_kafka import KafkaOptions
from cqrs_broker_kafka.connections import Inquirer
from cqrs_broker_kafka.settings import KafkaSettings
from cqrs_brokers.url import BrokerURL, Host
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.servers import KafkaServer

pytestmark = pytest.mark.live


@pytest.fixture
def silent() -> Iterator[Host]:
    """A node that takes connections and says nothing, as a frozen one does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Host("127.0.0.1", listener.getsockname()[1])


def host(kafka: KafkaServer) -> Host:
    address, _, port = kafka.bootstrap_servers.partition(":")
    return Host(address, int(port))


def inquirer(*nodes: Host) -> tuple[Inquirer, dict[Any, Any], set[asyncio.Task[Any]]]:
    kept: dict[Any, Any] = {}
    tasks: set[asyncio.Task[Any]] = set()
    settings = KafkaSettings(BrokerURL.build("kafka", hosts=["localhost:1"]), KafkaOptions())
    return Inquirer(settings, lambda: nodes, kept, tasks), kept, tasks


async def close(kept: dict[Any, Any]) -> None:
    await asyncio.gather(*(connection.close() for connection in kept.values()))


async def test_the_connection_is_kept(kafka: KafkaServer) -> None:
    """The second question goes the way of the first one, also when two are asked at a time."""
    async with no_leaks():
        asker, kept, tasks = inquirer(host(kafka))
        answer = await asker.ask(["no-such-topic"])
        assert [node[1:3] for node in answer.brokers] == [(host(kafka).host, host(kafka).port)]
        (connection,) = kept.values()
        await asyncio.gather(asker.ask([]), asker.ask([]))
        assert list(kept.values()) == [connection]
        assert not tasks
        await close(kept)
        await asker.ask([])
        assert list(kept.values()) != [connection]
        await close(kept)


@pytest.mark.parametrize("times", range(4))  # whom it asks first is chance
async def test_a_silent_node_delays_nobody(kafka: KafkaServer, silent: Host, times: int) -> None:
    """The next node is asked soon, the first answer counts, and nothing is left of the other questions."""
    async with no_leaks():
        asker, kept, tasks = inquirer(silent, host(kafka), silent)
        async with asyncio.timeout(1.5):
            assert (await asker.ask([])).brokers
        assert not tasks
        (connection,) = kept.values()
        assert connection.port == host(kafka).port
        await close(kept)


class Resets:
    """A connection that answers nothing and fails when it is given up."""

    def connected(self) -> bool:
        return True

    def close(self) -> None:
        pass

    async def send(self, _: object) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionResetError from None


async def test_those_that_fail_later_do_not_complain(kafka: KafkaServer) -> None:
    """When a node has answered nobody hears of the errors of the others."""
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    asker, kept, _ = inquirer(host(kafka))
    kept[asker] = Resets()
    assert (await asker.ask([])).brokers
    gc.collect()
    assert not noise
    await close(kept)


async def test_nobody_answers(silent: Host) -> None:
    """When all fail the last failure is raised; when it is cancelled meanwhile nothing is left."""
    dead = Host("127.0.0.1", 1)
    async with no_leaks():
        with pytest.raises(ConnectionRefusedError):
            await inquirer(dead, dead)[0].ask([])
        with pytest.raises(ConnectionError, match="no node is known"):
            await inquirer()[0].ask([])
        asker, kept, tasks = inquirer(silent, dead)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asker.ask([])
        assert not kept
        assert not tasks
