"""The programs of docs/how-to/consume.md that run until they are stopped."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from cqrs_brokers import Message, open_broker
from cqrs_brokers_testkit.servers import KafkaServer, RabbitMQServer
from tests.docs.test_code_blocks import ROOT, blocks_of

pytestmark = pytest.mark.live


def program(first_line: str) -> str:
    (block,) = [block for block in blocks_of(ROOT / "docs/how-to/consume.md") if block.source.startswith(first_line)]
    return block.source


async def first_line_of(source: str, folder: Path, wanted: str) -> str:
    """The first line with this text that the program prints; the program is then stopped, as with Ctrl-C."""
    (folder / "consumer.py").write_text(source)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "consumer.py",
        cwd=folder,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(90):
            while line := (await process.stdout.readline()).decode():
                if wanted in line:
                    return line
        raise AssertionError("the program ended without the line")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.communicate()


def message(topic: str) -> Message:
    return Message(message_name="OrderPlaced", topic=topic, payload={"order": "7"}, key="7", headers={"tenant": "acme"})


async def test_faststream_reads_from_kafka(kafka: KafkaServer, tmp_path: Path) -> None:
    """It gets our name and id from the headers, and the body decoded."""
    await asyncio.to_thread(kafka.create_topic, "for-faststream")
    async with open_broker(kafka.url) as broker:
        receipt = await broker.send_message(message("for-faststream"))
    source = program("# faststream on Kafka").replace('"localhost:9092"', repr(kafka.bootstrap_servers))
    line = await first_line_of(source.replace('"orders"', '"for-faststream"'), tmp_path, "OrderPlaced")
    assert line.split(maxsplit=2) == ["OrderPlaced", str(receipt.message_id), "{'order': '7'}\n"]


async def test_faststream_reads_from_rabbitmq(rabbitmq: RabbitMQServer, tmp_path: Path) -> None:
    """It gets our name and id from the properties, and the body decoded, out of the queue of `declare=queue`."""
    async with open_broker(rabbitmq.url, declare="queue") as broker:
        receipt = await broker.send_message(message("for-faststream"))
    source = program("# faststream on RabbitMQ").replace('"amqp://guest:guest@localhost/%2F"', repr(rabbitmq.url))
    line = await first_line_of(source.replace('"orders"', '"for-faststream"'), tmp_path, "OrderPlaced")
    assert line.split(maxsplit=2) == ["OrderPlaced", str(receipt.message_id), "{'order': '7'}\n"]
