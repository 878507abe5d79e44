"""The outcomes of the messages of one `send`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cqrs_brokers import BrokerError, DeliveryError, DeliveryUnknownError, Message, Receipt

from ._exit_codes import ExitCode, code_of_error
from ._output import Output

__all__ = ["Report", "place_of", "reason_of"]

SHOWN = 10
"""How many of the lines that were not delivered, or not sent, for one reason are listed for people. Lines with an
unknown outcome are all listed."""


class _Unknown(NamedTuple):
    line: int
    message_id: str
    error: str


class _Refused:
    """Lines that are not in the broker for the same reason. The reason is the class of the error, or why they are not
    messages."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines: list[int] = []


class Report:
    """Counts outcomes.

    Attributes:
        interrupted: Whether the command was stopped before the end of the input.
        seconds: How long the command took.
        failure: What ended the command after the first outcome. None: nothing did.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.seconds = 0.0
        self.failure: Exception | None = None
        self._confirmed = self._handed_over = 0
        self._receipt: Receipt | None = None
        self._unknown: list[_Unknown] = []
        self._refused: dict[str, _Refused] = {}
        self._invalid: dict[str, _Refused] = {}

    @property
    def count(self) -> int:
        """How many messages have an outcome, together with the lines that are not messages."""
        refused = sum(len(group.lines) for group in (*self._refused.values(), *self._invalid.values()))
        return self._confirmed + self._handed_over + len(self._unknown) + refused

    @property
    def exit_code(self) -> ExitCode:
        """The code of the first of these that applies: interrupted, an unknown outcome, what ended the command, not
        delivered, success."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self._unknown:
            return ExitCode.UNKNOWN
        if isinstance(self.failure, BrokerError):
            return code_of_error(self.failure)
        if self.failure is not None:
            return ExitCode.USAGE if isinstance(self.failure, OSError) else ExitCode.BUG
        return ExitCode.NOT_DELIVERED if self._refused or self._invalid else ExitCode.OK

    def invalid(self, line: int, why: str) -> None:
        """Counts a line of which no message can be made."""
        self._invalid.setdefault(why, _Refused(why)).lines.append(line)

    def lost(self, line: int, message: Message, error: Exception) -> None:
        """Counts a message whose outcome was not said, because of this error."""
        self._unknown.append(_Unknown(line, str(message.message_id), type(error).__name__))

    def outcome(self, line: int, message: Message, outcome: Receipt | DeliveryError) -> None:
        """Counts the outcome of a message."""
        if isinstance(outcome, Receipt):
            self._receipt = outcome
            if outcome.confirmed:
                self._confirmed += 1
            else:
                self._handed_over += 1
        elif isinstance(outcome, DeliveryUnknownError):
            self._unknown.append(_Unknown(line, str(message.message_id), type(outcome).__name__))
        else:
            name = type(outcome).__name__
            self._refused.setdefault(name, _Refused(reason_of(outcome))).lines.append(line)

    def show(self, output: Output) -> None:
        """Prints the report."""
        output.document(self._document())
        if self._receipt is not None and self.count == 1:
            what = "confirmed" if self._receipt.confirmed else "handed over, which nobody confirms"
            output.line(f"{what}: {place_of(self._receipt)}")
        else:
            rate = f" in {self.seconds:.1f} s ({self.count / self.seconds:,.0f} per second)" if self.seconds else ""
            output.line(f"{self._confirmed:,} confirmed{rate}", "green" if self._confirmed else "")
            if self._handed_over:
                output.line(f"{self._handed_over:,} handed over, which nobody confirms", "yellow")
        for name, group in self._refused.items():
            output.line(f"{len(group.lines):,} not delivered ({name}): {group.text}", "red")
            output.line(f"  {_listed(group.lines)}")
        for group in self._invalid.values():
            output.line(f"{len(group.lines):,} not sent: {group.text}", "red")
            output.line(f"  {_listed(group.lines)}")
        if self._unknown:
            output.line(f"{len(self._unknown):,} unknown: each may be in the broker, or may not", "bold red")
            for one in self._unknown:
                output.line(f"  line {one.line}  {one.message_id}  {one.error}")
        if self.interrupted:
            output.line("stopped: the rest of the input was not sent", "yellow")

    def _document(self) -> dict[str, Any]:
        return {
            "confirmed": self._confirmed,
            "handed_over": self._handed_over,
            "not_delivered": [
                {"error": name, "text": group.text, "lines": group.lines} for name, group in self._refused.items()
            ],
            "not_sent": [{"text": group.text, "lines": group.lines} for group in self._invalid.values()],
            "unknown": [one._asdict() for one in self._unknown],
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            "exit_code": int(self.exit_code),
            "receipt": self._receipt.to_dict() if self._receipt is not None and self.count == 1 else None,
        }


def reason_of(error: DeliveryError) -> str:
    """The text of the error, and the text of its cause."""
    cause = getattr(error.__cause__, "text", "")
    return f"{error.text} ({cause})" if cause else error.text


def place_of(receipt: Receipt) -> str:
    """The message's id, and its partition and offset as far as the broker gives them."""
    place = "" if receipt.partition is None else f", partition {receipt.partition}"
    place += "" if receipt.offset is None else f", offset {receipt.offset}"
    return f"message {receipt.message_id}{place}"


def _listed(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:SHOWN]))
    more = f" and {len(lines) - SHOWN:,} more" if len(lines) > SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"
