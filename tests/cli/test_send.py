"""`send`: one message, many, and the truth about each when it is interrupted."""

from __future__ import annotations

import codecs
import contextlib
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pika
import pytest

from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue, drain_queue, drain_topic
from cqrs_brokers_testkit.servers import KafkaServer, RabbitMQServer, free_port

from .conftest import run

Name = Callable[[str], str]


def lines(count: int) -> str:
    return "".join(json.dumps({"n": number, "customer": f"c{number % 7}"}) + "\n" for number in range(count))


# -- one message ------------------------------------------------------------------------------------------------------


@pytest.mark.live
def test_one_message_arrives_as_it_was_written(rabbitmq: RabbitMQServer, unique_name: Name) -> None:
    """Body, name, key, header and content type; its receipt is shown."""
    exchange = unique_name("exchange")
    queue = bind_queue(rabbitmq.url, exchange, "orders")
    url = f"{rabbitmq.url}?exchange={exchange}"
    said = run("send", url, "orders", '{"id": 7}', "--name", "OrderPlaced", "--key", "7", "--header", "tenant=a=b")
    assert said.code == 0
    (record,) = drain_queue(rabbitmq.url, queue, 1)
    assert record.body == b'{"id": 7}'
    assert record.headers["tenant"] == "a=b"
    assert f"confirmed: message {record.message_id}" in said.out
    assert run("send", url, "orders", "not json").code == 0
    (record,) = drain_queue(rabbitmq.url, queue, 1)
    assert record.body == b"not json"


@pytest.mark.live
def test_the_receipt_says_where_it_is(kafka: KafkaServer, unique_name: Name) -> None:
    """Partition and offset of Kafka, also in JSON; the string comes from the variable."""
    topic = unique_name("topic")
    kafka.create_topic(topic)
    assert "partition 0, offset 0" in run("send", kafka.url, topic, "{}").out
    receipt = run("send", topic, "{}", "--json", CQRS_BROKER_URL=kafka.url).json["receipt"]
    assert (receipt["partition"], receipt["offset"], receipt["confirmed"]) == (0, 1, True)


@pytest.mark.parametrize(
    ("string", "code", "says"),
    [
        ("memory://x", 0, "confirmed: message"),
        ("devnull://", 0, "handed over, which nobody confirms"),
        ("memory://x?fail=1", 10, "1 not delivered (RejectedError): rejected by the script"),
        ("memory://x?unknown=1", 11, "1 unknown: each may be in the broker, or may not"),
        ("memory://x?fail_connect=1", 5, ""),
        ("memory://x?colour=red", 3, ""),
        ("nowhere://x", 4, ""),
        ("amqp://localhost:1/", 5, ""),
    ],
)
def test_the_exit_code_says_what_became_of_it(string: str, code: int, says: str) -> None:
    """And so does the text; what is wrong with the way there is on stderr."""
    said = run("send", string, "orders", "{}")
    assert said.code == code
    assert says in said.out
    assert bool(said.err) == (not says)


