"""The demo: what it says and how it ends, with servers and without."""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cqrs_broker_memory import published
from cqrs_brokers_testkit.servers import KafkaServer, RabbitMQServer, ServerUnavailable

DEMO = Path(__file__).parents[2] / "examples" / "demo"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The demo's runner, as a module; no server is found until a test says otherwise."""
    monkeypatch.syspath_prepend(DEMO)
    monkeypatch.delenv("CI", raising=False)
    level = logging.getLogger("cqrs").level
    published("demo").clear()
    run = importlib.import_module("run")

    def none_found(server: str) -> Any:
        def start(**_: object) -> contextlib.AbstractContextManager[object]:
            raise ServerUnavailable(server, "not installed", f"install {server}")

        return start

    monkeypatch.setattr(run, "rabbitmq", none_found("RabbitMQ"))
    monkeypatch.setattr(run, "kafka", none_found("Apache Kafka"))
    yield run
    logging.getLogger("cqrs").setLevel(level)
    for name in ("run", "shop", "report"):
        del sys.modules[name]


def test_without_servers_it_says_what_was_skipped_why_and_what_would_help(
    demo: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded brokers have run; that is a success."""
    assert demo.main() == 0
    summary = " ".join(capsys.readouterr().out.partition("== summary ")[2].replace("|", " ").split())
    assert "ok: 3 events published and discarded" in summary
    assert "ok: 3 events published and read back with cqrs_broker_memory.published" in summary
    for server in ("RabbitMQ", "Apache Kafka"):
        assert f"SKIPPED: {server} is not available: not installed" in summary
    assert summary.endswith("What was skipped runs after: install RabbitMQ install Apache Kafka")


def test_in_ci_a_missing_server_is_a_failure(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip must not look like a pass there."""
    monkeypatch.setenv("CI", "true")
    assert demo.main() == 1


def test_what_is_not_read_back_is_a_failure(
    demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message is missing: the exit code says so, and the summary which."""
    read = demo.read_memory
    monkeypatch.setattr(demo, "read_memory", lambda: read()[:2])
    assert demo.main() == 1
    assert "FAILED: AssertionError: expected" in capsys.readouterr().out


@pytest.mark.live
def test_on_real_servers_every_event_is_read_back(
    demo: Any,
    rabbitmq: RabbitMQServer,
    kafka: KafkaServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Twice, because a server that stays may have the messages of an earlier run."""
    monkeypatch.setattr(demo, "rabbitmq", lambda **_: contextlib.nullcontext(rabbitmq))
    monkeypatch.setattr(demo, "kafka", lambda **_: contextlib.nullcontext(kafka))
    for _ in range(2):
        published("demo").clear()
        assert demo.main() == 0
        output = capsys.readouterr().out
        assert "ok: 3 events published and read back with pika" in output
        assert "ok: 3 events published and read back with confluent-kafka" in output
        assert "SKIPPED" not in output
        assert "guest:guest" not in output
