"""`check`, as far as it needs no server of a broker: strings, plugins, options, names, ports, strangers' plugins."""

import socket
import time

import pytest

from cqrs_brokers_testkit.servers import free_port
from tests.dead_address import DEAD, dead_address

from .conftest import Install, check, run

SECRET = "canary-4Zt81-secret"

HEAD = """
import asyncio
from cqrs_brokers.driver import Driver
from cqrs_brokers.exceptions import AuthenticationError, UnreachableError
from cqrs_brokers.hooks import hookimpl
from cqrs_brokers.inspection import Endpoint, Finding, Inspection
from cqrs_brokers.options import BrokerOptions, option
from cqrs_brokers.secret import Secret

class AcmeOptions(BrokerOptions):
    url_parts = frozenset({"userinfo", "hosts", "path"})
    token: Secret | None = option(None, description="A token.")
    colour: str = option("red", description="A colour.")

class AcmeDriver(Driver):
    async def send_message(self, message):
        return None

@hookimpl
def broker_options():
    return AcmeOptions

@hookimpl
def open_message_broker(url, options):
    return AcmeDriver()
"""

INSPECTING = (
    HEAD
    + """
class AcmeInspection(Inspection):
    def __init__(self, url, options):
        self.url, self.options = url, options

    def endpoints(self):
        return [Endpoint(host._replace(port=host.port or 7000)) for host in self.url.hosts]

    async def server(self, endpoints):
        {server}
        yield Finding("server", "ok", "", "Acme 3")

    async def topic(self, topic):
        {topic}
        yield Finding("topic", "ok", topic, "it is there")

@hookimpl
def inspect_broker(url, options):
    return AcmeInspection(url, options)
"""
)


def inspecting(server: str = "pass", topic: str = "pass") -> str:
    return INSPECTING.replace("{server}", server).replace("{topic}", topic)


