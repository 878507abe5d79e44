"""Forged answers of Kafka: the responses to produce requests up to version 8 are changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from cqrs_brokers_testkit.conformance import Forgery
from cqrs_brokers_testkit.frames import each_frame
from cqrs_brokers_testkit.proxy import ProxyConnection

Change = Callable[[bytes], bytes]

_PRODUCE = b"\0\0"
_NOT_ENOUGH_REPLICAS, _FORBIDDEN, _NO_SUCH_CODE = 19, 29, 31_999


def _length(data: bytes) -> int | None:
    return 4 + int.from_bytes(data[:4]) if len(data) >= 4 else None


def _change_produce(connection: ProxyConnection, request: Change, response: Change) -> None:
    """Changes produce requests and their responses."""
    asked: set[bytes] = set()  # correlation ids: a response does not say what it answers

    def up(frame: bytes) -> bytes:
        if frame[4:6] != _PRODUCE:
            return frame
        asked.add(frame[8:12])
        return request(frame)

    connection.rewrite(each_frame(_length, up), "up")
    connection.rewrite(each_frame(_length, lambda frame: response(frame) if frame[4:8] in asked else frame), "down")


def without_replicas(topic: str) -> Callable[[ProxyConnection], None]:
    """Makes the broker seem to have too few replicas for a topic: it appends nothing, and answers with that error code.

    The only node of a cluster has enough replicas for any topic. So the requests for this topic are changed to name a
    topic that does not exist, and the error code in the answers is changed.
    """
    name, other = topic.encode(), topic[::-1].encode()

    def response(frame: bytes) -> bytes:
        if (at := frame.find(other)) < 0:
            return frame
        at += len(other) + 4 + 4
        return (frame[:at] + _NOT_ENOUGH_REPLICAS.to_bytes(2) + frame[at + 2 :]).replace(other, name)

    return lambda connection: _change_produce(connection, lambda frame: frame.replace(name, other, 1), response)


def _forgery(meaning: Literal["lost", "refused", "unknown"], forge: Change) -> Forgery:
    return Forgery(meaning, lambda connection: _change_produce(connection, lambda frame: frame, forge))


def _with_code(code: int) -> Change:
    """Changes the code of the first partition, because the suite sends to one partition only."""

    def forge(frame: bytes) -> bytes:
        topic = 12 + 2 + int.from_bytes(frame[12:14])  # behind size, correlation id, number of topics, and the name
        at = topic + 4 + 4  # behind the number of partitions, and the partition's own
        return frame[:at] + code.to_bytes(2) + frame[at + 2 :]

    return forge


# No response with another correlation id: the driver sends the batch again over another connection, and the broker,
# which recognises it, truly confirms it.
FORGED: Mapping[str, Forgery] = {
    "nothing": _forgery("lost", lambda _: b""),
    "error code 29": _forgery("refused", _with_code(_FORBIDDEN)),
    "an error code that Kafka does not have": _forgery("unknown", _with_code(_NO_SUCH_CODE)),
}
