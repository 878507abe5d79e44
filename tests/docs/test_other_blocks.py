"""The blocks of README and documentation that are not ```python: commands, output, configuration, drawings.

`HELD` names for each block the test that runs it or holds it true, or says why there is none. Every command of this
project that a page shows is compared with what the command itself says.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docs.test_code_blocks import ROOT, files

INSTALL = "installs from a package index: test_what_is_installed_exists"
OPTIONS = "names commands only: test_a_command_has_the_options_that_are_shown"
BRACKETED = "tests/stranger/test_tutorial.py::test_each_code_block_is_a_whole_file_of_the_example"
MEMORY = "tests/testkit/test_memory_fixtures.py::test_the_tests_in_the_documentation_pass"
OUTBOX = "tests/outbox/test_operations.py::test_the_commands"
MIGRATIONS = "tests/outbox/test_migrations.py::test_an_applications_versions_stand_beside_the_outboxs"

HELD = {
    "README.md: $ python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s demo": (
        "tests/demo/test_demo.py::test_on_real_servers_every_event_is_read_back"
    ),
    "README.md: $ python -m cqrs_brokers_testkit acme --harness tests.test_conformance:AcmeHarness": OPTIONS,
    "docs/brokers/amqp.md: amqp://[user:password@]host[:port][,host[:port]…][/vhost][?option=value&…]": "a grammar",
    "docs/brokers/amqp.md: pip install cqrs-brokers-core cqrs-broker-amqp": INSTALL,
    "docs/brokers/kafka.md: pip install cqrs-brokers-core cqrs-broker-kafka": INSTALL,
    "docs/brokers/kafka.md: records                     written by the node": (
        "tests/docs_reference/test_tables.py::test_the_figure_of_a_partition_is_that_of_the_code"
    ),
    "docs/explanation/design.md: application ──Message──▶ Broker (core) ──Delivery──▶ driver (plugin) "
    "──▶ client library ──▶ Kafka, RabbitMQ, …": "a drawing",
    "docs/explanation/soak.md: nox -s soak -- amqp                # 1 000 000 receipts, 200 faults, about an hour": (
        "tests/soak/test_soak_amqp.py::test_short_soak"
    ),
    "docs/how-to/bundle.md: PluginLoadError: kafka:// is not registered: the module cqrs_broker_kafka is here, "
    "but the metadata of": (
        "tests/core/discovery/test_table.py::test_a_module_without_metadata_is_told_from_one_that_is_not_installed"
    ),
    "docs/how-to/bundle.md: pyinstaller --copy-metadata cqrs-broker-kafka --hidden-import cqrs_broker_kafka app.py": (
        "PyInstaller was tried by hand: it takes minutes, and is no dependency of the tests"
    ),
    "docs/how-to/check.md: $ pip install cqrs-brokers-cli": (
        "tests/cli/test_check_amqp.py::test_an_exchange_that_the_user_may_not_write_to"
    ),
    "docs/how-to/check.md: $ cqrs-brokers check 'amqps://shop@broker.example/shop?password_env=SHOP_PASSWORD' "
    "--topic orders --send": (
        "tests/cli/test_check_generic.py::test_nothing_is_sent_without_send_and_one_message_with_it"
    ),
    "docs/how-to/check.md: $ cqrs-brokers send 'kafka://h1:9092' orders '{\"id\": 7}' --name OrderPlaced --key 7": (
        "tests/cli/test_send.py::test_the_receipt_says_where_it_is"
    ),
    "docs/how-to/check.md: for attempt in 1 2 3 4 5; do": "tests/docs/test_other_blocks.py::test_the_loop_ends_at_once",
    "docs/how-to/consume.md: key.converter=org.apache.kafka.connect.storage.StringConverter": (
        "Kafka Connect was tried by hand: the page says with which version"
    ),
    'docs/how-to/consume.md: settings.put("key.deserializer", StringDeserializer.class);': (
        "Spring was tried by hand: the page says with which version"
    ),
    "docs/how-to/deploy.md: $ export CQRS_BROKER_URL='amqp://app@rabbit/?password_file=/run/secrets/broker"
    "&delivery_timeout=15s&close_timeout=10s'": (
        "tests/docs/test_deploy.py::test_each_request_in_flight_is_answered_truthfully"
    ),
    "docs/how-to/from-python-cqrs.md: amqp://user:password@rabbit/?exchange=events&declare=never": (
        "tests/amqp/test_topology.py::test_never_publishes_to_a_transient_topology"
    ),
    "docs/how-to/from-python-cqrs.md: pip uninstall aiokafka aio-pika": INSTALL,
    "docs/how-to/from-python-cqrs.md: {": (
        "tests/python_cqrs/test_bodies.py::test_the_documentation_shows_both_bodies_as_they_are"
    ),
    "docs/how-to/outbox.md: export CQRS_OUTBOX_DATABASE=postgresql+asyncpg://app@db/shop "
    "CQRS_BROKER_URL=kafka://localhost:9092": "tests/outbox/test_operations.py::test_a_relay_of_its_own_process",
    "docs/how-to/outbox.md: pip install 'cqrs-brokers-outbox[asyncpg]' cqrs-broker-kafka": INSTALL,
    "docs/how-to/outbox.md: python -m cqrs_brokers_outbox status       # what waits, how long, who works; "
    "exit code 2: somebody must look": OUTBOX,
    'docs/how-to/outbox.md: $ alembic revision --head base --version-path migrations/versions -m "first"': MIGRATIONS,
    "docs/how-to/outbox.md: version_locations = %(here)s/migrations/versions "
    "cqrs_brokers_outbox:migrations": MIGRATIONS,
    "docs/how-to/publish-a-plugin.md: pip install 'cqrs-broker-acme' 'cqrs-brokers-testkit[pytest]'": OPTIONS,
    "docs/how-to/test-your-application.md: from cqrs_brokers import open_broker": MEMORY,
    "docs/how-to/test-your-application.md: import pytest": MEMORY,
    "docs/how-to/test-your-application.md: pip install cqrs-broker-memory 'cqrs-brokers-testkit[pytest]' "
    "pytest-asyncio": INSTALL,
    "docs/index.md: pip install cqrs-broker-memory": INSTALL,
    "docs/reference/cli.md: $ cqrs-brokers check 'kafka://h1:9092,h2:9092' --topic orders --topic bills": (
        "tests/cli/test_check_kafka.py::test_a_string_that_works"
    ),
    "docs/reference/cli.md: $ cqrs-brokers send 'kafka://h1:9092' orders '{\"id\": 7}' --name OrderPlaced --key 7": (
        "tests/cli/test_send.py::test_the_receipt_says_where_it_is"
    ),
    "docs/reference/cli.md: {": "tests/cli/test_check_kafka.py::test_a_topic_that_is_missing",
    "docs/reference/config-strings.md: scheme://[user[:password]@]host[:port][,host[:port]…][/path][?option=value&…]": (
        "a grammar"
    ),
    "docs/reference/conformance.md: [project.entry-points.cqrs_brokers_conformance]": (
        "a pattern: packages/cqrs-brokers-testkit/pyproject.toml has it for the plugins of this project"
    ),
    "docs/reference/conformance.md: from cqrs_brokers_testkit.frames import forgeries, line_length": (
        "a pattern for the harness of the page: the harness in tests/conformance/mutant_runs.py has this form"
    ),
    "docs/reference/conformance.md: from cqrs_brokers_testkit.conformance import run": (
        "a pattern for the harness of the page: tests/conformance/test_suite.py runs `run`"
    ),
    "docs/reference/conformance.md: from cqrs_brokers_testkit.conformance.pytest_glue import BrokerConformance": (
        "a pattern for the harness of the page: tests/conformance/test_brokers.py has this form"
    ),
    "docs/reference/conformance.md: pip install cqrs-brokers-testkit": INSTALL,
    "docs/reference/conformance.md: python -m cqrs_brokers_testkit my                               "
    "# the registered harness": OPTIONS,
    "docs/reference/discovery.md: [project]": "a pattern: examples/cqrs-broker-redis-streams/pyproject.toml has it",
    "docs/reference/errors.md: BrokerError": ("tests/docs_reference/test_errors_page.py::test_the_tree_is_the_classes"),
    "docs/reference/testkit.md: pip install 'cqrs-brokers-testkit[pytest,amqp,kafka]'": INSTALL,
    'docs/reference/wire.md: {"event_id":"11111111-2222-4333-8444-555555555555",'
    '"event_timestamp":"2024-02-29T12:00:00Z",': (
        "tests/docs_reference/test_tables.py::test_the_event_on_the_wire_page_looks_as_it_is_shown"
    ),
    "docs/tutorials/getting-started.md: $ bin/kafka-topics.sh --bootstrap-server localhost:9092 --create "
    "--topic orders": "Kafka's own tool",
    "docs/tutorials/getting-started.md: $ docker exec CONTAINER /opt/kafka/bin/kafka-topics.sh "
    "--bootstrap-server localhost:9092 --create --topic orders": "not tried: the tests have no Docker daemon",
    "docs/tutorials/getting-started.md: $ python3 -m venv .venv && . .venv/bin/activate": INSTALL,
    "docs/tutorials/getting-started.md: <Receipt 0f5c… topic='orders' broker='amqp' confirmed>": (
        "tests/core/test_receipts.py::test_str_shows_all_that_is_known"
    ),
    "packages/cqrs-broker-amqp/README.md: pip install cqrs-brokers-core cqrs-broker-amqp": INSTALL,
    "packages/cqrs-broker-devnull/README.md: pip install cqrs-brokers-core cqrs-broker-devnull": INSTALL,
    "packages/cqrs-broker-kafka/README.md: pip install cqrs-brokers-core cqrs-broker-kafka": INSTALL,
    "packages/cqrs-broker-memory/README.md: $ pip install cqrs-brokers-core cqrs-broker-memory": INSTALL,
    "packages/cqrs-brokers-cli/README.md: pip install cqrs-brokers-cli cqrs-broker-amqp": INSTALL,
    "packages/cqrs-brokers-core/README.md: $ pip install cqrs-brokers-core cqrs-broker-kafka": INSTALL,
    "packages/cqrs-brokers-opentelemetry/README.md: pip install cqrs-brokers-opentelemetry": INSTALL,
    "packages/cqrs-brokers-outbox/README.md: pip install 'cqrs-brokers-outbox[sqlite]' cqrs-broker-memory": INSTALL,
    "packages/cqrs-brokers-python-cqrs/README.md: $ pip install cqrs-brokers-python-cqrs cqrs-broker-kafka": INSTALL,
    "packages/cqrs-brokers-testkit/README.md: pip install 'cqrs-brokers-testkit[pytest,amqp,kafka]'": INSTALL,
}
"""What holds a block, by "file: first line of the block": a test, or a reason. The tutorial's files are `BRACKETED`."""

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>.*)\n(?P<source>(?:.*\n)*?)(?P=indent)```$", re.MULTILINE)
NO_CODE = ("=== ", "!!! ", "* ", "- ", ":::", "::: ")
"""A line with four spaces below such a line belongs to a tab, a note, a list or a directive."""


def first_lines(path: Path) -> list[str]:
    """Of the blocks that test_code_blocks.py leaves out: other fences, and lines with four spaces."""
    text = path.read_text()
    fenced = [
        match["source"].strip().splitlines()[0]
        for match in FENCE.finditer(text)
        if not re.match(r"(python|py)\b", match["language"].strip())
    ]
    indented = []
    above, blank = "", True
    for line in FENCE.sub(r"\g<indent>x", text).splitlines():
        if line.startswith("    ") and blank and not above.startswith(NO_CODE):
            indented.append(line.strip())
        blank = not line.strip()
        if not blank and not line.startswith(" "):
            above = line
    return [f"{path.relative_to(ROOT)}: {line}" for line in [*fenced, *indented]]


def shown_commands() -> list[tuple[str, tuple[str, ...]]]:
    """Each command of ours with a name of its own, and the options with which a page or the README shows it."""
    command = re.compile(
        r"(?:(cqrs-brokers) (list|describe|check|send|new|outbox)"
        r"|python -m (cqrs_brokers_outbox|cqrs_brokers_testkit|soak)"
        r"(?: (relay|status|parked|release|discard|partitions))?)\b((?:[^\n`#|\\]|\\\n)*)"
    )
    found: dict[str, set[str]] = {}
    for path in files():
        for program, verb, module, word, rest in command.findall(path.read_text()):
            name = f"{program} {verb}" if program else f"{module} {word}".strip()
            found.setdefault(name, set()).update(re.findall(r"(?<=\s)--[a-z-]+", rest))
    return sorted((name, tuple(sorted(options))) for name, options in found.items())