@pytest.fixture
def listening() -> object:
    """The port of a listener that says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield listener.getsockname()[1]


# -- strings, plugins, options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("string", "step", "code", "says"),
    [
        ("", "string", 3, "scheme"),
        ("localhost:9092", "string", 3, "there is no scheme in front of the hosts"),
        ("'kafka://localhost'", "string", 3, "in quotes"),
        ("kafak://localhost", "plugin", 4, "did you mean 'kafka'?"),
        ("rabbitmq://localhost", "plugin", 4, "write amqp://"),
        ("sqs://localhost", "plugin", 4, "unknown scheme 'sqs'"),
        ("kafka://localhost?exchange=x", "options", 3, "unknown option 'exchange'"),
        ("kafka://localhost?ack=all", "options", 3, "did you mean 'acks'?"),
        ("kafka://localhost?acks=some", "options", 3, "must be one of all, -1, 1, 0"),
        ("kafka://localhost?acks=1", "options", 3, "allow_unsafe=true"),
        ("kafka://localhost?ssl_cafile=/nowhere.pem", "options", 3, "would be ignored without TLS"),
        ("amqps://user:pw-1234@localhost?ssl_cafile=/nowhere.pem", "options", 3, "ssl_cafile cannot be used"),
        ("amqp://broker.example/", "options", 3, "there is no user"),
    ],
)
def test_a_string_that_cannot_be_used(string: str, step: str, code: int, says: str) -> None:
    """The step that failed is the last one, with the reason and the exit code."""
    said = check(string)
    assert said.code == code
    last = said.json["findings"][-1]
    assert (last["step"], last["level"]) == (step, "fail")
    assert says in last["text"] + last["remedy"]


@pytest.mark.parametrize(
    ("topic", "says"), [("", "empty"), ("t" * 256, "longer than 255 bytes"), ("t\n", "not printable")]
)
def test_a_topic_that_no_broker_takes(topic: str, says: str) -> None:
    """A message to it would be refused before it is sent."""
    said = check("memory://orders", "--topic", topic)
    assert said.code == 9
    assert says in said.only("topic", "fail")


def test_every_problem_of_a_string_is_said_at_once() -> None:
    """Not one by one."""
    said = check("kafka://localhost?acks=some&colour=red&linger_ms=-1")
    assert len(said.findings("options", "fail")) == 3


def test_without_a_string_the_variable_counts() -> None:
    """And without the variable the text says so."""
    assert check(CQRS_BROKER_URL="memory://orders").json["url"] == "memory://orders"
    said = check()
    assert said.code == 3
    assert "CQRS_BROKER_URL" in said.only("string", "fail")


def test_what_opening_warns_of_is_a_warning() -> None:
    """Credentials over plain text, to a host that is not loopback."""
    said = check(f"amqp://user:{SECRET}@192.0.2.1/", "--timeout", "0.3")
    assert "plain text" in said.only("options", "warn")


def test_the_options_that_are_given_are_shown() -> None:
    """The others have their defaults."""
    (finding,) = check("devnull://?close_timeout=3s").findings("options")
    assert finding["text"] == "close_timeout=3s"


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", f"amqp://user:{SECRET}@localhost:1/"),
        ("check", f"amqp://user:{SECRET}@localhost:1/", "--json"),
        ("check", f"amqp://user:{SECRET}@@localhost:1/"),
        ("check", f"amqp://user:{SECRET}#@localhost:1/"),
        ("check", f"kafka://localhost?sasl_plain_password={SECRET}&x"),
        ("check", f"kafka://localhost?sasl_plain_password=a&{SECRET}=1"),
        ("check", f"user:{SECRET}@localhost"),
        ("check", "amqp://a", f"amqp://user:{SECRET}@localhost"),
        ("chekc", f"amqp://user:{SECRET}@localhost"),
        (f"amqp://user:{SECRET}@localhost",),
        (f"user:{SECRET}@localhost",),
        ("check", f"--url=amqp://user:{SECRET}@localhost"),
        ("check", "--timeout", f"amqp://user:{SECRET}@localhost"),
        ("describe", f"amqp://user:{SECRET}@localhost"),
        ("describe", f"amqp://user:{SECRET}@localhost", "--json"),
        ("list", f"amqp://user:{SECRET}@localhost"),
        ("describe", f"kafka://user:{SECRET}@localhost"),
        ("check", "kafka://user:pass", SECRET, "word@localhost"),
        ("check", f"-x{SECRET}"),
        ("new", f"amqp://user:{SECRET}@localhost"),
        ("outbox", "status", "--databse", f"postgresql+asyncpg://me:{SECRET}@localhost/x"),
        ("outbox", f"postgresql+asyncpg://me:{SECRET}@localhost/x"),
    ],
)
def test_no_secret_is_shown(arguments: tuple[str, ...]) -> None:
    """Neither of a string that works, nor of one that cannot be read, nor of a wrong command line."""
    said = run(*arguments)
    assert said.code != 0
    assert SECRET not in said.out + said.err
    assert "Traceback" not in said.err


def test_a_secret_that_a_plugin_quotes_is_masked(install: Install, listening: int) -> None:
    """In findings, in errors, and of any other exception the class alone is shown."""
    install(inspecting(server='yield Finding("login", "fail", "h", "bad " + self.url.password.reveal())'))
    said = check(f"acme://user:{SECRET}@127.0.0.1:{listening}")
    assert said.only("login", "fail") == "bad ********** -> "


def test_a_secret_in_an_exception_of_a_plugin_is_not_shown(install: Install, listening: int) -> None:
    """Its class is all that is shown of it."""
    install(inspecting(server="raise RuntimeError(self.options.token.reveal())"))
    said = check(f"acme://127.0.0.1:{listening}?token={SECRET}")
    assert "RuntimeError" in said.only("server", "fail")
    assert SECRET not in said.out


def test_an_unexpected_error_is_shown_without_its_text(install: Install) -> None:
    """The place in the code, and the exit code of a mistake of ours."""
    install(HEAD.replace("return AcmeOptions", "raise KeyboardInterrupt") + f"# {SECRET}")
    said = run("describe", "acme")
    assert said.code == 130
    assert "Traceback" not in said.err


# -- names and ports --------------------------------------------------------------------------------------------------


def test_a_name_that_cannot_be_resolved(install: Install) -> None:
    """DNS says so; nothing after it is looked at."""
    install(inspecting())
    said = check("acme://no-such-host.invalid:7000", "-t", "orders")
    assert said.code == 5
    assert "resolved" in said.only("dns", "fail") or "name server" in said.only("dns", "fail")
    assert not said.findings("tcp")
    assert not said.findings("server")


def test_a_port_where_nobody_listens(install: Install) -> None:
    """The address that refuses is named."""
    install(inspecting())
    port = free_port()
    said = check(f"acme://localhost:{port}")
    assert said.code == 5
    assert "127.0.0.1 refuses connections" in said.only("tcp", "fail")
    assert said.findings("dns", "ok")[0]["subject"] == f"localhost:{port}"


def test_a_host_that_does_not_answer(install: Install) -> None:
    """The time-out bounds it, whatever the plugin's own is."""
    install(inspecting())
    port = free_port()
    with dead_address(port):
        began = time.monotonic()
        said = check(f"acme://{DEAD}:{port}", "--timeout", "0.5")
        assert time.monotonic() - began < 10
    assert said.code == 5
    assert "does not answer within 0.5 s" in said.only("tcp", "fail")


