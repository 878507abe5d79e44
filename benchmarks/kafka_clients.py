"""Who publishes to Kafka: acks=all, idempotent, keyed, with the three headers of our wire format."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any
from uuid import uuid4

from .contender import Client, Contender
from .workloads import BODY, BULK, HOT_KEY, LATENCY, NAME, SEQUENTIAL, Job, key_of

__all__ = ["CONTENDERS"]

_JSON = "application/json"
_NAME, _TYPE = NAME.encode(), _JSON.encode()


def _key(index: int, job: Job) -> str:
    return "customer" if job.row == HOT_KEY else key_of(index)


def _record(index: int, job: Job) -> dict[str, Any]:
    headers = [("message-id", str(uuid4()).encode()), ("message-name", _NAME), ("content-type", _TYPE)]
    return {"value": BODY, "key": _key(index, job).encode(), "headers": headers}


class Ours(Client):
    """The whole public API."""

    async def open(self) -> None:
        from cqrs_brokers import Message, open_broker

        self._message = Message
        self._broker = open_broker(f"kafka://{self.url}")
        await self._broker.connect()

    def _make(self, index: int, job: Job) -> Any:
        return self._message(NAME, self.topic, None, key=_key(index, job), content_type=_JSON, payload_bytes=BODY)

    async def send(self, index: int, job: Job) -> Any:
        return await self._broker.send_message(self._make(index, job))

    async def bulk(self, count: int, job: Job) -> None:
        from cqrs_brokers import Receipt

        outcomes = await self._broker.send_messages(self._make(index, job) for index in range(count))
        assert all(type(outcome) is Receipt for outcome in outcomes)

    async def close(self) -> None:
        await self._broker.close()


class RawAiokafka(Client):
    """aiokafka as its documentation shows it; in bulk the best it can do: `send()` for all, then await the futures."""

    async def open(self) -> None:
        from aiokafka import AIOKafkaProducer

        self._producer = AIOKafkaProducer(bootstrap_servers=self.url, acks="all", enable_idempotence=True)
        await self._producer.start()

    async def send(self, index: int, job: Job) -> Any:
        timestamp = int(time.time() * 1000)
        return await self._producer.send_and_wait(self.topic, timestamp_ms=timestamp, **_record(index, job))

    async def bulk(self, count: int, job: Job) -> None:
        send, topic = self._producer.send, self.topic
        futures = [
            await send(topic, timestamp_ms=int(time.time() * 1000), **_record(index, job)) for index in range(count)
        ]
        await asyncio.gather(*futures)

    async def close(self) -> None:
        await self._producer.stop()


class PythonCQRS(Client):
    """python-cqrs' own Kafka broker."""

    async def open(self) -> None:
        from cqrs.adapters.kafka import kafka_producer_factory
        from cqrs.message_brokers.kafka import KafkaMessageBroker
        from cqrs.message_brokers.protocol import Message

        self._message = Message
        self._producer: Any = kafka_producer_factory(self.url)
        await self._producer._producer.start()
        self._broker = KafkaMessageBroker(self._producer)

    async def send(self, index: int, job: Job) -> Any:
        await self._broker.send_message(self._message(NAME, self.topic, None, payload_bytes=BODY))

    async def close(self) -> None:
        await self._producer._producer.stop()


class FastStream(Client):
    """FastStream's `KafkaBroker.publish`."""

    async def open(self) -> None:
        from faststream.kafka import KafkaBroker

        self._broker = KafkaBroker(self.url, acks="all", enable_idempotence=True)
        await self._broker.start()

    async def send(self, index: int, job: Job) -> Any:
        headers = {"message-id": str(uuid4()), "message-name": NAME, "content-type": _JSON}
        return await self._broker.publish(
            BODY, self.topic, key=_key(index, job).encode(), headers=headers, timestamp_ms=int(time.time() * 1000)
        )

    async def close(self) -> None:
        await self._broker.stop()


def _librdkafka(url: str, linger: float) -> Any:
    from confluent_kafka import Producer

    return Producer(
        {
            "bootstrap.servers": url,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": linger,
            "queue.buffering.max.messages": 200_000,
        }
    )


class ConfluentCallbacks(Client):
    """confluent-kafka without asyncio: waves of callbacks; `linger.ms` 0 where one message goes at a time, else 5."""

    async def open(self) -> None:
        self._prompt, self._batching = _librdkafka(self.url, 0), _librdkafka(self.url, 5)
        self._left = 0

    def _delivered(self, error: Any, _: Any) -> None:
        assert error is None, error
        self._left -= 1

    async def run(self, job: Job) -> dict[str, float]:
        producer = self._prompt if job.row == SEQUENTIAL else self._batching
        for start in range(0, job.count, job.wave):
            size = min(job.wave, job.count - start)
            self._left += size
            for index in range(start, start + size):
                timestamp = int(time.time() * 1000)
                producer.produce(self.topic, on_delivery=self._delivered, timestamp=timestamp, **_record(index, job))
                if index % 64 == 0:
                    producer.poll(0)
            while self._left:
                producer.poll(1)
        return {}


