"""Finds out whether a secret is shown somewhere. A test uses canaries, texts that nothing else contains, as secrets. A
scanner looks for the canaries in everything that people and tools read.

    password = Canary("password")
    scanner = CanaryScanner(password)
    with scanner.watching():
        broker = open_broker(f"amqp://user:{password}@localhost", observers=[scanner.observer()])
        scanner.value("the broker", broker)
        try:
            await broker.connect()
        except BrokerError as error:
            scanner.error("a wrong password", error)
    scanner.check()

The scanner looks at everything that is printed, logged, copied, pickled or dumped. It does not look at the attributes
of other libraries' objects, nor at tracebacks with local variables: code that prints such things shows everything.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import json
import logging
import pickle
import secrets
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple, final

from cqrs_brokers.driver import Delivery
from cqrs_brokers.exceptions import BrokerError
from cqrs_brokers.observers import Observer
from cqrs_brokers.protocol import Message

__all__ = ["Canary", "CanaryFound", "CanaryScanner", "Hit", "ScanningObserver"]


@final
class Canary:
    """A text that nothing else contains.

    `str` gives the text, for f-strings. The text contains a token twice, so that the token is found even if the text is
    cut in two. A token has only letters and digits, so that percent-encoding, JSON and the repr of bytes do not change
    the token.

    Args:
        place: The place at which the test uses the text. Hits are reported under this name.
        between: The text between the two tokens, for example characters that parsers often handle wrongly.

    Attributes:
        place: The place at which the test uses the text.
        text: The whole text.
        token: The part of the text that scanners look for.
    """

    def __init__(self, place: str, *, between: str = "-") -> None:
        self.place = place
        self.token = f"cnry{secrets.token_hex(6)}"
        self.text = f"{self.token}{between}{self.token}"

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Canary({self.place!r})"

    def forms(self) -> dict[str, str]:
        """The texts to look for, by the name of their form."""
        return forms_of(self.token)


def forms_of(text: str) -> dict[str, str]:
    """The forms of a text, by name: as it is, in hexadecimal, in base64.

    In base64 a text has three forms, depending on the number of bytes before the text. Characters that depend on
    neighbouring bytes are left out.
    """
    data = text.encode()
    forms = {"as it is": text}
    for between in ("", " ", ":", "%", "\\x"):
        code = between.strip(" :") + data.hex("-").replace("-", between)
        how = f"in hexadecimal with {between}" if between else "in hexadecimal"
        forms[how] = code
        forms[f"{how}, in capitals"] = code.upper().replace("X", "x")
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + data).decode().rstrip("=")
        forms[f"in base64 after {before} bytes"] = encoded[-(-before * 8 // 6) : len(encoded) - 1]
    return forms


_PART = 8
"""Characters at the beginning or the end of a secret by which it is known again, when the rest was cut off."""


def shown(secrets: Mapping[str, str], texts: Iterable[str]) -> list[str]:
    """The names of the secrets that can be read in the texts, each with its form. A secret must have nothing in common
    with another text, at its beginning and at its end."""
    known = list(texts)
    found = {
        name: [how for how, form in _forms_and_parts(secret).items() if any(form in text for text in known)]
        for name, secret in secrets.items()
    }
    return sorted(f"{name} {how}" for name, forms in found.items() for how in forms[:1])


def _forms_and_parts(secret: str) -> dict[str, str]:
    """The forms of a secret, and the parts of it that a text may have that is cut."""
    return {**forms_of(secret), "at its beginning": secret[:_PART], "at its end": secret[-_PART:]}


class Hit(NamedTuple):
    """A canary that was found.

    Attributes:
        canary: The place at which the test uses the canary (`Canary.place`).
        where: The text or object in which the canary was found.
        form: The form in which the canary was found. The text around the canary is not kept, because that text may hold
            more secrets.
    """

    canary: str
    where: str
    form: str

    def __str__(self) -> str:
        return f"{self.canary} shows in {self.where}, {self.form}"


class CanaryFound(AssertionError):  # noqa: N818 - names what happened
    """At least one canary was found, or nothing was looked at. The text lists the hits.

    Attributes:
        hits: The canaries that were found.
    """

    def __init__(self, hits: Iterable[Hit]) -> None:
        self.hits = tuple(hits)
        super().__init__("\n".join(map(str, self.hits)) or "nothing was looked at")


class CanaryScanner:
    """Looks for canaries.

    Args:
        *canaries: The canaries to look for.

    Attributes:
        hits: The canaries that were found, each hit once.
        texts: How many texts were looked at.
        classes: The class of every exception that was looked at, causes and contexts included.
    """

    def __init__(self, *canaries: Canary) -> None:
        self.hits: dict[Hit, None] = {}
        self.texts = 0
        self.classes: set[type[BaseException]] = set()
        self._forms = [(canary.place, name, form) for canary in canaries for name, form in canary.forms().items()]

    def check(self) -> None:
        """Checks that no canary was found.

        Raises:
            CanaryFound: A canary was found, or nothing was looked at, so that nothing is proven.
        """
        if self.hits or not self.texts:
            raise CanaryFound(self.hits)

    def text(self, where: str, text: str | bytes) -> None:
        """Looks at a text, or at bytes that may contain text."""
        self.texts += 1
        shown = text if isinstance(text, str) else text.decode("latin-1")
        for place, name, form in self._forms:
            if form in shown:
                self.hits[Hit(place, where, name)] = None

    def value(self, where: str, value: object) -> None:
        """Looks at a public object: as text, its attributes, its copies, its pickle and its dumps.

        An object that contains a message on purpose (`Message`, `Delivery`) is only looked at as text, because its
        copies must have the body.
        """
        self._as_text(where, value)
        if isinstance(value, Message | Delivery):
            return
        for name, duplicate in (("copy", copy.copy), ("deepcopy", copy.deepcopy)):
            self._attempt(f"{name} of {where}", duplicate, value, self._as_text)
        for protocol in (0, pickle.HIGHEST_PROTOCOL):
            self._attempt(f"pickle of {where}", partial(pickle.dumps, protocol=protocol), value, self.text)
        self._attempt(f"vars() of {where}", lambda it: repr(vars(it)), value, self.text)
        self._attempt(f"json of {where}", lambda it: json.dumps(it, default=str), value, self.text)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            self._attempt(f"asdict() of {where}", lambda it: repr(dataclasses.asdict(it)), value, self.text)
        for method in ("model_dump", "model_dump_json", "errors", "json"):
            if callable(getattr(type(value), method, None)):
                self._attempt(f"{method}() of {where}", methodcaller(method), value, self._as_text)

    def error(self, where: str, error: BaseException) -> None:
        """Looks at an exception, its traceback, its causes and contexts. An exception of this library is also looked at
        as a public object."""
        self.text(f"traceback of {where}", "".join(traceback.format_exception(error)))
        for each in chain(error):
            name = f"{type(each).__name__} of {where}"
            self.classes.add(type(each))
            self.text(f"args of {name}", repr(each.args))
            self.text(f"traceback of {name}", "".join(traceback.format_exception(each)))
            if isinstance(each, BrokerError):
                self.value(name, each)
            else:
                self._as_text(name, each)
            errors = getattr(each, "errors", None)  # pydantic's
            if callable(errors):
                self._attempt(f"errors() of {name}", lambda it: repr(it()), errors, self.text)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Looks at everything that is logged (at DEBUG, by any logger), warned, or raised where nobody can catch it."""
        from cqrs_brokers_testkit.conformance._watching import logs_at_debug

        before = sys.unraisablehook

        def unraisable(event: Any) -> None:
            self.error("an exception that nobody could catch", event.exc_value)
            before(event)

        handler = _Records(self)
        try:
            sys.unraisablehook = unraisable
            with logs_at_debug() as texts:
                logging.getLogger().addHandler(handler)  # taken off again by logs_at_debug
                yield
        finally:
            sys.unraisablehook = before
        for text in texts:
            self.text("a log line or warning", text)

    def observer(self) -> ScanningObserver:
        """Makes an observer for a `Broker`. The observer looks at everything that the `Broker` tells it."""
        return ScanningObserver(self)

    def record(self, record: logging.LogRecord) -> None:
        """Looks at a log record: its text, and all its attributes that a handler could write as JSON."""
        where = f"a record of {record.name}"
        self._attempt(where, lambda it: it.getMessage(), record, self.text)
        self.text(f"the attributes of {where}", repr(vars(record)))
        if isinstance(record.args, tuple | Mapping):
            for argument in record.args.values() if isinstance(record.args, Mapping) else record.args:
                self._as_text(f"an argument of {where}", argument)
        if record.exc_info and record.exc_info[1] is not None:
            self.error(where, record.exc_info[1])

    def _as_text(self, where: str, value: object) -> None:
        shows: dict[str, Callable[[object], str]] = {"str": str, "repr": repr, "format": format}
        for name, show in shows.items():
            self._attempt(f"{name} of {where}", show, value, self.text)
        if isinstance(value, bytes):
            self.text(f"bytes of {where}", value)

    def _attempt(self, where: str, make: Callable[[Any], Any], value: object, look: Callable[[str, Any], None]) -> None:
        """Looks at the result of `make`. If the object refuses with an exception, looks at the exception."""
        try:
            made = make(value)
        except Exception as error:
            self.text(f"the refusal of {where}", f"{error} {error!r}")
            return
        look(where, made)


