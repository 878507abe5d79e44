"""Programs that end without closing: what Python says then, and what not."""

import asyncio
import subprocess
import sys

import pytest

from cqrs_brokers_testkit.readers import bind_queue
from cqrs_brokers_testkit.servers import RabbitMQServer

pytestmark = pytest.mark.live

_LEAVING = """
import asyncio, sys, warnings
from cqrs_brokers import Message, open_broker

async def main():
    broker = open_broker(sys.argv[1])
    await broker.send_message(Message("n", "t", 1))
    if sys.argv[2] == "pending":
        asyncio.ensure_future(broker.send_messages([Message("n", "t", n) for n in range(500)]))
        await asyncio.sleep(0)
    return broker

if sys.argv[2] == "closed loop":
    loop = asyncio.new_event_loop()
    broker = loop.run_until_complete(main())
    loop.close()
    broker._connection.drop()
else:
    broker = asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["idle", "pending"])
async def test_leaving_without_close(rabbitmq: RabbitMQServer, exchange: str, how: str) -> None:
    """Leaving asyncio.run without close gives one ResourceWarning of ours and no traceback."""
    bind_queue(rabbitmq.url, exchange)
    url = f"{rabbitmq.url}?exchange={exchange}"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-X", "dev", "-c", _LEAVING, url, how],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("ResourceWarning: <") == 1, done.stderr
    assert "ResourceWarning: <Broker" in done.stderr
    assert "Task was destroyed" not in done.stderr


async def test_a_loop_closed_under_the_connection(rabbitmq: RabbitMQServer, exchange: str) -> None:
    """With its event loop closed the driver still drops its socket, without noise."""
    bind_queue(rabbitmq.url, exchange)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-X", "dev", "-c", _LEAVING, f"{rabbitmq.url}?exchange={exchange}", "closed loop"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Task was destroyed" not in done.stderr, done.stderr
    assert "unclosed transport" not in done.stderr, done.stderr