def test_every_other_block_is_held_by_a_test_or_has_a_reason() -> None:
    """No more and no fewer: a new block needs an entry, an entry without a block is out of date."""
    tutorial = "docs/tutorials/write-a-broker-plugin.md"
    found = {line for path in files() for line in first_lines(path) if not line.startswith(tutorial)}
    assert found == set(HELD)


@pytest.mark.parametrize("test", sorted({held for held in [*HELD.values(), BRACKETED] if held.startswith("tests/")}))
def test_the_test_that_holds_a_block_is_there(test: str) -> None:
    """In that file, under that name."""
    file, _, name = test.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize(("command", "options"), shown_commands())
def test_a_command_has_the_options_that_are_shown(command: str, options: tuple[str, ...]) -> None:
    """Its own help lists them."""
    program, *words = command.split()
    start = [str(Path(sys.executable).parent / program)] if "-" in program else [sys.executable, "-m", program]
    done = subprocess.run(
        [*start, *words, "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not [option for option in options if not re.search(rf"{option}\b", done.stdout)]


def test_what_is_installed_exists() -> None:
    """Each of our distributions that a page tells to install has that name, and the extras in brackets."""
    extras = {"cqrs-broker-acme": set[str]()}  # the reader's own
    for path in ROOT.glob("packages/*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        extras[project["name"]] = set(project.get("optional-dependencies", {}))
    named = re.compile(r"\b(cqrs-brokers?-[a-z-]+)(?:\[([a-z0-9,-]+)\])?")
    shown = {
        (name, frozenset(filter(None, brackets.split(","))))
        for path in files()
        for line in re.findall(r"pip install ([^`\n]*)", path.read_text())
        for name, brackets in named.findall(line)
    }
    assert not [(name, chosen) for name, chosen in shown if name not in extras or chosen - extras[name]]


def test_a_session_that_is_shown_exists() -> None:
    """Each `nox -s NAME` is a session of noxfile.py."""
    sessions = set(re.findall(r"^def (\w+)\(session: nox\.Session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))
    shown = {name for path in files() for name in re.findall(r"nox -s (\w+)", path.read_text())}
    assert shown <= sessions


def test_the_loop_ends_at_once(tmp_path: Path) -> None:
    """The loop for deployments, as it stands on its page, with a broker that is there: exit code 0 and one document."""
    page = (ROOT / "docs/how-to/check.md").read_text()
    (loop,) = [match["source"] for match in FENCE.finditer(page) if match["language"].strip() == "sh"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CQRS_BROKER_URL": "memory://loop"}
    done = subprocess.run(["sh", "-c", loop], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"ok": true' in (tmp_path / "check.json").read_text()
