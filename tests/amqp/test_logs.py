"""The client's log says nothing that it should not."""

import logging
import sys
import traceback

import pytest
from aiormq.abc import ChannelFrame

from cqrs_broker_amqp._logs import LOGGERS, redact_client_logs
from cqrs_brokers import Message, open_broker
from cqrs_brokers.exceptions import UnroutableError
from cqrs_brokers_testkit.readers import bind_queue
from cqrs_brokers_testkit.servers import RabbitMQServer

CANARY = "c4nary"


def test_installing_twice_adds_one_filter() -> None:
    """The filter is there once, and no level changes."""
    before = [logging.getLogger(name).level for name in LOGGERS]
    redact_client_logs()
    redact_client_logs()
    for name, level in zip(LOGGERS, before, strict=True):
        logger = logging.getLogger(name)
        assert [type(one).__name__ for one in logger.filters].count("_Redacted") == 1
        assert logger.level == level


def test_the_loggers_are_those_of_the_client() -> None:
    """Each logger of a module of aiormq, and the child that aiormq makes when it marshals frames."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "aiormq"]
    found = {value.name for module in modules for value in vars(module).values() if isinstance(value, logging.Logger)}
    assert found | {"aiormq.connection.marshall"} == set(LOGGERS)


def test_records_are_kept_without_contents(caplog: pytest.LogCaptureFixture) -> None:
    """Frames and exceptions become their type and size; text stays."""
    redact_client_logs()
    with caplog.at_level(logging.DEBUG, "aiormq.connection"):
        logger = logging.getLogger("aiormq.connection")
        logger.debug("Prepare to send %r", ChannelFrame(payload=CANARY.encode(), should_close=False))
        try:
            raise ValueError(CANARY)
        except ValueError:
            logger.warning("reader of %s exited", "here", exc_info=True)
    assert [record.getMessage() for record in caplog.records] == [
        "Prepare to send '<ChannelFrame of 6 bytes>'",
        "reader of here exited (ValueError)",
    ]
    assert CANARY not in caplog.text


@pytest.mark.live
async def test_nothing_secret_at_debug(
    rabbitmq: RabbitMQServer, caplog: pytest.LogCaptureFixture, unique_name: object
) -> None:
    """With everything at DEBUG neither body, header, key nor password appears, sent or returned."""
    exchange = unique_name("log")  # type: ignore[operator]
    bind_queue(rabbitmq.url, exchange, "there")
    password = rabbitmq.url.partition("@")[0].rpartition(":")[2]
    with caplog.at_level(logging.DEBUG):
        async with open_broker(f"{rabbitmq.url}?exchange={exchange}") as broker:
            for topic in ("there", "nowhere"):
                message = Message("n", topic, {"body": CANARY}, key=f"{CANARY}-k", headers={"h": f"{CANARY}-h"})
                (outcome,) = await broker.send_messages([message])
            assert isinstance(outcome, UnroutableError)
            assert CANARY not in "".join(traceback.format_exception(outcome)) + repr(outcome) + repr(outcome.__cause__)
    assert any(record.name == "aiormq.connection" for record in caplog.records)
    assert CANARY not in caplog.text
    assert f":{password}@" not in caplog.text
