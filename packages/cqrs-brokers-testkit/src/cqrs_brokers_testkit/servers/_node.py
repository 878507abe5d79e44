"""The base of every private server: one process, and the methods that fault tests need."""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cqrs_brokers_testkit.servers._install import Progress
from cqrs_brokers_testkit.servers._processes import LOOPBACK, ServerProcess, server_folder

__all__ = ["PrivateServer", "START_TIMEOUT", "run_private"]

START_TIMEOUT = 60.0


class PrivateServer(ABC):
    """A private server. All its methods block."""

    _process: ServerProcess

    @property
    def running(self) -> bool:
        """Whether the server's process runs. A paused process counts as running."""
        return self._process.running

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the server's log."""
        return self._process.log_tail(lines)

    @abstractmethod
    def start(self) -> None:
        """Start the server, with its former ports and data, and wait until it is ready.

        Raises:
            ServerFailed: The server ended or was not ready after 60 seconds. The text contains the end of its log.
        """

    def kill(self) -> None:
        """End the server with SIGKILL. The data that it has written stay."""
        self._process.kill()

    def stop(self) -> None:
        """End the server and its helper processes at once."""
        self.kill()

    def terminate(self, timeout: float = 20.0) -> None:
        """Shut the server down (SIGTERM). After `timeout` seconds, end it with SIGKILL."""
        self._process.terminate(timeout)

    def restart(self) -> None:
        """Shut the server down and start it again on the same ports."""
        self.terminate()
        self.start()

    def pause(self) -> None:
        """Freeze the server: connections stay open, and nothing is answered."""
        self._process.pause()

    def resume(self) -> None:
        """Let a paused server go on."""
        self._process.resume()

    def _start_process(self, ready: Callable[[], bool], progress: Progress, port: int) -> None:
        """Start the process, wait until it is ready, and report how long the start took."""
        began = time.monotonic()
        progress(f"starting {self._process.name} on {LOOPBACK}:{port} ...")
        self._process.start()
        self._process.wait_until(ready, START_TIMEOUT)
        progress(f"{self._process.name} is ready after {time.monotonic() - began:.1f} s")


_Server = TypeVar("_Server", bound=PrivateServer)


@contextlib.contextmanager
def run_private(
    kind: str, make: Callable[[Path], _Server], progress: Progress, *, in_memory: bool = False
) -> Iterator[_Server]:
    """Make a server in a temporary folder and run it for the length of a `with` block; see `server_folder`."""
    with server_folder(kind, progress, in_memory=in_memory) as folder:
        server = make(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
