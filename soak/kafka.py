"""Kafka's side: three nodes, a fault proxy before each; faults; a probe of its own; topics read back."""

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import confluent_kafka
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster, ServerFailed, kafka_cluster

from .report import Outage
from .run import Progress
from .schedule import Fault, Kind
from .verdict import Found

__all__ = ["KINDS", "SHORT_KINDS", "KafkaSide", "running"]

TOPIC = "soak"
STUCK = "stuck"
"""A topic with one replica: it takes nothing while its node is away, when all others do."""
REMADE = "remade"
"""A topic that is deleted and made anew, with another number of partitions each time."""
PROBE = b"probe"
"""The body of the probe's records, which have neither key nor headers."""
PARTITIONS = 6
NODES = 3
REQUEST_TIMEOUT_MS = 10_000
# A request that a frozen leader has must time out before it can go elsewhere.
SLOW_GOAL = REQUEST_TIMEOUT_MS / 1000 + 2.0
AWAY = 0.5
"""The cluster is away when the probe, which sends every PROBE_EVERY seconds, has no ack for so long."""
PROBE_EVERY = 0.1
WHOLE_AGAIN = 60.0

PROPERTIES = {
    # A node leads its partitions again as soon as it has them in full, so that the next fault hits a leader.
    "leader.imbalance.check.interval.seconds": "1",
    "leader.imbalance.per.broker.percentage": "0",
}

_KINDS = [
    Kind(name="kill", shortest=2.0, longest=8.0),
    Kind(name="stop", shortest=2.0, longest=8.0),
    Kind(name="restart"),
    Kind(name="freeze", shortest=4.0, longest=13.0, goal=SLOW_GOAL),
    Kind(name="hiccup", shortest=0.5, longest=2.5, goal=SLOW_GOAL),
    Kind(name="reset", shortest=0.0, longest=3.0),
    Kind(name="reset all", shortest=0.0, longest=3.0),
    Kind(name="stall up", shortest=2.0, longest=13.0, goal=SLOW_GOAL),
    Kind(name="stall down", shortest=2.0, longest=13.0, goal=SLOW_GOAL),
    Kind(name="stall both", shortest=2.0, longest=13.0, goal=SLOW_GOAL),
    # The plugin remembers a missing topic for 3 s. Finding it and its leaders again is given 3 s more.
    Kind(name="topic remade", shortest=0.0, longest=5.0, goal=6.0),
]
KINDS: Sequence[Kind] = _KINDS
SHORT_KINDS: Sequence[Kind] = [
    kind for kind in _KINDS if kind.name in ("kill", "restart", "freeze", "reset all", "stall down", "topic remade")
]


class Probe:
    """A confluent-kafka producer that sends to every partition all the time: its acks say when the cluster is there.

    To the very partitions that are soaked: after a change of leaders each of them waits for its own followers, which
    may take a second longer for one partition than for its neighbour on the same nodes.

    Args:
        bootstrap_servers: The nodes' own listener, past the proxies.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        # Impatient, so that it finds a new leader at once: it may lose and repeat, only its acks' times count.
        self._producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "acks": "all",
                "linger.ms": 0,
                "request.timeout.ms": 1000,
                "socket.timeout.ms": 1000,
                "message.timeout.ms": 3000,
                "retry.backoff.ms": 50,
                "reconnect.backoff.ms": 50,
                "reconnect.backoff.max.ms": 200,
                "topic.metadata.refresh.interval.ms": 500,
                "topic.metadata.refresh.fast.interval.ms": 50,
                "log_level": 0,
            }
        )
        self.acks: list[list[float]] = [[time.monotonic()] for _ in range(PARTITIONS)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe")

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Sends no more."""
        self._stop.set()
        self._thread.join()
        self._producer.purge()
        self._producer.flush(2)

    def _run(self) -> None:
        while not self._stop.is_set():
            for partition in range(PARTITIONS):
                self._producer.produce(TOPIC, PROBE, partition=partition, on_delivery=self._delivered)
            until = time.monotonic() + PROBE_EVERY
            while (left := until - time.monotonic()) > 0:
                self._producer.poll(left)

    def _delivered(self, error: object, message: confluent_kafka.Message) -> None:
        partition = message.partition()
        if error is None and partition is not None:
            self.acks[partition].append(time.monotonic())

    def alive_since(self, when: float) -> bool:
        """Whether every partition has acked after `when`."""
        return all(acks[-1] > when for acks in self.acks)

    def away(self, began: float, ended: float) -> dict[int | None, list[tuple[float, float]]]:
        """When no acks came, by partition, as far as it touches the time from `began` to `ended`."""
        return {
            partition: [
                (last, following)
                for last, following in itertools.pairwise(list(acks))
                if following - last > AWAY and following > began and last < ended
            ]
            for partition, acks in enumerate(self.acks)
        }