class ScanningObserver(Observer):
    """See `CanaryScanner.observer`.

    Attributes:
        told: How many times the observer was called.
    """

    def __init__(self, scanner: CanaryScanner) -> None:
        self._scanner = scanner
        self.told = 0

    def sent(self, message: Message, outcome: object, elapsed: float) -> None:
        """See `cqrs_brokers.Observer`."""
        self.told += 1
        self._scanner.value("an observer's message", message)
        if isinstance(outcome, BaseException):
            self._scanner.error("an observer's outcome", outcome)
        else:
            self._scanner.value("an observer's outcome", outcome)

    def connection_changed(self, state: str, reason: str) -> None:
        """See `cqrs_brokers.Observer`."""
        self.told += 1
        self._scanner.text("an observer's state", state)
        self._scanner.text("an observer's reason", reason)


class _Records(logging.Handler):
    def __init__(self, scanner: CanaryScanner) -> None:
        super().__init__(logging.NOTSET)
        self._scanner = scanner

    def emit(self, record: logging.LogRecord) -> None:
        self._scanner.record(record)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yields the exception, its causes, contexts and members, each once. This includes contexts that a traceback would
    not show."""
    found: dict[int, BaseException] = {}
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if id(each) in found:
            continue
        found[id(each)] = each
        yield each
        members = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        waiting += [linked for linked in (each.__cause__, each.__context__, *members) if linked is not None]
