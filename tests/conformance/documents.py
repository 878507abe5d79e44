"""Writes the reports and the table of mutants into docs/reference.

`python -m tests.conformance.documents [memory] [devnull] [amqp] [kafka] [mutants]`; without arguments all of them.
Needs RabbitMQ and Kafka for theirs. `mutants` runs every case against each mutant of which the page has no result,
which takes an hour for all of them on two cores, and may be interrupted; delete the page to begin anew.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from cqrs_brokers_testkit.conformance import CASES, Harness, run
from cqrs_brokers_testkit.harnesses.in_process import DevnullHarness, MemoryHarness
from cqrs_brokers_testkit.harnesses.kafka import KafkaHarness
from cqrs_brokers_testkit.harnesses.rabbitmq import RabbitMQHarness
from tests.conformance import mutant_plugin, unordered_plugin, wire_mutants
from tests.conformance.mutant_runs import ROOT, run_many

HARNESSES: Mapping[str, type[Harness]] = {
    "memory": MemoryHarness,
    "devnull": DevnullHarness,
    "amqp": RabbitMQHarness,
    "kafka": KafkaHarness,
}
AT_ONCE = 12
PATIENCE = 1800.0
"""Seconds for one mutant with all cases: with one that answers nothing, most cases wait until their own limit."""
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
    "refusals.tombstone-without-the-capability": BY_BROKER,
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
    found = {name: (mutant.defect, mutant.caught_by) for name, mutant in mutant_plugin.MUTANTS.items()}
    on_a_wire: dict[str, type] = {**wire_mutants.WIRE_MUTANTS, **unordered_plugin.UNORDERED_MUTANTS}
    for name, driver in on_a_wire.items():
        found[name] = ((driver.__doc__ or "").strip().splitlines()[0], driver.caught_by)  # type: ignore[attr-defined]
    return found


def jobs() -> dict[str, list[str]]:
    """Of each mutant the cases that must catch it."""
    return {name: list(cases) for name, (_, cases) in expected().items()}


Matrix = dict[str, Collection[str] | None]
"""Of each mutant the cases that fail with it; None: it was not yet run with all cases."""
_NOT_RUN = "not yet run with all cases"


def written_matrix(page: str) -> Matrix:
    """The matrix that stands on the page; mutants that are not there were not run."""
    table = page.partition("| --- | --- | --- | --- |")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ", 2) for line in table.strip().splitlines()]
    known = {name: None if _NOT_RUN in cases else re.findall(r"`([^`]+)`", cases) for name, _, cases in rows}
    return {name: known.get(name) for name in expected()}


def mutants_page(matrix: Matrix) -> str:
    """The page of mutants and cases: each mutant with all cases that fail with it, each case with all its mutants."""
    lines = [
        "# Mutants",
        "",
        "Deliberately broken drivers, and the cases of the conformance suite that fail with each.",
        "",
        f"`{COMMAND} mutants` runs every case against every mutant and writes this page. *Must catch it* names"
        " the cases that are about the defect: a test runs these in every build. *Fails, too* is the rest of"
        " the matrix, as the last full run found it. What a broken driver does to cases about something else can depend"
        " on time, so no build relies on it.",
        "",
        "| mutant | what is wrong with it | must catch it | fails, too |",
        "| --- | --- | --- | --- |",
    ]
    for name, (defect, named) in expected().items():
        failed = matrix[name]
        must = [f"`{case}`" + ("" if failed is None or case in failed else " **not caught**") for case in named]
        too = [f"`{case}`" for case in CASES if case in (failed or ()) and case not in named]
        others = _NOT_RUN if failed is None else ", ".join(too)
        lines.append(f"| {name} | {defect} | {', '.join(must)} | {others} |")
    lines += [
        "",
        "## By case",
        "",
        "In bold: the case is about this defect.",
        "",
        "| case | mutants |",
        "| --- | --- |",
    ]
    for case in CASES:
        about = {name for name, (_, named) in expected().items() if case in named}
        failing = [name for name, cases in matrix.items() if name in about or case in (cases or ())]
        by = [f"**{name}**" if name in about else name for name in failing]
        lines.append(f"| `{case}` | {', '.join(by)} |")
    lines += ["", "## Cases that are about no mutant", "", "| case | why it stays |", "| --- | --- |"]
    lines += [f"| `{case}` | {reason} |" for case, reason in UNCAUGHT.items()]
    return "\n".join([*lines, ""])


def run_mutants(file: Path) -> bool:
    """Runs every case against each mutant of which the page has no result yet; returns whether all are caught.

    Raises:
        RuntimeError: A mutant could not be run.
    """
    matrix = written_matrix(file.read_text(encoding="utf-8") if file.exists() else "")
    missing = [name for name, cases in matrix.items() if cases is None]
    for number, (name, ran) in enumerate(run_many(dict.fromkeys(missing, ()), AT_ONCE, PATIENCE), 1):
        if isinstance(ran, Exception):
            raise RuntimeError(f"{name} did not run") from ran
        matrix[name] = [case for case, status in ran.statuses.items() if status == "failed"]
        file.write_text(mutants_page(matrix), encoding="utf-8")
        print(f"{number} of {len(missing)}: {name}", flush=True)
    return "**not caught**" not in mutants_page(matrix)


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
            passed &= run_mutants(REFERENCE / "mutants.md")
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
