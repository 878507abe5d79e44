"""Finds the facts that `cqrs-brokers check` shows about Kafka: log-in, nodes, topics, and the settings of topics. The
inspection sends no message and creates no topic.

A Metadata response of version 8 can say what the user may do with a topic (KIP-430). aiokafka's own classes stop at
version 5, so this module has classes for version 8. A DescribeConfigs response shows the settings of a topic, if the
user may see them.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from cqrs_brokers.exceptions import AuthorizationError, ConnectError, ProtocolError, UnreachableError
from cqrs_brokers.inspection import Endpoint, Finding, Inspection
from cqrs_brokers.url import Host

from . import _produce as produce
from ._client import Connection, DescribeConfigsRequest, api, errors, types, why_unsupported
from ._logs import redact_client_logs
from ._probe import Greeting, first_that_answers, judge_greeting
from ._settings import KafkaSettings

__all__ = ["KafkaInspection"]

_VERSIONS = {8: "2.4", 9: "2.8", 10: "3.7", 11: "3.8", 12: "4.0", 13: "4.1"}
"""For each version of the produce request, the first version of Kafka that knows this request."""
_TOPIC, _NODE = 2, 4
"""The numbers of two kinds of resources in DescribeConfigs."""
_WRITE = 1 << 4
"""The bit of `AclOperation.WRITE` in the set of allowed operations."""
_ID_PAUSE = 0.1
"""After this many seconds we ask for a producer id again."""
_QUOTAS = "quotas: a client sees only while it sends whether Kafka slows it down"
_SEE_QUOTAS = "look with kafka-configs --describe, for users and clients"
_NOT_SAID = -(2**31)
_UNKNOWN_TOPIC, _FORBIDDEN, _CLUSTER_FORBIDDEN = 3, 29, 31
_FOR_EVER = 2**63 - 1
_TOPIC_SETTINGS = [
    "cleanup.policy",
    "max.message.bytes",
    "message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.difference.max.ms",  # before Kafka 3.6 instead of "after" and "before"
    "message.timestamp.type",
    "min.insync.replicas",
    "unclean.leader.election.enable",
]


_TEXT = types.String("utf-8")
_NODES = types.Array(("node_id", types.Int32), ("host", _TEXT), ("port", types.Int32), ("rack", _TEXT))
_PARTITIONS = types.Array(
    ("error_code", types.Int16),
    ("partition", types.Int32),
    ("leader", types.Int32),
    ("leader_epoch", types.Int32),
    ("replicas", types.Array(types.Int32)),
    ("isr", types.Array(types.Int32)),
    ("offline_replicas", types.Array(types.Int32)),
)
_TOPICS = types.Array(
    ("error_code", types.Int16),
    ("topic", _TEXT),
    ("is_internal", types.Boolean),
    ("partitions", _PARTITIONS),
    ("authorized_operations", types.Int32),
)


class _MetadataAnswer(api.Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = types.Schema(
        ("throttle_time_ms", types.Int32),
        ("brokers", _NODES),
        ("cluster_id", _TEXT),
        ("controller_id", types.Int32),
        ("topics", _TOPICS),
        ("cluster_authorized_operations", types.Int32),
    )


class _MetadataQuestion(api.RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataAnswer
    SCHEMA = types.Schema(
        ("topics", types.Array(_TEXT)),
        ("allow_auto_topic_creation", types.Boolean),
        ("include_cluster_authorized_operations", types.Boolean),
        ("include_topic_authorized_operations", types.Boolean),
    )


class _TopicMetadata(api.Request[_MetadataQuestion]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataQuestion]) -> _MetadataQuestion:
        return request_struct_class([self._topic], False, False, True)


class KafkaInspection(Inspection):
    """See `Inspection`.

    Args:
        settings: Where and how to connect.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._options = settings.options
        self._connections: dict[int, Connection] = {}
        """Connections to the nodes that can be reached, by the nodes' ids. Questions about topics use the first one."""
        self._unreachable: set[int] = set()
        """The ids of nodes that the cluster advertises, but that cannot be reached."""

    def endpoints(self) -> Sequence[Endpoint]:
        """See `Inspection.endpoints`."""
        return [Endpoint(host, self._settings.ssl_context) for host in self._settings.hosts]

    async def close(self) -> None:
        """See `Inspection.close`."""
        connections, self._connections = self._connections.values(), {}
        for connection in connections:
            connection.drop()
        await asyncio.gather(*(connection.ended() for connection in connections))

    # -- the cluster --------------------------------------------------------------------------------------------------

    async def server(self, endpoints: Sequence[Endpoint], /) -> AsyncIterator[Finding]:
        """See `Inspection.server`."""
        redact_client_logs()
        unsupported = why_unsupported()
        if unsupported is not None:
            raise ProtocolError(unsupported)
        tried = await asyncio.gather(*(self._greet(endpoint.host) for endpoint in endpoints))
        greetings = [one for one in tried if isinstance(one, Greeting)]
        for endpoint, one in zip(endpoints, tried, strict=True):
            if isinstance(one, Greeting):
                yield Finding("login", "ok", str(endpoint), self._log_in())
            else:
                failure = Finding.of(one, str(endpoint))
                yield failure._replace(level="warn") if greetings else failure
        if not greetings:
            return
        cluster = greetings[0].answer
        text = f"cluster {cluster.cluster_id} has {_counted(len(cluster.brokers), 'node')}"
        yield Finding("access", "ok", str(greetings[0].host), text)
        async for finding in self._nodes({number: Host(name, port) for number, name, port, *_ in cluster.brokers}):
            yield finding
        if self._connections:
            async for finding in self._node(next(iter(self._connections.values()))):
                yield finding
            yield Finding("server", "unseen", "", _QUOTAS, _SEE_QUOTAS)

    async def _greet(self, host: Host) -> Greeting | ConnectError:
        settings = copy.copy(self._settings)
        settings.hosts = [host]
        try:
            return await first_that_answers(settings, timeout=self._options.connect_timeout, trusted=False)
        except ConnectError as error:
            return error

    def _log_in(self) -> str:
        options = self._options
        if not options.security_protocol.startswith("SASL_"):
            return f"no log-in (security_protocol={options.security_protocol})"
        return f"logged in as {options.sasl_plain_username or 'the owner of the token'} ({options.mechanism})"

    async def _nodes(self, nodes: Mapping[int, Host]) -> AsyncIterator[Finding]:
        """Checks whether the addresses that the cluster advertises can be reached. Messages go to these addresses,
        which may differ from those of the bootstrap servers."""
        tried = await asyncio.gather(*(self._reach(number, host) for number, host in nodes.items()))
        for (number, host), one in zip(nodes.items(), tried, strict=True):
            subject = f"node {number} at {host}"
            if isinstance(one, Connection):
                yield Finding("server", "ok", subject, "the advertised address can be reached")
            else:
                self._unreachable.add(number)
                text = f"the cluster advertises this address, and it cannot be reached: {one.text}"
                remedy = "check the node's advertised.listeners, and DNS and network from here"
                yield Finding("tcp", "warn" if self._connections else "fail", subject, text, remedy)

    async def _reach(self, number: int, host: Host) -> Connection | ConnectError:
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                connection = await Connection.open(self._settings, host)
        except Exception as error:
            finding: ConnectError = judge_greeting(error, host, self._settings).error
            return finding
        self._connections[number] = connection
        return connection

    async def _node(self, connection: Connection) -> AsyncIterator[Finding]:
        """Finds which version of Kafka the node may have, by the newest produce request that the node knows. With
        idempotence, also finds whether the cluster gives a producer id. An idempotent producer cannot send without a
        producer id."""
        connection.check_version()
        _, newest = connection.versions[produce.API_KEY]
        known = [version for number, version in _VERSIONS.items() if number <= newest]
        text = f"Kafka does not say its version; it knows the requests of {known[-1]}"
        later = next((version for number, version in sorted(_VERSIONS.items()) if number > newest), "")
        yield Finding("server", "ok", "", text + (f", and not those of {later}" if later else " or newer"))
        if self._options.enable_idempotence:
            code = await self._ask_for_id(connection)
            if code == _CLUSTER_FORBIDDEN:
                raise AuthorizationError(
                    "the user gets no producer id: grant it WRITE on a topic, or IDEMPOTENT_WRITE on the cluster"
                )
            if code:
                text = f"the cluster gives no producer id now ({errors.for_code(code).__name__})"
                yield Finding(
                    "server", "fail", "", text, "see the logs of the nodes, and whether there is a controller"
                )

    async def _ask_for_id(self, connection: Connection) -> int:
        """Asks for a producer id, if necessary several times in half of `connect_timeout`. A node that has just started
        may give no id at first. Returns the last error code, or 0."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.connect_timeout / 2
        while True:
            code: int = (await _answer(connection.producer_id()))[0]
            if code in (0, _CLUSTER_FORBIDDEN) or loop.time() > end:
                return code
            await asyncio.sleep(_ID_PAUSE)

    # -- a topic ------------------------------------------------------------------------------------------------------

    async def topic(self, topic: str, /) -> AsyncIterator[Finding]:
        """See `Inspection.topic`."""
        node, connection = next(iter(self._connections.items()), (-1, None))
        if connection is None or not connection.connected():
            raise UnreachableError("the connection was lost")
        answer = await _answer(connection.send(_TopicMetadata(topic)))
        code, _, _, partitions, operations = answer.topics[0]
        if code == _UNKNOWN_TOPIC:
            yield await self._missing(connection, node, topic)
            return
        if code == _FORBIDDEN:
            text = "the user may not see the topic, or there is none"
            yield Finding("topic", "fail", topic, text, "grant the user DESCRIBE and WRITE on the topic")
            return
        replicas = min((len(partition[4]) for partition in partitions), default=0)
        each = " each" if len(partitions) > 1 else ""
        text = f"it has {_counted(len(partitions), 'partition')} with {_counted(replicas, 'replica')}{each}"
        yield Finding("topic", "ok" if partitions else "fail", topic, text)
        yield _permission(topic, operations)
        for finding in self._leaders(topic, partitions):
            yield finding
        settings = await self._describe(connection, _TOPIC, topic, _TOPIC_SETTINGS)
        if settings is None:
            text = "its settings: the user may not see them"
            yield Finding("topic", "unseen", topic, text, "grant the user DESCRIBE_CONFIGS on the topic")
            return
        for finding in (*self._durability(topic, partitions, settings), *self._refusals(topic, settings)):
            yield finding

    async def _missing(self, connection: Connection, node: int, topic: str) -> Finding:
        """Finds whether the cluster would create the topic. A node tells only its own settings, so `node` must be the
        node of the connection."""
        names = ["auto.create.topics.enable", "num.partitions", "default.replication.factor"]
        settings = await self._describe(connection, _NODE, str(node), names)
        if settings is not None and settings.get("auto.create.topics.enable") == "true":
            partitions, replicas = (int(settings.get(name, 0)) for name in names[1:])
            made = f"{_counted(partitions, 'partition')}, {_counted(replicas, 'replica')}"
            text = f"there is no such topic; the first message creates it ({made})"
            return Finding("topic", "warn", topic, text, "create it with the partitions and replicas that it needs")
        doubt = "" if settings is not None else ", and the user may not see whether Kafka creates topics"
        return Finding("topic", "fail", topic, f"there is no such topic{doubt}", "create it")

    def _leaders(self, topic: str, partitions: Sequence[Any]) -> Iterator[Finding]:
        for numbers, text, remedy in (
            (
                [number for _, number, leader, *_ in partitions if leader < 0],
                "without a leader: messages for {} wait",
                "see which nodes of the cluster are down",
            ),
            (
                [number for _, number, leader, *_ in partitions if leader in self._unreachable],
                "led by a node that cannot be reached: messages for {} wait",
                "check the node's advertised.listeners, and DNS and network from here",
            ),
        ):
            if numbers:
                one = len(numbers) == 1
                which = f"partition {numbers[0]} is" if one else f"partitions {_listed(numbers)} are"
                yield Finding("topic", "fail", topic, f"{which} {text.format('it' if one else 'them')}", remedy)

    def _durability(self, topic: str, partitions: Sequence[Any], settings: Mapping[str, str]) -> Iterator[Finding]:
        needed = int(settings.get("min.insync.replicas", 1))
        replicas = min((len(partition[4]) for partition in partitions), default=0)
        in_sync = min((len(partition[5]) for partition in partitions), default=0)
        said = f"{in_sync} of {_counted(replicas, 'replica')} in sync, min.insync.replicas={needed}"
        if self._options.acks != "all":
            yield Finding("topic", "warn", topic, f"{said}, and acks={self._options.acks} does not wait for replicas")
        elif in_sync < min(needed, replicas):
            text = f"{said}: the topic refuses messages until more replicas are in sync"
            yield Finding("topic", "fail", topic, text, "bring the other nodes back")
        elif replicas < needed:  # Kafka's `Partition.effectiveMinIsr`
            nodes = "one node" if replicas == 1 else f"{replicas} nodes"
            text = f"{said}: only the replicas that exist count, so a message that is on {nodes} only is confirmed"
            yield Finding("topic", "warn", topic, text, f"give the topic more than {needed} replicas")
        elif replicas == 1:
            text = f"{said}: messages are on one node only"
            yield Finding("topic", "warn", topic, text, "give the topic 3 replicas and min.insync.replicas=2")
        elif needed == 1:
            text = f"{said}: a confirmed message may be on one node only"
            yield Finding("topic", "warn", topic, text, "set min.insync.replicas=2")
        elif in_sync == needed:
            text = f"{said}: when one more node is down, the topic refuses messages"
            remedy = "bring the other nodes back" if in_sync < replicas else "add a replica"
            yield Finding("topic", "warn", topic, text, remedy)
        else:
            yield Finding("topic", "ok", topic, said)
        if settings.get("unclean.leader.election.enable") == "true":
            text = "unclean.leader.election.enable=true: confirmed messages are lost when such a leader is elected"
            yield Finding("topic", "warn", topic, text, "set it to false")

    def _refusals(self, topic: str, settings: Mapping[str, str]) -> Iterator[Finding]:
        policy = settings.get("cleanup.policy", "delete")
        if "compact" in policy:
            text = (
                f"cleanup.policy={policy}: a message without a key is refused, and only the last one of each key stays"
            )
            yield Finding("topic", "warn", topic, text, "give every message a key")
        limit, ours = int(settings.get("max.message.bytes", 0)), self._options.max_message_bytes
        if 0 < limit < ours:
            text = f"max.message.bytes={limit}, and max_message_bytes={ours} here: messages between them are refused"
            yield Finding("topic", "warn", topic, text, "lower max_message_bytes, or raise max.message.bytes")
        elif limit:
            yield Finding("topic", "ok", topic, f"max.message.bytes={limit}")
        yield _timestamps(topic, settings)

    async def _describe(
        self, connection: Connection, kind: int, name: str, settings: list[str]
    ) -> dict[str, str] | None:
        """Returns the settings of a topic or a node. None: the node refuses, in most cases because the user may not see
        the settings."""
        answer = await _answer(connection.send(DescribeConfigsRequest([(kind, name, settings)])))
        code, _, _, _, entries = answer.resources[0]
        if code:
            return None
        return {key: value for key, value, *_ in entries if value is not None}


def _permission(topic: str, operations: int) -> Finding:
    if operations == _NOT_SAID:
        return Finding("topic", "unseen", topic, "whether the user may write to it: Kafka does not say")
    if operations & _WRITE:
        return Finding("topic", "ok", topic, "the user may write to it")
    return Finding("topic", "fail", topic, "the user may not write to it", "grant the user WRITE on the topic")


def _timestamps(topic: str, settings: Mapping[str, str]) -> Finding:
    if settings.get("message.timestamp.type") == "LogAppendTime":
        text = "message.timestamp.type=LogAppendTime: the broker's time takes the place of the message's"
        return Finding("topic", "warn", topic, text, "use CreateTime if consumers need the message's own time")
    limits = {
        name.removeprefix("message.timestamp."): int(value)
        for name, value in sorted(settings.items())  # each server has an order of its own
        if name.startswith("message.timestamp.") and name.endswith(".max.ms")
    }
    tight = {name: limit for name, limit in limits.items() if limit < _FOR_EVER and "after" not in name}
    shown = ", ".join(f"{name}={'unlimited' if limit >= _FOR_EVER else limit}" for name, limit in limits.items())
    if tight:
        text = f"a message whose timestamp is too old is refused ({shown})"
        return Finding("topic", "warn", topic, text, "send messages soon after they were made, or raise the limit")
    return Finding("topic", "ok", topic, f"limits of timestamps: {shown}")


async def _answer(question: Any) -> Any:
    """Waits for an answer.

    Raises:
        UnreachableError: The node gave no answer.
    """
    try:
        return await question
    except (OSError, errors.KafkaError) as error:
        raise UnreachableError(f"the node does not answer ({type(error).__name__})") from error


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(numbers: Sequence[int]) -> str:
    first = ", ".join(map(str, numbers[:10]))
    return first if len(numbers) <= 10 else f"{first} and {len(numbers) - 10} more"
