"""Rows in the relay's memory: which may go."""

from types import SimpleNamespace
from typing import Any

from cqrs_brokers_outbox._relay.keys import Item, Keys


def row(number: int, key: str | None = "a", partition: int = 0) -> Item:
    stored = None if key is None else key.encode()
    columns: Any = SimpleNamespace(id=number, topic="t", message_key=stored, hash=partition)
    return Item(columns, partition, 1)


def numbers(items: list[Item]) -> list[int]:
    return [item.row.id for item in items]


def test_one_row_of_a_key_at_a_time() -> None:
    """The next goes when the one before it landed; rows without a key need not wait."""
    keys = Keys(pipeline=False)
    first = row(1)
    keys.add([first, row(2), row(3, None), row(4, None), row(5, "b")])
    assert numbers(keys.take()) == [1, 3, 4, 5]
    assert keys.take() == []
    assert keys.landed(first, sent=True) == []
    assert numbers(keys.take()) == [2]


def test_those_behind_a_failure_are_forgotten() -> None:
    """They are in the database."""
    keys = Keys(pipeline=False)
    first = row(1)
    keys.add([first, row(2), row(3)])
    keys.take()
    assert numbers(keys.landed(first, sent=False)) == [2, 3]
    assert keys.take() == []


def test_a_claim_that_read_before_a_failure_was_marked_brings_nothing_of_its_key() -> None:
    """Its rows are taken in when no claim is left that began before the mark; other keys' at any time."""
    keys = Keys(pipeline=False)
    first = row(1)
    keys.add([first])
    keys.take()
    keys.claim_begins()
    keys.landed(first, sent=False)
    keys.failed(first)
    assert not keys.accepts(row(2))
    assert keys.accepts(row(2, "b"))
    keys.failure_marked(first)
    assert not keys.accepts(row(2))
    keys.claim_ended()
    assert keys.accepts(row(2))


def test_a_key_that_was_forgotten_and_comes_again_goes_once() -> None:
    """While its first row is in flight nothing else of it goes."""
    keys = Keys(pipeline=False)
    keys.add([row(1)])
    keys.forget_waiting()
    assert not keys.busy
    first = row(1)
    keys.add([first, row(2)])
    assert numbers(keys.take()) == [1]
    keys.add([row(3)])
    assert keys.take() == []


def test_pipelined_keys_go_together_in_their_order() -> None:
    """All that was claimed goes at once."""
    keys = Keys(pipeline=True)
    keys.add([row(1), row(2, "b"), row(3)])
    assert numbers(keys.take()) == [1, 2, 3]


def test_crowded_keys_are_named() -> None:
    """The claim need bring no more of them."""
    keys = Keys(pipeline=False)
    keys.add([row(number, "a", 7) for number in range(12)] + [row(20, "b", 8)])
    assert keys.crowded(10) == {7}
