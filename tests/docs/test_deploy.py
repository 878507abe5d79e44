"""The application of docs/how-to/deploy.md is told to end while 500 requests wait for the broker."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import Record, delete_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQServer, free_port
from tests.docs.test_code_blocks import ROOT, blocks_of

IN_FLIGHT = 500
GRACE = 25
"""Seconds that the web server has for its requests, as on the page."""

pytestmark = pytest.mark.live


def application() -> str:
    """The page's block, as a reader copies it."""
    (block,) = [
        block for block in blocks_of(ROOT / "docs/how-to/deploy.md") if block.source.startswith("# orders_app.py")
    ]
    return block.source


async def answer_to(port: int, request: str) -> tuple[int | None, dict[str, object]]:
    """Status and body; no status when the connection ended without an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{request} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    except ConnectionError:
        return None, {}
    finally:
        writer.close()
    return (int(head.split()[1]), json.loads(body)) if head else (None, {})


@asynccontextmanager
async def served(folder: Path, port: int, url: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Uvicorn with the application, in a process of its own; killed if it outlives the test."""
    (folder / "orders_app.py").write_text(application())
    command = [sys.executable, "-m", "uvicorn", "orders_app:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(
        [*command, "--timeout-graceful-shutdown", str(GRACE)], cwd=folder, env=os.environ | {"CQRS_BROKER_URL": url}
    )
    try:
        async with asyncio.timeout(60):
            while True:
                assert process.poll() is None
                try:
                    if (await answer_to(port, "GET /ready"))[0] == 200:
                        break
                except ConnectionError:
                    await asyncio.sleep(0.1)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("fault", "status"),
    [("the broker answers late", 201), ("the broker never answers", 504), ("the broker is gone", 503)],
)
async def test_each_request_in_flight_is_answered_truthfully(
    rabbitmq: RabbitMQServer, fault_proxy: FaultProxy, tmp_path: Path, fault: str, status: int
) -> None:
    """201 only for what RabbitMQ holds, 503 only for what it does not hold; the process ends by itself and in time."""
    server = urlsplit(rabbitmq.url)
    assert server.hostname is not None
    assert server.port is not None
    fault_proxy.target = (server.hostname, server.port)
    credentials = f"{server.username}:{server.password}@{fault_proxy.address}"
    deadline = GRACE - 5 if status == 201 else 4
    url = f"amqp://{credentials}/?declare=queue&delivery_timeout={deadline}s&close_timeout=2s"
    port = free_port()
    await asyncio.to_thread(delete_queue, rabbitmq.url, "orders")
    async with served(tmp_path, port, url) as process:
        assert (await answer_to(port, "POST /orders/first"))[0] == 201
        if status == 503:
            fault_proxy.refuse()
            fault_proxy.close_connections()
        else:
            fault_proxy.stall("down")
        requests = [asyncio.create_task(answer_to(port, f"POST /orders/{number}")) for number in range(IN_FLIGHT)]
        for _ in range(2):  # the second of these is read after the 500, because they were connected before it
            await answer_to(port, "GET /openapi.json")
        process.send_signal(signal.SIGTERM)
        if status == 201:
            fault_proxy.resume("down")
        answers = await asyncio.gather(*requests)
        code = await asyncio.wait_for(asyncio.to_thread(process.wait), GRACE)
    assert code in (0, -signal.SIGTERM)  # uvicorn raises the signal again when it is done
    assert Counter(status for status, _ in answers) == {status: IN_FLIGHT}
    records = await asyncio.to_thread(drain_queue, rabbitmq.url, "orders")
    assert len(records) == len({record.message_id for record in records}), "a message is there twice"
    check_truth(status, [body for _, body in answers], records)
    await asyncio.to_thread(delete_queue, rabbitmq.url, "orders")


def check_truth(status: int, bodies: list[dict[str, object]], records: list[Record]) -> None:
    """Compares what the callers were told with what RabbitMQ holds; one message more was sent before."""
    there = {record.message_id for record in records}
    if status == 201:
        assert {body["message_id"] for body in bodies} <= there
        assert len(records) == IN_FLIGHT + 1
    elif status == 503:
        assert len(records) == 1
