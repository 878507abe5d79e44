"""The state machine of a partition against a model of Kafka's log: random answers, losses, late answers, new leaders.

Whatever happens: a receipt's record is in the log at that offset, once; what is "not delivered" is not in the log and
never comes there; receipts are in the order of calls. Each rule of `_partition` is taken away once (a mutant), and the
same test then fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cqrs_broker_kafka import _partition
from cqrs_broker_kafka._codes import ROWS, Row, Then
from cqrs_broker_kafka._partition import Batch, Partition, State
from cqrs_broker_kafka._records import Records
from cqrs_brokers import ConnectionLostError, DeliveryUnknownError, NotDeliveredError

from .log_model import Around, Log, Written, add, answer, new_delivery

REFUSALS = sorted(code for code, row in ROWS.items() if row.then in (Then.WAIT, Then.SPLIT, Then.FAIL))
IN_DOUBT = [-1, 7, 13, 20, 56, 9, 74, 89, 12345]
"""Codes after which the batch may be there or not."""

STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 5)),
    st.tuples(st.just("answered"), st.just(0)),
    st.tuples(st.just("refused"), st.sampled_from(REFUSALS)),
    st.tuples(st.just("refused with culprits"), st.sampled_from([87, 32, 2, 44, 10])),
    st.tuples(st.just("written, then a code"), st.sampled_from(IN_DOUBT)),
    st.tuples(st.just("not written, then a code"), st.sampled_from(IN_DOUBT)),
    st.tuples(st.just("written, then not leader"), st.sampled_from([3, 6])),
    st.tuples(st.just("written, answer lost"), st.just(0)),
    st.tuples(st.just("never arrived, lost"), st.just(0)),
    st.tuples(st.just("arrives late, lost"), st.just(0)),
    st.tuples(st.just("late ones arrive"), st.just(0)),
    st.tuples(st.just("deadline"), st.integers(0, 9)),
    st.tuples(st.just("purge"), st.just(0)),
    st.tuples(st.just("all deadlines"), st.just(0)),
    st.tuples(st.just("producers forgotten"), st.just(0)),
    st.tuples(st.just("given up"), st.just(0)),
    st.tuples(st.just("new id"), st.just(0)),
    st.tuples(st.just("gone and back"), st.just(0)),
)


class World:
    """One partition, its log and its callers."""

    def __init__(self, idempotent: bool, most: int) -> None:
        self.around = Around(idempotent, most)
        around: Any = self.around
        self.partition = Partition(around, b"t", 0)
        self.log = Log()
        self.deliveries: list[Any] = []
        self.late: list[Written] = []
        """Requests that are still on their way to the broker although their connection is gone."""
        self.in_doubt: set[bytes] = set()
        """What was in an attempt without a definite answer."""

    def send(self, count: int) -> None:
        for _ in range(count):
            self.deliveries.append(new_delivery(len(self.deliveries)))
            add(self.partition, self.deliveries[-1])

    def write(self) -> Batch | None:
        """The node writes: a new batch, or the one in doubt again."""
        if self.partition.state in (State.PAUSED, State.NO_ID):
            if self.partition.state is State.NO_ID:
                self.around.new_id()
            self.partition.resume()
        if self.partition.state is not State.READY:
            return None
        known = self.partition.batch
        batch = self.partition.take()
        if batch is None and self.waits_for_an_id():
            self.around.new_id()
            self.partition.resume()
            batch = self.partition.take()
        assert known is None or batch is known, "a batch in doubt was changed"
        return batch

    def waits_for_an_id(self) -> bool:
        return self.partition.state is State.NO_ID

    def confirm(self, batch: Batch | None, offset: int) -> None:
        if batch is not None:
            deliveries: list[Any] = [*batch.records.deliveries]
            for place, delivery in enumerate(deliveries):
                delivery.confirm(offset + place if offset >= 0 else -1)

    def deliver(self, batch: Batch) -> tuple[int, int]:
        data: Any = batch.data
        return self.log.append(data)

    def step(self, what: str, number: int) -> None:
        if what == "send":
            self.send(number)
        elif what == "deadline":
            for delivery in self.deliveries[number::10]:
                delivery.expire()
        elif what == "purge":
            self.purge()
        elif what == "all deadlines":
            for delivery in self.deliveries:
                delivery.expire()
            self.purge()
        elif what == "late ones arrive":
            late, self.late = self.late, []
            for written in late:
                self.log.append(written)
        elif what == "producers forgotten":
            # A batch that was appended and is in doubt would be appended again (docs: "old timestamps").
            if not self.late and (self.partition.batch is None or not self.partition.batch.in_doubt):
                self.log.forget_producers()
        elif what == "given up":
            if self.partition.state is not State.IN_FLIGHT:
                self.partition.give_up(ConnectionLostError("x"))
        elif what == "new id":
            if self.around.idempotent:
                self.around.new_id()
        elif what == "gone and back":
            if self.partition.state is not State.IN_FLIGHT and self.partition.batch is None:
                left = self.partition.leave()
                self.partition.gone = False
                for delivery in left.deliveries:
                    add(self.partition, delivery)
        else:
            self.attempt(what, number)

    def purge(self) -> None:
        self.partition.purge()
        held = [each.name for each in self.deliveries if each.done and not each.released]
        assert not held, "a message that is over keeps its place"

    def attempt(self, what: str, code: int) -> None:
        batch = self.write()
        if batch is None:
            return
        partition = self.partition
        if what == "answered":
            self.answer_truly(batch)
        elif what.startswith("refused"):
            # A real broker refuses a duplicate only for what it looks at before the sequence numbers.
            culprits = (0, len(batch.records) - 1) if what.endswith("culprits") else ()
            self.confirm(partition.answered(answer(batch, code, -1, culprits)), -1)
            return
        if what != "answered":
            self.in_doubt.update(batch.records.contents)
        if what == "written, then a code":
            self.deliver(batch)
            self.confirm(partition.answered(answer(batch, code)), -1)
        elif what == "not written, then a code":
            self.confirm(partition.answered(answer(batch, code)), -1)
        elif what == "written, then not leader":
            refused, offset = self.deliver(batch)
            self.confirm(partition.answered(answer(batch, refused or code, offset)), -1)
        elif what == "written, answer lost":
            self.deliver(batch)
            partition.lost("x")
        elif what == "never arrived, lost":
            partition.lost("x")
        elif what == "arrives late, lost":
            data: Any = batch.data
            self.late.append(data)
            partition.lost("x")

    def answer_truly(self, batch: Batch) -> None:
        code, offset = self.deliver(batch)
        self.confirm(self.partition.answered(answer(batch, code, offset)), offset)

    def settle(self) -> None:
        """The broker is well again: everything gets its outcome."""
        for _ in range(10 * len(self.deliveries) + 20):
            batch = self.write()
            if batch is None:
                break
            self.answer_truly(batch)
        late, self.late = self.late, []
        for written in late:
            self.log.append(written)
        self.partition.purge()

    def check(self) -> None:
        values = self.log.values
        for delivery in self.deliveries:
            assert delivery.released, "the driver has not let go of a message"
            assert delivery.outcome is not None, "a message has no outcome"
            if isinstance(delivery.outcome, DeliveryUnknownError):
                assert delivery.name in self.in_doubt, "needlessly unknown"
        receipts = [d for d in self.deliveries if isinstance(d.outcome, int)]
        for delivery in receipts:
            assert delivery.name in values, "lost"
            assert delivery.outcome < 0 or values[delivery.outcome] == delivery.name, "a false receipt"
            if self.around.idempotent:
                assert values.count(delivery.name) == 1, "twice"
        for delivery in self.deliveries:
            if isinstance(delivery.outcome, NotDeliveredError):
                assert delivery.name not in values, "wrongly not delivered"
        if self.around.idempotent:
            places = [values.index(delivery.name) for delivery in receipts]
            assert places == sorted(places), "out of order"
        if not self.around.idempotent:
            assert all(values.count(delivery.name) <= 1 for delivery in self.deliveries), "repeated without idempotence"


def run(idempotent: bool, most: int, steps: list[tuple[str, int]]) -> World:
    world = World(idempotent, most)
    for what, number in steps:
        world.step(what, number)
    world.settle()
    world.check()
    return world


PROGRAMS = st.tuples(st.booleans(), st.integers(1, 6), st.lists(STEPS, max_size=40))


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PROGRAMS)
def test_outcomes_are_true(program: tuple[bool, int, list[tuple[str, int]]]) -> None:
    """Random answers: no false receipt, no false "not delivered", nothing twice or out of order, nothing forgotten."""
    run(*program)


# -- each rule taken away -----------------------------------------------------------------------------------------


def takes_numbers_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 4: what is given up leaves its numbers to the next batch."""
    monkeypatch.setattr(Partition, "_begin_epoch", lambda self: None)