def test_one_of_two_hosts_is_enough(install: Install, listening: int) -> None:
    """What is wrong with the other one is a warning, and the plugin gets those that can be used."""
    install(inspecting(server='yield Finding("login", "ok", "", " ".join(map(str, endpoints)))'))
    said = check(f"acme://127.0.0.1:{free_port()},127.0.0.1:{listening}")
    assert said.code == 0
    assert "refuses" in said.only("tcp", "warn")
    assert said.findings("login")[0]["text"] == f"127.0.0.1:{listening}"


# -- strangers' plugins -----------------------------------------------------------------------------------------------


def test_a_plugin_takes_part(install: Install, listening: int) -> None:
    """Its findings stand behind the generic ones, in order."""
    install(inspecting())
    said = check(f"acme://127.0.0.1:{listening}", "-t", "orders", "-t", "bills", "-t", "orders")
    assert said.code == 0
    found = [(finding["step"], finding["subject"], finding["level"]) for finding in said.json["findings"]]
    assert found == [
        ("string", "", "ok"),
        ("plugin", "acme://", "ok"),
        ("options", "", "ok"),
        ("tcp", f"127.0.0.1:{listening}", "ok"),
        ("server", "", "ok"),
        ("topic", "orders", "ok"),
        ("topic", "bills", "ok"),
    ]


def test_a_plugin_without_inspection_is_connected_to(install: Install, listening: int) -> None:
    """Its health is asked for, and what nobody looked at is said."""
    install(HEAD)
    said = check(f"acme://127.0.0.1:{listening}", "-t", "orders")
    assert said.code == 0
    assert "its health is: ok" in said.only("server", "ok")
    assert "nobody looked at TLS" in said.only("server", "unseen")
    assert "--send" in said.only("topic", "unseen")


@pytest.mark.parametrize(
    ("connect", "step", "code"),
    [
        ('raise AuthenticationError("the password is wrong")', "login", 7),
        ('raise UnreachableError("nobody there")', "tcp", 5),
        ("await asyncio.sleep(60)", "tcp", 5),
        ("raise ValueError('x')", "server", 8),
    ],
)
def test_a_plugin_without_inspection_that_cannot_connect(install: Install, connect: str, step: str, code: int) -> None:
    """The class of its error says which step failed."""
    method = f"class AcmeDriver(Driver):\n    async def connect(self):\n        {connect}\n"
    install(HEAD.replace("class AcmeDriver(Driver):\n", method))
    said = check("acme://localhost", "--timeout", "0.5")
    assert said.code == code
    assert len(said.findings(step, "fail")) == 1


def test_a_plugin_that_never_answers_is_given_up(install: Install, listening: int) -> None:
    """After the time of one step; the next topic is looked at all the same."""
    install(inspecting(topic='await asyncio.sleep(60 if topic == "slow" else 0)'))
    said = check(f"acme://127.0.0.1:{listening}", "-t", "slow", "-t", "fast", "--timeout", "0.5")
    assert said.code == 9
    assert "no answer within 0.5 s" in said.only("topic", "fail")
    assert [finding["subject"] for finding in said.findings("topic", "ok")] == ["fast"]


def test_an_error_that_leaves_an_inspection_is_a_failure(install: Install, listening: int) -> None:
    """After it no topic is looked at, and the report says so."""
    install(inspecting(server='raise AuthenticationError("wrong password")'))
    said = check(f"acme://127.0.0.1:{listening}", "-t", "orders")
    assert said.code == 7
    assert said.only("login", "fail") == "wrong password -> "
    assert said.only("topic", "unseen").startswith("not looked at, because of the failure above")


@pytest.mark.parametrize(
    "hook",
    [
        "@hookimpl\ndef inspect_broker(url, options):\n    return None",
        "@hookimpl\ndef inspect_broker(url, options):\n    raise ValueError('x')",
        "@hookimpl\ndef inspect_broker(url, wrong):\n    pass",
        "def inspect_broker(url, options):\n    pass",
    ],
)
def test_a_hook_that_breaks_its_contract(install: Install, hook: str) -> None:
    """The plugin is named, not us."""
    install(f"{HEAD}\n{hook}\n")
    said = check("acme://localhost")
    assert said.code == 4
    assert "cqrs-broker-acme 1.2" in said.only("plugin", "fail")


def test_what_could_control_a_terminal_is_not_printed(install: Install, listening: int) -> None:
    """A server may say anything."""
    install(inspecting(server='yield Finding("server", "ok", "", "[red]x[/red] \\x1b[2J\\r\\n\\x07")'))
    said = run("check", f"acme://127.0.0.1:{listening}")
    assert "[red]x[/red]" in said.out
    assert not set("\x1b\r\x07") & set(said.out)


