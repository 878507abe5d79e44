"""Texts that people and logs must not see. Code in the process can still read these texts, with `reveal()`."""

from __future__ import annotations

import os
import re
import stat
from codecs import BOM_UTF8
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, final
from urllib.parse import quote

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["MASK", "Secret", "masked", "secrets_in"]

MASK: Final = "**********"
"""The text that is shown instead of a secret. The mask always has the same length, whatever the length of the secret
is."""

MAX_FILE_BYTES: Final = 64 * 1024
_UNFIT = "[\x00-\x1f\x7f-\x9f\ud800-\udfff]"  # control characters and broken UTF-8


@final
class Secret:
    """A password, passphrase or token. Only `reveal()` returns its text.

    `str`, `format` and JSON by pydantic give the mask, and `repr` contains the mask. `json.dumps` and `pickle` raise a
    `TypeError`: a pickled secret would be in clear text, and a pickled mask would later be used as a password. A copy
    is the same object.
    `Secret` is not a dataclass, because `dataclasses.asdict` of an object that contains a `Secret` would then return
    the text.

    Args:
        value: The secret text, or another `Secret`.

    Raises:
        TypeError: The value is neither `str` nor `Secret`.
    """

    __slots__ = ("_value",)
    _value: str

    def __init__(self, value: str | Secret) -> None:
        if isinstance(value, Secret):
            value = value._value
        if not isinstance(value, str):
            raise TypeError(f"a secret must be str, not {type(value).__name__}")
        object.__setattr__(self, "_value", str(value))

    @classmethod
    def from_file(cls, path: str | bytes) -> Secret:
        """Makes a secret from the text of a file, without the line break at the end of the file and without the byte
        order mark of UTF-8 at the start.

        The file must be a regular file. Docker and Kubernetes mount secrets as regular files. Reading a pipe or a
        device could block for ever.

        Raises:
            ValueError: The file cannot be read, is not a regular file, is empty, has more than 65 536 bytes, or is not
                one line of UTF-8 text without control characters. The error quotes neither the path nor the text of the
                file.
        """
        try:
            # Without O_NONBLOCK the call would wait for the other end of a pipe.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise ValueError(f"the file cannot be read ({reason or 'not a path'})") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("the file is not a regular file")
            data = os.read(descriptor, MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ValueError(f"the file cannot be read ({error.strerror})") from None
        finally:
            os.close(descriptor)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"the file is larger than {MAX_FILE_BYTES} bytes")
        text = data.removeprefix(BOM_UTF8).decode(errors="surrogateescape")  # what is not UTF-8 is refused below
        return cls(_one_line(text.removesuffix("\n").removesuffix("\r"), "the file"))

    @classmethod
    def from_environment(cls, name: str | bytes) -> Secret:
        """Makes a secret from the value of an environment variable.

        Raises:
            ValueError: The variable is empty, is not set, or is not one line of UTF-8 text without control characters.
        """
        value = os.environ.get(os.fsdecode(name))
        if value is None:
            raise ValueError("the environment variable is not set")
        return cls(_one_line(value, "the environment variable"))

    def reveal(self) -> str:
        """The secret text itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret('{MASK}')"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        from hmac import compare_digest  # imported here: it loads OpenSSL, and few programs compare secrets

        ours, theirs = (secret._value.encode("utf-8", "surrogatepass") for secret in (self, other))
        return compare_digest(ours, theirs)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled: give the other process its own config string, or password_file=")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret has no state to give away")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            _validate,
            serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json"),
            json_schema_input_schema=core_schema.str_schema(),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return {"type": "string", "format": "password", "writeOnly": True}


def _validate(value: object) -> Secret:
    if isinstance(value, (str, Secret)):
        return Secret(value)
    raise ValueError("must be text")


def _one_line(text: str, what: str) -> str:
    if not text:
        raise ValueError(f"{what} is empty")
    if re.search(_UNFIT, text):
        raise ValueError(f"{what} is not one line of UTF-8 text")
    return text


def secrets_in(values: Iterable[object]) -> frozenset[str]:
    """The texts of the `Secret` objects among some values, for a search in other texts. Each secret is given as it is,
    and percent-encoded as in a config string.

    Results of up to three characters are left out. Other texts contain such short secrets by chance, and the masks in
    these texts would reveal the secret.
    """
    found = [value.reveal() for value in values if isinstance(value, Secret)]
    forms = (form for secret in found for form in (secret, quote(secret, safe=""), quote(secret, safe=":/,+=*")))
    return frozenset(form for form in forms if len(form) > 3)


def masked(text: str, secrets: Iterable[str]) -> str:
    """The text, with the mask in place of each secret."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, MASK)
    return text
