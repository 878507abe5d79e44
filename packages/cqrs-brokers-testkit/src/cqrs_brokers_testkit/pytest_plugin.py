"""pytest fixtures of the test kit. pytest loads this module itself if `cqrs-brokers-testkit[pytest]` is installed.

A server starts when the first test asks for it. If the server is not available, the tests that need it are skipped. The
reason names the command that would help, and the run's summary ends with a line about the skipped tests. With `CI=true`
in the environment these tests fail instead.
"""

import contextlib
import os
import uuid
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

import pytest

from ._memory import memory_broker_url, published  # noqa: F401 - fixtures: pytest finds them here

__all__ = ["UniqueName", "available"]

if TYPE_CHECKING:
    from cqrs_brokers_testkit.certificates import Certificates
    from cqrs_brokers_testkit.kafka_mock import KafkaMock
    from cqrs_brokers_testkit.proxy import FaultProxy
    from cqrs_brokers_testkit.servers import (
        KafkaCluster,
        KafkaServer,
        MariaDBNode,
        MariaDBServer,
        PostgreSQLNode,
        PostgreSQLServer,
        RabbitMQNode,
        RabbitMQServer,
    )

# The testkit's modules are imported by the fixtures that need them: pytest loads this file in every run.

_SERVERS = (
    *("rabbitmq", "rabbitmq_node", "kafka", "kafka_node", "kafka_nodes"),
    *("postgresql", "postgresql_node", "mariadb", "mariadb_node"),
)
_NOT_AVAILABLE = tuple(f"{name} is not available" for name in ("RabbitMQ", "Apache Kafka", "PostgreSQL", "MariaDB"))
_LOG_LINES = 30

_T = TypeVar("_T")


class UniqueName(Protocol):
    """The type of the fixture `unique_name`, a function."""

    def __call__(self, prefix: str = "test") -> str:
        """Return a name that begins with `prefix` and that no other test or run uses."""


@contextlib.contextmanager
def available(server: "contextlib.AbstractContextManager[_T]") -> Iterator[_T]:
    """Enter a server's context. If the server is not available, skip the test. With `CI=true`, fail it.

    Args:
        server: A context manager such as `rabbitmq(...)` or `qpid(...)` of `cqrs_brokers_testkit.servers`.
    """
    from cqrs_brokers_testkit.servers import ServerUnavailable

    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(server)
        except ServerUnavailable as error:
            if os.environ.get("CI", "").lower() in ("true", "1"):
                pytest.fail(f"{error} (with CI=true a missing server is a failure)", pytrace=False)
            pytest.skip(str(error))
        yield running


@pytest.fixture(scope="session")
def rabbitmq() -> "Iterator[RabbitMQServer]":
    """One RabbitMQ for the whole run, for tests that break nothing. `CQRS_TEST_AMQP_URL` may name the server. Otherwise
    a private server is started."""
    from cqrs_brokers_testkit.servers import rabbitmq as start

    with available(start(shared=True)) as server:
        yield server


@pytest.fixture(scope="session")
def kafka() -> "Iterator[KafkaServer]":
    """One Kafka for the whole run, for tests that break nothing. `CQRS_TEST_KAFKA_URL` may name the server. Otherwise
    a private server is started."""
    from cqrs_brokers_testkit.servers import kafka as start

    with available(start(shared=True)) as server:
        yield server


@pytest.fixture(scope="module")
def rabbitmq_node() -> "Iterator[RabbitMQNode]":
    """A private RabbitMQ node for the tests of one module. Tests may break the node, but must leave it running."""
    from cqrs_brokers_testkit.servers import rabbitmq as start

    with available(start()) as node:
        yield node


@pytest.fixture(scope="module")
def kafka_node() -> "Iterator[KafkaCluster]":
    """A private Kafka of one node for the tests of one module. Tests may break the node, but must leave it running."""
    from cqrs_brokers_testkit.servers import kafka as start

    with available(start()) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def kafka_nodes() -> "Iterator[KafkaCluster]":
    """A private Kafka of three nodes for the tests of one module. Tests may break nodes, but must leave all running."""
    from cqrs_brokers_testkit.servers import kafka_cluster as start

    with available(start(3)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgresql() -> "Iterator[PostgreSQLServer]":
    """One PostgreSQL for the whole run. `CQRS_TEST_POSTGRESQL_URL` may name the server. Otherwise a private server is
    started."""
    from cqrs_brokers_testkit.servers import postgresql as start

    with available(start(shared=True)) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> "Iterator[MariaDBServer]":
    """One MariaDB for the whole run. `CQRS_TEST_MARIADB_URL` may name the server. Otherwise a private server is
    started."""
    from cqrs_brokers_testkit.servers import mariadb as start

    with available(start(shared=True)) as server:
        yield server


@pytest.fixture(scope="module")
def postgresql_node() -> "Iterator[PostgreSQLNode]":
    """A private PostgreSQL for the tests of one module. Tests may break the server, but must leave it running."""
    from cqrs_brokers_testkit.servers import postgresql as start

    with available(start()) as node:
        yield node


@pytest.fixture(scope="module")
def mariadb_node() -> "Iterator[MariaDBNode]":
    """A private MariaDB for the tests of one module. Tests may break the server, but must leave it running."""
    from cqrs_brokers_testkit.servers import mariadb as start

    with available(start()) as node:
        yield node


@pytest.fixture
def kafka_mock() -> "Iterator[KafkaMock]":
    """librdkafka's mock Kafka cluster, with one broker."""
    from cqrs_brokers_testkit.kafka_mock import KafkaMock

    with KafkaMock() as mock:
        yield mock


@pytest.fixture
def fault_proxy() -> "Iterator[FaultProxy]":
    """A loopback TCP proxy in a thread of its own. A test must first set its `target`."""
    from cqrs_brokers_testkit.proxy import FaultProxy

    with FaultProxy() as proxy:
        yield proxy


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> "Certificates":
    """Throw-away certificates for TLS tests."""
    from cqrs_brokers_testkit.certificates import make_certificates

    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def unique_name() -> "UniqueName":
    """A function that makes a name for a topic, queue or exchange that no other test or run uses."""

    def name(prefix: str = "test") -> str:
        return f"{prefix}-{uuid.uuid4().hex[:12]}"

    return name


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks that tests with servers carry."""
    config.addinivalue_line("markers", "live: needs a real server (RabbitMQ or Kafka)")
    config.addinivalue_line("markers", "fault: starts private servers and breaks them")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of a server's log with a failed test that used the server."""
    report = yield
    if report.failed:
        for name in _SERVERS:
            server = getattr(item, "funcargs", {}).get(name)
            if server is not None and hasattr(server, "log_tail"):
                report.sections.append((f"end of the log of {name}", server.log_tail(_LOG_LINES)))
    return report


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End the summary with a line for each missing server: how many tests were skipped, and which command would
    help."""
    skipped: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        reason = text.removeprefix("Skipped: ")
        if reason.startswith(_NOT_AVAILABLE):
            skipped[reason] = skipped.get(reason, 0) + 1
    for reason, count in skipped.items():
        terminalreporter.write_line(f"NOT TESTED: {count} live test(s) were skipped. {reason}", yellow=True, bold=True)
