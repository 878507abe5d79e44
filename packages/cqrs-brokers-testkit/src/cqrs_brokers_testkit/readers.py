"""Read back what was published, with clients that are not ours: pika for RabbitMQ, confluent-kafka for Kafka.

A test that publishes with cqrs-brokers and reads with the same code proves nothing about the wire. All functions block,
so a coroutine must call them with `asyncio.to_thread`. The functions need the extras `[amqp]` and `[kafka]`.
"""

import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cqrs_brokers_testkit._optional import MissingExtra, require

__all__ = ["MissingExtra", "Record", "TooFewRecords", "bind_queue", "delete_queue", "drain_queue", "drain_topic"]

_AMQP_FIELDS = {"headers", "type", "message_id", "content_type", "timestamp"}
_NOT_USER_HEADERS = {"message-id", "message-name", "content-type", "ordering-key"}


class TooFewRecords(TimeoutError):  # noqa: N818 - names what happened
    """Fewer messages arrived in time than the test waited for.

    Attributes:
        records: The messages that arrived.
    """

    def __init__(self, where: str, wanted: int, timeout: float, records: "list[Record]") -> None:
        super().__init__(f"{len(records)} of {wanted} messages in {where} after {timeout:g} s")
        self.records = records


@dataclass(frozen=True, kw_only=True)
class Record:
    """One message as the broker holds it, in the terms of the wire format of cqrs-brokers.

    Attributes:
        topic: Kafka topic, or AMQP routing key.
        key: Ordering key: the Kafka record's key, or the AMQP header "ordering-key".
        name: Message name.
        message_id: Message id, as text.
        headers: The user's headers, as text.
        body: The body, untouched.
        content_type: The content type of the body.
        timestamp: The message's time, in UTC: to the millisecond in Kafka, to the second in AMQP.
        partition: Kafka's partition.
        offset: Kafka's offset.
        exchange: AMQP's exchange.
        raw_headers: All headers as the client gave them: (name, bytes) pairs for Kafka, items of the table for AMQP.
        properties: All AMQP properties that were set, such as `delivery_mode`. For Kafka: the raw `key` and `value`.
        flags: Further properties of the message that the broker reports, such as AMQP's `delivery_mode` and
            `expiration`, or MQTT's retain flag. The suite demands that all messages of a plugin have the same flags.
        tombstone: Whether the record has no value. If so, `body` is empty.
    """

    topic: str
    key: str | None
    name: str | None
    message_id: str | None
    headers: Mapping[str, str]
    body: bytes
    content_type: str | None
    timestamp: datetime | None
    partition: int | None = None
    offset: int | None = None
    exchange: str | None = None
    raw_headers: Sequence[tuple[str, Any]] = field(default=())
    properties: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    tombstone: bool = False

    @classmethod
    def of_headers(
        cls,
        topic: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        prefix: str = "",
        decode: Callable[[str], str] = str,
        without: Collection[str] = (),
        offset: int | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> "Record":
        """Return the record of a message whose metadata are text headers, with the names of the wire format.

        Args:
            topic: The topic in which the message was found.
            headers: All headers, as they are on the wire. `message-id`, `message-name`, `content-type`, `ordering-key`
                and `timestamp` become fields of the record. All others are the user's headers, whatever their names.
            body: The body.
            prefix: A text before the names of the user's headers. The prefix is removed.
            decode: A function that decodes the value of a header, and the name of a user's header.
            without: Headers that are neither fields nor the user's, such as one for the broker's deduplication.
            offset: The message's offset, if the broker has offsets.
            flags: Further properties that the broker reports, such as the expiry. See `Record.flags`.
        """
        texts = {name: decode(value) for name, value in headers.items() if name not in without}
        fields = {name: texts.pop(name, None) for name in (*_NOT_USER_HEADERS, "timestamp")}
        time_of_message = fields["timestamp"]
        return cls(
            topic=topic,
            key=fields["ordering-key"],
            name=fields["message-name"],
            message_id=fields["message-id"],
            headers={decode(name).removeprefix(prefix): text for name, text in texts.items()},
            body=body,
            content_type=fields["content-type"],
            timestamp=None if time_of_message is None else datetime.fromisoformat(time_of_message),
            offset=offset,
            flags=dict(flags or {}),
        )

    def json(self) -> Any:
        """Return the body, decoded from JSON."""
        return json.loads(self.body)


# --- RabbitMQ ---------------------------------------------------------------------------------------------------------


def bind_queue(
    url: str,
    exchange: str,
    routing_key: str = "#",
    queue: str | None = None,
    *,
    exchange_type: str | None = "topic",
    cafile: str | Path | None = None,
    **arguments: object,
) -> str:
    """Declare a durable queue, bind it to a durable exchange, and return the queue's name.

    Args:
        url: AMQP URL; what follows a "?" is ignored.
        exchange: Name of the exchange.
        routing_key: Pattern to bind with. The default matches every routing key of a topic exchange.
        queue: Name of the queue. None: a new queue, which RabbitMQ deletes after ten idle minutes.
        exchange_type: Type with which the exchange is declared. None: the exchange must exist.
        cafile: For `amqps`: the authority's certificate.
        **arguments: Queue arguments, such as `**{"x-max-length": 1, "x-overflow": "reject-publish"}`.
    """
    if queue is None:
        queue = f"test-{uuid.uuid4()}"
        arguments.setdefault("x-expires", 600_000)
    connection = _connect_pika(url, cafile)
    try:
        channel = connection.channel()
        if exchange_type is not None:
            channel.exchange_declare(exchange, exchange_type, durable=True)
        channel.queue_declare(queue, durable=True, arguments=arguments)
        channel.queue_bind(queue, exchange, routing_key)
    finally:
        connection.close()
    return queue


def delete_queue(url: str, queue: str, *, cafile: str | Path | None = None) -> None:
    """Delete a queue with its bindings, if it is there.

    Args:
        url: AMQP URL; what follows a "?" is ignored.
        queue: Name of the queue.
        cafile: For `amqps`: the authority's certificate.
    """
    connection = _connect_pika(url, cafile)
    try:
        connection.channel().queue_delete(queue)
    finally:
        connection.close()


def drain_queue(
    url: str, queue: str, count: int | None = None, timeout: float = 10.0, *, cafile: str | Path | None = None
) -> list[Record]:
    """Take messages out of a queue until it is empty, in the queue's order.

    Args:
        url: AMQP URL; what follows a "?" is ignored.
        queue: Name of the queue, which must exist.
        count: Wait until at least this many messages have come. If there are more, they are returned too, so that a
            duplicate is seen. None: return only what is there now.
        timeout: Seconds to wait for `count`.
        cafile: For `amqps`: the authority's certificate.

    Raises:
        TooFewRecords: Fewer than `count` messages came in time.
    """
    give_up = time.monotonic() + timeout
    records: list[Record] = []
    connection = _connect_pika(url, cafile)
    try:
        channel = connection.channel()
        while True:
            method, properties, body = channel.basic_get(queue, auto_ack=True)
            if method is not None:
                records.append(_amqp_record(method, properties, body))
            elif count is None or len(records) >= count:
                return records
            elif time.monotonic() > give_up:
                raise TooFewRecords(f"queue {queue!r}", count, timeout, records)
            else:
                connection.sleep(0.02)
    finally:
        connection.close()


def _connect_pika(url: str, cafile: str | Path | None) -> Any:
    pika = require("pika", extra="amqp")
    parts = urlsplit(url)
    parameters = pika.URLParameters(parts._replace(query="", fragment="").geturl())
    if parts.scheme == "amqps":
        import ssl

        context = ssl.create_default_context(cafile=cafile)
        parameters.ssl_options = pika.SSLOptions(context, parts.hostname)
    return pika.BlockingConnection(parameters)


def _amqp_record(method: Any, properties: Any, body: bytes) -> Record:
    table = dict(properties.headers or {})
    key = table.get("ordering-key")
    set_properties = {name: value for name, value in vars(properties).items() if value is not None}
    return Record(
        topic=method.routing_key,
        key=None if key is None else str(key),
        name=properties.type,
        message_id=properties.message_id,
        headers={name: str(value) for name, value in table.items() if name not in _NOT_USER_HEADERS},
        body=body,
        content_type=properties.content_type,
        timestamp=None if properties.timestamp is None else datetime.fromtimestamp(properties.timestamp, UTC),
        exchange=method.exchange,
        raw_headers=tuple(table.items()),
        properties=set_properties,
        flags={name: value for name, value in set_properties.items() if name not in _AMQP_FIELDS},
    )


# --- Kafka ------------------------------------------------------------------------------------------------------------


def drain_topic(
    bootstrap_servers: str,
    topic: str,
    count: int | None = None,
    timeout: float = 10.0,
    *,
    settings: Mapping[str, object] | None = None,
) -> list[Record]:
    """Read the committed records of a topic, from the beginning to the end of every partition.

    Args:
        bootstrap_servers: `host:port[,...]`, or a `kafka://` URL without user.
        topic: Name of the topic, which must exist.
        count: Wait until at least this many records are there. If there are more, they are returned too, so that a
            duplicate is seen. None: return only what is there now, even if the topic goes on growing.
        timeout: Seconds for the whole call.
        settings: Further settings of librdkafka, such as those of SASL and TLS.

    Returns:
        The records, sorted by partition and offset.

    Raises:
        TooFewRecords: Fewer than `count` records were there in time.
        TimeoutError: The end of a partition was not reached in time.
        LookupError: There is no such topic.
    """
    confluent = require("confluent_kafka", extra="kafka")
    give_up = time.monotonic() + timeout
    records: list[Record] = []
    last_problem = ""
    consumer = confluent.Consumer(
        {
            "bootstrap.servers": urlsplit(bootstrap_servers).netloc
            if "://" in bootstrap_servers
            else bootstrap_servers,
            "group.id": f"cqrs-brokers-testkit-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 20,  # the end of a partition is told by an answer without records
            "log_level": 0,
            **(settings or {}),
        }
    )
    try:
        partitions = _partitions(confluent, consumer, topic, timeout)
        consumer.assign([confluent.TopicPartition(topic, partition, 0) for partition in partitions])
        ends: dict[int, int] = {}
        if count is None:
            ends = {partition: _end(confluent, consumer, topic, partition, give_up) for partition in partitions}
        unread = set(partitions)
        while unread or len(records) < (count or 0):
            left = give_up - time.monotonic()
            if left <= 0:
                if count is not None and len(records) < count:
                    raise TooFewRecords(f"topic {topic!r}", count, timeout, _in_order(records))
                raise TimeoutError(
                    f"the end of topic {topic!r} was not reached in {timeout:g} s {last_problem}".strip()
                )
            message = consumer.poll(min(left, 0.5))
            if message is None:
                continue
            problem = message.error()
            if problem is None:
                records.append(_kafka_record(message))
                if count is not None:
                    unread.add(message.partition())  # it has grown since its end was reported
                elif message.offset() + 1 >= ends[message.partition()]:
                    unread.discard(message.partition())  # of a partition that goes on growing no end is reported
            elif problem.code() == confluent.KafkaError._PARTITION_EOF:
                unread.discard(message.partition())
            else:  # a broker is away, a leader moves: librdkafka goes on by itself
                last_problem = f"({problem.str()})"
    finally:
        consumer.close()
    return _in_order(records)


def _in_order(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.partition, record.offset))