def withdraws_what_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 2: a batch in doubt is taken back as if it were proven not appended."""

    def lost(self: Partition, text: str) -> None:
        batch, self.batch = self.batch, None
        assert batch is not None
        self._take_back(batch.records)
        self._pause(None)

    monkeypatch.setattr(Partition, "lost", lost)


def believes_a_refusal_after_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 2: a refusal after an attempt in doubt counts as a proof."""
    answered = Partition.answered

    def trusting(self: Partition, found: Any) -> Batch | None:
        row = ROWS.get(found.code)
        if row is not None and row.then not in (Then.REPEAT, Then.GIVE_UP) and self.batch is not None:
            self.batch.in_doubt = False
        return answered(self, found)

    monkeypatch.setattr(Partition, "answered", trusting)


def believes_a_refusal_with_an_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A code with a base offset counts as a proof."""
    answered = Partition.answered
    monkeypatch.setattr(
        Partition, "answered", lambda self, found: answered(self, found._replace(offset=-1) if found.code else found)
    )


def repeats_without_idempotence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 5: a batch in doubt is repeated although the broker would not recognise it."""

    def lost(self: Partition, text: str) -> None:
        assert self.batch is not None
        self.batch.in_doubt = True
        self._pause(None)

    monkeypatch.setattr(Partition, "lost", lost)


