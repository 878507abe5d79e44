"""Real RabbitMQ and Apache Kafka servers on loopback, for tests and demonstrations.

    with rabbitmq() as server:
        print(server.url)

Not for production, and not for measuring the speed of a broker: the servers run small.
"""

from cqrs_brokers_testkit.servers.install import ServerUnavailable
from cqrs_brokers_testkit.servers.kafka import KafkaCluster, KafkaServer, kafka, kafka_cluster
from cqrs_brokers_testkit.servers.kafka_node import KafkaNode
from cqrs_brokers_testkit.servers.processes import ServerFailed, free_port
from cqrs_brokers_testkit.servers.rabbitmq import RabbitMQNode, RabbitMQServer, rabbitmq

__all__ = [
    "rabbitmq",
    "kafka",
    "kafka_cluster",
    "RabbitMQServer",
    "RabbitMQNode",
    "KafkaServer",
    "KafkaCluster",
    "KafkaNode",
    "ServerUnavailable",
    "ServerFailed",
    "free_port",
]
