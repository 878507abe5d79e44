"""librdkafka's mock Kafka cluster, for error codes that a real broker won't give on demand.

The mock cluster comes with confluent-kafka's wheel, runs inside this process and listens at random ports on loopback.
It checks no sequence numbers and stores little: use a real broker for everything except error codes. Its C functions
are not a documented Python API. confluent-kafka 2.16.1 is known to work.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, Self

from cqrs_brokers_testkit._optional import MissingExtra, require

__all__ = ["KafkaMock"]

PRODUCE, METADATA, INIT_PRODUCER_ID = 0, 3, 22  # Kafka's API keys, for `push_errors`

_PRODUCER = 0
_P, _S, _I = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "rd_kafka_conf_new": (_P, []),
    "rd_kafka_new": (_P, [_I, _P, _S, ctypes.c_size_t]),
    "rd_kafka_destroy": (None, [_P]),
    "rd_kafka_mock_cluster_new": (_P, [_P, _I]),
    "rd_kafka_mock_cluster_destroy": (None, [_P]),
    "rd_kafka_mock_cluster_bootstraps": (_S, [_P]),
    "rd_kafka_mock_topic_create": (_I, [_P, _S, _I, _I]),
    "rd_kafka_mock_topic_set_error": (None, [_P, _S, _I]),
    "rd_kafka_mock_push_request_errors_array": (None, [_P, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(_I)]),
    "rd_kafka_mock_clear_request_errors": (None, [_P, ctypes.c_int16]),
    "rd_kafka_mock_broker_set_down": (_I, [_P, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_up": (_I, [_P, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_rtt": (_I, [_P, ctypes.c_int32, _I]),
    "rd_kafka_mock_partition_set_leader": (_I, [_P, _S, ctypes.c_int32, ctypes.c_int32]),
}


class KafkaMock:
    """A mock cluster, for the length of a `with` block or until `close()`.

    Args:
        nodes: The number of brokers. Their ids start at 1.

    Attributes:
        bootstrap_servers: `host:port[,...]`.

    Raises:
        MissingExtra: confluent-kafka is not installed, or its wheel does not hold librdkafka.
    """

    def __init__(self, nodes: int = 1) -> None:
        self._library = _library()
        text = ctypes.create_string_buffer(256)
        self._client = self._library.rd_kafka_new(_PRODUCER, self._library.rd_kafka_conf_new(), text, len(text))
        if not self._client:
            raise RuntimeError(f"librdkafka made no client: {text.value.decode()}")
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, nodes)
        if not self._cluster:
            raise RuntimeError("librdkafka made no mock cluster")
        self.bootstrap_servers: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    @property
    def url(self) -> str:
        """`bootstrap_servers` as a `kafka://` URL."""
        return f"kafka://{self.bootstrap_servers}"

    def create_topic(self, name: str, partitions: int = 1, replication: int = 1) -> None:
        """Create a topic. (Topics are also created when a client asks for them.)"""
        self._call("rd_kafka_mock_topic_create", name.encode(), partitions, replication)

    def push_errors(self, api: int, *codes: int) -> None:
        """Make the next requests fail, one request for each code.

        Args:
            api: Kafka's API key, such as `PRODUCE`.
            codes: Kafka's error codes. With 0 the request succeeds.
        """
        self._call("rd_kafka_mock_push_request_errors_array", api, len(codes), (_I * len(codes))(*codes))

    def clear_errors(self, api: int) -> None:
        """Forget the errors that were pushed and have not been given yet."""
        self._call("rd_kafka_mock_clear_request_errors", api)

    def set_topic_error(self, topic: str, code: int) -> None:
        """Make metadata report an error for a topic. 0 removes the error."""
        self._call("rd_kafka_mock_topic_set_error", topic.encode(), code)

    def down(self, node: int = 1) -> None:
        """Close a broker's connections and refuse new ones."""
        self._call("rd_kafka_mock_broker_set_down", node)

    def up(self, node: int = 1) -> None:
        """Let a broker take connections again."""
        self._call("rd_kafka_mock_broker_set_up", node)

    def set_round_trip(self, milliseconds: int, node: int = 1) -> None:
        """Delay every answer of a broker."""
        self._call("rd_kafka_mock_broker_set_rtt", node, milliseconds)

    def set_leader(self, topic: str, partition: int, node: int) -> None:
        """Make a broker the leader of a partition. -1: the partition has no leader."""
        self._call("rd_kafka_mock_partition_set_leader", topic.encode(), partition, node)

    def close(self) -> None:
        """End the cluster; a second call does nothing."""
        if self._cluster:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._client)
            self._cluster = self._client = None

    def _call(self, function: str, *arguments: object) -> None:
        if not self._cluster:
            raise RuntimeError("this mock cluster is closed")
        code = getattr(self._library, function)(self._cluster, *arguments)
        if code:
            raise RuntimeError(f"{function} failed with librdkafka's code {code}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@functools.cache
def _library() -> ctypes.CDLL:
    package = Path(require("confluent_kafka", extra="kafka").__file__).parent
    found = [
        *package.parent.glob("confluent_kafka.libs/librdkafka*.so*"),
        *package.glob(".dylibs/librdkafka*.dylib"),
    ]
    if not found:
        raise MissingExtra("this confluent-kafka holds no librdkafka: install its wheel from PyPI")
    library = ctypes.CDLL(str(found[0]))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