def _partitions(confluent: Any, consumer: Any, topic: str, timeout: float) -> list[int]:
    found = consumer.list_topics(topic, timeout=timeout).topics[topic]
    if found.error is not None:
        if found.error.code() == confluent.KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise LookupError(f"there is no topic {topic!r}: create it first")
        raise TimeoutError(f"topic {topic!r} cannot be read: {found.error.str()}")
    return list(found.partitions)


def _end(confluent: Any, consumer: Any, topic: str, partition: int, give_up: float) -> int:
    """The offset after the partition's last committed record."""
    while True:
        try:
            _, end = consumer.get_watermark_offsets(confluent.TopicPartition(topic, partition), timeout=5)
            return int(end)
        except confluent.KafkaException as error:  # after a restart a node does not lead its partitions at once
            if time.monotonic() > give_up:
                raise TimeoutError(f"the end of topic {topic!r} is not known: {error.args[0].str()}") from error
            time.sleep(0.05)


def _kafka_record(message: Any) -> Record:
    raw = tuple(message.headers() or ())
    texts = {name: _text(value) for name, value in raw}
    kind, milliseconds = message.timestamp()
    key = message.key()
    return Record(
        topic=message.topic(),
        key=_text(key),
        name=texts.get("message-name"),
        message_id=texts.get("message-id"),
        headers={name: text or "" for name, text in texts.items() if name not in _NOT_USER_HEADERS},
        body=message.value() or b"",
        content_type=texts.get("content-type"),
        timestamp=datetime.fromtimestamp(milliseconds / 1000, UTC) if kind else None,
        partition=message.partition(),
        offset=message.offset(),
        raw_headers=raw,
        properties={"key": key, "value": message.value()},
        tombstone=message.value() is None,
    )


def _text(value: bytes | str | None) -> str | None:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
