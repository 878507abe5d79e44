"""Find RabbitMQ, Apache Kafka and Apache Qpid on this machine, or install them if that needs no further permission.

The module tries these ways in order: the installation that the caller or the environment names; a local installation;
a package manager (Maven for Kafka and Qpid, into the user's cache folder; apt for RabbitMQ, only if this process is
root already); for RabbitMQ and Kafka also Docker, if its daemon answers. `CQRS_TEST_INSTALL=0` forbids the package
managers. If nothing works, `ServerUnavailable` says which command to run. This module starts no server: see `rabbitmq`,
`kafka` and `qpid`.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from cqrs_brokers_testkit.servers._debian import DebianRoot, debian_root
from cqrs_brokers_testkit.servers._install import (
    Progress,
    ServerUnavailable,
    apt_installed,
    cache_folder,
    docker_answers,
)
from cqrs_brokers_testkit.servers._maven import find_java, jars

KAFKA_VERSION = "4.4.0"
QPID_VERSION = "10.1.0"
# Without a binding of the slf4j 1.7 API that Kafka uses, Kafka logs nothing, not even why it died.
_KAFKA_LOGGING = {"org.apache.logging.log4j:log4j-slf4j-impl": "2.24.3"}
# The Berkeley DB stores need a jar that Maven Central does not have. The other jars are for management by people.
_WITHOUT = (
    "com.sleepycat:je",
    "org.apache.qpid:qpid-bdbstore",
    "org.apache.qpid:qpid-broker-plugins-amqp-1-0-protocol-bdb-link-store",
    "org.apache.qpid:qpid-broker-plugins-berkeleydb-store",
    "org.apache.qpid:qpid-broker-plugins-management-http",
    "org.apache.qpid:qpid-broker-plugins-prometheus-exporter",
    "org.apache.qpid:qpid-broker-plugins-websocket",
)
RABBITMQ_IMAGE = "rabbitmq:4"
KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
_DEBIAN = "debian:"


@dataclass(frozen=True)
class RabbitMQInstallation:
    """The places of RabbitMQ's programs.

    Attributes:
        server: The server's start script.
        ctl: `rabbitmqctl`.
        epmd: Erlang's port mapper.
        version: RabbitMQ's version, or "unknown".
        image: Docker image that contains these paths. None: the paths are not in an image.
        root: Root folder of another Debian suite that contains these paths. None: the paths are not in such a root.
    """

    server: Path
    ctl: Path
    epmd: Path
    version: str
    image: str | None = None
    root: DebianRoot | None = None

    def command(self, *command: str) -> list[str]:
        """Return the command that runs a program of this installation. For an installation in a Docker image the
        command does not work."""
        return self.root.command(command) if self.root else list(command)


@dataclass(frozen=True)
class KafkaInstallation:
    """The places of Apache Kafka's files.

    Attributes:
        java: The `java` program.
        libs: Folder with Kafka's jars.
        version: Kafka's version, or "unknown".
        image: Docker image that contains these paths. None: the paths are on this machine.
    """

    java: Path
    libs: Path
    version: str
    image: str | None = None


@dataclass(frozen=True)
class QpidInstallation:
    """The places of Apache Qpid Broker-J's files.

    Attributes:
        java: The `java` program.
        libs: Folder with Qpid's jars.
        version: Qpid's version.
    """

    java: Path
    libs: Path
    version: str


def rabbitmq_installation(progress: Progress, home: str | Path | None = None) -> RabbitMQInstallation:
    """Return RabbitMQ's programs, installing them if that is possible and allowed.

    Args:
        progress: Called with each line of progress.
        home: The RabbitMQ to use: a folder that has `sbin/rabbitmq-server`, like RabbitMQ's own archives, or
            `debian:SUITE` for the RabbitMQ of another Debian suite. None: the RabbitMQ that `CQRS_TEST_RABBITMQ_HOME`
            names, else the RabbitMQ of this machine.

    Raises:
        ServerUnavailable: There is no RabbitMQ, and none can be installed.
    """
    wanted = str(home or os.environ.get("CQRS_TEST_RABBITMQ_HOME", ""))
    if wanted.startswith(_DEBIAN):
        return _rabbitmq_of_suite(wanted.removeprefix(_DEBIAN), progress)
    if wanted:
        found = find_rabbitmq([Path(wanted, "sbin")])
        if found is None:
            reason = f"{wanted} has no sbin/rabbitmq-server, or there is no epmd on the PATH"
            raise ServerUnavailable("RabbitMQ", reason, "python -m cqrs_brokers_testkit.servers, with another home")
        return found
    found = find_rabbitmq(_rabbitmq_folders())
    if found is not None:
        return found
    found, failure = apt_installed("rabbitmq-server", lambda: find_rabbitmq(_rabbitmq_folders()), progress)
    if found is not None:
        return found
    reason = failure or "no rabbitmq-server on this machine"
    if docker_answers():
        binaries = Path("/opt/rabbitmq/sbin")
        epmd = Path("/opt/erlang/bin/epmd")
        version = RABBITMQ_IMAGE.rpartition(":")[2]
        return RabbitMQInstallation(
            binaries / "rabbitmq-server", binaries / "rabbitmqctl", epmd, version, RABBITMQ_IMAGE
        )
    raise ServerUnavailable("RabbitMQ", reason, _rabbitmq_command())


def _rabbitmq_of_suite(suite: str, progress: Progress) -> RabbitMQInstallation:
    root = debian_root(suite, ["rabbitmq-server"], progress)
    folder = Path("/usr/lib/rabbitmq/bin")
    homes = [path.name for path in (root.folder / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")]
    version = homes[0].removeprefix("rabbitmq_server-") if homes else "unknown"
    server, ctl = folder / "rabbitmq-server", folder / "rabbitmqctl"
    return RabbitMQInstallation(server, ctl, Path("/usr/bin/epmd"), version, root=root)


def kafka_installation(progress: Progress, version: str | None = None) -> KafkaInstallation:
    """Return Apache Kafka's jars and a Java to run them, fetching the jars if that is possible and allowed.

    Args:
        progress: Called with each line of progress.
        version: The version, such as "3.9.1". None: the version in `CQRS_TEST_KAFKA_VERSION`, else the version in
            `$KAFKA_HOME/libs`, else `KAFKA_VERSION`.

    Raises:
        ServerUnavailable: There is no Kafka or no Java, and Kafka cannot be installed.
    """
    wanted = version or os.environ.get("CQRS_TEST_KAFKA_VERSION")
    java = find_java()
    libs = _find_kafka_libs(wanted)
    reason = "no Java 17 or newer on this machine" if java is None else "no Kafka jars on this machine"
    if java is not None and libs is None:
        fetched = wanted or KAFKA_VERSION
        coordinates = {"org.apache.kafka:kafka_2.13": fetched, **_KAFKA_LOGGING}
        libs, failure = jars(f"Apache Kafka {fetched}", coordinates, _cached("kafka", fetched), progress)
        reason = failure or reason
    if java is not None and libs is not None:
        return KafkaInstallation(java, libs, _kafka_version(libs))
    if docker_answers():
        version, image = wanted or KAFKA_VERSION, f"apache/kafka:{wanted}" if wanted else KAFKA_IMAGE
        return KafkaInstallation(Path("/opt/java/openjdk/bin/java"), Path("/opt/kafka/libs"), version, image)
    raise ServerUnavailable("Apache Kafka", reason, _maven_command(java) or _kafka_command())


def qpid_installation(progress: Progress, version: str = QPID_VERSION) -> QpidInstallation:
    """Return Apache Qpid Broker-J's jars and a Java to run them, fetching the jars if that is possible and allowed.

    Raises:
        ServerUnavailable: There is no Qpid or no Java, and Qpid cannot be installed.
    """
    java = find_java()
    if java is None:
        raise ServerUnavailable("Apache Qpid", "no Java 17 or newer on this machine", _maven_command(java) or _FETCH)
    libs, failure = jars(
        f"Apache Qpid Broker-J {version}",
        {"org.apache.qpid:qpid-broker": version},
        _cached("qpid-with-derby", version),
        progress,
        without=_WITHOUT,
    )
    if libs is None:
        reason = failure or "no jars of it in the cache"
        raise ServerUnavailable("Apache Qpid", reason, _maven_command(java) or _FETCH)
    return QpidInstallation(java, libs, version)


def _rabbitmq_folders() -> list[Path]:
    """Return the folders in which this machine's RabbitMQ may have its scripts."""
    # Debian's and Red Hat's scripts on PATH change to the user "rabbitmq"; the ones they call run as anybody.
    folders = [Path("/usr/lib/rabbitmq/bin"), Path("/usr/lib/rabbitmq/sbin")]
    on_path = shutil.which("rabbitmq-server")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    return [*folders, Path("/opt/homebrew/sbin"), Path("/usr/local/sbin")]


