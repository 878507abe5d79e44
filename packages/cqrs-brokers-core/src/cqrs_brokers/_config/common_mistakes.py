"""Recognises common mistakes in config strings that platforms and shells give, and says what to write instead.

It is asked about strings that the parser has refused. The texts quote nothing of the string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["FOREIGN_SCHEMES", "MAX_LENGTH", "common_mistakes"]

MAX_LENGTH: Final = 8192
"""Of a config string, in characters."""

_KAFKA_TLS = "write kafka://, and ?security_protocol=SSL (with a user: SASL_SSL)"
_RABBITMQ_TLS = "write amqps://"

FOREIGN_SCHEMES: Final[Mapping[str, str]] = {
    "amqp+ssl": _RABBITMQ_TLS,
    "amqp+tls": _RABBITMQ_TLS,
    "amqps+ssl": _RABBITMQ_TLS,
    "kafka+ssl": _KAFKA_TLS,
    "kafka+tls": _KAFKA_TLS,
    "kafkas": _KAFKA_TLS,
    "plaintext": "write kafka://",
    "pyamqp": "write amqp://",
    "rabbitmq": "write amqp://, or amqps:// for TLS",
    "rabbitmqs": _RABBITMQ_TLS,
    "ssl": "write kafka:// and ?security_protocol=SSL, or amqps://",
    "tls": "write amqps://, or kafka:// and ?security_protocol=SSL",
}
"""Schemes that others use, and what is written here. A plugin that claims one comes first."""


def common_mistakes(text: object) -> list[str]:
    """A sentence for each common mistake in the string; none for what is not text, or longer than any config string."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return []
    problems = []
    stripped = text.strip("\ufeff \t\r\n")
    if text != stripped:
        problems.append(
            "the config string begins or ends with a line break, a space or another character that cannot be printed, "
            "which often comes from a file or a shell: remove it"
        )
    text = stripped
    if len(text) > 1 and text[0] in "\"'`" and text[-1] == text[0]:
        problems.append("the config string is in quotes, which an .env file or a YAML file may keep: remove them")
        text = text[1:-1]
    if re.match(r"(export )?[A-Za-z_][A-Za-z0-9_]*=\S+://", text):
        problems.append("the config string begins with the name of a variable and '=': leave them out")
        text = text.partition("=")[2]
    if re.match(r"\$\{?[A-Za-z_]|\{\{", text):
        return [*problems, "the config string is a variable that nothing has replaced by its value"]
    scheme, separator, rest = text.partition("://")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0].rpartition("@")[2]
    if re.match(r"[^/?]*,\s*[A-Za-z][A-Za-z0-9+._-]*://", rest):
        problems.append("the scheme stands in front of every host: write it once, in front of the first")
        if scheme.lower() in FOREIGN_SCHEMES:
            problems.append(f"{scheme.lower()}:// is not a scheme here: {FOREIGN_SCHEMES[scheme.lower()]}")
    elif ";" in authority:
        problems.append("hosts are separated by ';': write commas")
    if separator and scheme.upper() in ("SASL_PLAINTEXT", "SASL_SSL"):
        problems.append(f"{scheme.upper()} is not a scheme: write kafka://, and ?security_protocol={scheme.upper()}")
    if not separator and re.fullmatch(r"[A-Za-z0-9_.-]+:[0-9]{1,5}(,[A-Za-z0-9_.-]+(:[0-9]{1,5})?)*", text):
        problems.append(
            "there is no scheme in front of the hosts: the config string must start with a scheme and '://', for "
            "example kafka:// or amqp://"
        )
    return problems
