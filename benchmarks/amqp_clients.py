"""Who publishes to RabbitMQ: every one to a durable topic exchange and queue, persistent, mandatory, with confirms."""

from __future__ import annotations

import asyncio
import importlib
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from .contender import Client, Contender
from .librabbitmq import CPublisher
from .workloads import BODY, BULK, GATHER_1000, HEADERS, NAME, SEQUENTIAL, WORKERS, Job, key_of

__all__ = ["CONTENDERS", "EXCHANGE"]

EXCHANGE = "events"
_JSON = "application/json"


class Ours(Client):
    """The whole public API."""

    async def open(self) -> None:
        from cqrs_brokers import Message, open_broker

        self._message = Message
        self._broker = open_broker(f"{self.url}?declare=queue&exchange={EXCHANGE}")
        await self._broker.connect()

    def _make(self, index: int, job: Job) -> Any:
        if job.rich:
            return self._message(
                NAME, self.topic, None, key=key_of(index), headers=HEADERS, content_type=_JSON, payload_bytes=BODY
            )
        return self._message(NAME, self.topic, None, content_type=_JSON, payload_bytes=BODY)

    async def send(self, index: int, job: Job) -> Any:
        return await self._broker.send_message(self._make(index, job))

    async def bulk(self, count: int, job: Job) -> None:
        from cqrs_brokers import Receipt

        outcomes = await self._broker.send_messages(self._make(index, job) for index in range(count))
        assert all(type(outcome) is Receipt for outcome in outcomes)

    async def close(self) -> None:
        await self._broker.close()


class RawAioPika(Client):
    """aio-pika as its documentation shows it, with the settings that lose nothing."""

    async def open(self) -> None:
        import aio_pika

        self._message, self._persistent = aio_pika.Message, aio_pika.DeliveryMode.PERSISTENT
        self._connection = await aio_pika.connect_robust(self.url)
        channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        self._exchange = await channel.get_exchange(EXCHANGE, ensure=False)

    async def send(self, index: int, job: Job) -> Any:
        message = self._message(
            BODY,
            content_type=_JSON,
            delivery_mode=self._persistent,
            message_id=str(uuid4()),
            timestamp=datetime.now(UTC),
            type=NAME,
            headers={"ordering-key": key_of(index), **HEADERS} if job.rich else None,
        )
        return await self._exchange.publish(message, self.topic, mandatory=True)

    async def close(self) -> None:
        await self._connection.close()


class PythonCQRS(Client):
    """python-cqrs' own AMQP broker."""

    async def open(self) -> None:
        from cqrs.adapters.amqp import amqp_publisher_factory
        from cqrs.message_brokers.amqp import AMQPMessageBroker
        from cqrs.message_brokers.protocol import Message

        self._message = Message
        self._broker = AMQPMessageBroker(amqp_publisher_factory(self.url), f"{self.topic}-exchange")

    async def send(self, index: int, job: Job) -> Any:
        headers = {"ordering-key": key_of(index), **HEADERS} if job.rich else None
        message = self._message(NAME, self.topic, None, payload_bytes=BODY, content_type=_JSON, headers=headers)
        await self._broker.send_message(message)

    async def close(self) -> None:
        publisher: Any = self._broker.publisher
        await publisher.channel_pool.close()


class FastStream(Client):
    """FastStream's `RabbitBroker.publish`."""

    async def open(self) -> None:
        from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange

        self._broker = RabbitBroker(self.url, default_channel=Channel(on_return_raises=True))
        self._exchange = RabbitExchange(EXCHANGE, type=ExchangeType.TOPIC, durable=True)
        await self._broker.start()

    async def send(self, index: int, job: Job) -> Any:
        return await self._broker.publish(
            BODY,
            exchange=self._exchange,
            routing_key=self.topic,
            persist=True,
            mandatory=True,
            content_type=_JSON,
            message_id=str(uuid4()),
            timestamp=datetime.now(UTC),
            message_type=NAME,
            headers={"ordering-key": key_of(index), **HEADERS} if job.rich else None,
        )

    async def close(self) -> None:
        await self._broker.stop()


class Kombu(Client):
    """kombu with py-amqp, blocking."""

    async def open(self) -> None:
        kombu: Any = importlib.import_module("kombu")  # has no types
        self._connection = kombu.Connection(self.url, transport_options={"confirm_publish": True})
        self._producer = self._connection.Producer(on_return=_refuse_return)

    async def run(self, job: Job) -> dict[str, float]:
        for index in range(job.count):
            self._producer.publish(
                BODY,
                exchange=EXCHANGE,
                routing_key=self.topic,
                delivery_mode=2,
                mandatory=True,
                content_type=_JSON,
                content_encoding="utf-8",
                message_id=str(uuid4()),
                timestamp=int(datetime.now(UTC).timestamp()),
                type=NAME,
                headers={"ordering-key": key_of(index), **HEADERS} if job.rich else None,
            )
        return {}

    async def close(self) -> None:
        self._connection.close()