def find_rabbitmq(folders: list[Path]) -> RabbitMQInstallation | None:
    """Return the first RabbitMQ whose scripts are in one of the folders. None: there is none, or there is no Erlang."""
    epmd = shutil.which("epmd") or next((str(p) for p in Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
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


def _cached(name: str, version: str) -> Path:
    return cache_folder() / f"{name}-{version}" / "libs"


def _find_kafka_libs(wanted: str | None) -> Path | None:
    home = os.environ.get("KAFKA_HOME")
    places = ([Path(home) / "libs"] if home else []) + [_cached("kafka", wanted or KAFKA_VERSION)]
    found = [libs for libs in (*places, Path("/opt/kafka/libs")) if any(libs.glob("kafka_2.*.jar"))]
    return next((libs for libs in found if wanted in (None, _kafka_version(libs))), None)


def _kafka_version(libs: Path) -> str:
    names = [path.name for path in libs.glob("kafka_2.*.jar")]
    match = next((m for name in names if (m := re.match(r"kafka_2\.\d+-([\d.]+)\.jar", name))), None)
    return match[1] if match else "unknown"


_FETCH = "CQRS_TEST_INSTALL=1 python -m cqrs_brokers_testkit.servers (with access to Maven Central)"


def _rabbitmq_command() -> str:
    if shutil.which("apt-get"):
        return "sudo apt-get install -y rabbitmq-server"
    if shutil.which("brew"):
        return "brew install rabbitmq"
    start = f"docker run --rm -p 5672:5672 {RABBITMQ_IMAGE}"
    return f"{start} (then set CQRS_TEST_AMQP_URL=amqp://guest:guest@127.0.0.1:5672/)"


def _maven_command(java: Path | None) -> str | None:
    """Return the command that installs what is missing of Java and Maven. If nothing is missing, return the command
    that fetches the jars. None: something is missing, and there is no package manager."""
    # default-jre-headless: each Debian names its own Java by it (17 in Debian 12, 21 in Debian 13).
    needed = (["default-jre-headless"] if java is None else []) + ([] if shutil.which("mvn") else ["maven"])
    if shutil.which("apt-get") and needed:
        return f"sudo apt-get install -y {' '.join(needed)}"
    if needed and shutil.which("brew"):
        return "brew install openjdk maven"
    return None if needed else _FETCH


def _kafka_command() -> str:
    return f"docker run --rm --network host {KAFKA_IMAGE} (then set CQRS_TEST_KAFKA_URL=kafka://127.0.0.1:9092)"
