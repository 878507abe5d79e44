"""Private nodes for tests that break something, and what they have in common."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika

from cqrs_brokers_testkit.pytest_plugin import available
from cqrs_brokers_testkit.servers import RabbitMQNode
from cqrs_brokers_testkit.servers import rabbitmq as start_rabbitmq


@contextlib.contextmanager
def private_node(**arguments: Any) -> Iterator[RabbitMQNode]:
    """A node of its own; where RabbitMQ cannot be had the tests are skipped, but not in CI."""
    with available(start_rabbitmq(**arguments)) as node:
        yield node


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
