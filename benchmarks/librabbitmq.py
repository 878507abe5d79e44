"""The C publisher: built when it is needed, with the machine's compiler and Debian's librabbitmq-dev."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from .workloads import Job

__all__ = ["CPublisher", "build"]

_SOURCE = Path(__file__).with_name("publisher.c")
_HEADER = Path("/usr/include/amqp.h")


@functools.cache
def build() -> Path | str:
    """The program; or why there is none. Installs the library when this process is root and may."""
    from cqrs_brokers_testkit.servers import _install as install

    compiler = shutil.which("cc")
    if compiler is None:
        return "there is no C compiler (cc)"
    if not _HEADER.exists() and os.geteuid() == 0 and install.may_install() and shutil.which("apt-get"):
        try:
            with install.install_lock():
                install._apt_install("librabbitmq-dev")
        except (OSError, subprocess.SubprocessError):
            pass
    folder = tempfile.mkdtemp(prefix="cqrs-brokers-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = Path(folder, "publisher")
    command = [compiler, "-O2", "-o", str(program), str(_SOURCE), "-lrabbitmq"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        return "librabbitmq is not installed (Debian: apt-get install librabbitmq-dev)"
    return program


class CPublisher:
    """A running publisher, idle until told."""

    def __init__(self, url: str, exchange: str, topic: str) -> None:
        program = build()
        assert isinstance(program, Path), program  # else the contender is left out
        parts = urlsplit(url)
        command = [str(program), str(parts.hostname), str(parts.port), exchange, topic]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, job: Job) -> dict[str, float]:
        """Publishes and waits for the confirms; time and CPU are the C program's own."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{job.count} {int(job.rich)}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the C publisher ended")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
