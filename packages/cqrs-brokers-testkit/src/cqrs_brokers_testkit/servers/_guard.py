"""A small process that outlives a test process, to end the servers that the test process started. It is run as a
script, and uses only the standard library.

The test process writes lines to its standard input: "+GROUP" for a process group it started, "-GROUP" for one that
has ended; likewise "+FOLDER" and "-FOLDER" (absolute paths), "+CONTAINER" and "-CONTAINER" (Docker's). When the input
ends or the parent is gone, however it died, the groups and containers that are left are killed and the folders removed.

PR_SET_PDEATHSIG would not do: it fires when the starting *thread* ends, knows only direct children, and exists only on
Linux.
"""

import os
import select
import shutil
import signal
import subprocess
import sys


def main() -> None:
    """Read lines until the parent is gone, then clean up."""
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
