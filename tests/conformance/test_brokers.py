"""Every broker that we ship conforms: one test per case."""

import pytest

from cqrs_brokers_testkit.conformance.pytest_glue import BrokerConformance
from cqrs_brokers_testkit.harnesses.in_process import DevnullHarness, MemoryHarness
from cqrs_brokers_testkit.harnesses.kafka import KafkaHarness
from cqrs_brokers_testkit.harnesses.qpid import QpidHarness
from cqrs_brokers_testkit.harnesses.rabbitmq import RabbitMQHarness


class TestMemory(BrokerConformance):
    """`memory://`."""

    harness = MemoryHarness


class TestDevnull(BrokerConformance):
    """`devnull://`."""

    harness = DevnullHarness


@pytest.mark.live
@pytest.mark.fault
@pytest.mark.timeout(180)
class TestRabbitMQ(BrokerConformance):
    """`amqp://` on a private RabbitMQ."""

    harness = RabbitMQHarness


@pytest.mark.live
@pytest.mark.fault
@pytest.mark.timeout(180)
class TestKafka(BrokerConformance):
    """`kafka://` on a private Kafka."""

    harness = KafkaHarness


@pytest.mark.live
@pytest.mark.fault
@pytest.mark.timeout(180)
class TestQpid(BrokerConformance):
    """`amqp://` on a private Apache Qpid Broker-J."""

    harness = QpidHarness
