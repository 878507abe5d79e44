"""The outbox's soak in its short form, and its judge: every kind of fault once."""

from pathlib import Path

import pytest
from soak.outbox import KINDS, Part, Verdict, judge, main, run, table

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
    soak, verdict = run("amqp", rows=3_000, faults=len(KINDS), seed=19)
    found = table([Part.of(soak, verdict, broker="amqp", number=1, parts=1, seed=19, seconds=0)])
    print(found)
    assert set(soak.done) == set(KINDS)
    assert verdict.rows >= 3_000
    assert verdict.violations == 0, found


def test_a_soak_in_parts_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts that are in the file are not run again; the table is the sum; one violation fails the whole."""
    ran: list[tuple[int, int, int]] = []

    class Ran:
        servers, done = "PostgreSQL 15 and RabbitMQ 3", {"kill": 1}

        def __init__(self, rows: int) -> None:
            self.rows = rows

    def stub(broker: str, *, rows: int, faults: int, seed: int) -> tuple[Ran, Verdict]:
        ran.append((rows, faults, seed))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return Ran(rows), Verdict(rows=rows, copies=rows + 1, lost=["gone"] if seed == 9 else [])

    monkeypatch.setattr("soak.outbox.run", stub)
    words = ["--rows", "400", "--faults", "10", "--parts", "4", "--seed", "7", "--file", str(tmp_path / "parts")]
    with pytest.raises(KeyboardInterrupt):
        main(words)
    assert main(words) == 1
    assert ran == [(100, 2, 7), (100, 3, 8), (100, 2, 9), (100, 2, 9), (100, 3, 10)]
    output = capsys.readouterr().out
    for line in ("| parts | 4 of 4,", "| committed rows | 400 |", "| faults | 4: kill 4 |", "| lost | 1 |", "\ngone"):
        assert line in output