class KafkaSide:
    """See `run.Side`.

    Args:
        cluster: Three nodes, which run.
        proxies: What stands before each.
    """

    topics: Sequence[str] = (TOPIC,)
    stuck, remade = STUCK, REMADE
    logs_of_topic: Mapping[str, Sequence[str]] = {TOPIC: (TOPIC,), STUCK: (STUCK,)}
    percentile = 1.0

    def __init__(self, cluster: KafkaCluster, proxies: Sequence[FaultProxy]) -> None:
        self._cluster, self._proxies = cluster, proxies
        self.version = f"Apache Kafka {cluster.version}, {NODES} nodes"
        self._admin = AdminClient({"bootstrap.servers": cluster.reader_bootstrap_servers, "log_level": 0})
        # The same replicas in the same order: so the same leaders, whatever happens.
        replicas = [[(partition + turn) % NODES + 1 for turn in range(NODES)] for partition in range(PARTITIONS)]
        self._preferred = [nodes[0] for nodes in replicas]
        settings = {"min.insync.replicas": "2"}
        self._create(NewTopic(TOPIC, PARTITIONS, replica_assignment=replicas, config=settings))
        self._create(NewTopic(STUCK, NODES, replica_assignment=[[node + 1] for node in range(NODES)]))
        self.remade_at: list[tuple[float, float]] = []
        self._before: dict[str, list[Found]] = {}
        self._make_anew()
        self.wait_whole()
        self.probe = Probe(cluster.reader_bootstrap_servers)

    def url(self) -> str:
        """See `run.Side`."""
        addresses = ",".join(proxy.address for proxy in self._proxies)
        return f"kafka://{addresses}?request_timeout_ms={REQUEST_TIMEOUT_MS}"

    def _create(self, topic: NewTopic) -> None:
        self._admin.create_topics([topic], operation_timeout=20)[topic.topic].result(20)

    def _delete(self) -> None:
        """Reads the topic, and deletes it."""
        began = time.monotonic()
        self._before[f"{REMADE}, {len(self.remade_at) + 1}"] = self._read(REMADE)
        self.remade_at.append((began, float("inf")))
        self._admin.delete_topics([REMADE], operation_timeout=20)[REMADE].result(20)

    def _make_anew(self) -> None:
        """Creates the topic with three partitions, or with one, in turn."""
        give_up = time.monotonic() + 20
        while True:
            try:
                self._create(NewTopic(REMADE, 1 if len(self.remade_at) % 2 else 3, NODES))
                break
            except confluent_kafka.KafkaException:  # it takes a moment until the name is free again
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)
        if self.remade_at:
            self.remade_at[-1] = (self.remade_at[-1][0], time.monotonic())

    async def inflict(self, fault: Fault) -> Outage:
        """See `run.Side`. Over only when all replicas are in sync, so that never two nodes are down at once."""
        return await asyncio.to_thread(self._inflict, fault)

    def _inflict(self, fault: Fault) -> Outage:
        began = time.monotonic()
        break_it, repair = self._actions(fault)
        break_it()
        if repair is not None:
            time.sleep(fault.seconds)
            repair()
        repaired = time.monotonic()
        self.wait_whole()
        ended = time.monotonic()
        while not self.probe.alive_since(ended):  # the last change of leaders may just have happened
            if time.monotonic() > ended + WHOLE_AGAIN:
                raise ServerFailed("Kafka acked nothing on some partition for a minute after a fault was repaired")
            time.sleep(0.05)
        away = self.probe.away(began, time.monotonic())
        if fault.kind.name.startswith(("stall", "reset")):  # the probe does not go through the proxies
            away[None] = [(began, repaired)]
        return Outage(fault=fault, began=began, ended=ended, away=away)

    def _actions(self, fault: Fault) -> tuple[Callable[[], object], Callable[[], object] | None]:
        """How to break it and how to repair it."""
        node, proxy = self._cluster.nodes[fault.node], self._proxies[fault.node]
        name = fault.kind.name
        if name.startswith("stall "):
            way = name.removeprefix("stall ")
            return (lambda: proxy.stall(way)), proxy.heal  # type: ignore[arg-type]
        if name.startswith("reset"):
            proxies = [proxy] if name == "reset" else self._proxies
            return (lambda: _reset_for(proxies, fault.seconds)), None

        def down(end: Callable[[], object]) -> None:
            end()
            proxy.refuse()  # as a port does behind which nobody is

        def up() -> None:
            proxy.accept()
            node.start()

        return {
            "kill": (lambda: down(node.kill), up),
            "stop": (lambda: down(node.terminate), up),
            "topic remade": (self._delete, self._make_anew),
            "restart": (node.restart, None),
            "freeze": (node.pause, node.resume),
            "hiccup": (node.pause, node.resume),
        }[name]

    def wait_whole(self) -> None:
        """Waits until every replica is in sync and every partition is led by the node that should lead it.

        Raises:
            ServerFailed: That took longer than a minute.
        """
        give_up = time.monotonic() + WHOLE_AGAIN
        while time.monotonic() < give_up:
            with contextlib.suppress(confluent_kafka.KafkaException):
                partitions = self._admin.list_topics(TOPIC, timeout=5).topics[TOPIC].partitions.values()
                whole = [p for p in partitions if len(p.isrs) == NODES and p.leader == self._preferred[p.id]]
                if len(whole) == PARTITIONS:
                    return
            time.sleep(0.1)
        raise ServerFailed("Kafka's replicas are not all in sync a minute after a fault was repaired")

    def read(self) -> dict[str, list[Found]]:
        """See `run.Side`."""
        self.probe.stop()  # or the topic's end would move
        return {**self._before, **{topic: self._read(topic) for topic in (TOPIC, STUCK, REMADE)}}

    def _read(self, topic: str) -> list[Found]:
        return [
            Found(
                message_id=record.message_id or "",
                topic=record.topic,
                key=record.key,
                body_key=json.loads(record.body)["key"],
                partition=record.partition,
                offset=record.offset,
            )
            for record in drain_topic(self._cluster.reader_bootstrap_servers, topic, timeout=600)
            if record.body != PROBE
        ]


def _reset_for(proxies: Sequence[FaultProxy], seconds: float) -> None:
    """Ends all connections, and those that come after, for some seconds."""
    until = time.monotonic() + seconds
    while True:
        for proxy in proxies:
            proxy.reset()
        if time.monotonic() > until:
            return
        time.sleep(0.3)


@contextlib.contextmanager
def running(progress: Progress) -> Iterator[KafkaSide]:
    """Three private nodes, each behind a proxy, with topics of three replicas and the probe at work."""
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy()) for _ in range(NODES)]
        advertised = [(proxy.host, proxy.port) for proxy in proxies]
        cluster = stack.enter_context(
            kafka_cluster(NODES, advertised=advertised, properties=PROPERTIES, progress=progress)
        )
        for proxy, node in zip(proxies, cluster.nodes, strict=True):
            proxy.target = ("127.0.0.1", node.ports["PLAINTEXT"])
        side = KafkaSide(cluster, proxies)
        with side.probe:
            yield side