# -- brokers without a server -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("string", "server", "topic"),
    [
        ("memory://", ["nobody else reads them"], ("ok", "every")),
        ("memory://a?fail=2&latency=1ms", ["nobody else reads them", "on purpose: fail, latency"], ("ok", "every")),
        ("memory://a?fail_at=3&error=NackedError", ["nobody else reads them", "purpose: fail_at"], ("ok", "every")),
        ("memory://a?fail=0&error=NackedError", ["nobody else reads them"], ("ok", "every")),
        ("devnull://", ["every message is discarded"], ("warn", "discarded")),
    ],
)
def test_what_has_no_server(string: str, server: list[str], topic: tuple[str, str]) -> None:
    """It says what becomes of messages: warnings, and the exit code 0."""
    said = check(string, "-t", "orders")
    assert said.code == 0
    warned = said.findings("server", "warn")
    assert len(warned) == len(server)
    assert all(text in finding["text"] for text, finding in zip(server, warned, strict=True))
    assert topic[1] in said.only("topic", topic[0])
    assert not [finding for finding in said.json["findings"] if finding["level"] == "unseen"]


# -- a message --------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_without_send_and_one_message_with_it() -> None:
    """Its receipt is shown."""
    assert check("memory://orders", "-t", "orders").json["messages"] == []
    said = check("memory://orders", "-t", "orders", "-t", "bills", "--send")
    assert [message["topic"] for message in said.json["messages"]] == ["orders", "bills"]
    assert all(message["confirmed"] for message in said.json["messages"])
    assert said.json["messages"][0]["message_id"] in said.findings("send", "ok")[0]["text"]


@pytest.mark.parametrize(
    ("string", "level", "code", "says"),
    [
        ("memory://orders?fail=1", "fail", 10, "not delivered (RejectedError)"),
        ("memory://orders?unknown=1", "fail", 11, "it is not known"),
        ("devnull://", "warn", 0, "nobody confirms it"),
    ],
)
def test_what_became_of_the_message_decides(string: str, level: str, code: int, says: str) -> None:
    """Not delivered, unknown, and unconfirmed are three things."""
    said = check(string, "-t", "orders", "--send")
    assert said.code == code
    assert says in said.only("send", level)


def test_send_needs_a_topic() -> None:
    """A wrong command line has the exit code 2."""
    said = run("check", "memory://orders", "--send")
    assert said.code == 2
    assert "--topic" in said.err


def test_nothing_is_sent_where_something_failed(install: Install, listening: int) -> None:
    """To the topic that failed; the other one gets its message."""
    topic = 'if topic == "bad": yield Finding("topic", "fail", topic, "it is gone", "create it")'
    install(inspecting(topic=topic))
    said = check(f"acme://127.0.0.1:{listening}", "-t", "bad", "-t", "good", "--send")
    assert said.code == 9
    assert [message["topic"] for message in said.json["messages"]] == ["good"]
    assert said.findings("send", "unseen")[0]["subject"] == "bad"


# -- the last line, and what the lines are about ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "last"),
    [
        ("", "all is well; 0 to look at, 0 not looked at"),
        ('yield Finding("topic", "unseen", topic, "its queues")', "no failure; 0 to look at, 1 not looked at"),
        ('yield Finding("topic", "warn", topic, "it is small")', "no failure; 1 to look at, 0 not looked at"),
        ('yield Finding("topic", "fail", topic, "gone")', "1 of 7 findings failed; 0 to look at, 0 not looked at"),
    ],
)
def test_the_last_line_says_no_more_than_was_seen(install: Install, listening: int, topic: str, last: str) -> None:
    """All is well only if there is nothing to look at, and nothing that nobody looked at."""
    install(inspecting(topic=topic or "pass"))
    said = run("check", "--timeout", "30", f"acme://127.0.0.1:{listening}", "-t", "orders")
    assert said.out.splitlines()[-1] == last


def test_one_finding_is_one() -> None:
    """A string that cannot be read has no other."""
    last = run("check", "amqp://shop:pass@word@h").out.splitlines()[-1]
    assert last == "1 of 1 finding failed; 0 to look at, 0 not looked at"


@pytest.mark.parametrize("topic", ["o", "orders", "message"])
def test_a_finding_about_a_topic_names_it_first(topic: str) -> None:
    """Of a failed send too, and though the topic's name is a part of the text's words."""
    said = run("check", "memory://orders?fail=1", "-t", topic, "--send")
    lines = [line.split(maxsplit=2) for line in said.out.splitlines()]
    assert [(step, text.split()[0]) for _, step, text in lines if step in ("topic", "send")] == [
        ("topic", f"{topic}:"),
        ("send", f"{topic}:"),
    ]