@pytest.mark.parametrize(
    "arguments",
    [
        ("memory://x",),
        ("memory://x", '{"id": 7}'),
        ("memory://x", "orders", "{}", "more"),
        ("memory://x", "orders", "{}", "--file", "x"),
        ("memory://x", "orders", "{}", "--header", "x"),
        ("memory://x", "orders", "{}", "--key", "1", "--key-field", "id"),
        ("memory://x", "orders", "--file", "/nowhere.ndjson"),
        ("memory://x", "orders", "[]", "--key-field", "id"),
    ],
)
def test_a_wrong_command_line_sends_nothing(arguments: tuple[str, ...]) -> None:
    """The exit code is 2, and stderr says why."""
    said = run("send", *arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("cqrs-brokers: ")


# -- many messages ----------------------------------------------------------------------------------------------------


@pytest.mark.live
def test_every_line_is_a_message(kafka: KafkaServer, unique_name: Name, tmp_path: Path) -> None:
    """From a file; those with the same key keep their order; the report counts them."""
    topic = unique_name("topic")
    kafka.create_topic(topic, partitions=3)
    file = tmp_path / "orders.ndjson"
    file.write_text(lines(5_000))
    said = run("send", kafka.url, topic, "--file", file, "--key-field", "customer", "--json")
    assert said.code == 0
    assert said.json["confirmed"] == 5_000
    records = drain_topic(kafka.reader_bootstrap_servers, topic, 5_000)
    assert len(records) == 5_000
    numbers: dict[str, list[int]] = {}
    for record in records:
        assert record.body is not None
        body = json.loads(record.body)
        assert record.key == body["customer"]
        numbers.setdefault(body["customer"], []).append(body["n"])
    assert all(listed == sorted(listed) for listed in numbers.values())


@pytest.mark.live
def test_lines_of_standard_input(rabbitmq: RabbitMQServer, unique_name: Name) -> None:
    """With their own ids, without the empty ones, the last without a line break."""
    exchange = unique_name("exchange")
    queue = bind_queue(rabbitmq.url, exchange, "orders")
    ids = [str(uuid.uuid4()) for _ in range(3)]
    text = "\r\n\n".join(json.dumps({"id": message_id}) for message_id in ids)
    said = run("send", f"{rabbitmq.url}?exchange={exchange}", "orders", "--id-field", "id", stdin=text)
    assert said.code == 0
    assert said.out.startswith("3 confirmed in ")
    assert [str(record.message_id) for record in drain_queue(rabbitmq.url, queue, 3)] == ids


def test_the_report_names_every_line_that_did_not_arrive() -> None:
    """Grouped by reason, without a word of the bodies; unknown ones are listed by id, all of them."""
    one = '{"customer": "c"}\n'  # of one key, because only those keep their order
    text = one * 5 + "canary-body\n" + one + '{"n": null}\n' + one * 20
    said = run("send", "memory://x?fail=2&unknown=15", "orders", "--key-field", "customer", "--json", stdin=text)
    assert said.code == 11
    report = said.json
    assert report["confirmed"] == 26 - 17
    assert report["not_delivered"][0]["lines"] == [1, 2]
    assert {group["text"]: group["lines"] for group in report["not_sent"]} == {
        "it is not JSON": [6],
        "it has no field 'customer' with a text or a whole number": [8],
    }
    assert [one["line"] for one in report["unknown"]] == [3, 4, 5, 7, *range(9, 20)]
    assert len({one["message_id"] for one in report["unknown"]}) == 15
    shown = run("send", "memory://x?fail=2&unknown=15", "orders", "--key-field", "customer", stdin=text)
    assert "2 not delivered (RejectedError)" in shown.out
    assert sum(line.endswith("DeliveryUnknownError") for line in shown.out.splitlines()) == 15
    assert "canary-body" not in said.out + said.err + shown.out + shown.err


@pytest.mark.live
def test_a_byte_order_mark_of_the_file_is_no_content(
    rabbitmq: RabbitMQServer, unique_name: Name, tmp_path: Path
) -> None:
    """Some editors and shells write one. A reader of JSON in the queue would fail."""
    exchange = unique_name("exchange")
    queue = bind_queue(rabbitmq.url, exchange, "orders")
    file = tmp_path / "orders.ndjson"
    file.write_bytes(codecs.BOM_UTF8 + b'{"n": 1}\n{"n": 2}\n' + codecs.BOM_UTF8 + b'{"n": 3}\n')
    said = run("send", f"{rabbitmq.url}?exchange={exchange}", "orders", "--file", file, "--json")
    assert said.json["not_sent"] == [{"text": "it is not JSON", "lines": [3]}]
    assert [record.body for record in drain_queue(rabbitmq.url, queue, 2)] == [b'{"n": 1}', b'{"n": 2}']


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"n": NaN}', "it is not JSON"),
        (b"[-Infinity]", "it is not JSON"),
        ('{"n": 1}'.encode("utf-16"), "it is not UTF-8"),
        ('{"n": 1}'.encode("utf-16-le"), "it is not JSON"),
        ('{"n": "ü"}'.encode("latin-1"), "it is not UTF-8"),
    ],
)
def test_what_only_python_takes_for_json_is_not_sent(line: bytes, says: str, tmp_path: Path) -> None:
    """JSON is UTF-8, and has no NaN: whoever reads such a message would fail."""
    file = tmp_path / "orders.ndjson"
    file.write_bytes(line)
    said = run("send", "memory://x", "orders", "--file", file, "--json")
    assert (said.code, said.json["confirmed"]) == (10, 0)
    assert said.json["not_sent"] == [{"text": says, "lines": [1]}]


