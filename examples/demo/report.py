"""Prints what the demo did. Nothing in here is needed to use cqrs-brokers."""

import sys
import textwrap
from collections.abc import Sequence

from cqrs_brokers import Receipt
from cqrs_brokers_testkit.readers import Record

WIDTH = 100


def progress(line: str) -> None:
    """A line about what is being started."""
    print(f"  ... {line}", flush=True)


def title(text: str) -> None:
    print(f"\n{f'== {text} ':=<{WIDTH}}", flush=True)


def said(text: str) -> None:
    print(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  "), flush=True)


def message(name: str, record: Record | None, receipt: Receipt) -> None:
    """One message: what was read back, if anything, and what the broker had answered when it was published."""
    answer = "confirmed" if receipt.confirmed else "not confirmed: handed over, nobody answers"
    if receipt.partition is not None:
        answer += f", partition {receipt.partition}, offset {receipt.offset}"
    rows = {"name": name, "topic": receipt.topic, "id": str(receipt.message_id), "receipt": answer}
    if record is not None:
        rows = {
            "topic": record.topic,
            "key": str(record.key),
            "name": str(record.name),
            "id": str(record.message_id),
            "headers": ", ".join(f"{header}={_text(value)}" for header, value in record.raw_headers) or "none",
            **_properties(record),
            "body": record.body.decode(),
            "receipt": answer,
        }
    print(f"  +{'-' * (WIDTH - 3)}")
    for row, text in rows.items():
        for index, line in enumerate(textwrap.wrap(text, WIDTH - 14, break_on_hyphens=False)):
            print(f"  | {row if index == 0 else '':<8}| {line}", flush=True)


def summary(rows: Sequence[tuple[str, str]], commands: Sequence[str]) -> None:
    """What became of each config string, and which commands would make the skipped ones run."""
    title("summary")
    width = max(len(name) for name, _ in rows)
    for name, result in rows:
        lines = textwrap.wrap(result, max(40, WIDTH - width - 7))
        for index, line in enumerate(lines):
            print(f"  | {name if index == 0 else '':<{width}} | {line}")
    if commands:
        print("\n  What was skipped runs after:")
        for command in commands:
            print(f"    {command}")
    sys.stdout.flush()


def _properties(record: Record) -> dict[str, str]:
    """AMQP has some of what Kafka has in headers as properties."""
    if record.exchange is None:
        return {}
    shown = ("type", "message_id", "content_type", "timestamp", "delivery_mode")
    return {"props": ", ".join(f"{name}={record.properties[name]}" for name in shown if name in record.properties)}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
