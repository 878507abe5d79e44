"""`python -m cqrs_brokers_testkit.servers [NAME ...]` says which servers the tests can use.

If a server is missing and may be installed, the command installs it.
"""

import argparse
import sys
from collections.abc import Callable, Mapping

from cqrs_brokers_testkit.servers._brokers import kafka_installation, qpid_installation, rabbitmq_installation
from cqrs_brokers_testkit.servers._databases import mariadb_installation, postgresql_installation
from cqrs_brokers_testkit.servers._install import ServerUnavailable
from cqrs_brokers_testkit.servers._processes import report


def _rabbitmq() -> str:
    found = rabbitmq_installation(report)
    where = f"{found.root.folder}{found.server}" if found.root else found.image or found.server
    return f"RabbitMQ {found.version}: {where}"


def _kafka() -> str:
    found = kafka_installation(report)
    return f"Apache Kafka {found.version}: {found.image or found.libs}"


def _qpid() -> str:
    found = qpid_installation(report)
    return f"Apache Qpid Broker-J {found.version}: {found.libs}"


def _postgresql() -> str:
    found = postgresql_installation(report)
    return f"PostgreSQL {found.version}: {found.server}"


def _mariadb() -> str:
    found = mariadb_installation(report)
    return f"MariaDB {found.version}: {found.server}"


SERVERS: Mapping[str, Callable[[], str]] = {
    "rabbitmq": _rabbitmq,
    "kafka": _kafka,
    "qpid": _qpid,
    "postgresql": _postgresql,
    "mariadb": _mariadb,
}


def main() -> int:
    """Print a line for each server; return 1 if one is missing."""
    parser = argparse.ArgumentParser(prog="python -m cqrs_brokers_testkit.servers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(SERVERS)}")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(SERVERS)):
        parser.error(f"no such server: {', '.join(unknown)}. There are: {', '.join(SERVERS)}")
    missing = 0
    for name in names or SERVERS:
        try:
            print(SERVERS[name]())
        except ServerUnavailable as error:
            missing = 1
            print(error)
    return missing


if __name__ == "__main__":
    sys.exit(main())
