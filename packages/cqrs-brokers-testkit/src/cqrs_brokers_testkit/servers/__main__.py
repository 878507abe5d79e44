"""`python -m cqrs_brokers_testkit.servers` says which servers the tests can use.

It installs what is missing, where that is allowed.
"""

import sys
from collections.abc import Callable

from cqrs_brokers_testkit.servers.brokers import kafka_installation, rabbitmq_installation
from cqrs_brokers_testkit.servers.databases import mariadb_installation, postgresql_installation
from cqrs_brokers_testkit.servers.install import ServerUnavailable
from cqrs_brokers_testkit.servers.processes import report


def _rabbitmq() -> str:
    found = rabbitmq_installation(report)
    return f"RabbitMQ {found.version}: {found.image or found.server}"


def _kafka() -> str:
    found = kafka_installation(report)
    return f"Apache Kafka {found.version}: {found.image or found.libs}"


def _postgresql() -> str:
    found = postgresql_installation(report)
    return f"PostgreSQL {found.version}: {found.server}"


def _mariadb() -> str:
    found = mariadb_installation(report)
    return f"MariaDB {found.version}: {found.server}"


SERVERS: tuple[Callable[[], str], ...] = (_rabbitmq, _kafka, _postgresql, _mariadb)


def main() -> int:
    """Print a line for each server; return 1 if one is missing."""
    missing = 0
    for server in SERVERS:
        try:
            print(server())
        except ServerUnavailable as error:
            missing = 1
            print(error)
    return missing


if __name__ == "__main__":
    sys.exit(main())
