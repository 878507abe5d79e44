"""Starts, watches, signals and ends the processes of private servers. Finds ports, and makes folders and logs for them.

This module does not depend on RabbitMQ or Kafka. Every process runs in a session of its own and is ended together with
its process group. A guard process ends it if this process dies, even by SIGKILL. The module needs POSIX.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cqrs_brokers_testkit.servers import _guard as guard_script
from cqrs_brokers_testkit.servers._install import Progress

_MEMORY = "/dev/shm"  # noqa: S108 - mkdtemp makes a folder of its own there
LOOPBACK = "127.0.0.1"

_handed_out: set[int] = set()
_lock = threading.Lock()


class ServerFailed(RuntimeError):  # noqa: N818 - names what happened, like ServerUnavailable
    """A private server ended or did not become ready. The text ends with the last lines of its log."""


def report(line: str) -> None:
    """Print a line of progress to stderr. Every `progress` argument has this function as its default."""
    print(line, file=sys.stderr, flush=True)


def free_port() -> int:
    """Return a loopback port that is free now, outside the range from which the system takes client ports.

    The port must still be free when the server is restarted. A port from the ephemeral range may then be the source
    port of a client that tries to reconnect. On loopback such a client can even connect to itself.
    """
    with _lock:
        for _ in range(1000):
            port = random.randrange(15000, _first_ephemeral_port())  # noqa: S311
            if port not in _handed_out and _is_free(port):
                _handed_out.add(port)
                return port
    raise OSError("no free port on loopback")


def _first_ephemeral_port() -> int:
    with contextlib.suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if first > 20000:
            return first
    return 32768


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Return whether something on loopback accepts connections at `port`."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def server_folder(kind: str, progress: Progress, *, in_memory: bool = False) -> Iterator[Path]:
    """Make a temporary folder for a server's data and logs, and remove it.

    With `in_memory` the folder is on a file system in memory, if there is one. Its content still outlives the server's
    processes, and nothing waits for a disk.

    If the block raises, the folder is kept and `progress` says where it is. With `CQRS_TEST_LOG_DIR` set, all log files
    (*.log) are copied there in any case.
    """
    place = _MEMORY if in_memory and os.access(_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix=f"cqrs-brokers-{kind}-", dir=place))
    _guard().tell(f"+{folder}")
    keep = True
    try:
        yield folder
        keep = False
    except GeneratorExit:  # the context manager was dropped without being left: nobody will look
        keep = False
        raise
    finally:
        _guard().tell(f"-{folder}")
        _copy_logs(folder)
        if keep:
            progress(f"data and logs of {kind} are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _copy_logs(folder: Path) -> None:
    target = os.environ.get("CQRS_TEST_LOG_DIR")
    if target:
        for log in folder.rglob("*.log"):
            copy = Path(target, folder.name, log.relative_to(folder))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, copy)


class ServerProcess:
    """One server process (and its children) that can be started again after it has ended.

    Args:
        name: The name in progress and errors, such as "RabbitMQ 3.10.8".
        command: Program and arguments. The program must stay in the foreground.
        environment: The whole environment of the process.
        folder: The working directory of the process.
        log: File to which stdout and stderr are appended.
        container: Name of the Docker container that `command` runs in the foreground. None: there is no container.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        container: str | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.environment = dict(environment)
        self.folder = folder
        self.log = log
        self.container = container
        self.paused = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended. A paused process counts as running."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id. The process group has the same id.

        Raises:
            ServerFailed: The process does not run.
        """
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"{self.name} does not run")
        return self._process.pid

    def start(self) -> None:
        """Start the process.

        Raises:
            ServerFailed: The process runs already.
        """
        if self.running:
            raise ServerFailed(f"{self.name} runs already")
        with open(self.log, "ab") as output:
            self._process = subprocess.Popen(  # noqa: S603
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _guard().tell(f"+{self._process.pid}")
        if self.container is not None:
            _guard().tell(f"+{self.container}")
        self.paused = False

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Call `ready` every 50 ms, and return when its result is true.

        Raises:
            ServerFailed: The process ended, or `timeout` seconds passed.
        """
        give_up = time.monotonic() + timeout
        while not ready():
            if not self.running:
                raise ServerFailed(self._failure("ended before it was ready"))
            if time.monotonic() > give_up:
                raise ServerFailed(self._failure(f"was not ready after {timeout:g} s"))
            time.sleep(0.05)

    def kill(self) -> None:
        """End the process and its group with SIGKILL, even if paused, and wait until the whole group is gone."""
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGKILL)
        process.wait()
        self._wait_for_group(process.pid)
        _guard().tell(f"-{process.pid}")
        if self.container is not None:
            _guard().tell(f"-{self.container}")

    def terminate(self, timeout: float = 20.0) -> None:
        """Shut the process down with SIGTERM. After `timeout` seconds, end it with SIGKILL."""
        if self._process is None:
            return
        self.resume()
        if self.running:
            self._signal(signal.SIGTERM, group=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()

    def pause(self) -> None:
        """Freeze the process with SIGSTOP: its sockets stay open, and nobody answers.

        Raises:
            ServerFailed: The process does not run.
        """
        _ = self.pid
        self._signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """Let a paused process go on. A process that is not paused is not affected."""
        if self.paused:
            self._signal(signal.SIGCONT)
            self.paused = False

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _failure(self, what: str) -> str:
        return f"{self.name} {what}; the end of its log:\n{self.log_tail(100)}"

    def _signal(self, number: signal.Signals, *, group: bool = True) -> None:
        process = self._process
        if process is None:
            return
        if self.container is not None:
            # The process here is only Docker's client: the server is a child of Docker's daemon.
            verb = {signal.SIGSTOP: ["pause"], signal.SIGCONT: ["unpause"]}.get(
                number, ["kill", f"--signal={number.name}"]
            )
            subprocess.run(["docker", *verb, self.container], capture_output=True, timeout=30, check=False)  # noqa: S603, S607
            if number in (signal.SIGSTOP, signal.SIGCONT):
                return
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(process.pid, number)
            elif process.poll() is None:
                os.kill(process.pid, number)

    def _wait_for_group(self, group: int) -> None:
        for _ in range(500):
            try:
                os.killpg(group, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.01)


def container_command(
    container: str, image: str, folder: Path, environment: Mapping[str, str], command: Sequence[str]
) -> list[str]:
    """Return the command that runs `command` in a Docker container, with the same network, folder and user as here."""
    variables = [f"--env={name}={value}" for name, value in environment.items() if name != "PATH"]
    return [
        *("docker", "run", "--rm", f"--name={container}", "--network=host", f"--user={os.getuid()}:{os.getgid()}"),
        *(f"--volume={folder}:{folder}", f"--workdir={folder}", *variables),
        *(f"--entrypoint={command[0]}", image, *command[1:]),
    ]


class _Guard:
    """The guard process of this process. See `guard_script`."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        read, self._write = os.pipe()
        try:
            # -I -S: nothing of the environment, no site-packages: it starts in about 15 ms
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", guard_script.__file__, str(self.owner)],
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(read)
        self._process.returncode = 0  # it outlives us on purpose: no ResourceWarning at exit

    def tell(self, line: str) -> None:
        os.write(self._write, os.fsencode(line) + b"\n")


_the_guard: _Guard | None = None


def _guard() -> _Guard:
    global _the_guard
    with _lock:
        if _the_guard is None or _the_guard.owner != os.getpid():  # a forked child needs its own
            _the_guard = _Guard()
        return _the_guard
