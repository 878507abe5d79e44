"""Relays in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["LEASE", "RELAYS", "Relays"]

RELAYS = 4
LEASE = 12.0


class Relays:
    """Relay processes, started again when they ended."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self.processes: list[subprocess.Popen[bytes]] = []
        for _ in range(RELAYS):
            self.processes.append(self._start())

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cqrs_brokers_outbox", "relay", "--lease", str(LEASE), "--keep", "1e9"],
                env=self._environment,
                stderr=log,
            )

    def revive(self) -> None:
        """Starts again what has ended: a relay ends when the database is away at its start."""
        for place, process in enumerate(self.processes):
            if process.poll() is not None:
                self.processes[place] = self._start()

    def end(self, place: int, number: signal.Signals) -> None:
        """Ends a relay, or freezes it."""
        process = self.processes[place]
        if process.poll() is None:
            process.send_signal(number)
            if number == signal.SIGKILL:
                process.wait()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
