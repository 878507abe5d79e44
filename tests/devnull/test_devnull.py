"""`devnull://` discards, warns, counts, and stays out of production."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cqrs_broker_devnull as devnull
from cqrs_broker_devnull import _driver as driver_module
from cqrs_brokers import Broker, Message, open_broker
from cqrs_brokers.exceptions import ConfigError

CANARY = "C4N4RY"


@pytest.fixture(autouse=True)
def _not_production(monkeypatch):
    monkeypatch.delenv("CQRS_BROKERS_ENV", raising=False)


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cqrs_broker_devnull"]


@pytest.mark.parametrize("make", [lambda: open_broker("devnull://"), devnull.DevnullMessageBroker])
async def test_a_send_ends_in_a_receipt_that_promises_nothing(make):
    """Nobody confirms; keys and headers are taken, so any application can run on it."""
    async with make() as broker:
        assert isinstance(broker, Broker)
        receipt = await broker.send_message(Message("N", "orders", {"a": 1}, key="k", headers={"h": "v"}))
        assert (receipt.confirmed, receipt.topic, receipt.broker) == (False, "orders", "devnull")
        assert not broker.capabilities.confirms
        assert not broker.capabilities.durable
        assert (await broker.health()).ok
        assert broker.driver.discarded == 1


async def test_each_of_the_first_ten_is_warned_of_then_one_a_second(caplog, monkeypatch):
    """Name, id and topic, never the payload, a header or the key; at the end the count."""
    now = [100.0]
    monkeypatch.setattr(driver_module.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.DEBUG, logger="cqrs_broker_devnull")
    messages = [Message("Placed", "orders", {"p": CANARY}, key=CANARY, headers={"h": CANARY}) for _ in range(30)]
    broker = devnull.DevnullMessageBroker()
    for message in messages[:25]:
        await broker.send_message(message)
    now[0] += 1.0
    for message in messages[25:]:
        await broker.send_message(message)
    await broker.close()
    lines = warnings_in(caplog)
    assert lines[:10] == [f"devnull:// discarded 'Placed', id {m.message_id}, topic 'orders'" for m in messages[:10]]
    assert lines[10:] == [
        f"devnull:// discarded 1 more, the last was 'Placed', id {messages[10].message_id}, topic 'orders'",
        f"devnull:// discarded 15 more, the last was 'Placed', id {messages[25].message_id}, topic 'orders'",
        "devnull:// discarded 30 messages in all",
    ]
    assert all(record.levelno == logging.WARNING for record in caplog.records if record.name == "cqrs_broker_devnull")
    assert CANARY not in "".join(lines)


def resident() -> int:
    """This process's memory now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
async def test_a_million_messages_leave_nothing(caplog):
    """Memory does not grow with what was sent, and all are counted."""
    caplog.set_level(logging.CRITICAL, logger="cqrs_broker_devnull")  # caplog would keep the warnings
    async with open_broker("devnull://") as broker:

        async def send(count: int) -> None:
            for _ in range(count // 10_000):
                await broker.send_messages([Message("N", "orders", b"x" * 200, key="k") for _ in range(10_000)])

        await send(100_000)
        before = resident()
        await send(900_000)
        assert resident() - before < 20e6  # a fifth of the bodies alone would be 36 MB
        assert broker.driver.discarded == 1_000_000


async def test_without_messages_it_says_nothing(caplog):
    """A broker that was only opened is no news."""
    async with open_broker("devnull://"):
        pass
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("value", ["production", "Production", " PRODUCTION "])
def test_it_refuses_production_on_every_way_in(monkeypatch, value):
    """The string and the documented class; `allow_in_production` is the way round it."""
    monkeypatch.setenv("CQRS_BROKERS_ENV", value)
    for opening in (lambda: open_broker("devnull://"), devnull.DevnullMessageBroker):
        with pytest.raises(ConfigError, match="CQRS_BROKERS_ENV is production: name a real broker"):
            opening()
    assert open_broker("devnull://?allow_in_production=true").name == "devnull"
    assert devnull.DevnullMessageBroker(allow_in_production=True).name == "devnull"


@pytest.mark.parametrize("value", ["", "staging", "preproduction"])
def test_other_environments_are_free(monkeypatch, value):
    """Only `production` is refused."""
    monkeypatch.setenv("CQRS_BROKERS_ENV", value)
    assert open_broker("devnull://").name == "devnull"


@pytest.mark.parametrize("string", ["devnull://host", "devnull://u:p@h", "devnull:///path", "devnull://?acks=all"])
def test_what_it_would_ignore_is_refused(string):
    """A string meant for another broker is a mistake."""
    with pytest.raises(ConfigError):
        open_broker(string)


async def test_the_class_takes_the_options_of_the_string():
    """Same names, same checks, and `describe` says where each came from."""
    with pytest.raises(ConfigError, match="max_in_flight: must be greater than or equal to 1"):
        devnull.DevnullMessageBroker(max_in_flight=0)
    broker = devnull.DevnullMessageBroker(delivery_timeout=2)
    assert broker.describe()["options"]["delivery_timeout"][:4] == ("delivery_timeout", "2s", "30s", "keyword")
    await broker.close()


def test_it_imports_no_broker_client():
    """The reference plugin needs core and nothing else."""
    code = (
        "import sys, cqrs_broker_devnull\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('aiokafka', 'aio_pika', 'aiormq', 'cqrs')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_the_readme_example_runs(capsys):
    """It prints what its comment says."""
    readme = (Path(__file__).parents[2] / "packages" / "cqrs-broker-devnull" / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(block, "README", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == "False\n"
