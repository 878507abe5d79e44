"""Private nodes for tests that break something, and what they have in common."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from cqrs_brokers_testkit.servers import RabbitMQNode, ServerUnavailable
from cqrs_brokers_testkit.servers import rabbitmq as start_rabbitmq


@contextlib.contextmanager
def private_node(**arguments: Any) -> Iterator[RabbitMQNode]:
    """A node of its own; where RabbitMQ cannot be had the tests are skipped, but not in CI."""
    try:
        with start_rabbitmq(**arguments) as node:
            yield node
    except ServerUnavailable as error:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@contextlib.contextmanager
def on_channel(node: RabbitMQNode) -> Iterator[Any]:
    """A channel of an independent client."""
    with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
        yield connection.channel()


def enable_plugin(node: RabbitMQNode, name: str) -> None:
    """Enables a plugin that comes with RabbitMQ."""
    enabled = Path(node.folder, "enabled_plugins")
    enabled.write_text(f"[{name}].\n")
    node.ctl("eval", f'rabbit_plugins:ensure("{enabled}").')
