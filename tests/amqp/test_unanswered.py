"""The messages of a channel by delivery tag, against a plain dictionary."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cqrs_broker_amqp._unanswered import Unanswered


@pytest.mark.parametrize("seed", range(20))
def test_random_answers(seed: int) -> None:
    """Writes, acks of one and of many, returns and questions in any order: what is left is what a dictionary has."""
    chance = random.Random(seed)
    in_flight: set[bytes] = set()
    unanswered, model, last = Unanswered(in_flight), dict[int, Any](), 0
    for _ in range(400):
        tag = chance.randint(0, last + 1)
        action = chance.choice(("write", "write", "ack", "ack", "ack", "return", "many", "clear"))
        if action == "write":
            entries: list[Any] = [
                (f"delivery {n}", b"%d" % n, b"frames %d" % n, b"", f"key {n}", n % 2 == 0)
                for n in range(last + 1, last + 1 + chance.randint(1, 7))
            ]
            unanswered.add(last + 1, entries)
            for entry in entries:
                last += 1
                model[last] = entry
        elif action == "ack":
            expected = model.pop(tag, None)
            assert unanswered.take(tag) == (expected and expected[0])
        elif action == "return":
            assert unanswered.take_entry(tag) == model.pop(tag, None)
        elif action == "many" and chance.random() < 0.3:
            tags = [one for one in model if one <= tag]
            assert unanswered.tags(tag) == tags
            assert list(unanswered.take_until(tag)) == [model.pop(one)[0] for one in tags]
        elif action == "clear" and chance.random() < 0.02:
            unanswered.clear()
            model.clear()
        assert unanswered.entries() == list(model.values())
        assert unanswered.oldest() == next((entry[0] for entry in model.values()), None)
        assert in_flight == {entry[1] for entry in model.values()}
        assert bool(unanswered) == bool(model)
        asked = b"%d" % tag
        assert unanswered.tag_of(asked) == (tag if tag in model else None)
