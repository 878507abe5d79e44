"""A `Secret` shows itself only through `reveal()`."""

import copy
import json
import pickle

import pytest
from pydantic import BaseModel

from cqrs_brokers.secret import MASK, Secret

CANARY = "C4N4RY-s3cret"


class Holder(BaseModel):
    password: Secret


@pytest.mark.parametrize(
    "show", [str, repr, "{}".format, "{:>40}".format, "{!r:.30}".format, lambda s: f"{s}", "%s".__mod__]
)
def test_text_forms_show_the_mask(show):
    """No way of turning it into text shows the secret."""
    text = show(Secret(CANARY))
    assert CANARY not in text
    assert "****" in text


def test_reveal_gives_the_text():
    """`reveal()` is the one way to read it; a secret of a secret is the same text."""
    assert Secret(CANARY).reveal() == Secret(Secret(CANARY)).reveal() == CANARY


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_refuses_it(protocol):
    """Neither it nor what holds it can be pickled."""
    for value in (Secret(CANARY), [Secret(CANARY)], Holder(password=Secret(CANARY))):
        with pytest.raises(TypeError) as caught:
            pickle.dumps(value, protocol)
        assert CANARY not in str(caught.value)


def test_it_has_no_state_to_give_away():
    """The default `__getstate__` would return the slots."""
    with pytest.raises(TypeError):
        Secret(CANARY).__getstate__()


def test_copies_are_the_same_object():
    """A copy makes no second place where the secret is."""
    secret = Secret(CANARY)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret


def test_json_refuses_it_and_pydantic_masks_it():
    """The standard library's encoder raises, pydantic's writes the mask."""
    with pytest.raises(TypeError):
        json.dumps(Secret(CANARY))
    holder = Holder(password=CANARY)
    assert json.loads(holder.model_dump_json()) == {"password": MASK}
    assert isinstance(holder.model_dump()["password"], Secret)
    assert holder.model_dump(mode="json") == {"password": MASK}
    assert CANARY not in repr(holder) + str(holder.model_dump())
    assert Holder.model_json_schema()["properties"]["password"]["format"] == "password"


def test_it_equals_by_text_and_cannot_be_changed():
    """Equality and hash follow the text; text itself is never equal to it."""
    assert Secret("ä\ud800") == Secret("ä\ud800")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    with pytest.raises(AttributeError):
        Secret("a")._value = "b"
    with pytest.raises(AttributeError):
        del Secret("a")._value


def test_only_text_can_be_a_secret():
    """Bytes or numbers would be shown in their own way somewhere."""
    with pytest.raises(TypeError, match="must be str, not bytes"):
        Secret(b"a")


def test_a_file_gives_its_line(tmp_path):
    """The newline that editors and `echo` put at the end is not part of it."""
    for ending in ("", "\n", "\r\n"):
        (tmp_path / "pw").write_bytes((CANARY + ending).encode())
        assert Secret.from_file(str(tmp_path / "pw")).reveal() == CANARY


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (CANARY.encode() + b"\nsecond", "not one line"),
        (CANARY.encode() + b"\x00", "not one line"),
        (CANARY.encode() + b"\xff", "not one line"),
        (CANARY.encode() * 10_000, "larger than 65536 bytes"),
    ],
)
def test_an_unfit_file_is_refused_without_quoting_it(tmp_path, content, why):
    """What cannot be a password is an error that shows nothing of the file, nor in its context."""
    (tmp_path / "pw").write_bytes(content)
    with pytest.raises(ValueError, match=why) as caught:
        Secret.from_file(str(tmp_path / "pw"))
    assert CANARY not in repr(caught.value)
    assert caught.value.__context__ is None


def test_a_pipe_or_a_device_is_no_secret_file(tmp_path):
    """They could keep us waiting for ever."""
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="not a regular file"):
            Secret.from_file(str(path))
    with pytest.raises(ValueError, match="No such file"):
        Secret.from_file(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="cannot be read"):
        Secret.from_file("a\0b")


def test_an_environment_variable_gives_its_value(monkeypatch):
    """Not set and empty are errors, not empty passwords."""
    monkeypatch.setenv("PW", CANARY)
    assert Secret.from_environment("PW").reveal() == CANARY
    monkeypatch.setenv("PW", "")
    with pytest.raises(ValueError, match="is empty"):
        Secret.from_environment("PW")
    monkeypatch.delenv("PW")
    with pytest.raises(ValueError, match="is not set"):
        Secret.from_environment("PW")


def test_the_byte_order_mark_of_a_file_is_no_part_of_the_secret(tmp_path):
    """As Windows' editors write it."""
    path = tmp_path / "pw"
    path.write_bytes(b"\xef\xbb\xbf" + CANARY.encode() + b"\r\n")
    assert Secret.from_file(str(path)).reveal() == CANARY
