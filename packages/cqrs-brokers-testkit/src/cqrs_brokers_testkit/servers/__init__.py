"""Real RabbitMQ, Kafka, Qpid, PostgreSQL and MariaDB servers on loopback, for tests and demonstrations.

    with rabbitmq() as server:
        print(server.url)

Not for production, and not for measuring speed: the servers are configured to use few resources.
"""

from cqrs_brokers_testkit.servers._database import DatabaseNode, DatabaseServer
from cqrs_brokers_testkit.servers._install import ServerUnavailable
from cqrs_brokers_testkit.servers._kafka_node import KafkaNode
from cqrs_brokers_testkit.servers._node import PrivateServer
from cqrs_brokers_testkit.servers._processes import ServerFailed, free_port
from cqrs_brokers_testkit.servers.kafka import KafkaCluster, KafkaServer, kafka, kafka_cluster
from cqrs_brokers_testkit.servers.mariadb import MariaDBNode, MariaDBServer, mariadb
from cqrs_brokers_testkit.servers.postgresql import PostgreSQLNode, PostgreSQLServer, postgresql
from cqrs_brokers_testkit.servers.qpid import QpidServer, qpid
from cqrs_brokers_testkit.servers.rabbitmq import RabbitMQNode, RabbitMQServer, rabbitmq

__all__ = [
    "DatabaseNode",
    "DatabaseServer",
    "KafkaCluster",
    "KafkaNode",
    "KafkaServer",
    "MariaDBNode",
    "MariaDBServer",
    "PostgreSQLNode",
    "PostgreSQLServer",
    "PrivateServer",
    "QpidServer",
    "RabbitMQNode",
    "RabbitMQServer",
    "ServerFailed",
    "ServerUnavailable",
    "free_port",
    "kafka",
    "kafka_cluster",
    "mariadb",
    "postgresql",
    "qpid",
    "rabbitmq",
]
