"""Tries one distribution, installed alone: `python -I -W error smoke.py cqrs-broker-kafka`. Run by `nox -s wheels`.

Uses the standard library and what the distribution declares, nothing else.
"""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from importlib.util import find_spec

PLUGINS = {
    "cqrs-broker-amqp": ("amqp", "amqp://user:password@localhost/"),
    "cqrs-broker-devnull": ("devnull", "devnull://"),
    "cqrs-broker-kafka": ("kafka", "kafka://localhost:9092"),
    "cqrs-broker-memory": ("memory", "memory://orders"),
}
# Whatever of this is not a distribution's own must not come with it.
CLIENTS = {
    "aio_pika": "cqrs-broker-amqp",
    "aiokafka": "cqrs-broker-kafka",
    "cqrs": "cqrs-brokers-python-cqrs",
    "pika": None,
    "confluent_kafka": None,
    "pytest": None,
    "typer": "cqrs-brokers-cli",
}


def loaded_plugins() -> list[str]:
    return sorted(name for name in sys.modules if name.startswith("cqrs_broker_") and "." not in name)


def error_of(call: Callable[[], object], kind: type[Exception]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"{call} raised no {kind.__name__}")


def check_alone(distribution: str) -> None:
    """It brings what it declares, and nothing of the others."""
    ours = {name for dist in metadata.distributions() if (name := dist.name.lower()).startswith("cqrs-broker")}
    assert ours == {"cqrs-brokers-core", distribution}, ours
    for client, owner in CLIENTS.items():
        assert (find_spec(client) is not None) == (owner == distribution), client


def check_hints(distribution: str) -> None:
    """A broker that is not installed: the error says what to install."""
    from cqrs_brokers import PluginNotFoundError, available_brokers, open_broker

    listed = {info.name: (info.distribution, info.status) for info in available_brokers()}
    own = dict.fromkeys(listed, (distribution, "ready")) if distribution in PLUGINS else {}
    assert listed == own, listed
    for name, (scheme, url) in PLUGINS.items():
        if name != distribution:
            assert f"pip install {name}" in error_of(partial(open_broker, url), PluginNotFoundError), scheme
    assert loaded_plugins() == [], "listing and failing to find a scheme imported a plugin"


def check_scheme(distribution: str) -> None:
    """Its scheme opens and describes itself, without I/O and without another plugin."""
    from cqrs_brokers import Broker, available_brokers, open_broker

    scheme, url = PLUGINS[distribution]
    assert scheme in {info.name for info in available_brokers()}
    broker = open_broker(url)
    assert isinstance(broker, Broker)
    described = broker.describe()
    assert described["name"] == scheme
    assert described["options"]["delivery_timeout"].value == "30s"
    assert "password@" not in str(described["url"])
    assert loaded_plugins() == [distribution.replace("-", "_")]


async def check_sending(url: str, confirmed: bool) -> None:
    """An embedded broker takes a message."""
    from cqrs_brokers import Message, open_broker

    async with open_broker(url) as broker:
        receipt = await broker.send_message(Message("OrderPlaced", "orders", {"id": 1}, key="1"))
    assert receipt.confirmed is confirmed, receipt


def check_bridge() -> None:
    """python-cqrs' own bootstrap takes the adapter of any broker, here one of the application's own."""
    import di
    from cqrs.bootstrap import requests

    from cqrs_brokers import Broker, Message, MessageBroker
    from cqrs_brokers_python_cqrs import message_broker

    class Own(MessageBroker):
        async def send_message(self, message: Message) -> None: ...

    assert requests.bootstrap(di_container=di.Container(), message_broker=message_broker(Broker(Own())))


def check_testkit() -> None:
    """Without extras it can be imported, and what needs one says which."""
    import cqrs_brokers_testkit.servers
    from cqrs_brokers_testkit.readers import drain_queue, drain_topic

    assert cqrs_brokers_testkit.servers.rabbitmq
    for extra, read in (("amqp", drain_queue), ("kafka", drain_topic)):
        address = "amqp://localhost" if extra == "amqp" else "localhost:9092"
        assert f"cqrs-brokers-testkit[{extra}]" in error_of(partial(read, address, "orders", 1), ImportError)


async def check_telemetry() -> None:
    """With OpenTelemetry's API alone, which is all that it declares, a message is sent as without it."""
    from cqrs_brokers import Broker, Message, MessageBroker, Receipt
    from cqrs_brokers_opentelemetry import OpenTelemetryObserver

    class Own(MessageBroker):
        async def send_message(self, message: Message) -> Receipt:
            assert not message.headers
            return Receipt(message.message_id, message.topic, "own")

    async with Broker(Own(), observers=[OpenTelemetryObserver()]) as broker:
        assert (await broker.send_message(Message("OrderPlaced", "orders", {"id": 1}))).confirmed


def check_outbox() -> None:
    """A message goes into a transaction of SQLite; no driver, python-cqrs or alembic is needed."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session

    from cqrs_brokers import Message
    from cqrs_brokers_outbox import Outbox

    engine, outbox = create_engine("sqlite://"), Outbox()
    outbox.create_table(engine)
    with Session(engine) as session:
        outbox.add(session, Message("OrderPlaced", "orders", {"id": 1}, key="1"))
        session.commit()
        assert session.execute(text("SELECT topic, body FROM outbox")).one() == ("orders", b'{"id":1}')
    engine.dispose()


def check_command() -> None:
    """Without any plugin: the command runs, lists nothing, and says what to install."""
    said = command("list")
    assert (said.returncode, "no broker is installed" in said.stdout) == (0, True), said
    for scheme, distribution in (("kafka", "cqrs-broker-kafka"), ("amqp", "cqrs-broker-amqp")):
        said = command("check", f"{scheme}://user:hidden-password@localhost")
        assert said.returncode == 4, said
        assert f"pip install {distribution}" in said.stdout, said
        assert "hidden-password" not in said.stdout + said.stderr, said
    with tempfile.TemporaryDirectory() as folder:
        said = command("new", "acme", "--folder", f"{folder}/acme")
        assert (said.returncode, said.stdout.count("cqrs_broker_acme")) == (0, 5), said
    said = command("outbox", "status")
    assert (said.returncode, "pip install cqrs-brokers-outbox" in said.stderr) == (4, True), said


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = [sys.executable, "-I", "-m", "cqrs_brokers_cli", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


def main(distribution: str) -> None:
    import cqrs_brokers

    assert loaded_plugins() == [], "importing core imported a plugin"
    assert metadata.version(distribution), distribution
    check_alone(distribution)
    check_hints(distribution)
    if distribution in PLUGINS:
        check_scheme(distribution)
    if distribution == "cqrs-broker-devnull":
        asyncio.run(check_sending("devnull://", confirmed=False))
    if distribution == "cqrs-broker-memory":
        asyncio.run(check_sending("memory://orders", confirmed=True))
    if distribution == "cqrs-brokers-cli":
        check_command()
    if distribution == "cqrs-brokers-opentelemetry":
        asyncio.run(check_telemetry())
    if distribution == "cqrs-brokers-outbox":
        check_outbox()
    if distribution == "cqrs-brokers-python-cqrs":
        check_bridge()
    if distribution == "cqrs-brokers-testkit":
        check_testkit()
    print(f"{distribution} {metadata.version(distribution)}: ok, with {cqrs_brokers.__name__} alone")


if __name__ == "__main__":
    main(sys.argv[1])
