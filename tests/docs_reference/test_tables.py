"""The tables of the documentation are what the code says."""

import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cqrs_brokers._message import validation
from cqrs_brokers.options import BrokerOptions, describe_options

DOCS = Path(__file__).parents[2] / "docs"
MARKER = re.compile(r"<!-- options: ([\w.]+)\.(\w+) -->\n((?:\|.*\n)+)")
TABLES = [
    pytest.param(*match.groups(), id=f"{page.relative_to(DOCS)}:{match[2]}")
    for page in sorted(DOCS.rglob("*.md"))
    for match in MARKER.finditer(page.read_text())
]
WIRE = (DOCS / "reference" / "wire.md").read_text()


@pytest.mark.parametrize(("module", "name", "table"), TABLES)
def test_a_table_of_options_is_its_model(module, name, table):
    """Name, default, unit and sentence of each option that is the model's own, in the same order.

    A page marks its table with `<!-- options: module.Model -->`.
    """
    model = getattr(importlib.import_module(module), name)
    shared = BrokerOptions.model_fields if model is not BrokerOptions else {}
    expected = [
        f"| `{item.name}` | {item.default} | {item.unit or ''} | {item.description} |"
        for item in describe_options(model)
        if item.name not in shared
    ]
    assert [" ".join(row.split()) for row in table.splitlines()[2:]] == [" ".join(row.split()) for row in expected]


def test_the_memory_page_has_its_table():
    """The check above finds it."""
    assert any("MemoryOptions" in str(table.values) for table in TABLES)


@pytest.mark.parametrize("page", sorted((DOCS / "brokers").glob("*.md")), ids=lambda page: page.stem)
def test_a_brokers_page_has_every_option_and_the_right_defaults(page):
    """Each option that is the broker's own stands in a first column; a plain default beside a single one is true."""
    plugin = importlib.import_module(f"cqrs_broker_{page.stem}")
    own = {
        item.name: item.default
        for item in describe_options(plugin.broker_options())
        if item.name not in BrokerOptions.model_fields
    }
    listed = set()
    for names, default in re.findall(r"^\| (`[^|]+`) *\| *([^|]*?) *\|", page.read_text(), re.MULTILINE):
        options = re.findall(r"`([^`]+)`", names)
        listed |= set(options)
        plain = default.strip("`")
        if len(options) == 1 and options[0] in own and default.startswith("`") and own[options[0]] != "none":
            assert plain == own[options[0]], options[0]
    assert own.keys() - listed <= {"password"}  # in the URL's user part: said on the page of config strings


def test_the_wire_page_names_the_reserved_headers():
    """All of them, and no other."""
    sentence = re.search(r"Reserved header names[^:]*: ([^.]*)\.", WIRE)
    assert sentence
    assert set(re.findall(r"`([^`]+)`", sentence[1])) == validation.RESERVED_HEADERS


def test_the_wire_page_has_the_limits_of_the_code():
    """The numbers of `validation`."""
    limits = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", WIRE.partition("## Limits")[2], re.MULTILINE))
    assert f"1 to {validation.MAX_NAME_BYTES} bytes" in limits["`topic`, `message_name`, `content_type`"]
    assert f"1 to {validation.MAX_HEADER_NAME_BYTES} bytes" in limits["header name"]
    assert limits["`key`, header value"].replace(" ", "").startswith(f"{validation.MAX_TEXT_BYTES}bytes")
    assert limits["headers"] == str(validation.MAX_HEADERS)
    default = BrokerOptions.model_fields["max_message_bytes"].default
    assert f"`max_message_bytes`, {default:,} by default".replace(",", " ") in limits["all together"].replace(",", " ")


def test_the_event_on_the_wire_page_looks_as_it_is_shown():
    """The page's example prints the page's JSON."""
    example = re.search(r"```python\n(.*?)```\n\n```json\n(.*?)\n```", WIRE, re.DOTALL)
    assert example
    command = [sys.executable, "-W", "error", "-c", example[1]]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert printed.splitlines() == ["OrderPlaced 7", example[2].replace("\n ", "")]  # one line, broken on the page


def test_the_figure_of_a_partition_is_that_of_the_code():
    """Kafka's page shows the state machine as the docstring of its module does."""
    figure = re.search(r"### The state machine.*?```text\n(.*?)```", (DOCS / "brokers" / "kafka.md").read_text(), re.S)
    assert figure[1].count("\n") > 10
    assert textwrap.indent(figure[1], "    ") in importlib.import_module("cqrs_broker_kafka._partition").__doc__
