"""The soak's own judgement: each kind of violation is found, and a silence is measured from the right moment."""

import math

import pytest
from soak.ledger import Ledger
from soak.report import Demand, Outage, quantile, recovery
from soak.schedule import Fault, Kind, plan
from soak.verdict import Found, Verdict, judge

from cqrs_brokers import DeliveryTimeoutError, Message, NotConnectedError, Receipt

KIND = Kind(name="kill", shortest=1, longest=9)


def make() -> tuple[Ledger, list[Found]]:
    """Four messages with one key: receipts for three, then one that was not delivered; and their log."""
    ledger, log = Ledger(), []
    for number in range(4):
        message = Message("n", "t", {"key": "k"}, key="k")
        entry = ledger.begin(message, "b", "one by one")
        if number < 3:
            ledger.end(entry, Receipt(message.message_id, "t", "b", True, 0, number), deadline=1)
            log.append(Found(str(message.message_id), "t", "k", "k", 0, number))
        else:
            ledger.end(entry, NotConnectedError("no"), deadline=1)
    return ledger, log


def verdict_of(ledger: Ledger, log: list[Found]) -> Verdict:
    return judge(ledger, {"t": log}, {"t": ["t"]})


def test_nothing_wrong() -> None:
    """A log that holds exactly the receipts is right."""
    ledger, log = make()
    verdict = verdict_of(ledger, log)
    found = [verdict.lost, verdict.duplicated, verdict.wrong, verdict.out_of_order, verdict.altered, verdict.misplaced]
    assert not any(found)
    assert verdict.in_log == {"receipt": 3}


@pytest.mark.parametrize("what", ["lost", "duplicated", "wrong", "out_of_order", "altered", "misplaced"])
def test_each_violation_is_found(what: str) -> None:
    """One violation put into the log is found, once."""
    ledger, log = make()
    if what == "lost":
        del log[1]
    elif what == "duplicated":
        log.append(log[0])
    elif what == "wrong":
        log.append(Found(list(ledger.entries)[3], "t", "k", "k", 0, 3))
    elif what == "out_of_order":
        log[1], log[2] = log[2], log[1]
    elif what == "altered":
        log[1] = Found(log[1].message_id, "t", "k", "other", 0, 1)
    else:
        log[1] = Found(log[1].message_id, "t", "k", "k", 0, 7)
    assert len(getattr(verdict_of(ledger, log), what)) == 1


def test_late_and_unconfirmed_calls_are_problems() -> None:
    """An outcome more than a second after its deadline, and a receipt without a confirm, are noted."""
    ledger = Ledger()
    late = ledger.begin(Message("n", "t", {}), "b", "one by one")
    late.began -= 10
    ledger.end(late, DeliveryTimeoutError("late"), deadline=8)
    message = Message("n", "t", {})
    ledger.end(ledger.begin(message, "b", "x"), Receipt(message.message_id, "t", "b", False), deadline=8)
    assert len(ledger.problems) == 2


def silence(
    calls: list[tuple[float, float]],
    away: list[tuple[float, float]],
    began: float,
    ended: float,
    cancelled: tuple[float, float] | None = None,
) -> float:
    """The longest silence of these calls: with receipts, but for one that ended at infinity, and a cancelled one."""
    ledger = Ledger()
    if cancelled is not None:
        entry = ledger.begin(Message("n", "t", {}, key="k"), "b", "x")
        ledger.end(entry, None, deadline=1e9)
        entry.began, entry.ended = cancelled
    for start, end in calls:
        message = Message("n", "t", {}, key="k")
        entry = ledger.begin(message, "b", "x")
        if end < math.inf:
            ledger.end(entry, Receipt(message.message_id, "t", "b", True), deadline=1e9)
        entry.began, entry.ended = start, end
    ledger.receipt_times = {("b", None): sorted(end for _, end in calls if end < math.inf)}
    fault = Fault(number=1, kind=KIND, at=0, seconds=1, node=0)
    return recovery(Outage(fault=fault, began=began, ended=ended, away={None: away}), Demand(ledger)).seconds


