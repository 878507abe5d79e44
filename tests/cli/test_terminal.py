"""The command in a terminal of its own, as a person sees it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from cqrs_brokers_testkit.servers import free_port

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A process whose terminal we are."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid, self.raw = pid, ""
        self._descriptor = descriptor

    def press(self, keys: str) -> None:
        """The person types; Ctrl-C is "\\x03"."""
        os.write(self._descriptor, keys.encode())

    def read_until(self, wanted: str, seconds: float = 30.0) -> None:
        """Until the screen shows it."""
        end = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < end, f"{wanted!r} did not come; the screen has:\n{self.text}"
            if not self._read(0.2):
                assert wanted in self.text, f"it ended without {wanted!r}:\n{self.text}"

    def wait(self, seconds: float = 30.0) -> int:
        """Until it ends; gives its exit code."""
        end = time.monotonic() + seconds
        while self._read(0.2):
            assert time.monotonic() < end, f"it does not end; the screen has:\n{self.text}"
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._descriptor, 65_536)
        except OSError:  # the process has ended
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)

    @property
    def text(self) -> str:
        """What came, without colours and movements."""
        return ESCAPE.sub("", self.raw).replace("\r", "\n")


@contextlib.contextmanager
def terminal(*arguments: str, columns: int = 100, **environment: str) -> Iterator[Terminal]:
    """`cqrs-brokers` in a pseudo-terminal."""
    command = [sys.executable, "-m", "cqrs_brokers_cli", *arguments]
    left_out = ("NO_COLOR", "FORCE_COLOR", "CQRS_BROKER_URL", "COLUMNS", "CI", "TERM")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    pid, descriptor = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it; a person's commands do not
        os.execve(sys.executable, command, {**inherited, "TERM": "xterm-256color", **environment})
    ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    session = Terminal(pid, descriptor)
    try:
        yield session
    finally:
        if session.pid:
            os.kill(session.pid, signal.SIGKILL)
            os.waitpid(session.pid, 0)
        os.close(descriptor)


def test_ticks_and_colours() -> None:
    """A tick for what is well, a cross with the reason and the remedy for what is not."""
    with terminal("check", f"amqp://localhost:{free_port()}/") as session:
        assert session.wait() == 5
    assert "✓ string" in session.text
    assert "✗ tcp" in session.text
    assert "refuses connections" in session.text
    assert "→ check that the server is running there" in session.text
    assert COLOUR.search(session.raw)


def test_no_color() -> None:
    """Ticks, but no colour."""
    with terminal("check", "memory://orders", NO_COLOR="1") as session:
        assert session.wait() == 0
    assert "✓ string" in session.text
    colours = set(COLOUR.findall(session.raw)) - {"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[22m", "\x1b[1;2m"}
    assert not colours


def test_a_dumb_terminal_gets_no_escapes() -> None:
    """TERM=dumb."""
    with terminal("check", "memory://orders", TERM="dumb") as session:
        assert session.wait() == 0
    assert "\x1b" not in session.raw


def test_a_narrow_terminal_loses_nothing() -> None:
    """Long findings are wrapped, not cut."""
    with terminal("check", "kafka://localhost?acks=1", columns=50) as session:
        assert session.wait() == 3
    words = "acks=1 and acks=0 exclude idempotence: use acks=all, or add enable_idempotence=false"
    assert words in " ".join(session.text.split())
    assert all(len(line) <= 50 for line in session.text.splitlines())


def test_tables_and_help_for_people() -> None:
    """`list`, and `--help`."""
    with terminal("list") as session:
        assert session.wait() == 0
    assert "cqrs-broker-kafka" in session.text
    with terminal("--help") as session:
        assert session.wait() == 0
    assert "check" in session.text


def test_json_is_plain_in_a_terminal_too() -> None:
    """It may be copied from there."""
    with terminal("check", "memory://orders", "--json") as session:
        assert session.wait() == 0
    assert "\x1b" not in session.raw
    assert json.loads(session.raw)["ok"] is True


def test_a_progress_bar_with_count_and_rate(tmp_path: Path) -> None:
    """While lines are sent; then the report takes its place."""
    file = tmp_path / "lines.ndjson"
    file.write_text('{"n": 1}\n' * 3_000)
    with terminal("send", "memory://x?latency=300ms&capacity=10000", "orders", "--file", str(file)) as session:
        assert session.wait() == 0
    assert "per second" in session.text
    assert "100%" in session.text
    assert "3,000 confirmed in" in session.text


def test_ctrl_c_ends_a_send_with_a_report(tmp_path: Path) -> None:
    """The person presses it while lines are under way; those get their outcome."""
    file = tmp_path / "lines.ndjson"
    file.write_text('{"n": 1}\n' * 100_000)
    with terminal("send", "memory://x?latency=500ms&capacity=1000000", "orders", "--file", str(file)) as session:
        session.read_until("1,000 messages")
        session.press("\x03")
        assert session.wait() == 130
    assert "waiting for the messages that are under way" in session.text
    assert re.search(r"[\d,]+ confirmed in", session.text)
    assert "stopped: the rest of the input was not sent" in session.text
    assert "Traceback" not in session.text
    assert "unknown" not in session.text


def test_ctrl_c_ends_a_check() -> None:
    """Without a traceback."""
    with terminal("check", "memory://x?latency=60s", "-t", "orders", "--send", "--timeout", "60") as session:
        session.read_until("every topic is taken")
        session.press("\x03")
        assert session.wait() == 130
    assert "Traceback" not in session.text


def test_send_without_input_says_so() -> None:
    """It does not wait for a person to type NDJSON."""
    with terminal("send", "memory://x", "orders") as session:
        assert session.wait() == 2
    assert "give a body, --file, or lines on standard input" in " ".join(session.text.split())
