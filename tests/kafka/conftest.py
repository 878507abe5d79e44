"""A Kafka behind a proxy that breaks the line."""

from collections.abc import Iterator

import pytest

from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.servers import KafkaCluster
from cqrs_brokers_testkit.servers import kafka as start_kafka


@pytest.fixture(scope="module")
def line(kafka: object) -> Iterator[tuple[FaultProxy, KafkaCluster]]:
    """A Kafka that clients reach only through a proxy (`kafka` is asked for only to skip where there is none)."""
    with FaultProxy() as proxy, start_kafka(advertised=(proxy.host, proxy.port)) as cluster:
        proxy.target = (proxy.host, cluster.nodes[0].ports["PLAINTEXT"])
        yield proxy, cluster


@pytest.fixture
def proxy(line: tuple[FaultProxy, KafkaCluster]) -> Iterator[FaultProxy]:
    yield line[0]
    line[0].heal()
    line[0].accept()


@pytest.fixture
def broken(line: tuple[FaultProxy, KafkaCluster], proxy: FaultProxy) -> KafkaCluster:
    """The Kafka behind the proxy."""
    return line[1]
