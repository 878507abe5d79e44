"""Complaints about a command line: they say what is wrong, and show nothing of a config string."""

import pytest

from cqrs_brokers.arguments import ArgumentParser, without_values

URL = "kafka://u:hunter2@broker/?a=hunter2"


def parser() -> ArgumentParser:
    made = ArgumentParser(prog="program")
    commands = made.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run")
    run.add_argument("--broker")
    run.add_argument("--table")
    run.add_argument("--topic", choices=["a", "b"])
    run.add_argument("--count", type=int)
    run.add_argument("--fast", action="store_true")
    commands.add_parser("release").add_argument("position", type=int, nargs="*")
    return made


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--brokr", URL], "unrecognized arguments: --brokr …"),
        (["run", f"--brokr={URL}"], "unrecognized arguments: --brokr…"),
        (["run", f"-b{URL}"], "unrecognized arguments: -b…"),
        ([URL], "invalid choice: …"),
        (["run", "--count", URL], "argument --count: invalid int value: …"),
        (["run", f"--count={URL}"], "argument --count: invalid int value: …"),
        (["run", "--topic", URL], "argument --topic: invalid choice: … (choose from "),
        (["run", f"--t={URL}"], "could match --table, --topic"),
        (["run", f"--fast={URL}"], "argument --fast: ignored explicit argument …"),
        (["release", URL], "argument position: invalid int value: …"),
        (["run", "--broker", "kafka://u:hun", "hunter2", "ter@broker"], "unrecognized arguments: … …"),
        (["release", "it's\nhunter2"], "invalid int value: …"),
    ],
)
def test_no_value_is_shown(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever argparse says about it."""
    with pytest.raises(SystemExit) as end:
        parser().parse_args(arguments)
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "hunter2" not in shown
    assert "u:h" not in shown


def test_behind_a_short_flag_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Some versions of Python refuse what follows `-h`, others show the help."""
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["run", f"-h{URL}"])
    shown = capsys.readouterr()
    if end.value.code == 0:
        assert "--brok" in shown.out
    else:
        assert "ignored explicit argument …" in shown.err
    assert "hunter2" not in shown.out + shown.err
    assert "u:h" not in shown.out + shown.err


def test_the_command_line_of_the_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is what argparse reads when it is given none."""
    monkeypatch.setattr("sys.argv", ["program", "run", f"--brokr={URL}"])
    with pytest.raises(SystemExit):
        parser().parse_args()
    assert "unrecognized arguments: --brokr…" in capsys.readouterr().err


def test_only_values_are_hidden() -> None:
    """Not options, not letters, and no part of another word."""
    assert without_values("no such option: --topic; give a body", ["--topic", "a"]) == (
        "no such option: --topic; give a body"
    )
    assert without_values("rate is not rates", ["rate"]) == "… is not rates"
