"""The ledger against the broker's log: what was lost, doubled, denied or out of order."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .ledger import NOT_DELIVERED, RECEIPT, Entry, Ledger

__all__ = ["Found", "Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Found:
    """One message in the broker's log."""

    message_id: str
    topic: str
    key: str | None
    body_key: str | None
    partition: int | None = None
    offset: int | None = None


@dataclass
class Verdict:
    """What is wrong, one line each; all must be empty.

    Attributes:
        lost: A receipt, but not in the log.
        duplicated: More than once in a log.
        wrong: "Not delivered", but in the log.
        out_of_order: With a receipt, behind one with a receipt that was sent later with the same topic and key.
        altered: In the log with another topic, key or body, or never sent.
        misplaced: A receipt whose partition or offset is not the log's.
        in_log: For information: how many messages of each outcome are in a log, or in several.
    """

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    in_log: Counter[str] = field(default_factory=Counter)


def judge(
    ledger: Ledger,
    logs: Mapping[str, Sequence[Found]],
    logs_of_topic: Mapping[str, Sequence[str]],
    remade: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Verdict:
    """Compares.

    Args:
        ledger: What was promised.
        logs: What is there, by the name of the queue or topic; in the log's order, for each key at least.
        logs_of_topic: In which logs a message of a topic must be; a receipt means all of them.
        remade: By topic: from when its log was read for the last time before it was deleted until it was there again.
            A receipt for such a topic means that the message is in one of its logs, or was deleted with one: then its
            call touches one of these times.
    """
    verdict = Verdict()
    entries = ledger.entries
    somewhere: set[str] = set()
    for name, log in logs.items():
        seen: set[str] = set()
        latest: dict[tuple[str, str | None], Entry] = {}
        for found in log:
            entry = entries.get(found.message_id)
            if entry is None:
                verdict.altered.append(f"{name}: never sent: {found}")
                continue
            if found.message_id in seen:
                verdict.duplicated.append(f"{name}: {entry!r}")
                continue
            seen.add(found.message_id)
            if (found.topic, found.key, found.body_key) != (entry.topic, entry.key, entry.key):
                verdict.altered.append(f"{name}: {entry!r} is {found}")
            if entry.outcome == NOT_DELIVERED:
                verdict.wrong.append(f"{name}: {entry!r}")
            if entry.outcome == RECEIPT:
                before = latest.get((entry.topic, entry.key))
                if before is not None and before.number > entry.number:
                    verdict.out_of_order.append(f"{name}: {entry!r} is behind {before!r}")
                else:
                    latest[entry.topic, entry.key] = entry
                if _deleted(entry, remade):
                    pass  # it may have been there and in the next log too, under another offset
                elif entry.offset is not None and (entry.partition, entry.offset) != (found.partition, found.offset):
                    verdict.misplaced.append(f"{name}: {entry!r} says {entry.partition}/{entry.offset}: {found}")
        for entry in entries.values():
            if entry.outcome == RECEIPT and name in logs_of_topic.get(entry.topic, ()) and entry.message_id not in seen:
                verdict.lost.append(f"{name}: {entry!r}")
        somewhere |= seen
    for entry in entries.values():
        gone = entry.topic in (remade or {}) and entry.outcome == RECEIPT and entry.message_id not in somewhere
        if gone and not _deleted(entry, remade):
            verdict.lost.append(f"{entry.topic}: {entry!r}")
    verdict.in_log.update(entries[message_id].outcome for message_id in somewhere)
    return verdict


def _deleted(entry: Entry, remade: Mapping[str, Sequence[tuple[float, float]]] | None) -> bool:
    """Whether the message may have been deleted with its topic."""
    return any(entry.began <= until and entry.ended >= start for start, until in (remade or {}).get(entry.topic, ()))