def builds_what_is_in_doubt_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 3: a batch in doubt is built again without the records whose deadlines have passed."""
    take = Partition.take

    def rebuilding(self: Partition) -> Batch | None:
        if self.batch is not None:
            batch, self.batch = self.batch, None
            batch.records.purge()
            self._take_back(batch.records)
        return take(self)

    monkeypatch.setattr(Partition, "take", rebuilding)


def keeps_its_epoch_for_what_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 3: a batch in doubt is sent again under a new epoch."""
    take = Partition.take

    def bumping(self: Partition) -> Batch | None:
        if self.batch is not None:
            batch, self.batch = self.batch, None
            self._take_back(batch.records)
            self._begin_epoch()
        return take(self)

    monkeypatch.setattr(Partition, "take", bumping)


def counts_numbers_of_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 2: the numbers of a refused batch are not used again, which leaves a gap."""
    refused = Partition._refused

    def counting(self: Partition, batch: Batch, row: Row, found: Any) -> None:
        refused(self, batch, row, found)
        self._sequence += len(batch.records)

    monkeypatch.setattr(Partition, "_refused", counting)


def knows_every_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that has no row counts as "not written"."""
    row = ROWS[44]
    monkeypatch.setattr(_partition, "row_of", lambda code: ROWS.get(code, row._replace(then=Then.FAIL)))


def trusts_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes that leave the batch in doubt (7, 13, 20, 56) count as "not written"."""
    table = {code: ROWS[19] if row.then is Then.REPEAT else row for code, row in ROWS.items()}
    from cqrs_broker_kafka._codes import row_of

    monkeypatch.setattr(_partition, "row_of", lambda code: table[code] if code in table else row_of(code))


def lets_a_partition_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued behind a batch that was given up is not sent."""
    monkeypatch.setattr(Partition, "_get_ready", lambda self: None if self.last is not None else get_ready(self))


get_ready = Partition._get_ready


def forgets_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The neighbours of a named culprit go behind what waits, not into their old places."""

    def take_back(self: Partition, records: Any) -> None:
        for delivery in records.deliveries:
            delivery.returned()
        self.pending.parts += records.parts

    monkeypatch.setattr(Partition, "_take_back", take_back)


def keeps_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message in a batch without an answer keeps its place after its deadline."""
    monkeypatch.setattr(Records, "let_go", lambda self: None)


MUTANTS = [
    takes_numbers_twice,
    withdraws_what_is_in_doubt,
    believes_a_refusal_after_doubt,
    believes_a_refusal_with_an_offset,
    repeats_without_idempotence,
    builds_what_is_in_doubt_anew,
    keeps_its_epoch_for_what_is_in_doubt,
    counts_numbers_of_what_was_refused,
    knows_every_code,
    trusts_a_time_out,
    lets_a_partition_wait_for_ever,
    forgets_the_neighbours,
    keeps_what_is_over,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_machine_without_one_rule_is_caught(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one rule taken away, random answers show a false outcome."""
    mutant(monkeypatch)

    @settings(
        max_examples=3000,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
        phases=(Phase.generate,),
        derandomize=True,
    )
    @given(PROGRAMS)
    def random_answers(program: tuple[bool, int, list[tuple[str, int]]]) -> None:
        run(*program)

    with pytest.raises(BaseException) as caught:  # which assertion fails depends on the rule
        random_answers()
    assert isinstance(caught.value, AssertionError)
