"""Find RabbitMQ and Apache Kafka on this machine, or install them where that needs nobody's leave.

Order for each: a local installation, a package manager (Maven for Kafka, into the user's cache folder; apt for
RabbitMQ, only when this process is root already), Docker if its daemon answers. `CQRS_TEST_INSTALL=0` forbids the
package managers. If nothing works, `ServerUnavailable` says which command to run.

This module starts no server: see `rabbitmq` and `kafka`.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

KAFKA_VERSION = "4.1.0"
KAFKA_COORDINATES = {
    "org.apache.kafka:kafka_2.13": KAFKA_VERSION,
    # Without a binding of the slf4j 1.7 API that Kafka uses, Kafka logs nothing, not even why it died.
    "org.apache.logging.log4j:log4j-slf4j-impl": "2.24.3",
}
RABBITMQ_IMAGE = "rabbitmq:3"
KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"

_INSTALL_TIMEOUT = 540.0

Progress = Callable[[str], None]
_T = TypeVar("_T")


class ServerUnavailable(RuntimeError):  # noqa: N818 - names a state of the machine; tests skip on it
    """A real server can neither be found nor started here.

    Attributes:
        server: "RabbitMQ", "Apache Kafka", "PostgreSQL" or "MariaDB".
        command: The shell command that would make it available.
    """

    def __init__(self, server: str, reason: str, command: str) -> None:
        super().__init__(f"{server} is not available: {reason}. To make it available, run: {command}")
        self.server = server
        self.command = command


@dataclass(frozen=True)
class RabbitMQInstallation:
    """Where RabbitMQ's programs are.

    Attributes:
        server: The server's start script.
        ctl: `rabbitmqctl`.
        epmd: Erlang's port mapper.
        version: RabbitMQ's version, or "unknown".
        image: Docker image in which these paths are; None: they are on this machine.
    """

    server: Path
    ctl: Path
    epmd: Path
    version: str
    image: str | None = None


@dataclass(frozen=True)
class KafkaInstallation:
    """Where Apache Kafka is.

    Attributes:
        java: The `java` program.
        libs: Folder with Kafka's jars.
        version: Kafka's version, or "unknown".
        image: Docker image in which these paths are; None: they are on this machine.
    """

    java: Path
    libs: Path
    version: str
    image: str | None = None


def cache_folder() -> Path:
    """Return this user's cache folder for servers: `$XDG_CACHE_HOME/cqrs-brokers`, by default under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cqrs-brokers"


def rabbitmq_installation(progress: Progress) -> RabbitMQInstallation:
    """Return RabbitMQ's programs, installing them if that is possible and allowed.

    Raises:
        ServerUnavailable: There is none and none can be installed.
    """
    found = _find_rabbitmq()
    if found is not None:
        return found
    found, failure = apt_installed("rabbitmq-server", _find_rabbitmq, progress)
    if found is not None:
        return found
    reason = failure or "no rabbitmq-server on this machine"
    if docker_answers():
        binaries = Path("/opt/rabbitmq/sbin")
        return RabbitMQInstallation(
            binaries / "rabbitmq-server", binaries / "rabbitmqctl", Path("/opt/erlang/bin/epmd"), "3", RABBITMQ_IMAGE
        )
    raise ServerUnavailable("RabbitMQ", reason, _rabbitmq_command())


def kafka_installation(progress: Progress) -> KafkaInstallation:
    """Return Apache Kafka's jars and a Java to run them, fetching the jars if that is possible and allowed.

    Raises:
        ServerUnavailable: There is none and none can be installed.
    """
    java = _find_java()
    libs = _find_kafka_libs()
    reason = "no Java 17 or newer on this machine" if java is None else "no Kafka jars on this machine"
    if java is not None and libs is None and _may_install() and (maven := shutil.which("mvn")):
        try:
            with _install_lock():
                libs = _find_kafka_libs()
                if libs is None:
                    progress(f"fetching Apache Kafka {KAFKA_VERSION} with Maven (once, about 43 MB) ...")
                    libs = _maven_copy(maven, _cached_kafka_libs())
        except (OSError, subprocess.SubprocessError) as error:
            reason = f"Maven could not fetch it: {_reason(error)}"
    if java is not None and libs is not None:
        return KafkaInstallation(java, libs, _kafka_version(libs))
    if docker_answers():
        return KafkaInstallation(
            Path("/opt/java/openjdk/bin/java"), Path("/opt/kafka/libs"), KAFKA_VERSION, KAFKA_IMAGE
        )
    raise ServerUnavailable("Apache Kafka", reason, _kafka_command(java))


