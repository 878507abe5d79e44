"""A message without a body, which reports that the object with its key was deleted."""

import copy
import pickle
from typing import Any

import pytest

from cqrs_brokers import TOMBSTONE, Broker, InvalidMessageError, Message
from cqrs_brokers.driver import Capabilities, content_type_of

from .drivers import Scripted

CAPABLE = Capabilities(confirms=True, ordering_key=True, headers=True, tombstones=True)


async def test_a_tombstone_has_no_body() -> None:
    """The driver sees None, not an empty body, and no content type that nobody named; an encoder is not asked."""
    driver = Scripted(automatic=True, capabilities=CAPABLE)
    sent = Message("OrderDeleted", "orders", TOMBSTONE, key="7")
    async with Broker(driver, encoder=lambda payload: b"encoded") as broker:
        assert (await broker.send_message(sent)).confirmed
        await broker.send_messages([sent, Message("OrderDeleted", "orders", b"", key="7", payload_bytes=b"")])
    assert [message.body for message in driver.seen] == [None, None, b""]
    assert content_type_of(sent) == ""
    assert content_type_of(Message("n", "t", TOMBSTONE, content_type="x/y")) == "x/y"
    assert "tombstone" in repr(sent)


async def test_a_tombstone_that_waits_is_one_still() -> None:
    """What waits is kept as it was, a tombstone too."""
    driver = Scripted(automatic=True, capabilities=CAPABLE)
    driver.connect_delay = 0.02
    broker = Broker(driver)
    await broker.send_message(Message("OrderDeleted", "orders", TOMBSTONE, key="7"))
    assert driver.seen[0].body is None
    await broker.close()


@pytest.mark.parametrize(
    ("capabilities", "changes", "says"),
    [
        (Capabilities(ordering_key=True), {}, "no tombstones .* send an event that reports it"),
        (CAPABLE, {"key": None}, "a tombstone needs a key"),
        (CAPABLE, {"payload_bytes": b""}, "a tombstone has no body, and payload_bytes is given"),
        (CAPABLE, {"payload": {"a": [TOMBSTONE]}}, "Tombstone"),
        (CAPABLE, {"payload": None}, "TOMBSTONE to delete"),
    ],
)
async def test_a_tombstone_that_cannot_be_sent_says_why(
    capabilities: Capabilities, changes: dict[str, Any], says: str
) -> None:
    """Refused before any I/O, never advised to send an empty body."""
    driver = Scripted(automatic=True, capabilities=capabilities)
    fields: dict[str, Any] = {"message_name": "n", "topic": "t", "payload": TOMBSTONE, "key": "k"} | changes
    with pytest.raises(InvalidMessageError, match=says) as caught:
        await Broker(driver).send_message(Message(**fields))
    assert "empty" not in caught.value.text
    assert driver.connects == 0


def test_there_is_one_tombstone() -> None:
    """Copies and pickles are the same object, alone and in a message."""
    for duplicate in (copy.copy(TOMBSTONE), copy.deepcopy(TOMBSTONE), pickle.loads(pickle.dumps(TOMBSTONE))):
        assert duplicate is TOMBSTONE
    assert type(TOMBSTONE)() is TOMBSTONE
    assert repr(TOMBSTONE) == "TOMBSTONE"
    assert pickle.loads(pickle.dumps(Message("n", "t", TOMBSTONE, key="k"))).body is None
