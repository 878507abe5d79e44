"""`python -m cqrs_brokers_testkit.servers` says which servers the tests can use.

It installs what is missing, where that is allowed.
"""

import sys

from cqrs_brokers_testkit.servers.install import ServerUnavailable, kafka_installation, rabbitmq_installation
from cqrs_brokers_testkit.servers.processes import report


def main() -> int:
    """Print a line for each server; return 1 if one is missing."""
    missing = 0
    try:
        rabbit = rabbitmq_installation(report)
        print(f"RabbitMQ {rabbit.version}: {rabbit.image or rabbit.server}")
    except ServerUnavailable as error:
        missing = 1
        print(error)
    try:
        kafka = kafka_installation(report)
        print(f"Apache Kafka {kafka.version}: {kafka.image or kafka.libs}")
    except ServerUnavailable as error:
        missing = 1
        print(error)
    return missing


if __name__ == "__main__":
    sys.exit(main())
