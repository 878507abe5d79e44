"""Recognises mistakes that platforms and shells often make in config strings, and says what to write instead.

The parser asks it about strings that it has refused. The sentences never quote the string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["FOREIGN_OPTIONS", "FOREIGN_SCHEMES", "MAX_LENGTH", "common_mistakes"]

MAX_LENGTH: Final = 8192
"""The most characters of a config string."""

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
"""Schemes of other clients, and what to write here instead. A plugin that claims such a scheme comes first."""

FOREIGN_OPTIONS: Final[Mapping[str, str]] = {
    "ca_certs": "ssl_cafile",
    "ca_file": "ssl_cafile",
    "cacertfile": "ssl_cafile",
    "cafile": "ssl_cafile",
    "certfile": "ssl_certfile",
    "compression": "compression_type",
    "compression_codec": "compression_type",
    "connection_timeout": "connect_timeout",
    "keyfile": "ssl_keyfile",
    "sasl_mechanisms": "sasl_mechanism",
    "sasl_password": "sasl_plain_password",
    "sasl_username": "sasl_plain_username",
    "ssl": "security_protocol",
    "ssl_ca": "ssl_cafile",
    "ssl_ca_location": "ssl_cafile",
    "ssl_certificate_location": "ssl_certfile",
    "ssl_key_location": "ssl_keyfile",
    "tls": "security_protocol",
    "verify": "ssl_verify",
}
"""Names of options in other clients (with `_` for `-` and `.`), and the name here. A name is suggested only if the
plugin has that option."""


def common_mistakes(text: object) -> list[str]:
    """A sentence for each common mistake in the string. A value that is not text, or is too long, gives none."""
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
    if re.match(r"Endpoint=sb://", text, re.IGNORECASE):
        return [
            *problems,
            "this is a connection string of Azure Event Hubs: write kafka://NAMESPACE.servicebus.windows.net:9093?"
            "security_protocol=SASL_SSL&sasl_mechanism=PLAIN&sasl_plain_username=$ConnectionString, and give this "
            "string as the password, with sasl_plain_password_env= or sasl_plain_password_file=",
        ]
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
