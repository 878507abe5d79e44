"""python-cqrs' documentation comes true: each code block of its page on message brokers runs with our import lines.

`message-brokers.txt` is the page. Nothing in a block is changed but its import lines and the addresses of the servers;
`prelude.py`, the same for each, stands above it. A block builds everything before an event loop runs.
"""

import asyncio
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest

from cqrs_brokers_testkit.pytest_plugin import UniqueName
from cqrs_brokers_testkit.readers import Record, bind_queue, drain_queue, drain_topic
from cqrs_brokers_testkit.servers import KafkaServer, RabbitMQServer

HERE = Path(__file__).parent
IMPORTS = {
    "from cqrs.message_brokers import devnull": "import cqrs_broker_devnull as devnull",
    "from cqrs.message_brokers import kafka": "import cqrs_broker_kafka as kafka",
    "from cqrs.adapters.kafka import KafkaProducerAdapter": "from cqrs_broker_kafka import KafkaProducerAdapter",
    "from cqrs.message_brokers import amqp": "import cqrs_broker_amqp as amqp",
    "from cqrs.adapters.amqp import AMQPPublisherAdapter": "from cqrs_broker_amqp import AMQPPublisherAdapter",
    "from cqrs.message_brokers import protocol": "from cqrs_brokers import protocol",
    "import aio_pika": "import aio_pika",
}
KAFKA_ADDRESS = "localhost:9092"
AMQP_ADDRESS = "user:password@localhost"


def page_blocks() -> dict[str, str]:
    """The page's code blocks by the broker's name: from the first import line to the end of the bootstrap call."""
    page = (HERE / "message-brokers.txt").read_text()
    blocks = re.findall(r"^from .*?^mediator = bootstrap\.bootstrap\(\n.*?^\)$", page, re.DOTALL | re.MULTILINE)
    return dict(zip(["devnull", "kafka", "amqp", "custom"], blocks, strict=True))


def import_lines(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.startswith(("from ", "import "))]


def build(folder: Path, broker: str, *, address: tuple[str, str] | None = None) -> ModuleType:
    """Runs the prelude and the block, as one module. No event loop runs meanwhile."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    block = "\n".join(IMPORTS.get(line, line) for line in page_blocks()[broker].splitlines())
    if address is not None:
        assert block.count(address[0]) == 1
        block = block.replace(*address)
    file = folder / f"block_{broker}.py"
    file.write_text((HERE / "prelude.py").read_text() + "\n\n" + block + "\n")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def send(module: ModuleType, topic: str, *, unclosed: int = 1) -> None:
    """Sends one message through the mediator. As the page has it, nothing closes the broker: one warning, no more."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(module.mediator.send(module.PlaceOrder(order_id="7", topic=topic)))
    assert [warning.category for warning in caught] == [ResourceWarning] * unclosed, [str(w.message) for w in caught]
    assert all("was not closed" in str(warning.message) for warning in caught)


def check(record: Record, topic: str) -> None:
    """It is the message, with the body that python-cqrs' own brokers send."""
    assert (record.topic, record.name, record.key) == (topic, "OrderPlaced", None)
    assert record.content_type == "application/json"
    body = record.json()
    assert body["payload"] == {"order_id": "7"}
    assert (body["eventName"], body["topic"]) == ("order_placed", topic)
    assert body["eventId"] == str(record.message_id).replace("-", "")


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    """The blocks set the levels of their clients' loggers, as the page says."""
    names = ("aiokafka", "aio_pika", "aiormq")
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_the_page_has_four_blocks_and_every_import_line_of_theirs_is_known() -> None:
    """A changed page must not shrink the test."""
    blocks = page_blocks()
    assert {line for block in blocks.values() for line in import_lines(block)} == set(IMPORTS)
    assert [block.count("message_broker=") for block in blocks.values()] == [1, 1, 1, 1]


def test_devnull_message_broker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It discards, and logs a warning with the message's name, id and topic, never its payload."""
    module = build(tmp_path, "devnull")
    send(module, "orders")
    warned = [record.getMessage() for record in caplog.records if record.name == "cqrs_broker_devnull"]
    assert len(warned) == 1
    assert "discarded 'OrderPlaced'" in warned[0]
    assert "topic 'orders'" in warned[0]
    assert "order_id" not in warned[0]


@pytest.mark.live
def test_kafka_message_broker(tmp_path: Path, kafka: KafkaServer, unique_name: UniqueName) -> None:
    """The message is in the topic, once."""
    topic = unique_name("orders")
    kafka.create_topic(topic)
    module = build(tmp_path, "kafka", address=(KAFKA_ADDRESS, kafka.bootstrap_servers))
    assert logging.getLogger("aiokafka").level == logging.ERROR
    send(module, topic)
    (record,) = drain_topic(kafka.reader_bootstrap_servers, topic, 1)
    check(record, topic)
    assert (record.partition, record.offset) == (0, 0)


@pytest.mark.live
def test_amqp_message_broker(tmp_path: Path, rabbitmq: RabbitMQServer, unique_name: UniqueName) -> None:
    """The message is in the queue that is bound to the page's exchange, once, and persistent."""
    topic, address = unique_name("orders"), urlsplit(rabbitmq.url).netloc
    queue = bind_queue(f"amqp://{address}/", "events", topic)
    module = build(tmp_path, "amqp", address=(AMQP_ADDRESS, address))
    assert logging.getLogger("aio_pika").level == logging.ERROR
    send(module, topic)
    (record,) = drain_queue(f"amqp://{address}/", queue, 1)
    check(record, topic)
    assert record.exchange == "events"
    assert record.properties["delivery_mode"] == 2


def test_custom_message_broker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class with `send_message` is all that it takes."""
    module = build(tmp_path, "custom")
    send(module, "orders", unclosed=0)
    assert capsys.readouterr().out == "Sending OrderPlaced to orders\n"