def test_a_body_that_is_no_text_is_refused() -> None:
    """The shell passes any bytes."""
    command = [sys.executable, "-m", "cqrs_brokers_cli", "send", "memory://x", "orders", b"canary\xff"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.strip() == b"cqrs-brokers: the body cannot be sent: it is not UTF-8"


def test_no_line_is_no_error() -> None:
    """Nothing was to be sent, and nothing was."""
    said = run("send", "memory://x", "orders", stdin="")
    assert said.code == 0
    assert said.out.startswith("0 confirmed")


@pytest.mark.live
def test_lines_leave_when_they_come(rabbitmq: RabbitMQServer, unique_name: Name) -> None:
    """A producer that writes a line now and then does not wait for the end of the input."""
    exchange = unique_name("exchange")
    queue = bind_queue(rabbitmq.url, exchange, "orders")
    with started("send", f"{rabbitmq.url}?exchange={exchange}", "orders") as process:
        assert process.stdin is not None
        process.stdin.write('{"n": 1}\n')
        process.stdin.flush()
        assert len(drain_queue(rabbitmq.url, queue, 1, timeout=30)) == 1
        assert process.poll() is None
        out, _ = process.communicate('{"n": 2}\n', timeout=30)
    assert process.returncode == 0
    assert out.startswith("2 confirmed")


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


class started:
    """A command that runs, with pipes."""

    def __init__(self, *arguments: str) -> None:
        self._command = [sys.executable, "-W", "error", "-m", "cqrs_brokers_cli", *arguments]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        return self._process

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """30 s at most."""
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within 30 s")


@pytest.mark.live
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_ctrl_c_while_it_waits_for_input(rabbitmq: RabbitMQServer, unique_name: Name, sent: signal.Signals) -> None:
    """It ends at once, as at the end of a container; the report is about what was read, and that the queue has."""
    exchange = unique_name("exchange")
    queue = bind_queue(rabbitmq.url, exchange, "orders")
    with started("send", f"{rabbitmq.url}?exchange={exchange}", "orders", "--json") as process:
        assert process.stdin is not None
        process.stdin.write(lines(10))
        process.stdin.flush()
        assert len(drain_queue(rabbitmq.url, queue, 10, timeout=30)) == 10
        time.sleep(0.5)  # so that the confirms are here too
        process.send_signal(sent)
        began = time.monotonic()
        process.wait(timeout=20)
        assert time.monotonic() - began < 5
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 130
    assert (report["confirmed"], report["interrupted"], report["unknown"]) == (10, True, [])


@pytest.fixture
def proxied(rabbitmq: RabbitMQServer, fault_proxy: FaultProxy) -> FaultProxy:
    """A way to RabbitMQ that can be stopped."""
    fault_proxy.target = (rabbitmq.host, rabbitmq.port)
    return fault_proxy


@pytest.mark.live
@pytest.mark.fault
def test_ctrl_c_twice_while_confirms_are_missing(
    rabbitmq: RabbitMQServer, proxied: FaultProxy, unique_name: Name, tmp_path: Path
) -> None:
    """It ends at once, and what has no confirm is unknown, by id: the queue has each that is confirmed or unknown."""
    exchange = unique_name("exchange")
    queue = bind_queue(rabbitmq.url, exchange, "orders")
    file = tmp_path / "orders.ndjson"
    file.write_text(lines(200_000))
    url = rabbitmq.url.replace(f":{rabbitmq.port}", f":{proxied.port}")

    def some_arrived() -> bool:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbitmq.url))) as connection:
            return bool(connection.channel().queue_declare(queue, passive=True).method.message_count)

    with started("send", f"{url}?exchange={exchange}", "orders", "--file", str(file), "--json") as process:
        wait_until(some_arrived)
        proxied.stall("down")
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    report = json.loads(out)
    assert process.returncode == 130
    assert report["interrupted"] is True
    assert "Ctrl-C again ends at once" in err
    assert report["unknown"]
    arrived = drain_queue(rabbitmq.url, queue)
    assert report["confirmed"] <= len(arrived) <= report["confirmed"] + len(report["unknown"])


def test_a_broker_that_is_not_there_ends_it_before_a_line_is_read() -> None:
    """With the exit code of what is wrong."""
    said = run("send", f"amqp://localhost:{free_port()}/", "orders", stdin=lines(3))
    assert said.code == 5
    assert said.out == ""
