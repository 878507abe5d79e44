"""`check` with a real RabbitMQ: each thing that can be wrong is made wrong, and seen."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.readers import bind_queue, drain_queue
from cqrs_brokers_testkit.servers import RabbitMQNode, free_port
from cqrs_brokers_testkit.servers import rabbitmq as start_rabbitmq

from .conftest import check, run

pytestmark = pytest.mark.live

Name = Callable[[str], str]
PASSWORD = "canary-81fQ-secret"


@pytest.fixture(scope="module")
def node(certificates: Certificates, rabbitmq: object) -> Iterator[RabbitMQNode]:
    """With users who may do this and that (`rabbitmq` is asked for only to skip where there is none)."""
    with start_rabbitmq(certificates=certificates) as started:
        started.add_user("locked-out", PASSWORD, vhost=None)
        started.add_user("reader", PASSWORD)
        started.set_permissions("reader", write="^$")
        started.add_user("writer", PASSWORD)
        started.set_permissions("writer", configure="^$", read="^$")
        yield started


# -- what works -------------------------------------------------------------------------------------------------------


def test_a_string_that_works(node: RabbitMQNode, unique_name: Name) -> None:
    """Log-in, virtual host, product and version, the exchange; and what AMQP does not show is said."""
    exchange = unique_name("exchange")
    queue = bind_queue(node.url, exchange, "orders")
    said = check(node.url_for(exchange=exchange), "-t", "orders")
    assert said.code == 0
    assert said.only("login", "ok") == "logged in as guest -> "
    assert "'/'" in said.only("access", "ok")
    assert f"RabbitMQ {node.version}" in said.only("server", "ok")
    about = {finding["text"] for finding in said.findings("topic", "ok")}
    assert about == {
        "is there: durable, topic, without an alternate exchange of its own",
        "the user may publish to it",
    }
    unseen = " ".join(finding["text"] for finding in said.findings("topic", "unseen"))
    assert "whether a queue is bound" in unseen
    assert "alarms" in unseen
    assert drain_queue(node.url, queue, 0) == []


def test_one_message_is_sent_when_that_is_asked_for(node: RabbitMQNode, unique_name: Name) -> None:
    """It is in the queue, under the id of the receipt, and it is the only one."""
    exchange = unique_name("exchange")
    queue = bind_queue(node.url, exchange, "orders")
    said = check(node.url_for(exchange=exchange), "-t", "orders", "--send")
    assert said.code == 0
    (record,) = drain_queue(node.url, queue, 1)
    assert str(record.message_id) == said.json["messages"][0]["message_id"]


def test_nothing_is_created_by_looking(node: RabbitMQNode, unique_name: Name) -> None:
    """Neither the exchange nor the queue, though the string would declare both."""
    exchange, queue = unique_name("exchange"), unique_name("queue")
    said = check(node.url_for(exchange=exchange, declare="queue"), "-t", queue)
    assert said.code == 0
    assert "the first connection declares it" in said.findings("topic", "ok")[0]["text"]
    assert "the first message declares it" in said.findings("topic", "ok")[1]["text"]
    assert exchange not in node.ctl("list_exchanges")
    assert queue not in node.ctl("list_queues")


def test_an_exchange_that_is_declared_later_has_no_queue(node: RabbitMQNode, unique_name: Name) -> None:
    """A warning: the first message would come back, as it does."""
    string = node.url_for(exchange=unique_name("exchange"))
    assert "bind a queue" in check(string).only("topic", "warn")
    said = check(string, "-t", "orders", "--send")
    assert said.code == 10
    assert "UnroutableError" in said.only("send", "fail")


# -- what is wrong with the way there ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "step", "says"),
    [
        ({"user": "guest", "password": PASSWORD}, "login", "check user and password"),
        ({"user": "nobody", "password": PASSWORD}, "login", "check user and password"),
        ({"vhost": "shop"}, "access", "there is no such virtual host"),
        ({"user": "locked-out", "password": PASSWORD}, "access", "rabbitmqctl set_permissions"),
        (
            {"user": "writer", "password": PASSWORD, "exchange": "amq.topic", "exchange_type": "topic"},
            "access",
            "configure",
        ),
    ],
)
def test_a_log_in_that_is_refused(node: RabbitMQNode, arguments: dict[str, str], step: str, says: str) -> None:
    """Wrong password, unknown user, wrong virtual host, no access to it, no permission to declare."""
    said = check(node.url_for(**arguments), "-t", "orders")  # type: ignore[arg-type]
    assert said.code == 7
    assert says in said.only(step, "fail")
    (finding,) = said.findings(step, "fail")
    assert finding["remedy"]
    assert finding["remedy"] not in finding["text"]
    assert ".:" not in finding["text"]
    assert "not looked at" in said.only("topic", "unseen") or step == "access"
    assert PASSWORD not in said.out


def test_the_wrong_port(node: RabbitMQNode) -> None:
    """Nobody listens there."""
    said = check(node.url_for(port=free_port()))
    assert said.code == 5
    assert "refuses connections" in said.only("tcp", "fail")


def test_a_password_in_a_file_and_in_a_variable(node: RabbitMQNode, tmp_path: object) -> None:
    """Their origin is shown, not they."""
    string = f"amqp://writer@127.0.0.1:{node.port}/?declare=passive&exchange=amq.topic&password_env=SHOP_PASSWORD"
    said = check(string, SHOP_PASSWORD=PASSWORD)
    assert said.code == 0
    assert "password from the environment" in said.only("options", "ok")
    assert PASSWORD not in said.out


def test_two_nodes_of_which_one_is_away(node: RabbitMQNode) -> None:
    """A warning, because the driver takes the other one."""
    away = free_port()
    said = check(node.url.replace(f":{node.port}", f":{away},127.0.0.1:{node.port}"))
    assert said.code == 0
    assert f"127.0.0.1:{away}" in {finding["subject"] for finding in said.findings("tcp", "warn")}


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listeners(node: RabbitMQNode, certificates: Certificates) -> dict[str, int]:
    """Ports of TLS listeners with a bad certificate, and of one that asks for the client's."""
    ports = {name: free_port() for name in ("expired", "wrong_host", "mutual")}
    orders = []
    for name, port in ports.items():
        served = certificates if name == "mutual" else certificates.serving(name)
        verify = "verify_peer}, {fail_if_no_peer_cert, true" if name == "mutual" else "verify_none"
        orders.append(
            f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, [{{cacertfile, "{served.ca}"}}, '
            f'{{certfile, "{served.server}"}}, {{keyfile, "{served.server_key}"}}, {{verify, {verify}}}], 1),'
        )
    node.ctl("eval", " ".join(orders) + " ok.")
    assert node.tls_port is not None
    return {**ports, "good": node.tls_port, "plain": node.port}


@pytest.mark.parametrize(
    ("listener", "trusted", "says"),
    [
        ("plain", "ca", "does not speak TLS"),
        ("good", "other_ca", "of an authority that is not trusted"),
        ("good", None, "of an authority that is not trusted"),
        ("expired", "ca", "has expired"),
        ("wrong_host", "ca", "is for another"),
        ("mutual", "ca", "client certificate"),
    ],
)
def test_a_handshake_that_fails(
    node: RabbitMQNode,
    certificates: Certificates,
    listeners: dict[str, int],
    listener: str,
    trusted: str | None,
    says: str,
) -> None:
    """Before the log-in, with the reason; and the certificate is described, whoever signed it."""
    query = {} if trusted is None else {"ssl_cafile": getattr(certificates, trusted)}
    said = check(node.url_for(tls=True, host="localhost", port=listeners[listener], **query))
    assert said.code == 6
    assert says in said.only("tls", "fail")
    assert not said.findings("login")
    if listener == "expired":
        assert "signed by cqrs-brokers ca" in said.only("tls", "fail")
        assert "days ago" in said.only("tls", "fail")
    if listener == "wrong_host":
        assert "for elsewhere.invalid" in said.only("tls", "fail")
    if listener == "good":
        assert "signed by cqrs-brokers ca" in said.only("tls", "fail")


def test_a_handshake_that_works(node: RabbitMQNode, certificates: Certificates, listeners: dict[str, int]) -> None:
    """Version, names, authority and the days that are left, which are few here."""
    said = check(node.url_for(tls=True, host="localhost", ssl_cafile=certificates.ca))
    assert said.code == 0
    text = said.only("tls", "warn")
    assert "chain and host name are verified" in text
    assert "for localhost" in text
    assert "signed by cqrs-brokers ca" in text
    assert "1 day is left" in text
    assert "renew" in text


def test_a_client_certificate_that_works(
    node: RabbitMQNode, certificates: Certificates, listeners: dict[str, int]
) -> None:
    """The listener that asks for one takes it."""
    files = {"ssl_cafile": certificates.ca, "ssl_certfile": certificates.client, "ssl_keyfile": certificates.client_key}
    said = check(node.url_for(tls=True, host="localhost", port=listeners["mutual"], **files))
    assert said.code == 0
    assert said.findings("tls", "warn")


def test_a_certificate_that_is_not_verified(node: RabbitMQNode, listeners: dict[str, int]) -> None:
    """A warning, with what the certificate says."""
    said = check(node.url_for(tls=True, host="localhost", ssl_verify="false"))
    assert said.code == 0
    assert "not verified" in said.only("tls", "warn")
    assert "signed by cqrs-brokers ca" in said.only("tls", "warn")


@pytest.mark.parametrize("listener", ["good", "mutual"])
def test_plain_text_to_a_tls_port(node: RabbitMQNode, listeners: dict[str, int], listener: str) -> None:
    """Waiting does not help, and the exit code says so."""
    said = check(node.url_for(port=listeners[listener]))
    assert said.code == 6
    assert "is a TLS port" in said.only("tls", "fail")


def test_a_port_that_ends_every_connection() -> None:
    """It may be a server that starts: waiting may help."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listening.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            said = check(f"amqp://127.0.0.1:{listening.getsockname()[1]}/", "--timeout", "5")
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert said.code == 5


# -- what is wrong with a topic ---------------------------------------------------------------------------------------


def test_an_exchange_that_is_missing(node: RabbitMQNode, unique_name: Name) -> None:
    """With declare=passive and declare=never no message can go there."""
    exchange = unique_name("exchange")
    for declare in ("passive", "never"):
        said = check(node.url_for(exchange=exchange, declare=declare), "-t", "orders", "--send")
        assert said.code == 9
        assert said.only("topic", "fail") == "is not there -> create it, or use declare=exchange"
        assert said.json["messages"] == []


def test_an_exchange_of_another_type(node: RabbitMQNode, unique_name: Name) -> None:
    """What it is, and the option that says so."""
    exchange = unique_name("exchange")
    bind_queue(node.url, exchange, "orders")
    said = check(node.url_for(exchange=exchange, exchange_type="fanout"))
    assert said.code == 9
    assert "set exchange_type=topic" in said.only("topic", "fail")


def test_an_exchange_with_an_alternate_exchange(node: RabbitMQNode, unique_name: Name) -> None:
    """It keeps what no queue takes, so that a confirm says less; the declaration of the string differs from it."""
    exchange = unique_name("exchange")
    arguments = '[{<<"alternate-exchange">>, longstr, <<"amq.fanout">>}]'
    name = f'rabbit_misc:r(<<"/">>, exchange, <<"{exchange}">>)'
    node.ctl("eval", f'rabbit_exchange:declare({name}, topic, true, false, false, {arguments}, <<"guest">>).')
    said = check(node.url_for(exchange=exchange))
    assert said.code == 9
    assert "alternate-exchange=amq.fanout" in said.only("topic", "fail")
    said = check(node.url_for(exchange=exchange, declare="passive"))
    assert said.code == 0
    assert "alternate exchange" in said.findings("topic", "unseen")[0]["text"]


def test_an_exchange_that_the_user_may_not_write_to(node: RabbitMQNode, unique_name: Name) -> None:
    """Found out without a message; nothing is sent after it."""
    exchange = unique_name("exchange")
    queue = bind_queue(node.url, exchange, "orders")
    said = check(node.url_for("reader", PASSWORD, exchange=exchange), "-t", "orders", "--send")
    assert said.code == 9
    assert "may not publish" in said.only("topic", "fail")
    assert said.json["messages"] == []
    assert drain_queue(node.url, queue, 0) == []


def test_a_user_who_may_only_write(node: RabbitMQNode, unique_name: Name) -> None:
    """The permission is seen, though the user may read nothing; the message arrives."""
    exchange = unique_name("exchange")
    queue = bind_queue(node.url, exchange, "orders")
    string = node.url_for("writer", PASSWORD, exchange=exchange, declare="passive")
    said = check(string, "-t", "orders", "--send")
    assert said.code == 0
    assert "the user may publish to it" in {finding["text"] for finding in said.findings("topic", "ok")}
    assert len(drain_queue(node.url, queue, 1)) == 1


def test_a_queue_that_is_missing_or_of_another_kind(node: RabbitMQNode, unique_name: Name) -> None:
    """Where the queue's name is the topic, AMQP shows the queue."""
    queue = unique_name("queue")
    assert check(node.url_for(exchange=""), "-t", queue).code == 9
    assert check(node.url_for(declare="queue"), "-t", queue, "--send").code == 0
    there = check(node.url_for(exchange=""), "-t", queue)
    assert there.code == 0
    assert "1 message in it, 0 consumers" in there.findings("topic", "ok")[1]["text"]
    other = check(node.url_for(declare="queue", queue_type="quorum"), "-t", queue)
    assert other.code == 9
    assert "x-queue-type" in other.only("topic", "fail")


def test_a_topic_that_the_broker_cannot_have(node: RabbitMQNode) -> None:
    """The driver's own rule, before any question to the server."""
    said = check(node.url_for(declare="queue"), "-t", "amq.orders")
    assert said.code == 9
    assert "amq." in said.only("topic", "fail")


def test_an_alarm(node: RabbitMQNode, unique_name: Name) -> None:
    """It shows with a message, whose outcome is not known then; the time is bounded."""
    queue = unique_name("queue")
    string = node.url_for(declare="queue")
    assert check(string, "-t", queue, "--send").code == 0
    node.set_memory_alarm(True)
    try:
        said = check(string, "-t", queue, "--send", "--timeout", "2")
    finally:
        node.set_memory_alarm(False)
    assert said.code == 11
    assert "alarm" in said.only("send", "fail")


def test_another_servers_port(node: RabbitMQNode) -> None:
    """A string of Kafka to RabbitMQ: the plugin recognises it."""
    said = check(f"kafka://127.0.0.1:{node.port}")
    assert said.code == 8
    assert "RabbitMQ" in said.only("server", "fail")


def test_a_server_that_stands_still(node: RabbitMQNode) -> None:
    """It takes the connection and says nothing: the step ends in time."""
    node.pause()
    try:
        said = check(node.url, "--timeout", "1")
    finally:
        node.resume()
    assert said.code == 5
    assert "does not answer" in said.only("tcp", "fail")


def test_plain_output_for_a_log_file(node: RabbitMQNode) -> None:
    """A line for each finding, its level first; the last line counts them."""
    said = run("check", node.url_for(vhost="shop"))
    assert said.code == 7
    assert said.err == ""
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["ok", "ok", "ok", "ok", "fail"]
    assert lines[-1].startswith("1 of 5 findings failed")
    assert "\x1b" not in said.out