def _refuse_return(*_: object) -> None:
    raise AssertionError("a message was returned")


def _pika_properties(index: int, job: Job) -> Any:
    import pika

    return pika.BasicProperties(
        content_type=_JSON,
        delivery_mode=2,
        message_id=str(uuid4()),
        timestamp=int(datetime.now(UTC).timestamp()),
        type=NAME,
        headers={"ordering-key": key_of(index), **HEADERS} if job.rich else None,
    )


class PikaBlocking(Client):
    """pika's BlockingConnection."""

    async def open(self) -> None:
        import pika

        self._connection = pika.BlockingConnection(pika.URLParameters(f"{self.url}?heartbeat=0"))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    async def run(self, job: Job) -> dict[str, float]:
        for index in range(job.count):
            self._channel.basic_publish(EXCHANGE, self.topic, BODY, _pika_properties(index, job), mandatory=True)
        return {}

    async def close(self) -> None:
        self._connection.close()


class PikaSelect(Client):
    """pika's SelectConnection, with a sliding window of 1 000 unconfirmed messages."""

    async def open(self) -> None:
        import pika

        self._job, self._sent, self._failed = Job(BULK, False, 0), 0, 0
        self._tag = 0
        self._unconfirmed: dict[int, None] = {}
        parameters = pika.URLParameters(f"{self.url}?heartbeat=0")
        self._connection = pika.SelectConnection(parameters, on_open_callback=self._opened)
        self._connection.ioloop.start()

    def _opened(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._channel_open)

    def _channel_open(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._answered, lambda _: self._connection.ioloop.stop())

    def _returned(self, *_: object) -> None:
        self._failed += 1

    def _answered(self, frame: Any) -> None:
        if type(frame.method).__name__ != "Ack":
            self._failed += 1
        tag = frame.method.delivery_tag
        if frame.method.multiple:
            while self._unconfirmed and (first := next(iter(self._unconfirmed))) <= tag:
                del self._unconfirmed[first]
        else:
            self._unconfirmed.pop(tag, None)
        self._fill()
        if not self._unconfirmed:
            self._connection.ioloop.stop()

    def _fill(self) -> None:
        while self._sent < self._job.count and len(self._unconfirmed) < 1000:
            properties = _pika_properties(self._sent, self._job)
            self._channel.basic_publish(EXCHANGE, self.topic, BODY, properties, mandatory=True)
            self._sent += 1
            self._tag += 1
            self._unconfirmed[self._tag] = None

    async def run(self, job: Job) -> dict[str, float]:
        self._job, self._sent = job, 0
        self._connection.ioloop.add_callback(self._fill)
        self._connection.ioloop.start()
        assert not self._failed, f"{self._failed} messages were returned or nacked"
        return {}

    async def close(self) -> None:
        self._connection.close()
        self._connection.ioloop.start()


class C(Client):
    """A C program on librabbitmq with a sliding window of 1 000 unconfirmed messages."""

    async def open(self) -> None:
        self._publisher = await asyncio.to_thread(CPublisher, self.url, EXCHANGE, self.topic)

    async def run(self, job: Job) -> dict[str, float]:
        return await asyncio.to_thread(self._publisher.run, job)

    async def close(self) -> None:
        self._publisher.close()


_WINDOWED = (GATHER_1000, WORKERS, BULK)

CONTENDERS = {
    "ours": Contender("cqrs-brokers", Ours),
    "raw": Contender("aio-pika", RawAioPika, "`exchange.publish`, `on_return_raises`, its own uuid4"),
    "ours-uvloop": Contender("cqrs-brokers, uvloop", Ours, uvloop=True),
    "python-cqrs": Contender(
        "python-cqrs",
        PythonCQRS,
        "cannot do the job: transient messages without an id, a queue and an exchange that are not durable, no "
        "`mandatory` that raises; declares both and binds them again for every message. It pins aio-pika 9.3.0 and is "
        "measured with the newer one",
        share=0.1,
    ),
    "faststream": Contender("FastStream", FastStream, "`RabbitBroker.publish`, `on_return_raises`", share=0.3),
    "kombu": Contender("kombu", Kombu, "blocking: one message at a time", rows=(SEQUENTIAL,)),
    "pika": Contender("pika", PikaBlocking, "`BlockingConnection`: one message at a time", rows=(SEQUENTIAL,)),
    "pika-select": Contender("pika, select", PikaSelect, "`SelectConnection`, own window of 1 000", rows=_WINDOWED),
    "c": Contender("C, librabbitmq", C, "window of 1 000: the upper bound", rows=_WINDOWED),
}
