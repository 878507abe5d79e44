"""Private Apache Kafka brokers (KRaft, one or several nodes) on loopback, with the controls that fault tests need.

Each node is broker and controller in one process with a small heap. Every node has one listener for clients under test,
and another listener for the other brokers, for readers and for administration. A proxy or a wrong advertised address
for the clients does not affect the other listener.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload
from urllib.parse import urlsplit

from cqrs_brokers_testkit._optional import require
from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.servers._brokers import kafka_installation
from cqrs_brokers_testkit.servers._install import Progress
from cqrs_brokers_testkit.servers._kafka_node import KafkaNode, Listener, node_process, properties_of, security_of
from cqrs_brokers_testkit.servers._processes import (
    LOOPBACK,
    ServerFailed,
    free_port,
    report,
    server_folder,
)

__all__ = ["KafkaCluster", "KafkaServer", "kafka", "kafka_cluster"]

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

_ADMIN_TIMEOUT = 20.0


class KafkaServer:
    """An Apache Kafka that tests may publish to. It may belong to others, so no method stops or breaks it.

    Args:
        bootstrap_servers: `host:port[,host:port...]`.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers

    @property
    def bootstrap_servers(self) -> str:
        """The addresses for clients under test: `host:port[,host:port...]`."""
        return self._bootstrap_servers

    @property
    def reader_bootstrap_servers(self) -> str:
        """The addresses for readers and administrators, which do not go through a proxy."""
        return self._bootstrap_servers

    @property
    def url(self) -> str:
        """`bootstrap_servers` as a `kafka://` URL."""
        return f"kafka://{self.bootstrap_servers}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.bootstrap_servers}>"

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the server's log, if it is a private server."""
        return "(not our server: its log is not here)"

    def create_topic(
        self, name: str, partitions: int = 1, replication: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic and wait until all its partitions have a leader.

        Args:
            name: The topic's name.
            partitions: Number of partitions.
            replication: Number of copies of each partition.
            config: Topic settings, such as `{"min.insync.replicas": "2"}`.

        Raises:
            MissingExtra: confluent-kafka is not installed.
            ServerFailed: The topic could not be created within 20 seconds.
        """
        admin_module = require("confluent_kafka.admin", extra="kafka")
        admin = self._admin()
        topic = admin_module.NewTopic(name, partitions, replication, config=dict(config or {}))
        give_up = time.monotonic() + _ADMIN_TIMEOUT
        while True:
            try:
                self._await(f"create topic {name!r}", admin.create_topics([topic], operation_timeout=5.0)[name])
                break
            except ServerFailed as error:
                # A node that was not scheduled for longer than its session timeout is fenced for a moment.
                if "fenced" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.2)
        while time.monotonic() < give_up:
            found = admin.list_topics(timeout=_ADMIN_TIMEOUT).topics.get(name)
            if found and len(found.partitions) == partitions and all(p.leader >= 0 for p in found.partitions.values()):
                return
            time.sleep(0.05)
        raise ServerFailed(f"topic {name!r} has partitions without a leader after {_ADMIN_TIMEOUT:g} s")

    def delete_topic(self, name: str) -> None:
        """Delete a topic.

        Raises:
            ServerFailed: The topic could not be deleted within 20 seconds.
        """
        admin = self._admin()
        self._await(f"delete topic {name!r}", admin.delete_topics([name], operation_timeout=_ADMIN_TIMEOUT)[name])

    def leader(self, topic: str, partition: int = 0) -> int:
        """Return the id of the node that leads a partition. -1: the partition has no leader.

        Raises:
            ServerFailed: A node has not heard of the partition for 20 seconds.
        """
        return int(self._partition(topic, partition).leader)

    def in_sync_replicas(self, topic: str, partition: int = 0) -> list[int]:
        """Return the ids of the nodes that hold a partition in full, sorted.

        Raises:
            ServerFailed: A node has not heard of the partition for 20 seconds.
        """
        return sorted(self._partition(topic, partition).isrs)

    def _partition(self, topic: str, number: int) -> Any:
        """Return the metadata of a partition. A node may learn of a new topic later than the node that created it."""
        give_up = time.monotonic() + _ADMIN_TIMEOUT
        while time.monotonic() < give_up:
            found = self._admin().list_topics(topic, timeout=_ADMIN_TIMEOUT).topics[topic].partitions.get(number)
            if found is not None:
                return found
            time.sleep(0.05)
        raise ServerFailed(f"no node has told of partition {number} of topic {topic!r} within {_ADMIN_TIMEOUT:g} s")

    def _admin(self) -> "AdminClient":
        admin_module = require("confluent_kafka.admin", extra="kafka")
        settings = {"bootstrap.servers": self.reader_bootstrap_servers, "log_level": 0}
        client: AdminClient = admin_module.AdminClient(settings)
        return client

    def _await(self, what: str, future: "object") -> None:
        try:
            future.result(timeout=_ADMIN_TIMEOUT)  # type: ignore[attr-defined]
        except Exception as error:
            raise ServerFailed(f"could not {what}: {error}") from error


class KafkaCluster(KafkaServer):
    """Private nodes, started by `kafka()` or `kafka_cluster()`.

    The methods that end, freeze and start act on all nodes. Use the objects in `nodes` for a single node.

    Attributes:
        nodes: The nodes. `nodes[0]` has the id 1.
        version: Version of Kafka.
    """

    def __init__(self, nodes: Sequence[KafkaNode], version: str, progress: Progress) -> None:
        super().__init__(",".join(node.address for node in nodes))
        self.nodes = list(nodes)
        self.version = version
        self._progress = progress

    def bootstrap(self, listener: Listener) -> str:
        """Return `host:port[,...]` of a listener: "PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL" or "INTERNAL".

        Raises:
            KeyError: The cluster was started without this listener.
        """
        return ",".join(f"{LOOPBACK}:{node.ports[listener]}" for node in self.nodes)

    @property
    def reader_bootstrap_servers(self) -> str:
        """The addresses for readers and administrators, which do not go through a proxy."""
        return self.bootstrap("INTERNAL")

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the log of each node."""
        return "\n".join(f"node {node.node_id}:\n{node.log_tail(lines)}" for node in self.nodes)

    def start(self) -> None:
        """Start the nodes that do not run, and wait until all nodes form a cluster.

        Raises:
            ServerFailed: A node ended or was not ready after 60 seconds. The text contains the end of its log.
        """
        began = time.monotonic()
        count = len(self.nodes)
        what = f"Apache Kafka {self.version}" + (f" ({count} nodes)" if count > 1 else "")
        self._progress(f"starting {what} on {self.bootstrap_servers} ...")
        for node in self.nodes:
            if not node.running:
                node.start(wait=False)
        self.wait_ready()
        self._progress(f"{what} is ready after {time.monotonic() - began:.1f} s")

    def wait_ready(self) -> None:
        """Wait until every node answers and knows all other nodes.

        Raises:
            ServerFailed: A node ended or was not ready after 60 seconds. The text contains the end of its log.
        """
        for node in self.nodes:
            node.wait_ready(len(self.nodes))

    def kill(self) -> None:
        """End all nodes with SIGKILL. Their data stay."""
        for node in self.nodes:
            node.kill()

    def terminate(self, timeout: float = 5.0) -> None:
        """Shut the nodes down one after another (SIGTERM). If a node still runs after `timeout` seconds, end it with
        SIGKILL. The nodes' data stay."""
        for node in self.nodes:
            node.terminate(timeout)

    def restart(self) -> None:
        """Shut all nodes down, and start them again on the same ports with the same data."""
        self.terminate()
        self.start()

    def pause(self) -> None:
        """Freeze all nodes: connections stay open, and nothing is answered."""
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        """Let paused nodes go on."""
        for node in self.nodes:
            node.resume()


@overload
def kafka(
    *,
    shared: Literal[False] = False,
    version: str | None = None,
    advertised: tuple[str, int] | None = None,
    sasl_users: Mapping[str, str] | None = None,
    certificates: Certificates | None = None,
    properties: Mapping[str, str] | None = None,
    progress: Progress = report,
) -> contextlib.AbstractContextManager[KafkaCluster]: ...
@overload
def kafka(*, shared: bool, progress: Progress = report) -> contextlib.AbstractContextManager[KafkaServer]: ...
@contextlib.contextmanager
def kafka(
    *,
    shared: bool = False,
    version: str | None = None,
    advertised: tuple[str, int] | None = None,
    sasl_users: Mapping[str, str] | None = None,
    certificates: Certificates | None = None,
    properties: Mapping[str, str] | None = None,
    progress: Progress = report,
) -> Iterator[Any]:
    """Run a private Kafka of one node for the length of a `with` block.

    Args:
        shared: Use the server named by `CQRS_TEST_KAFKA_URL`, if that is set. For tests that break nothing.
        version: The version of Kafka to start, such as "3.9.1". None: the version in `CQRS_TEST_KAFKA_VERSION`, else
            the version in `$KAFKA_HOME`, else 4.4.0.
        advertised: Host and port that the PLAINTEXT listener advertises to clients, such as those of a proxy.
        sasl_users: Passwords by user. Opens a SASL_PLAINTEXT listener with PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512.
        certificates: Opens an SSL listener and, if there are `sasl_users`, a SASL_SSL listener.
        properties: Further lines of server.properties, which override the defaults.
        progress: Called with each line of progress. By default the lines go to stderr.

    Yields:
        The running `KafkaCluster`. With `shared=True` and the variable set, a `KafkaServer` without controls.

    Raises:
        ServerUnavailable: Kafka or Java is not on this machine and could not be installed.
        ServerFailed: A node did not start.
    """
    url = os.environ.get("CQRS_TEST_KAFKA_URL")
    if shared and url:
        yield KafkaServer(urlsplit(url).netloc if "://" in url else url)
        return
    with kafka_cluster(
        nodes=1,
        version=version,
        advertised=[advertised] if advertised else None,
        sasl_users=sasl_users,
        certificates=certificates,
        properties=properties,
        progress=progress,
    ) as cluster:
        yield cluster


@contextlib.contextmanager
def kafka_cluster(
    nodes: int = 3,
    *,
    version: str | None = None,
    advertised: Sequence[tuple[str, int]] | None = None,
    sasl_users: Mapping[str, str] | None = None,
    certificates: Certificates | None = None,
    properties: Mapping[str, str] | None = None,
    progress: Progress = report,
) -> Iterator[KafkaCluster]:
    """Run a private Kafka of several nodes for the length of a `with` block.

    Args:
        nodes: The number of nodes.
        version: See `kafka()`.
        advertised: Host and port for the PLAINTEXT listener of each node. See `kafka()`.
        sasl_users: See `kafka()`.
        certificates: See `kafka()`.
        properties: See `kafka()`. All nodes get the same properties.
        progress: See `kafka()`.

    Yields:
        The running cluster. Topics with `replication=3` and `min.insync.replicas=2` lose no confirmed message when one
        node dies.

    Raises:
        ServerUnavailable: Kafka or Java is not on this machine and could not be installed.
        ServerFailed: A node did not start.
    """
    if advertised is not None and len(advertised) != nodes:
        raise ValueError(f"{nodes} nodes need {nodes} advertised addresses, got {len(advertised)}")
    installation = kafka_installation(progress, version)
    with server_folder("kafka", progress) as folder:
        controllers = [free_port() for _ in range(nodes)]
        made: list[KafkaNode] = []
        for index in range(nodes):
            ports: dict[Listener, int] = {"PLAINTEXT": free_port(), "INTERNAL": free_port()}
            if sasl_users:
                ports["SASL_PLAINTEXT"] = free_port()
            if certificates:
                ports["SSL"] = free_port()
            if sasl_users and certificates:
                ports["SASL_SSL"] = free_port()
            lines = properties_of(index + 1, controllers, ports, advertised[index] if advertised else None)
            lines |= security_of(folder, sasl_users or {}, certificates)
            lines |= {"log.dirs": str(folder / f"data-{index + 1}"), **(properties or {})}
            process = node_process(installation, folder, index + 1, lines, sasl_users or {})
            made.append(KafkaNode(index + 1, process, ports))
        cluster = KafkaCluster(made, installation.version, progress)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.kill()