def remade(*, began: float, ended: float, in_logs: tuple[str, ...] = ()) -> Verdict:
    """A receipt for a topic that was read at 10, and was deleted and there again at 20; and the logs it is in."""
    ledger = Ledger(apart=("r",))
    message = Message("n", "r", {}, key="k")
    entry = ledger.begin(message, "b", "x")
    ledger.end(entry, Receipt(message.message_id, "r", "b", True, 0, 7), deadline=1e9)
    entry.began, entry.ended = began, ended
    assert not ledger.receipt_times
    found = Found(str(message.message_id), "r", "k", "k", 0, 3)
    logs = {name: [found] if name in in_logs else [] for name in ("r, 1", "r")}
    return judge(ledger, logs, {}, {"r": [(10, 20)]})


def test_a_message_may_be_deleted_with_its_topic() -> None:
    """A receipt whose call touches the time of the deletion may be in no log; its offset may be that of another one."""
    assert remade(began=9, ended=11) == Verdict()
    assert not remade(began=19, ended=21, in_logs=("r",)).misplaced


@pytest.mark.parametrize(("began", "ended"), [(1, 2), (21, 22)])
def test_a_message_from_before_or_after_is_lost_when_it_is_in_no_log(began: float, ended: float) -> None:
    """The topic was read after the one, and made before the other: both must be there, where the receipt says."""
    assert len(remade(began=began, ended=ended).lost) == 1
    assert not remade(began=began, ended=ended, in_logs=("r, 1",)).lost
    assert len(remade(began=began, ended=ended, in_logs=("r",)).misplaced) == 1


def test_recovery_counts_from_when_the_broker_is_back() -> None:
    """Silent from 10 to 17, broker away from 10 to 15: recovery took 2 s."""
    assert silence([(9, 10), (10, 17), (17, 18)], [(10, 15)], 10, 16) == 2


def test_recovery_without_an_outage_counts_from_the_last_receipt() -> None:
    """Silent from 10 to 17 although the broker was always there: 7 s."""
    assert silence([(9, 10), (10, 17), (17, 18)], [], 10, 12) == 7


def test_a_pause_of_the_publishers_is_no_silence() -> None:
    """Nothing was sent from 10 to 16.5: only the half second after that counts."""
    assert silence([(9, 10), (16.5, 17)], [], 10, 12) == 0.5


def test_a_cancelled_call_does_not_wait() -> None:
    """A call at 12 was cancelled at once and the next one came at 16.5: only the half second after that counts."""
    assert silence([(9, 10), (16.5, 17)], [], 10, 12, cancelled=(12, 12.01)) == 0.5


def test_no_receipt_ever_again_is_infinite() -> None:
    """A broker that never recovers misses every goal."""
    assert silence([(9, 10), (11, math.inf)], [(10, 12)], 9.5, 12) == math.inf


def test_the_seed_decides_the_schedule() -> None:
    """The same seed gives the same faults, another one others; every kind comes once before any comes again."""
    kinds = [Kind(name=str(number), shortest=0, longest=9) for number in range(5)]

    def faults(seed: int) -> list[Fault]:
        return list(plan(kinds, seed=seed, nodes=3, receipts=1000, faults=12, rate=1, limit=1, short=False).faults)

    assert faults(1) == faults(1) != faults(2)
    assert len({fault.kind.name for fault in faults(1)[:5]}) == 5
    assert [fault.at for fault in faults(1)] == sorted(fault.at for fault in faults(1))


def test_quantile_is_the_nearest_rank() -> None:
    """p95 of 20 values is the 19th, p100 the largest."""
    values = [float(number) for number in range(1, 21)]
    assert quantile(values, 0.95) == 19
    assert quantile(values, 1.0) == 20
