"""docs/explanation/servers-and-clients.md: each row names what holds it, and what is held nowhere else is held here."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cqrs
import pika
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from cqrs_brokers import Message, NotConnectedError, UnroutableError, open_broker
from cqrs_brokers_testkit.servers import KafkaServer, QpidServer, RabbitMQServer, ServerUnavailable, qpid
from tests.docs.test_code_blocks import ROOT

PAGE = (ROOT / "docs/explanation/servers-and-clients.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| what happens")
]
HELD = re.compile(r"`((?:tests|findings)/[^`]+)`")


def test_the_page_has_its_tables() -> None:
    """For each server and client, with the five columns."""
    heads = re.findall(r"^\| what happens \|.*$", PAGE, re.MULTILINE)
    assert len(heads) == 8
    assert {len(row) for row in ROWS} == {5}
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_row_says_where_it_was_seen_and_what_holds_it(row: list[str]) -> None:
    """Versions, a source, and a test or a finding that exists; or that somebody tried it by hand."""
    _, seen, source, _, action = row
    assert seen
    assert source
    held = HELD.findall(action)
    assert held or "by hand" in action
    for name in held:
        file, _, function = name.partition("::")
        text = (ROOT / file).read_text()
        assert not function or re.search(rf"^ *(async )?def {function}\(", text, re.MULTILINE), name


@pytest.mark.live
def test_kafka_refuses_a_name_that_differs_in_a_dot_only(kafka: KafkaServer) -> None:
    """`a.b` after `a_b`: their metrics would have one name."""
    kafka.create_topic("names_collide")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    (creation,) = admin.create_topics([NewTopic("names.collide", 1, 1)]).values()
    with pytest.raises(KafkaException, match=r"collides with existing topics?: names_collide"):
        creation.result(timeout=30)


@pytest.mark.live
async def test_rabbitmq_returns_what_a_missing_alternate_exchange_would_get(rabbitmq: RabbitMQServer) -> None:
    """It accepts the argument, and the message is unroutable."""

    def declare(exists: bool) -> None:
        with pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection:
            channel = connection.channel()
            if exists:
                channel.exchange_delete("with-alternate")
            else:
                channel.exchange_declare(
                    "with-alternate", "topic", durable=True, arguments={"alternate-exchange": "not-there"}
                )

    await asyncio.to_thread(declare, False)
    try:
        url = f"{rabbitmq.url}?exchange=with-alternate&declare=passive&exchange_type=topic"
        async with open_broker(url) as broker:
            with pytest.raises(UnroutableError):
                await broker.send_message(Message(message_name="OrderPlaced", topic="nobody", payload={}))
    finally:
        await asyncio.to_thread(declare, True)


@pytest.fixture(scope="module")
def qpid_server() -> Iterator[QpidServer]:
    """Where it cannot be had the test is skipped, or fails with CI=true."""
    try:
        with qpid() as server:
            yield server
    except ServerUnavailable as unavailable:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            raise
        pytest.skip(str(unavailable))


@pytest.mark.live
async def test_qpid_ends_the_connection_for_an_argument_that_it_does_not_know(qpid_server: QpidServer) -> None:
    """`x-queue-type` is one. The error of the send has Qpid's text."""
    async with open_broker(f"{qpid_server.url}?declare=queue&queue_type=quorum&delivery_timeout=4s") as broker:
        with pytest.raises(NotConnectedError, match=r"Unsupported queue declare argument\(s\) : x-queue-type"):
            await broker.send_message(Message(message_name="OrderPlaced", topic="typed", payload={}))


def test_importing_python_cqrs_reads_a_file_and_sets_a_level(tmp_path: Path) -> None:
    """The variables of a `.env` above its folder are in the environment, and the logger `cqrs` is at DEBUG."""
    installed = tmp_path / "venv"
    installed.mkdir()
    (installed / "cqrs").symlink_to(Path(cqrs.__file__).parent, target_is_directory=True)
    (tmp_path / ".env").write_text("CQRS_BROKER_URL=memory://from-a-file\n")
    program = "import logging, os, cqrs; print(os.environ['CQRS_BROKER_URL'], logging.getLogger('cqrs').level)"
    (tmp_path / "program.py").write_text(f"import sys; sys.path.insert(0, {str(installed)!r}); {program}\n")
    environment = {name: value for name, value in os.environ.items() if name != "CQRS_BROKER_URL"}
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["memory://from-a-file", "10"], done.stderr


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="wait_for was written anew for Python 3.12")
async def test_wait_for_swallows_a_cancellation() -> None:
    """A result and a cancellation in the same turn: the task goes on, as if nobody had told it to stop."""
    result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait() -> str:
        return await asyncio.wait_for(result, 10)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    result.set_result("goes on")
    assert task.cancel()
    assert await task == "goes on"


def test_the_library_does_not_call_wait_for() -> None:
    """The test kit may: its tasks are not cancelled."""
    sources = [path for path in ROOT.glob("packages/*/src/**/*.py") if "cqrs_brokers_testkit" not in path.parts]
    assert len(sources) > 100
    assert not [str(path) for path in sources if re.search(r"\bwait_for\(", path.read_text())]
