"""Root folders with packages of other Debian suites, unpacked into the cache, and a way to run programs in a root.

A newer RabbitMQ needs a newer Erlang, which needs a newer C library. So the programs of another suite run in a root
folder of their own. A program in a root sees the processes, network and temporary folder of this machine. Nothing is
installed on this machine: apt works with a configuration of its own, and the maintainers' scripts are not run. Only the
user root may enter a root.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cqrs_brokers_testkit.servers._install import (
    Progress,
    ServerUnavailable,
    cache_folder,
    install_lock,
    may_install,
    reason_of,
    run,
)

__all__ = ["DebianRoot", "debian_root"]

_BASE = (
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "findutils",
    "gawk",
    "grep",
    "hostname",
    "libc-bin",
    "procps",
    "sed",
)
"""Packages that the start scripts of servers need, although no package declares that."""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# `unshare` has made a mount namespace, so the mounts end with the program.
_ENTER = """root=$1; shift
while [ "$1" != -- ]; do
    mkdir -p "$root$1" && mount --rbind "$1" "$root$1" || exit 125
    shift
done
shift
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class DebianRoot:
    """A Debian suite's packages in a folder.

    Attributes:
        suite: The suite's name, such as "trixie".
        folder: The root folder.
    """

    suite: str
    folder: Path

    def command(self, command: Sequence[str], *, folders: Sequence[Path] = ()) -> list[str]:
        """Return the command that runs `command` in the root.

        Args:
            command: Program and arguments, as paths within the root.
            folders: Folders of this machine, besides the temporary folder, that must have the same path in the root.
        """
        shared = ["/dev", "/proc", "/sys", tempfile.gettempdir(), *map(str, folders)]
        start = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "enter", str(self.folder)]
        return [*start, *shared, "--", *command]


def debian_root(suite: str, packages: Sequence[str], progress: Progress) -> DebianRoot:
    """Return a root with packages of a suite and their dependencies. The packages are fetched once, into the cache.

    Args:
        suite: "bookworm", "trixie", "sid" or another one of Debian's archive.
        packages: Names of packages.
        progress: Called with each line of progress.

    Raises:
        ServerUnavailable: This is no Debian, this process is not root, or apt cannot or may not fetch the packages.
    """
    what = f"{' and '.join(packages)} of Debian {suite}"
    command = "python -m cqrs_brokers_testkit.servers as root on a Debian with access to its archive"
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("unshare"):
        raise ServerUnavailable(what, "only root can enter the root of another suite", command)
    if not shutil.which("apt-get") or not shutil.which("dpkg") or not _KEYRING.exists():
        raise ServerUnavailable(what, "this machine is no Debian", command)
    folder = cache_folder() / f"debian-{suite}-{'-'.join(packages)}"
    if not folder.exists():
        if not may_install():
            raise ServerUnavailable(what, "CQRS_TEST_INSTALL=0 forbids to fetch it", command)
        try:
            with install_lock():
                if not folder.exists():
                    progress(f"fetching {what} with apt (once) ...")
                    _unpack(suite, packages, folder)
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerUnavailable(what, f"apt could not fetch it: {reason_of(error)}", command) from error
    return DebianRoot(suite, folder)


def _unpack(suite: str, packages: Sequence[str], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        apt = _apt(work, suite)
        run([*apt, "update", "-q"])
        run([*apt, "install", "-q", "-y", "--download-only", *_BASE, *packages])
        root = work / "root"
        archives = sorted((work / "cache/archives").glob("*.deb"))
        # base-files first: it has the links /bin and /lib into /usr, which a folder would be in the place of.
        for archive in sorted(archives, key=lambda path: not path.name.startswith("base-files_")):
            run(["dpkg", "--extract", str(archive), str(root)])
        _settle(root)
        root.rename(folder)  # appears whole or not at all


def _apt(work: Path, suite: str) -> list[str]:
    """Return an apt command with lists, cache and status of its own. So apt believes that no package is installed."""
    for path in ("state/lists/partial", "cache/archives/partial"):
        (work / path).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_archive()} {suite} main\n")
    options = {
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Sandbox::User": "root",
        "APT::Install-Recommends": "0",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    return ["apt-get", *(f"-o{name}={value}" for name, value in options.items())]


def _archive() -> str:
    """Return the archive from which this machine takes its own packages.

    Raises:
        FileNotFoundError: This machine takes no packages from a Debian archive.
    """
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    done = subprocess.run(listing, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    found = [uri for uri in done.stdout.split() if "security" not in uri]
    if not found:
        raise FileNotFoundError("apt knows no archive of Debian here; run apt-get update")
    return found[0]


def _settle(root: Path) -> None:
    """Do the steps of the maintainers' scripts that servers need."""
    nobody = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"  # PostgreSQL does not run as root
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n" + nobody)
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    for name in ("hosts", "resolv.conf", "hostname"):
        if Path("/etc", name).exists():
            shutil.copyfile(f"/etc/{name}", root / "etc" / name)
    awk = root / "usr/bin/awk"
    if not awk.exists():
        awk.symlink_to("gawk")
