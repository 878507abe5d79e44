"""The canary scanner finds a planted leak of each kind, and nothing where nothing leaks."""

import base64
import contextlib
import gc
import json
import logging
import pickle
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cqrs_brokers import Broker, Capabilities, Message, MessageBroker
from cqrs_brokers.exceptions import BrokerError, InvalidMessageError
from cqrs_brokers.secret import Secret
from cqrs_brokers_testkit.canary import Canary, CanaryFound, CanaryScanner


@pytest.fixture
def canary() -> Canary:
    return Canary("password", between="/é%+@ ")


@pytest.fixture
def scanner(canary: Canary) -> CanaryScanner:
    return CanaryScanner(canary)


FORMS: dict[str, Callable[[str], str | bytes]] = {
    "plain": lambda text: text,
    "first half": lambda text: text.partition("/")[0],
    "second half": lambda text: text.rpartition(" ")[2],
    "percent-encoded": lambda text: urllib.parse.quote(text, safe=""),
    "form-encoded": urllib.parse.quote_plus,
    "UTF-8": lambda text: text.encode(),
    "Latin-1": lambda text: text.encode("latin-1"),
    "repr of bytes": lambda text: repr(text.encode()),
    "ascii repr": ascii,
    "JSON": json.dumps,
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64 after one byte": lambda text: base64.b64encode(b"\0" + text.encode()),
    "base64 after two bytes": lambda text: base64.b64encode(b"\xff\xfe" + text.encode()),
    "base64 of SASL PLAIN": lambda text: base64.b64encode(b"\0alice\0" + text.encode() + b"tail"),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(b"user:" + text.encode()),
    "hexadecimal": lambda text: text.encode().hex(),
    "pickled": pickle.dumps,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", ["", "x", "some text before: "])
def test_each_form_is_found(canary: Canary, scanner: CanaryScanner, form: str, before: str) -> None:
    """In the middle of other text or alone; the hit names the place and does not repeat the text."""
    shown = FORMS[form](canary.text)
    scanner.text("a text", before + shown + " after" if isinstance(shown, str) else before.encode() + shown)
    with pytest.raises(CanaryFound, match="password shows in a text") as caught:
        scanner.check()
    assert canary.token not in str(caught.value)


def test_every_base64_position_is_found(canary: Canary, scanner: CanaryScanner) -> None:
    """Whatever stands before and after it."""
    for before in range(12):
        for after in range(4):
            one = CanaryScanner(canary)
            one.text("a text", base64.b64encode(b"\xa7" * before + canary.token.encode() + b"\xe1" * after))
            assert one.hits, (before, after)


def test_other_text_is_no_hit(scanner: CanaryScanner) -> None:
    """Another canary, its forms, and ordinary text."""
    other = Canary("other")
    for form in FORMS.values():
        scanner.text("a text", form(f"{other}/ é"))
    scanner.text("a text", "cnry")
    scanner.check()


def test_nothing_looked_at_is_no_proof(scanner: CanaryScanner) -> None:
    """A scan that saw nothing fails."""
    with pytest.raises(CanaryFound, match="nothing was looked at"):
        scanner.check()


class Shows:
    """Shows a text in one way."""

    def __init__(self, text: str, way: str) -> None:
        self._shown = lambda asked: text if asked == way else "hidden"

    def __str__(self) -> str:
        return self._shown("str")

    def __repr__(self) -> str:
        return self._shown("repr")

    def __format__(self, spec: str) -> str:
        return self._shown("format")

    def __copy__(self) -> object:
        return self._shown("copy")

    def __deepcopy__(self, memo: object) -> object:
        return self._shown("deepcopy")

    def __reduce_ex__(self, protocol: object) -> Any:
        return str, (self._shown("pickle"),)


@pytest.mark.parametrize("way", ["str", "repr", "format", "copy", "deepcopy", "pickle"])
def test_an_object_that_shows_it_is_found(canary: Canary, scanner: CanaryScanner, way: str) -> None:
    """Each of these ways by itself; an object that hides it everywhere is none."""
    scanner.value("an object", Shows(canary.text, "no way"))
    scanner.check()
    scanner.value("an object", Shows(canary.text, way))
    assert any(way in hit.where for hit in scanner.hits)


def test_attributes_are_found(canary: Canary, scanner: CanaryScanner) -> None:
    """vars() of an object that hides them in its repr, and cannot be copied or pickled."""

    class Keeps:
        def __init__(self) -> None:
            self.password = canary.text

        def __reduce_ex__(self, protocol: object) -> Any:
            raise TypeError("no")

    scanner.value("an object", Keeps())
    assert {hit.where for hit in scanner.hits} == {"vars() of an object"}


def test_a_refusal_that_quotes_it_is_found(canary: Canary, scanner: CanaryScanner) -> None:
    """An object that cannot be pickled and says why."""

    class Refuses:
        def __reduce_ex__(self, protocol: object) -> Any:
            raise TypeError(f"{canary} cannot be pickled")

    scanner.value("an object", Refuses())
    assert "the refusal of pickle of an object" in {hit.where for hit in scanner.hits}


def test_dumps_are_found(canary: Canary, scanner: CanaryScanner) -> None:
    """pydantic's and dataclasses', of objects that hide it in their repr."""

    class Model(BaseModel):
        password: str

        def __repr__(self) -> str:
            return "Model"

        __str__ = __repr__

    @dataclass(repr=False)
    class Data:
        password: str

    scanner.value("a model", Model(password=canary.text))
    scanner.value("data", Data(canary.text))
    scanner.value("a mapping", {"deep": [{"down": canary.text}]})
    found = {hit.where for hit in scanner.hits}
    for way in ("model_dump() of a model", "model_dump_json() of a model", "asdict() of data", "json of a mapping"):
        assert any(where.endswith(way) for where in found), way


def test_a_secret_is_no_hit(canary: Canary, scanner: CanaryScanner) -> None:
    """What hides itself everywhere passes all of it."""

    class Model(BaseModel):
        password: Secret

    scanner.value("a secret", Secret(canary.text))
    scanner.value("a model", Model(password=Secret(canary.text)))
    scanner.check()


def raised(error: BaseException, *, cause: BaseException | None = None, inside: BaseException | None = None) -> Any:
    try:
        try:
            if inside is not None:
                raise inside
        finally:
            raise error from cause
    except BaseException as caught:
        return caught


ERRORS: dict[str, Callable[[str], BaseException]] = {
    "its text": lambda text: raised(ValueError(text)),
    "an argument": lambda text: raised(ValueError("fine", {"password": text})),
    "a note": lambda text: noted(ValueError("fine"), text),
    "its cause": lambda text: raised(BrokerError("fine"), cause=ValueError(text)),
    "its context": lambda text: raised(BrokerError("fine"), inside=ValueError(text)),
    "a hidden context": lambda text: raised(BrokerError("fine"), cause=KeyError("fine"), inside=ValueError(text)),
    "the cause of its cause": lambda text: raised(BrokerError("a"), cause=raised(OSError("b"), cause=KeyError(text))),
    "a member of a group": lambda text: raised(ExceptionGroup("fine", [raised(OSError("x"), cause=KeyError(text))])),
    "an attribute of ours": lambda text: attribute(BrokerError("fine"), text),
    "pydantic's input": lambda text: raised(BrokerError("fine"), cause=invalid(text)),
}


def noted(error: BaseException, note: str) -> BaseException:
    error.add_note(note)
    return error


def attribute(error: BaseException, text: str) -> BaseException:
    error.password = text  # type: ignore[attr-defined]
    return error


def invalid(text: str) -> ValidationError:
    class Model(BaseModel):
        model_config = {"hide_input_in_errors": True}
        number: int

    with pytest.raises(ValidationError) as caught:
        Model(number=text)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("where", ERRORS)
def test_an_error_that_shows_it_is_found(canary: Canary, scanner: CanaryScanner, where: str) -> None:
    """In its text, its arguments, and all that led to it."""
    scanner.error("an error", ERRORS[where]("nothing"))
    scanner.check()
    scanner.error("an error", ERRORS[where](canary.text))
    assert scanner.hits
    assert scanner.classes


LOGGED: dict[str, Callable[[str], None]] = {
    "the text": lambda text: logging.getLogger("some.client").debug("sending " + text),
    "an argument": lambda text: logging.getLogger("some.client").debug("sending %s", {"body": text.encode()}),
    "an attribute": lambda text: logging.getLogger("some.client").debug("sending", extra={"body": text}),
    "an exception": lambda text: logging.getLogger("some.client").error("oh", exc_info=raised(ValueError(text))),
    "the cause of an exception": lambda text: logging.getLogger("some.client").error(
        "oh", exc_info=raised(KeyError("fine"), cause=ValueError(text))
    ),
    "a logger with a level": lambda text: logging.getLogger("quiet.client").debug(text),
    "a warning": lambda text: warnings.warn(text, UserWarning, stacklevel=1),
}


@pytest.fixture(autouse=True)
def _quiet_client() -> Iterator[None]:
    logger = logging.getLogger("quiet.client")
    logger.setLevel(logging.ERROR)
    yield
    assert logger.level == logging.ERROR, "levels are put back"


@pytest.mark.parametrize("way", LOGGED)
def test_what_is_logged_or_warned_is_found(canary: Canary, scanner: CanaryScanner, way: str) -> None:
    """By any logger, at any level, in any part of a record."""
    before = logging.getLogger().level, logging.getLogger().handlers[:]
    with scanner.watching():
        LOGGED[way]("nothing")
    scanner.check()
    with scanner.watching():
        LOGGED[way](canary.text)
    assert scanner.hits
    assert (logging.getLogger().level, logging.getLogger().handlers[:]) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_nobody_could_catch_is_found(canary: Canary, scanner: CanaryScanner) -> None:
    """An exception in a finalizer."""

    class Dies:
        def __del__(self) -> None:
            raise ValueError(canary.text)

    with scanner.watching(), contextlib.suppress(ValueError):
        Dies()
        gc.collect()
    assert scanner.hits


class Telling(MessageBroker):
    capabilities = Capabilities(ordering_key=True, headers=True)

    def __init__(self, error: InvalidMessageError | None = None) -> None:
        self.error = error

    async def send_message(self, message: Message) -> None:
        if self.error is not None:
            raise self.error


async def test_an_observer_that_is_told_is_found(canary: Canary, scanner: CanaryScanner) -> None:
    """An outcome with it is a hit; a message that carries it is none, for it is not shown."""
    observer = scanner.observer()
    async with Broker(Telling(), observers=[observer]) as broker:
        await broker.send_message(Message("n", "t", {"x": canary.text}, key=canary.text, headers={"h": canary.text}))
    scanner.check()
    assert observer.told
    async with Broker(Telling(InvalidMessageError(canary.text)), observers=[observer]) as broker:
        with pytest.raises(InvalidMessageError):
            await broker.send_message(Message("n", "t", {}))
    assert {hit.where.rpartition("of ")[2] for hit in scanner.hits} == {"an observer's outcome"}
    scanner.hits.clear()
    observer.connection_changed("lost", canary.text)
    assert scanner.hits


def test_a_message_that_shows_its_body_is_found(canary: Canary, scanner: CanaryScanner) -> None:
    """A message is not pickled, but its repr is looked at."""

    class Talkative(Message):
        def __repr__(self) -> str:
            return f"<{self.payload}>"

    scanner.value("a message", Message("n", "t", canary.text))
    scanner.check()
    scanner.value("a message", Talkative("n", "t", canary.text))
    assert scanner.hits
