"""A small process that outlives a test process, to end the servers that the test process started. Python runs this
module as a script, and the module uses only the standard library.

The test process writes lines to this process: "+GROUP" for a process group that it started, and "-GROUP" for a group
that has ended. It also writes "+FOLDER" and "-FOLDER" (absolute paths), and "+CONTAINER" and "-CONTAINER" (names of
Docker containers). When the input ends or the test process is gone, this process kills the groups and containers that
are left, and removes the folders.

PR_SET_PDEATHSIG is not enough: the signal comes when the starting *thread* ends, reaches only direct children, and
exists only on Linux.
"""

import os
import select
import shutil
import signal
import subprocess
import sys


def main() -> None:
    """Read lines until the input ends or the parent is gone. Then clean up."""
    left: set[str] = set()
    parent = int(sys.argv[1])
    pending = b""
    while os.getppid() == parent:  # a forked child of the parent may keep our input open
        if not select.select([0], [], [], 0.5)[0]:
            continue
        data = os.read(0, 4096)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            (left.add if line[:1] == b"+" else left.discard)(os.fsdecode(line[1:]))
    for name in sorted(left, key=lambda name: name.startswith("/")):  # folders last: nobody writes there then
        if name.startswith("/"):
            shutil.rmtree(name, ignore_errors=True)
        elif name.isdigit():
            try:
                os.killpg(int(name), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        else:
            subprocess.run(["docker", "kill", name], timeout=30, check=False)  # noqa: S603, S607


if __name__ == "__main__":
    main()