class ConfluentInAsyncio(Client):
    """confluent-kafka with a polling thread and a future per message, woken in batches; `linger.ms` 1."""

    async def open(self) -> None:
        self._producer = _librdkafka(self.url, 1)
        self._loop = asyncio.get_running_loop()
        self._done: list[tuple[asyncio.Future[Any], Any, Any]] = []
        self._lock = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while self._open:
            self._producer.poll(0.5)

    def _delivered(self, waiter: asyncio.Future[Any], error: Any, message: Any) -> None:
        with self._lock:
            first = not self._done
            self._done.append((waiter, error, message))
        if first:
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            done, self._done = self._done, []
        for waiter, error, message in done:
            if error is None:
                waiter.set_result(message)
            else:
                waiter.set_exception(RuntimeError(str(error)))

    async def send(self, index: int, job: Job) -> Any:
        waiter = self._loop.create_future()
        self._producer.produce(
            self.topic,
            on_delivery=lambda error, message: self._delivered(waiter, error, message),
            timestamp=int(time.time() * 1000),
            **_record(index, job),
        )
        return await waiter

    async def close(self) -> None:
        self._open = False
        await asyncio.to_thread(self._thread.join)


class ConfluentAIO(Client):
    """confluent-kafka's own `AIOProducer`. It takes neither headers nor a time stamp.

    It collects messages and sends them when there are `batch_size` or when none came for `buffer_timeout` seconds, so a
    lone message waits that long: with the default of 1 s, one by one would be measured in messages per minute.
    """

    async def open(self) -> None:
        from confluent_kafka.aio import AIOProducer

        settings = {"bootstrap.servers": self.url, "acks": "all", "enable.idempotence": True, "linger.ms": 0}
        self._producer = AIOProducer(settings, batch_size=100, buffer_timeout=0.001)

    async def send(self, index: int, job: Job) -> Any:
        return await (await self._producer.produce(self.topic, value=BODY, key=_key(index, job).encode()))

    async def close(self) -> None:
        await self._producer.close()


class KafkaPython(Client):
    """kafka-python without asyncio: waves of `send()`, then all futures; its own thread sends."""

    async def open(self) -> None:
        from kafka import KafkaProducer

        self._producer = KafkaProducer(bootstrap_servers=self.url, acks="all", enable_idempotence=True)

    async def run(self, job: Job) -> dict[str, float]:
        for start in range(0, job.count, job.wave):
            futures = [
                self._producer.send(self.topic, timestamp_ms=int(time.time() * 1000), **_record(index, job))
                for index in range(start, min(start + job.wave, job.count))
            ]
            for future in futures:
                future.get(60)
        return {}

    async def close(self) -> None:
        self._producer.close(10)


_ALL_BUT_LATENCY = (SEQUENTIAL, "gather(100)", "gather(1000)", "1000 workers", HOT_KEY, BULK)

CONTENDERS = {
    "ours": Contender("cqrs-brokers", Ours),
    "raw": Contender(
        "aiokafka", RawAiokafka, "`send_and_wait`; bulk: `send()` for all, then await the futures; its own uuid4"
    ),
    "ours-uvloop": Contender("cqrs-brokers, uvloop", Ours, uvloop=True),
    "python-cqrs": Contender(
        "python-cqrs",
        PythonCQRS,
        "cannot do the job: no key, no headers, acks=1 without idempotence. It pins aiokafka 0.10.0 and is measured "
        "with the newer one",
        share=0.2,
        rows=tuple(row for row in (*_ALL_BUT_LATENCY, LATENCY) if row != HOT_KEY),
    ),
    "faststream": Contender("FastStream", FastStream, "`KafkaBroker.publish`", share=0.2),
    "confluent": Contender(
        "confluent-kafka", ConfluentCallbacks, "callbacks in waves, no asyncio: the ceiling", rows=_ALL_BUT_LATENCY
    ),
    "confluent-asyncio": Contender(
        "confluent-kafka in asyncio", ConfluentInAsyncio, "a polling thread and a future per message"
    ),
    "confluent-aio": Contender(
        "confluent-kafka AIOProducer",
        ConfluentAIO,
        "confluent-kafka's own asyncio producer: it takes no headers and no time stamp, so it sends none; "
        "`batch_size=100`, `buffer_timeout=0.001`. Its timer starts again with each message, so a steady trickle waits "
        "for a full batch: no figure at 1000 msg/s",
        rows=_ALL_BUT_LATENCY,
        share=0.5,
    ),
    "kafka-python": Contender(
        "kafka-python", KafkaPython, "no asyncio: `send()` in waves, then the futures", rows=_ALL_BUT_LATENCY, share=0.2
    ),
}
