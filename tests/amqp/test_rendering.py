"""The wire format, byte for byte."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.header import ContentHeader

from cqrs_broker_amqp._rendering import Renderer, body_frames
from cqrs_brokers import Message

ID = UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
TIME = datetime(2024, 2, 29, 12, 30, 45, 999_999, tzinfo=UTC)


def rendered(message: Message, exchange: str = "events", frame_max: int = 131_072) -> bytes:
    message_id, frames, body = Renderer(exchange).render(message)
    assert message_id == str(message.message_id).encode()
    parts = [frames]
    body_frames(body, frame_max, 1, parts)
    return b"".join(parts)


def frames(raw: bytes) -> list[Any]:
    found = []
    while raw:
        size, channel, frame = pamqp.frame.unmarshal(raw)
        assert channel == 1
        found.append(frame)
        raw = raw[size:]
    return found


def test_golden_vector_plain() -> None:
    """A message without key and headers is exactly these bytes."""
    message = Message("OrderPlaced", "orders", {"id": 1}, ID, timestamp=TIME)
    assert rendered(message) == bytes.fromhex(
        # method frame: basic.publish to "events" with routing key "orders", mandatory
        "01 0001 00000015 003c 0028 0000 06 6576656e7473 06 6f7264657273 01 ce"
        # content header: body size 8, flags; content type, delivery mode 2, message id, timestamp, type
        "02 0001 00000059 003c 0000 0000000000000008 90e0"
        "10 6170706c69636174696f6e2f6a736f6e"
        "02"
        "24 30663866616435622d643963622d343639662d613136352d373038363737323839353065"
        "0000000065e078f5"
        "0b 4f72646572506c61636564 ce"
        # body
        "03 0001 00000008 7b226964223a317d ce"
    )


def test_golden_vector_with_key_and_headers() -> None:
    """Key and headers are long strings in the header table, the key first."""
    message = Message(
        "Paid", "pay", b"\x00\xff", ID, key="kü", headers={"trace": "a", "é": ""}, content_type="x/y", timestamp=TIME
    )
    assert rendered(message) == bytes.fromhex(
        "01 0001 00000012 003c 0028 0000 06 6576656e7473 03 706179 01 ce"
        "02 0001 00000072 003c 0000 0000000000000002 b0e0"
        "03 782f79"
        "00000029"
        "0c 6f72646572696e672d6b6579 53 00000003 6bc3bc"
        "05 7472616365 53 00000001 61"
        "02 c3a9 53 00000000"
        "02"
        "24 30663866616435622d643963622d343639662d613136352d373038363737323839353065"
        "0000000065e078f5"
        "04 50616964 ce"
        "03 0001 00000002 00ff ce"
    )


text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)
short = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=40)


@given(
    topic=short,
    name=short,
    content_type=st.none() | short,
    key=st.none() | text,
    headers=st.dictionaries(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30), text),
    body=st.binary(max_size=300),
    size=st.sampled_from([0, 4096, 9000]),
    frame_max=st.sampled_from([4096, 131_072]),
)
def test_an_independent_decoder_reads_what_was_rendered(
    topic: str,
    name: str,
    content_type: str | None,
    key: str | None,
    headers: dict[str, str],
    body: bytes,
    size: int,
    frame_max: int,
) -> None:
    """pamqp reads every field back as it was given."""
    headers.pop("ordering-key", None)
    body = body + b"x" * size
    message = Message(
        name, topic, body, ID, key=key, headers=headers, content_type=content_type, timestamp=TIME, payload_bytes=body
    )
    publish, header, *bodies = frames(rendered(message, "ex", frame_max))
    assert isinstance(publish, commands.Basic.Publish)
    assert (publish.exchange, publish.routing_key, publish.mandatory, publish.immediate) == ("ex", topic, True, False)
    assert isinstance(header, ContentHeader)
    properties = header.properties
    assert header.body_size == len(body)
    assert properties.content_type == (content_type or "application/octet-stream")
    assert (properties.message_id, properties.message_type, properties.delivery_mode) == (str(ID), name, 2)
    assert properties.timestamp == TIME.replace(microsecond=0)
    assert (properties.headers or {}) == headers | ({} if key is None else {"ordering-key": key})
    assert b"".join(frame.value for frame in bodies) == body
    assert all(len(frame.value) <= frame_max - 8 for frame in bodies)


def test_many_routes_and_header_names_are_forgotten_again() -> None:
    """What is remembered of topics and header names is bounded, and forgetting changes nothing."""
    renderer = Renderer("events")
    for number in range(2500):
        message = Message("n", f"topic{number}", b"", ID, headers={f"h{number}": "v"}, timestamp=TIME)
        publish, header = frames(renderer.render(message)[1])
        assert publish.routing_key == f"topic{number}"
        assert header.properties.headers == {f"h{number}": "v"}
    assert len(renderer._routes) <= 1000
    assert len(renderer._names) <= 1000


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (92, 1), (93, 2), (184, 2), (185, 3)])
def test_bodies_are_split_at_the_frame_size(size: int, count: int) -> None:
    """Each body frame, its header and end included, is at most frame_max long."""
    parts: list[bytes] = []
    body_frames(b"x" * size, 100, 1, parts)
    assert len(frames(b"".join(parts))) == count
