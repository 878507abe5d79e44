"""The fixtures `memory_broker_url` and `published`, used as an application's tests use them; also those in the docs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cqrs_broker_memory import Published
from cqrs_broker_memory import published as published_to
from cqrs_brokers import Broker, DeliveryUnknownError, Message, RejectedError, open_broker
from cqrs_brokers_testkit.readers import MissingExtra

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "test-your-application.md"

SHOP = """
import os
from cqrs_brokers import Message, open_broker

async def place_order(broker, order):
    headers = {"tenant": "acme"}
    await broker.send_message(Message("OrderPlaced", "orders", {"order": order}, key=order, headers=headers))

async def main():
    async with open_broker() as broker:
        await place_order(broker, "order-1")
"""

FROM_ENVIRONMENT = """
from shop import main

async def test_the_config_string_is_in_the_environment(published):
    await main()
    assert len(published) == 1
"""

used: list[tuple[str, Published]] = []


async def place_order(broker: Broker, order: str) -> None:
    """Stands for an application."""
    headers = {"tenant": "acme"}
    await broker.send_message(Message("OrderPlaced", "orders", {"order": order}, key=order, headers=headers))


async def test_what_was_published_can_be_asserted(memory_broker_url: str, published: Published) -> None:
    """By topic, name, key and headers; the record that is returned has the body."""
    async with open_broker(memory_broker_url) as broker:
        await place_order(broker, "order-1")
        await place_order(broker, "order-2")
    record = published.assert_once(topic="orders", name="OrderPlaced", key="order-1", headers={"tenant": "acme"})
    assert record.json() == {"order": "order-1"}
    assert len(published) == 2


@pytest.mark.parametrize(
    "wanted",
    [{"topic": "invoices"}, {"name": "OrderShipped"}, {"key": "order-2"}, {"key": None}, {"headers": {"tenant": "x"}}],
    ids=str,
)
async def test_what_was_not_published_fails_the_test(
    memory_broker_url: str, published: Published, wanted: dict[str, Any]
) -> None:
    """Each of the four is compared, and the error shows both values of what differs, and no body."""
    async with open_broker(memory_broker_url) as broker:
        await place_order(broker, "order-1")
    with pytest.raises(AssertionError, match="0 messages match") as failure:
        published.assert_once(**wanted)
    assert ("order-1" in str(failure.value)) == ("key" in wanted)  # it is in the body, too
    assert ("acme" in str(failure.value)) == ("headers" in wanted)


async def test_what_was_published_twice_is_not_once(memory_broker_url: str, published: Published) -> None:
    """The usual bug of a retry."""
    async with open_broker(memory_broker_url) as broker:
        await place_order(broker, "order-1")
        await place_order(broker, "order-1")
    with pytest.raises(AssertionError, match="2 messages match"):
        published.assert_once(key="order-1")


async def test_faults_are_options_of_the_config_string(memory_broker_url: str, published: Published) -> None:
    """A rejected message is absent, an unconfirmed one is there, a later one is confirmed."""
    async with open_broker(f"{memory_broker_url}?fail=1&unknown=1&latency=1ms") as broker:
        with pytest.raises(RejectedError):
            await place_order(broker, "rejected")
        with pytest.raises(DeliveryUnknownError):
            await place_order(broker, "unknown")
        await place_order(broker, "good")
    assert [record.key for record in published] == ["unknown", "good"]


@pytest.mark.parametrize("run", [1, 2])
async def test_each_test_has_a_broker_of_its_own(memory_broker_url: str, published: Published, run: int) -> None:
    """Nothing is there when a test begins, and nothing of the test before is left in memory."""
    assert len(published) == 0
    assert memory_broker_url not in [url for url, _ in used]
    assert all(len(earlier) == 0 for _, earlier in used)
    used.append((memory_broker_url, published))
    async with open_broker(memory_broker_url) as broker:
        await place_order(broker, f"order-{run}")
    assert published is published_to(memory_broker_url.removeprefix("memory://"))


def test_without_the_memory_plugin_the_fixture_says_what_to_install(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not "unknown scheme" from deep inside the application."""
    monkeypatch.setitem(sys.modules, "cqrs_broker_memory", None)  # its import fails
    with pytest.raises(MissingExtra, match=r"pip install 'cqrs-brokers-testkit\[memory\]'"):
        request.getfixturevalue("memory_broker_url")


def test_the_tests_in_the_documentation_pass(tmp_path: Path) -> None:
    """Each of its files, beside an application, with the fixtures from the installed plugin."""
    blocks = dict(
        re.findall(r'^``` \{\.python title="([^"]+)"\}\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)
    )
    assert set(blocks) == {"test_orders.py", "conftest.py", "test_faults.py"}
    for name, text in {**blocks, "shop.py": SHOP, "test_environment.py": FROM_ENVIRONMENT}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "4 passed" in done.stdout, done.stdout + done.stderr
