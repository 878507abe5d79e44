"""The options of `amqp://` and `amqps://`."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from cqrs_brokers.options import option
from cqrs_brokers.tls import TLSOptions

__all__ = ["AMQPOptions", "Declare", "ExchangeType", "QueueType"]

Declare = Literal["exchange", "queue", "passive", "never"]
ExchangeType = Literal["topic", "direct", "fanout", "headers"]
QueueType = Literal["classic", "quorum", "stream"]


class AMQPOptions(TLSOptions):
    """The options that can be set in `amqp://…?…`, besides the options of every broker."""

    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts", "path"})

    # AMQP 0-9-1: an exchange name has at most 127 characters. aiormq refuses a name with other characters than these.
    # The empty name is that of the default exchange, which routes to the queue that is named like the topic.
    exchange: str = option(
        "events",
        max_length=127,
        pattern=r"^[A-Za-z0-9_.:@#,/+ -]*$",
        description="The exchange that messages are published to; empty: RabbitMQ's default exchange.",
    )
    exchange_type: ExchangeType = option("topic", description="The type with which the exchange is declared.")
    declare: Declare = option(
        "exchange",
        description="What is declared. `exchange`: the durable exchange. `queue`: also one durable queue per topic, "
        "bound to the exchange. `passive`: nothing, but the exchange must exist. `never`: nothing.",
    )
    queue_type: QueueType | None = option(
        None, description="With `declare=queue`: the type of the queues; none: the virtual host's default."
    )
    # aiormq reads a heartbeat above 65534 as 0, which means none.
    heartbeat: int = option(
        10,
        ge=1,
        le=65534,
        unit="s",
        description="A connection is given up after a silence of three times this and 3 s.",
    )
    connection_name: str = option(
        "cqrs-brokers", min_length=1, max_length=255, description="Name shown in RabbitMQ's management pages and log."
    )

    @model_validator(mode="after")
    def _check_queue_type(self) -> Self:
        if self.queue_type is not None and self.declare != "queue":
            raise ValueError("queue_type needs declare=queue")
        return self
