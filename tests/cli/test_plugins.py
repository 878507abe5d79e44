"""`list` and `describe`."""

import json

import pytest

from cqrs_brokers import open_broker

from .conftest import Install, run

PLUGIN = """
from cqrs_brokers.driver import Driver
from cqrs_brokers.hooks import hookimpl

class AcmeDriver(Driver):
    async def send_message(self, message):
        return None

@hookimpl
def open_message_broker(url, options):
    return AcmeDriver()
"""


def test_list_shows_each_scheme_with_its_distribution_version_and_status() -> None:
    """One plain line each where nobody looks, without escapes."""
    said = run("list")
    assert said.code == 0
    assert said.err == ""
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[0] == ["scheme", "distribution", "version", "status", "reason"]
    listed = {row[0]: row[1:] for row in rows[1:]}
    assert listed["kafka"][0::2] == ["cqrs-broker-kafka", "ready"]
    assert listed["amqps"][0::2] == ["cqrs-broker-amqp", "ready"]
    assert "\x1b" not in said.out


def test_list_says_why_a_scheme_cannot_be_used(install: Install) -> None:
    """Here: the plugin needs another core."""
    install(PLUGIN, requires="cqrs-brokers-core>=7")
    (info,) = [info for info in run("list", "--json").json if info["name"] == "acme"]
    assert (info["distribution"], info["version"], info["status"]) == ("cqrs-broker-acme", "1.2", "incompatible")
    assert "cqrs-brokers-core>=7" in info["reason"]
    assert "incompatible" in run("list").out


def test_describe_shows_type_unit_default_and_secrecy_of_each_option() -> None:
    """Of Kafka's; and what it can do with the defaults."""
    described = run("describe", "kafka", "--json").json
    options = {option.pop("name"): option for option in described["options"]}
    assert options["linger_ms"] | {"description": ""} == {
        "type": "whole number",
        "unit": "ms",
        "default": "0",
        "secret": False,
        "description": "",
    }
    assert options["acks"]["type"] == "one of all, -1, 1, 0"
    assert options["sasl_plain_password"]["secret"] is True
    assert options["delivery_timeout"]["type"].startswith("duration")
    shown = options["max_message_bytes"]["type"]
    assert shown.startswith("size")
    for example in shown[shown.index("(") + 1 : shown.index(")")].split(", "):
        open_broker(f"kafka://h?max_message_bytes={example}")  # the parser takes what the listing shows
    assert options["ssl_context"]["type"] == "object, in code only"
    assert options["retry_count"]["type"] == "whole number"
    assert all(option["description"] for option in options.values())
    assert described["url_parts"] == ["hosts"]
    assert described["capabilities"]["ordering_key"] is True
    assert described["capabilities"]["header_types"] == ["None", "bytes", "str"]


@pytest.mark.parametrize("scheme", ["amqp", "amqps", "devnull", "memory", "AMQP", "kafka://"])
def test_describe_knows_the_capabilities_of_every_scheme(scheme: str) -> None:
    """Whatever its plugin needs in a string; nothing connects."""
    assert run("describe", scheme, "--json").json["capabilities"] is not None


def test_describe_in_plain_lines() -> None:
    """A table without borders or escapes."""
    said = run("describe", "amqp")
    assert said.code == 0
    assert "\x1b" not in said.out
    row = next(line for line in said.out.splitlines() if line.startswith("exchange_type"))
    assert "one of topic, direct, fanout, headers" in row
    assert any(line.split() == ["durable", "yes"] for line in said.out.splitlines())


def test_describe_an_unknown_scheme_suggests_the_nearest() -> None:
    """With the exit code of plugins."""
    said = run("describe", "kafak")
    assert said.code == 4
    assert said.out == ""
    assert said.err == "cqrs-brokers: unknown scheme 'kafak'; did you mean 'kafka'?\n"


def test_describe_a_plugin_without_options_of_its_own(install: Install) -> None:
    """It has those of every broker."""
    install(PLUGIN)
    described = run("describe", "acme", "--json").json
    assert {option["name"] for option in described["options"]} >= {"delivery_timeout", "max_in_flight"}
    assert described["plugin"] == "cqrs-broker-acme 1.2"
    json.dumps(described)