def apt_installed(package: str, find: Callable[[], _T | None], progress: Progress) -> tuple[_T | None, str]:
    """Install a Debian package where that is allowed and possible.

    Args:
        package: The package's name.
        find: Looks for what the package brings.
        progress: Is told before apt starts.

    Returns:
        What `find` found then, or None; and why apt failed, or "".
    """
    if not (_may_install() and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get")):
        return None, ""
    try:
        with _install_lock():
            found = find()  # another process may have installed it while we waited
            if found is None:
                progress(f"installing {package} with apt (once) ...")
                _apt_install(package)
                found = find()
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"apt could not install it: {_reason(error)}"
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


def _may_install() -> bool:
    return os.environ.get("CQRS_TEST_INSTALL", "1") != "0"


def _find_rabbitmq() -> RabbitMQInstallation | None:
    epmd = shutil.which("epmd") or next((str(p) for p in Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    # Debian's and Red Hat's scripts on PATH change to the user "rabbitmq"; the ones they call run as anybody.
    folders = [Path("/usr/lib/rabbitmq/bin"), Path("/usr/lib/rabbitmq/sbin")]
    on_path = shutil.which("rabbitmq-server")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    folders += [Path("/opt/homebrew/sbin"), Path("/usr/local/sbin")]
    for folder in folders:
        server, ctl = folder / "rabbitmq-server", folder / "rabbitmqctl"
        if epmd and os.access(server, os.X_OK) and os.access(ctl, os.X_OK):
            return RabbitMQInstallation(server, ctl, Path(epmd), _rabbitmq_version(folder))
    return None


def _rabbitmq_version(folder: Path) -> str:
    real = (folder / "rabbitmq-server").resolve()
    places = [str(real), *(p.name for p in Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))]
    match = next((m for p in places if (m := re.search(r"rabbitmq_server-([0-9.]+)", p))), None)
    return match[1].rstrip(".") if match else "unknown"


def _find_java() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    places = ([str(Path(home) / "bin" / "java")] if home else []) + [shutil.which("java") or ""]
    for java in filter(None, places):
        try:
            done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            continue
        match = re.search(r'version "(\d+)', done.stderr)
        if match and int(match[1]) >= 17:
            return Path(java)
    return None


def _cached_kafka_libs() -> Path:
    return cache_folder() / f"kafka-{KAFKA_VERSION}" / "libs"


def _find_kafka_libs() -> Path | None:
    home = os.environ.get("KAFKA_HOME")
    places = ([Path(home) / "libs"] if home else []) + [_cached_kafka_libs(), Path("/opt/kafka/libs")]
    return next((libs for libs in places if any(libs.glob("kafka_2.*.jar"))), None)


def _kafka_version(libs: Path) -> str:
    match = next(
        (m for p in libs.glob("kafka_2.*.jar") if (m := re.match(r"kafka_2\.\d+-([\d.]+)\.jar", p.name))), None
    )
    return match[1] if match else "unknown"


@contextlib.contextmanager
def _install_lock() -> Iterator[None]:
    """Hold the lock that lets one process of this user install at a time; waits for others, with a limit."""
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
            _run(install, environment)
        except subprocess.CalledProcessError:  # the package lists may be missing or old
            _run(["apt-get", "update", "-q"], environment)
            _run(install, environment)


@contextlib.contextmanager
def _services_barred(policy: Path = Path("/usr/sbin/policy-rc.d")) -> Iterator[None]:
    """Bar packages from starting services while they are installed (Debian's invoke-rc.d asks this script)."""
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


def _maven_copy(maven: str, libs: Path) -> Path:
    libs.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=libs.parent) as folder:
        pom, jars = Path(folder, "pom.xml"), Path(folder, "libs")
        pom.write_text(_pom())
        _run([maven, "-B", "-q", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={jars}"])
        jars.rename(libs)  # appears whole or not at all
    return libs


def _pom() -> str:
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
            *name.split(":"), version
        )
        for name, version in KAFKA_COORDINATES.items()
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>cqrs-brokers</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{dependencies}</dependencies></project>\n"
    )


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
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


def _reason(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in str(error.stdout).splitlines() if line.strip()]
        return f"exit status {error.returncode}: {lines[-1] if lines else 'no output'}"
    return f"{type(error).__name__}: {error}"


def _rabbitmq_command() -> str:
    if shutil.which("apt-get"):
        return "sudo apt-get install -y rabbitmq-server"
    if shutil.which("brew"):
        return "brew install rabbitmq"
    return "docker run --rm -p 5672:5672 rabbitmq:3 (then set CQRS_TEST_AMQP_URL=amqp://guest:guest@127.0.0.1:5672/)"


def _kafka_command(java: Path | None) -> str:
    needed = (["openjdk-17-jre-headless"] if java is None else []) + ([] if shutil.which("mvn") else ["maven"])
    if shutil.which("apt-get") and needed:
        return f"sudo apt-get install -y {' '.join(needed)}"
    if needed and shutil.which("brew"):
        return "brew install openjdk@17 maven"
    if not needed:
        return "CQRS_TEST_INSTALL=1 python -m cqrs_brokers_testkit.servers (with access to Maven Central)"
    return f"docker run --rm --network host {KAFKA_IMAGE} (then set CQRS_TEST_KAFKA_URL=kafka://127.0.0.1:9092)"
