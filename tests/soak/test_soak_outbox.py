"""The outbox's soak in its short form, and its judge: every kind of fault once."""

import pytest
from soak.outbox import KINDS, judge, run

pytestmark = [pytest.mark.live, pytest.mark.fault, pytest.mark.slow]

ROW = ("orders", "1")


def test_the_judge_finds_what_is_wrong() -> None:
    """Lost, rolled back, out of order, repeated without being counted; a stale repeat is told apart."""
    committed = {name: (*ROW, number, counted) for name, number, counted in (("a", 1, 1), ("b", 2, 0), ("c", 3, 0))}
    found = judge(committed, [("q", "b"), ("q", "a"), ("q", "a"), ("q", "b"), ("q", "x")])
    assert found.lost == ["c"]
    assert found.rolled_back == ["x"]
    assert found.inversions == ["orders/1: 1 after 2"]
    assert found.repeats == 2
    assert found.stale == 1
    assert [text.partition(":")[0] for text in found.unexplained] == ["b"]
    assert found.violations == 4


def test_the_judge_lets_good_runs_be() -> None:
    """Each once, in order; a repeat that its row counts."""
    committed = {name: (*ROW, number, 1) for name, number in (("a", 1), ("b", 2))}
    assert judge(committed, [("q", "a"), ("q", "a"), ("q", "b")]).violations == 0


@pytest.mark.timeout(280)
def test_a_short_soak() -> None:
    """0 lost, 0 of rolled-back transactions, 0 inversions, 0 repeats that no row counts."""
    soak, verdict, table = run("amqp", rows=3_000, faults=len(KINDS), seed=19)
    print(table)
    assert set(soak.done) == set(KINDS)
    assert verdict.rows >= 3_000
    assert verdict.violations == 0, table
