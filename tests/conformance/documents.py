"""Writes the reports and the table of mutants into docs/reference.

`python -m tests.conformance.documents [memory] [devnull] [amqp] [kafka] [mutants]`; without arguments all of them.
Needs RabbitMQ and Kafka for theirs.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from cqrs_brokers_testkit.conformance import CASES, Harness, run
from cqrs_brokers_testkit.harnesses.in_process import DevnullHarness, MemoryHarness
from cqrs_brokers_testkit.harnesses.kafka import KafkaHarness
from cqrs_brokers_testkit.harnesses.rabbitmq import RabbitMQHarness
from tests.conformance import mutants, unordered_mutants, wire_mutants
from tests.conformance.mutant_runs import ROOT, Ran, run_many

HARNESSES: Mapping[str, type[Harness]] = {
    "memory": MemoryHarness,
    "devnull": DevnullHarness,
    "amqp": RabbitMQHarness,
    "kafka": KafkaHarness,
}
REFERENCE = ROOT / "docs" / "reference"
COMMAND = "python -m tests.conformance.documents"

BY_BROKER = "`Broker` does this before a driver sees the message, so no driver can break it; the case guards `Broker`."
BY_CORE = "Core parses the string, so no plugin can break it; the case guards core."
BY_HARNESS = "It compares what the harness says with what the driver declares; tested by itself."

UNCAUGHT: Mapping[str, str] = {
    "static.core-does-not-import-the-plugin": "Only a change of core, or a .pth file, could break it.",
    "static.bad-value-is-refused": BY_CORE,
    "static.duplicate-option-is-refused": BY_CORE,
    "static.malformed-string-is-refused": BY_CORE,
    "static.config-string-is-stable": BY_CORE,
    "static.description-is-complete": "Core describes what the plugin's model declares; the case guards core.",
    "messages.anything-message-like-is-sent": BY_BROKER,
    "refusals.illegal-name-or-id": BY_BROKER,
    "refusals.illegal-header": BY_BROKER,
    "refusals.reserved-header": BY_BROKER,
    "refusals.too-large": BY_BROKER,
    "refusals.unencodable-payload": BY_BROKER,
    "refusals.key-without-the-capability": BY_BROKER,
    "refusals.headers-without-the-capability": BY_BROKER,
    "delivery.discarding-promises-nothing": BY_HARNESS,
    "delivery.discards-only-without-confirms": BY_HARNESS,
    "lifecycle.first-send-connects": "`Broker` connects; the case guards `Broker`.",
    "lifecycle.closed-refuses": "`Broker` refuses; the case guards `Broker`.",
    "lifecycle.other-loop-is-refused": "`Broker` knows its loop; the case guards `Broker`.",
    "lifecycle.forked-child-is-refused": "`Broker` notices the fork; the case guards `Broker`.",
}
"""Why a case catches no mutant."""


def expected() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of each mutant its defect and the cases that must catch it."""
    found = {name: (mutant.defect, mutant.caught_by) for name, mutant in mutants.MUTANTS.items()}
    on_a_wire: dict[str, type] = {**wire_mutants.WIRE_MUTANTS, **unordered_mutants.UNORDERED_MUTANTS}
    for name, driver in on_a_wire.items():
        found[name] = ((driver.__doc__ or "").strip().splitlines()[0], driver.caught_by)  # type: ignore[attr-defined]
    return found


def jobs() -> dict[str, list[str]]:
    """Of each mutant the cases to run: those that must catch it."""
    return {name: list(cases) for name, (_, cases) in expected().items()}


def mutants_table(runs: Mapping[str, Ran | Exception] | None = None) -> str:
    """The table of mutants and cases.

    Args:
        runs: What the run of each mutant came to; None: as it must be.
    """
    lines = [
        "# Mutants",
        "",
        f"Deliberately broken drivers, and the cases of the conformance suite that catch each. Written by `{COMMAND}"
        " mutants`, which runs them; a test runs them, too, and checks that this page is current.",
        "",
        "| mutant | what is wrong with it | caught by |",
        "| --- | --- | --- |",
    ]
    for name, (defect, cases) in expected().items():
        cells, ran = [], runs[name] if runs is not None else None
        for case in cases:
            caught = ran is None or (isinstance(ran, Ran) and ran.statuses.get(case) == "failed")
            cells.append(f"`{case}`" + ("" if caught else " **not caught**"))
        lines.append(f"| {name} | {defect} | {', '.join(cells)} |")
    lines += ["", "## Cases that catch no mutant", "", "| case | why |", "| --- | --- |"]
    lines += [f"| `{case}` | {reason} |" for case, reason in UNCAUGHT.items()]
    return "\n".join([*lines, ""])


def report_page(name: str) -> tuple[str, bool]:
    """Runs the suite against one of our brokers; returns the page and whether it passed."""
    report = run(HARNESSES[name]())
    head = f"# Conformance of {name}://\n\nWritten by `{COMMAND} {name}`. See [the suite](conformance.md).\n\n"
    return head + report.table(), report.passed


def main(names: list[str]) -> int:
    """Writes the pages; returns 1 when something did not pass."""
    logging.getLogger().addHandler(logging.NullHandler())
    passed = True
    for name in names or [*HARNESSES, "mutants"]:
        if name == "mutants":
            page = mutants_table(run_many(jobs()))
            (REFERENCE / "mutants.md").write_text(page, encoding="utf-8")
            passed &= page == mutants_table()
        else:
            page, ok = report_page(name)
            (REFERENCE / f"conformance-{name}.md").write_text(page, encoding="utf-8")
            passed &= ok
    return 0 if passed else 1


if __name__ == "__main__":
    assert all(case in CASES for case in UNCAUGHT)
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # a driver that did not end its threads must not keep this process
