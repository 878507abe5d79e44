"""Parts that every way to get a server needs: the cache folder, its lock, apt, and the error if no way works.

With `CQRS_TEST_INSTALL=0` nothing is installed. See `_brokers` and `_databases`.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

_INSTALL_TIMEOUT = 540.0

Progress = Callable[[str], None]
_T = TypeVar("_T")


class ServerUnavailable(RuntimeError):  # noqa: N818 - names a state of the machine; tests skip on it
    """A real server can neither be found nor installed on this machine.

    Attributes:
        server: The server's name, such as "RabbitMQ".
        command: The shell command that would make the server available.
    """

    def __init__(self, server: str, reason: str, command: str) -> None:
        super().__init__(f"{server} is not available: {reason}. To make it available, run: {command}")
        self.server = server
        self.command = command


def cache_folder() -> Path:
    """Return this user's cache folder for servers: `$XDG_CACHE_HOME/cqrs-brokers`, by default under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cqrs-brokers"


def apt_installed(package: str, find: Callable[[], _T | None], progress: Progress) -> tuple[_T | None, str]:
    """Install a Debian package where that is allowed and possible.

    Args:
        package: The package's name.
        find: Looks for the programs of the package.
        progress: Called with a line before apt starts.

    Returns:
        The result of `find` after the installation, or None. And the reason why apt failed, or "".
    """
    if not (may_install() and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get")):
        return None, ""
    try:
        with install_lock():
            found = find()  # another process may have installed it while we waited
            if found is None:
                progress(f"installing {package} with apt (once) ...")
                _apt_install(package)
                found = find()
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"apt could not install it: {reason_of(error)}"
    return found, ""


def docker_answers() -> bool:
    """Tell whether a Docker daemon answers within five seconds."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        done = subprocess.run([docker, "info"], capture_output=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def may_install() -> bool:
    return os.environ.get("CQRS_TEST_INSTALL", "1") != "0"


@contextlib.contextmanager
def install_lock() -> Iterator[None]:
    """Hold the lock that lets only one process of this user install at a time. The wait for the lock is limited."""
    import fcntl  # not on Windows, where this module must still be importable

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "install.lock", "w") as file:
        give_up = time.monotonic() + _INSTALL_TIMEOUT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise TimeoutError(f"another process holds {file.name}") from None
                time.sleep(0.2)
        yield  # closing the file releases the lock


def _apt_install(package: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
    install = ["apt-get", "install", *options, package]
    with _services_barred():
        try:
            run(install, environment)
        except subprocess.CalledProcessError:  # the package lists may be missing or old
            run(["apt-get", "update", "-q"], environment)
            run(install, environment)


@contextlib.contextmanager
def _services_barred(policy: Path = Path("/usr/sbin/policy-rc.d")) -> Iterator[None]:
    """Keep packages from starting services while they are installed. Debian's invoke-rc.d asks the script `policy`."""
    before = (policy.read_bytes(), policy.stat().st_mode) if policy.exists() else None
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            policy.unlink()
        else:
            policy.write_bytes(before[0])
            policy.chmod(before[1])


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(  # noqa: S603
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_INSTALL_TIMEOUT,
        check=True,
    )


def reason_of(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in str(error.stdout).splitlines() if line.strip()]
        return f"exit status {error.returncode}: {lines[-1] if lines else 'no output'}"
    return f"{type(error).__name__}: {error}"
