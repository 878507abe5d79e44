"""What is tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TARGETS", "Target"]

_RABBITMQ = (
    "tests/amqp",
    "tests/security/test_tls_amqp.py",
    "tests/security/test_canary_amqp.py",
    "tests/testkit/test_rabbitmq_server.py",
    "tests/cli/test_check_amqp.py",
    "tests/conformance/test_brokers.py::TestRabbitMQ",
)
_KAFKA = (
    "tests/kafka",
    "tests/security/test_tls_kafka.py",
    "tests/security/test_sasl_kafka.py",
    "tests/security/test_canary_kafka.py",
    "tests/testkit/test_kafka_server.py",
    "tests/cli/test_check_kafka.py",
    "tests/conformance/test_brokers.py::TestKafka",
)
_QPID = (
    "tests/amqp/test_qpid.py",
    "tests/testkit/test_qpid_server.py",
    "tests/cli/test_check_qpid.py",
    "tests/conformance/test_brokers.py::TestQpid",
)
_IN_PROCESS = ("tests/core", "tests/memory", "tests/devnull", "tests/python_cqrs")
_IN_PROCESS_SUITE = ("tests/conformance/test_brokers.py::TestMemory", "tests/conformance/test_brokers.py::TestDevnull")
_ALL = (*_IN_PROCESS, *_RABBITMQ, *_KAFKA, *_IN_PROCESS_SUITE)


@dataclass(frozen=True)
class Target:
    """One row of the page.

    Attributes:
        name: On the command line.
        title: What is tried.
        tests: What pytest runs; what does not exist is left out.
        servers: Which servers must be there, as `python -m cqrs_brokers_testkit.servers` names them.
        python: A version such as "3.12"; "": the Python that runs this.
        suite: The Debian suite whose Python it is, when no other one of that version is found.
        variables: Of the environment.
        oldest: The dependencies are the oldest that our ranges allow.
    """

    name: str
    title: str
    tests: tuple[str, ...]
    servers: tuple[str, ...]
    python: str = ""
    suite: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    oldest: bool = False


def _rabbitmq(version: str, suite: str) -> Target:
    home = {"CQRS_TEST_RABBITMQ_HOME": f"debian:{suite}"}
    return Target(f"rabbitmq-{version}", f"RabbitMQ of Debian {suite}", _RABBITMQ, ("rabbitmq",), variables=home)


def _kafka(version: str) -> Target:
    chosen = {"CQRS_TEST_KAFKA_VERSION": version}
    return Target(f"kafka-{version}", f"Apache Kafka {version}", _KAFKA, ("kafka",), variables=chosen)


def _python(version: str, suite: str = "") -> Target:
    return Target(f"python-{version}", f"Python {version}", _ALL, ("rabbitmq", "kafka"), python=version, suite=suite)


TARGETS = (
    _rabbitmq("3.10", "bookworm"),
    _rabbitmq("4.0", "trixie"),
    _rabbitmq("newest", "sid"),
    _kafka("3.9.1"),
    _kafka("4.1.0"),
    _kafka("4.4.0"),
    Target("qpid", "Apache Qpid Broker-J", _QPID, ("qpid",)),
    _python("3.11", "bookworm"),
    _python("3.12"),
    _python("3.13", "trixie"),
    _python("3.14", "sid"),
    Target("oldest", "the oldest dependencies", _ALL, ("rabbitmq", "kafka"), oldest=True),
)
