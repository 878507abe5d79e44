"""`send` when something else goes wrong: the report of what was sent is printed all the same."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqrs_brokers import Broker, DeliveryError, Message, Receipt
from cqrs_brokers_cli import main
from cqrs_brokers_cli._lines import Lines
from cqrs_brokers_testkit.servers import free_port

from .conftest import Said, run
from .test_send import lines, started

Capture = pytest.CaptureFixture[str]


# -- what must not cost the report ------------------------------------------------------------------------------------

SECRET = "canary"
DEEP = "[" * 100_000 + "]" * 100_000


def test_a_line_that_nests_deeply_is_not_sent() -> None:
    """It has its place in the report, and the lines around it have their outcomes."""
    said = run("send", "memory://x", "orders", "--json", stdin=lines(300) + DEEP + "\n" + lines(300))
    assert (said.code, said.err) == (10, "")
    assert said.json["confirmed"] == 600
    assert said.json["not_sent"] == [{"text": "it nests too deeply to be read as JSON", "lines": [301]}]


def test_a_body_that_nests_deeply_is_not_sent() -> None:
    """With a word, and no traceback."""
    said = run("send", "memory://x", "orders", DEEP[:120_000])
    assert (said.code, said.out) == (2, "")
    assert said.err == "cqrs-brokers: the body cannot be sent: it nests too deeply to be read as JSON\n"


def test_an_error_after_messages_were_sent_leaves_the_report(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """What was confirmed is confirmed, and what got no outcome is unknown, by id."""
    sent = 0
    send_messages = Broker.send_messages

    async def failing(broker: Broker, messages: list[Message]) -> list[Receipt | DeliveryError]:
        nonlocal sent
        sent += 1
        if sent == 2:
            raise RuntimeError(SECRET)
        return await send_messages(broker, messages)

    monkeypatch.setattr(Broker, "send_messages", failing)
    monkeypatch.setattr("cqrs_brokers_cli._send.AT_A_TIME", 10)
    with reading(lines(20)):
        code = main(["send", "memory://x", "orders", "--json"])
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert code == report["exit_code"] == 11
    assert report["confirmed"] == 10
    assert [(one["line"], one["error"]) for one in report["unknown"]] == [(n, "RuntimeError") for n in range(11, 21)]
    assert "an unexpected RuntimeError" in said.err
    assert SECRET not in said.out + said.err


def test_a_broker_that_cannot_be_closed_leaves_the_report(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The error comes after it, with its own exit code."""

    async def failing(broker: Broker, timeout: float | None = None) -> None:
        raise RuntimeError

    monkeypatch.setattr(Broker, "close", failing)
    with reading(lines(3)):
        assert main(["send", "memory://x", "orders", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["confirmed"] == 3
    assert "an unexpected RuntimeError" in said.err


def test_input_that_cannot_be_read_to_its_end_leaves_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Of what was read before, each message has its outcome."""
    read = os.read
    pieces = [lines(3).encode(), OSError(5, "Input/output error")]

    def failing(descriptor: int, size: int) -> bytes:
        if threading.current_thread().name != "lines":
            return read(descriptor, size)
        piece = pieces.pop(0)
        if isinstance(piece, OSError):
            raise piece
        return piece

    monkeypatch.setattr(os, "read", failing)
    with reading(""):
        assert main(["send", "memory://x?latency=200ms", "orders", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["confirmed"] == 3
    assert said.err == "cqrs-brokers: the rest of the input cannot be sent: Input/output error\n"


@contextlib.contextmanager
def reading(text: str) -> Iterator[None]:
    """With this text on standard input."""
    before, there = sys.stdin, tempfile.TemporaryFile("w+")  # noqa: SIM115 - it is closed below
    with there:
        there.write(text)
        there.seek(0)
        sys.stdin = there
        try:
            yield
        finally:
            sys.stdin = before


# -- streams that are closed or full ----------------------------------------------------------------------------------


def shell(command: str, stdin: str = "") -> Said:
    """Runs a command line in bash, with `cqrs-brokers` for this one; PIPESTATUS[0] is the exit code."""
    program = f'cqrs-brokers() {{ {shlex.quote(sys.executable)} -W error -m cqrs_brokers_cli "$@"; }}\n'
    script = f"{program}{command}\nexit ${{PIPESTATUS[0]}}"
    given = ["bash", "-c", script]
    done = subprocess.run(given, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


UNWRITABLE = [">/dev/full", ">&-", "| true"]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("where", UNWRITABLE)
@pytest.mark.parametrize(("string", "code"), [("memory://x", 0), ("memory://x?unknown=1", 11)])
def test_an_outcome_that_cannot_be_printed_goes_to_stderr(where: str, string: str, code: int) -> None:
    """With the outcome's exit code: the messages are in the broker all the same."""
    said = shell(f"(cqrs-brokers send '{string}' orders --json; echo $? >&2) {where}", lines(3))
    head, _, rest = said.err.partition("\n")
    assert head.startswith("cqrs-brokers: stdout cannot be written to (")
    document, _, last = rest.rpartition("}")
    assert json.loads(document + "}")["exit_code"] == int(last) == code


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("where", UNWRITABLE)
def test_a_check_that_cannot_be_printed_goes_to_stderr(where: str) -> None:
    """From its first line, with its exit code."""
    port = free_port()
    said = shell(f"(cqrs-brokers check amqp://localhost:{port}/; echo $? >&2) {where}")
    assert said.err.startswith("cqrs-brokers: stdout cannot be written to (")
    assert "\nok     string" in said.err
    assert said.err.endswith("\n5\n")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("command", ["list", "describe memory", "--help", "send --help"])
def test_what_only_shows_something_fails_in_a_line(command: str) -> None:
    """The exit code is 1; a reader that went away is no surprise, and nothing is said."""
    assert shell(f"cqrs-brokers {command} >/dev/full") == Said(
        1, "", "cqrs-brokers: stdout cannot be written to: No space left on device\n"
    )
    assert shell(f"(sleep 0.2; cqrs-brokers {command}; echo $? >&2) | true").err == "1\n"


def test_closed_streams_are_no_mistake_of_the_command() -> None:
    """Without standard input there are no lines; without stdout and stderr the exit code is left."""
    said = shell("cqrs-brokers send memory://x orders <&-")
    assert said.code == 2
    assert said.err.startswith("cqrs-brokers: ")
    assert "give a body, --file, or lines on standard input" in said.err
    assert shell("cqrs-brokers send memory://x orders '{}' >&- 2>&-").code == 0
    assert shell("cqrs-brokers send 'memory://x?unknown=1' orders '{}' >&- 2>&-").code == 11
    assert shell("cqrs-brokers send memory://x orders '{}' 2>&-").out.startswith("confirmed: message")


# -- long lines -------------------------------------------------------------------------------------------------------


def test_a_line_above_the_limit_is_not_kept() -> None:
    """It is refused with its number; a line of exactly the limit is a message, also before a carriage return."""
    exact = json.dumps("x" * 98)
    text = f"{exact}\n{exact}\r\n{exact} \n{{}}\n{'y' * 500_000}\n{exact}"
    said = run("send", "memory://x?max_message_bytes=100", "orders", "--json", stdin=text)
    assert said.code == 10
    assert said.json["confirmed"] == 4
    assert said.json["not_sent"] == [{"text": "it has more than the 100 bytes of max_message_bytes", "lines": [3, 5]}]


async def test_a_long_line_is_held_only_up_to_the_limit(tmp_path: Path) -> None:
    """64 MiB without a line break take no more memory than the limit."""
    file = tmp_path / "long.ndjson"
    with file.open("wb") as opened:
        opened.truncate(2**26)
        opened.seek(2**26)
        opened.write(b"\n{}\n")
    tracemalloc.start()
    try:
        with file.open("rb") as opened:
            found = await Lines(opened.fileno(), 100_000).next()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is not None
    assert [line.content for line in found] == [None, b"{}"]
    assert peak < 2**21


async def test_a_long_line_is_joined_once(tmp_path: Path) -> None:
    """A line of many pieces is read byte for byte."""
    content = bytes(range(11, 256)) * 10_000
    file = tmp_path / "long.ndjson"
    file.write_bytes(content + b"\n" + content)
    with file.open("rb") as opened:
        lines = Lines(opened.fileno(), len(content))
        first, second = await lines.next(), await lines.next()
        assert await lines.next() is None
    assert first is not None
    assert second is not None
    assert [line.content for line in (*first, *second)] == [content, content]
    assert second[0].end == 2 * len(content) + 1


# -- Ctrl-C before anything was sent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("send", "memory://x", "orders"), ("check", "memory://x"), ("list",)])
def test_ctrl_c_at_the_start_is_quiet(command: tuple[str, ...]) -> None:
    """At any moment of the imports and of the opening: no traceback, exit code 130. A command that was quicker has its
    own exit code."""
    program = "import cqrs_brokers_cli as c, sys; print('begun', flush=True); sys.exit(c.main())"
    for wait in (0.0, 0.1, 0.3, 0.6):
        given = [sys.executable, "-W", "error", "-c", program, *command]
        pipe = subprocess.PIPE
        with subprocess.Popen(given, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(wait)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert process.returncode in (0, 130, -signal.SIGINT), (
            wait,
            err,
        )  # the last: in the last moment of the process
        assert "Traceback" not in err
        assert "KeyboardInterrupt" not in err
        if wait == 0.0:
            assert (process.returncode, err) == (130, "")


def test_ctrl_c_while_one_message_waits_gives_its_outcome() -> None:
    """It may be in the broker: the second press ends the waiting, and it is unknown, by id."""
    with started("send", "memory://x?latency=60s&delivery_timeout=50s", "orders", "{}", "--json") as process:
        assert process.stderr is not None
        time.sleep(3)  # until it is sent
        process.send_signal(signal.SIGINT)
        while "Ctrl-C again ends at once" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 11
    assert len(json.loads(out)["unknown"]) == 1
