"""One node of a private Apache Kafka: its configuration and its process."""

import os
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.servers._brokers import KafkaInstallation
from cqrs_brokers_testkit.servers._node import START_TIMEOUT, PrivateServer
from cqrs_brokers_testkit.servers._processes import LOOPBACK, ServerFailed, ServerProcess, accepts, container_command

_CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
_HEAP = "-Xmx256m"
# Serial collector, C1 only, class data sharing, no perf file: a node is up in half the time.
_FAST_JVM = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-XX:-UsePerfData"]
_LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""

Listener = Literal["PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL", "INTERNAL"]


class KafkaNode(PrivateServer):
    """One node of a `KafkaCluster`. All its methods block.

    Attributes:
        node_id: The node's id. The ids start at 1.
        ports: Port on 127.0.0.1 by listener name.
    """

    def __init__(self, node_id: int, process: ServerProcess, ports: Mapping[Listener, int]) -> None:
        self.node_id = node_id
        self.ports = dict(ports)
        self._process = process

    def __repr__(self) -> str:
        return f"<KafkaNode {self.node_id} {self.address}>"

    @property
    def address(self) -> str:
        """`host:port` of the listener for plain clients."""
        return f"{LOOPBACK}:{self.ports['PLAINTEXT']}"

    def start(self, *, wait: bool = True) -> None:
        """Start the node, with the data and ports that it had.

        Args:
            wait: Whether to wait until the node takes part in the cluster. The first node of several cannot get ready
                before the others run. So use False for it, and call `KafkaCluster.wait_ready()` later.

        Raises:
            ServerFailed: The node ended or was not ready after 60 seconds. The text contains the end of its log.
        """
        self._process.start()
        if wait:
            self.wait_ready()

    def wait_ready(self, nodes: int = 1) -> None:
        """Wait until the node answers, every port is open, and the node sees at least `nodes` live nodes. The node
        counts itself.

        Raises:
            ServerFailed: The node ended or was not ready after 60 seconds. The text contains the end of its log.
        """

        def ready() -> bool:
            alive = live_nodes(self.ports["INTERNAL"])
            return self.node_id in alive and len(alive) >= nodes and all(map(accepts, self.ports.values()))

        self._process.wait_until(ready, START_TIMEOUT)


def live_nodes(port: int) -> set[int]:
    """Ask the broker at a loopback port which nodes are alive. Empty: the broker does not answer, or knows no node.

    The function sends Kafka's Metadata request, version 0, without a client. A client would wait, log and reconnect.
    """
    client = b"cqrs-brokers-testkit"
    request = struct.pack(f">hhih{len(client)}si", 3, 0, 1, len(client), client, 0)
    try:
        with socket.create_connection((LOOPBACK, port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            stream = connection.makefile("rb")
            size, _, count = struct.unpack(">iii", stream.read(12))
            if not 0 <= count < size:
                return set()
            nodes = set()
            for _ in range(count):
                node, length = struct.unpack(">ih", stream.read(6))
                stream.read(length + 4)  # host and port
                nodes.add(node)
            return nodes
    except (OSError, struct.error):
        return set()


def properties_of(
    node_id: int, controllers: Sequence[int], ports: Mapping[Listener, int], advertised: tuple[str, int] | None
) -> dict[str, str]:
    count = len(controllers)
    copies, in_sync = str(min(count, 3)), str(min(count, 2))
    public = {name: f"{name}://{LOOPBACK}:{port}" for name, port in ports.items()}
    told = {**public, "PLAINTEXT": f"PLAINTEXT://{advertised[0]}:{advertised[1]}"} if advertised else public
    security: dict[str, str] = {**{name: name for name in ports}, "INTERNAL": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
    lines = {
        "process.roles": "broker,controller",
        "node.id": str(node_id),
        "controller.quorum.voters": ",".join(f"{i}@{LOOPBACK}:{port}" for i, port in enumerate(controllers, 1)),
        "listeners": ",".join([*public.values(), f"CONTROLLER://{LOOPBACK}:{controllers[node_id - 1]}"]),
        "advertised.listeners": ",".join(told.values()),
        "inter.broker.listener.name": "INTERNAL",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in security.items()),
        "offsets.topic.replication.factor": copies,
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": "0",
        "num.partitions": "1",
        "log.cleaner.dedupe.buffer.size": "2097152",  # the default alone takes half of the small heap
        "log.cleaner.threads": "1",
        "auto.create.topics.enable": "false",
        # A node that died is fenced, and gets back in, after this long: the default of 9 s makes tests slow.
        "broker.session.timeout.ms": "1000",
        "broker.heartbeat.interval.ms": "250",
    }
    if count > 1:
        lines |= {
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "replica.lag.time.max.ms": "5000",
            "controller.quorum.election.timeout.ms": "1000",
            "controller.quorum.fetch.timeout.ms": "2000",
            "unclean.leader.election.enable": "false",
        }
    return lines


def security_of(folder: Path, sasl_users: Mapping[str, str], certificates: Certificates | None) -> dict[str, str]:
    lines = {}
    if sasl_users:
        login = "org.apache.kafka.common.security"
        users = " ".join(f'user_{user}="{password}"' for user, password in sasl_users.items())
        lines["sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
        for listener in ["sasl_plaintext", *(["sasl_ssl"] if certificates else [])]:
            prefix = f"listener.name.{listener}"
            lines[f"{prefix}.plain.sasl.jaas.config"] = f"{login}.plain.PlainLoginModule required {users};"
            for mechanism in ("scram-sha-256", "scram-sha-512"):
                lines[f"{prefix}.{mechanism}.sasl.jaas.config"] = f"{login}.scram.ScramLoginModule required;"
    if certificates:
        keystore = folder / "server.pem"
        keystore.write_bytes(certificates.server_key.read_bytes() + certificates.server.read_bytes())
        lines |= {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(certificates.ca),
            "ssl.client.auth": "requested",
        }
    return lines


def node_process(
    installation: KafkaInstallation, folder: Path, node_id: int, lines: Mapping[str, str], sasl_users: Mapping[str, str]
) -> ServerProcess:
    """Write the node's configuration, format its data folder, and return its process. The process is not started."""
    config, logging = folder / f"node-{node_id}.properties", folder / "log4j2.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    config.chmod(0o600)
    logging.write_text(_LOGGING)
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(folder)}
    java = [str(installation.java), _HEAP, *_FAST_JVM, "-cp", f"{installation.libs}/*"]
    scram = [
        option
        for user, password in sasl_users.items()
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for option in ("--add-scram", f"{mechanism}=[name={user},password={password}]")
    ]
    format_command = [*java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(config), *scram]
    run_command = [*java, f"-Dlog4j2.configurationFile={logging}", "kafka.Kafka", str(config)]
    name = f"Apache Kafka {installation.version} node {node_id}"
    container = None
    if installation.image:
        container = f"cqrs-brokers-{folder.name}-{node_id}"
        formatter = f"{container}-format"
        format_command = container_command(formatter, installation.image, folder, environment, format_command)
        run_command = container_command(container, installation.image, folder, environment, run_command)
    done = subprocess.run(  # noqa: S603
        format_command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise ServerFailed(
            f"{name}: formatting its data folder failed ({done.returncode}): {done.stderr or done.stdout}"
        )
    log = folder / f"node-{node_id}.log"
    return ServerProcess(name, run_command, environment=environment, folder=folder, log=log, container=container)
