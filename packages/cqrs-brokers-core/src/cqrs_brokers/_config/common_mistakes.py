"""Recognises common mistakes in config strings, and says what to write instead.

`BrokerURL.parse` calls `common_mistakes` for strings that it cannot read, and `silent_mistakes` for strings that it can
read. The sentences that these functions return quote nothing of the string, except schemes and separators that this
module knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["FOREIGN_OPTIONS", "FOREIGN_SCHEMES", "MAX_LENGTH", "NO_OPTIONS", "common_mistakes", "silent_mistakes"]

MAX_LENGTH: Final = 8192
"""The most characters of a config string."""

_KAFKA_TLS = "write kafka://, and ?security_protocol=SSL (with a user: SASL_SSL)"
_KAFKA_SASL = "write kafka://, and ?security_protocol=SASL_SSL"
_RABBITMQ_TLS = "write amqps://"
_HTTP = "that is an HTTP interface: write amqp:// and RabbitMQ's port (5672), or kafka:// and Kafka's (9092)"

FOREIGN_SCHEMES: Final[Mapping[str, str]] = {
    "amqp+ssl": _RABBITMQ_TLS,
    "amqp+tls": _RABBITMQ_TLS,
    "amqps+ssl": _RABBITMQ_TLS,
    "confluent": _KAFKA_SASL,
    "http": _HTTP,
    "https": _HTTP,
    "kafka+sasl": _KAFKA_SASL,
    "kafka+ssl": _KAFKA_TLS,
    "kafka+tls": _KAFKA_TLS,
    "kafkas": _KAFKA_TLS,
    "librabbitmq": "write amqp://",
    "msk": "write kafka://",
    "plaintext": "write kafka://",
    "pyamqp": "write amqp://",
    "rabbit": "write amqp://, or amqps:// for TLS",
    "rabbitmq": "write amqp://, or amqps:// for TLS",
    "rabbitmq+amqp": "write amqp://",
    "rabbitmqs": _RABBITMQ_TLS,
    "redpanda": "write kafka://",
    "ssl": "write kafka:// and ?security_protocol=SSL, or amqps://",
    "tcp": "write amqp://, or kafka://",
    "tls": "write amqps://, or kafka:// and ?security_protocol=SSL",
}
"""Schemes of other clients and similar schemes, and what to write here instead. If a plugin claims such a scheme, the
plugin is used."""

FOREIGN_OPTIONS: Final[Mapping[str, str]] = {
    "batch_size": "max_batch_size",
    "ca_certs": "ssl_cafile",
    "ca_file": "ssl_cafile",
    "cacertfile": "ssl_cafile",
    "cafile": "ssl_cafile",
    "certfile": "ssl_certfile",
    "compression": "compression_type",
    "compression_codec": "compression_type",
    "connection_attempts": "retry_count",
    "connection_timeout": "connect_timeout",
    "enable_ssl_certificate_verification": "ssl_verify",
    "keyfile": "ssl_keyfile",
    "max_request_size": "max_message_bytes",
    "message_timeout_ms": "delivery_timeout",
    "name": "connection_name",
    "queue_buffering_max_ms": "linger_ms",
    "request_required_acks": "acks",
    "sasl_mechanisms": "sasl_mechanism",
    "sasl_password": "sasl_plain_password",
    "sasl_username": "sasl_plain_username",
    "socket_timeout": "connect_timeout",
    "ssl": "security_protocol",
    "ssl_ca": "ssl_cafile",
    "ssl_ca_location": "ssl_cafile",
    "ssl_certificate_location": "ssl_certfile",
    "ssl_check_hostname": "ssl_verify",
    "ssl_endpoint_identification_algorithm": "ssl_verify",
    "ssl_key_location": "ssl_keyfile",
    "ssl_keystore_location": "ssl_certfile",
    "ssl_truststore_location": "ssl_cafile",
    "tls": "security_protocol",
    "use_ssl": "security_protocol",
    "username": "sasl_plain_username",
    "verify": "ssl_verify",
}
"""Names of options in other clients (in lower case, with `_` in place of `-` and `.`), and the name of the option here
that is nearest in meaning. A name is suggested only if the plugin has that option."""

_JAAS = "give its username and password as sasl_plain_username= and sasl_plain_password= (or sasl_plain_password_env=)"
_SCHEME_IS_TLS = "with RabbitMQ, TLS comes with the scheme: write amqps://"
_VIRTUAL_HOST = "with RabbitMQ, the virtual host is the path: amqp://user:password@host/vhost"

NO_OPTIONS: Final[Mapping[str, str]] = {
    "auth_mechanism": "the plugin takes PLAIN, or SCRAM-SHA-256 where PLAIN is not offered: leave it out",
    "blocked_connection_timeout": "delivery_timeout bounds a send while the broker is blocked: leave it out",
    "bootstrap_servers": "the hosts come after '://', with commas between them",
    "channel_max": "the plugin keeps to what the server offers: leave it out",
    "frame_max": "the plugin keeps to what the server offers: leave it out",
    "sasl_jaas_config": f"this is the line of a Java client: {_JAAS}",
    "ssl": _SCHEME_IS_TLS,
    "ssl_options": f"{_SCHEME_IS_TLS}, and give ssl_cafile=, ssl_certfile=, ssl_keyfile=",
    "tls": _SCHEME_IS_TLS,
    "use_ssl": _SCHEME_IS_TLS,
    "vhost": _VIRTUAL_HOST,
    "virtual_host": _VIRTUAL_HOST,
}
"""Names of options in other clients (in lower case, with `_` in place of `-` and `.`) that plugins here do not have,
and what to do instead."""

_HOSTS = r"[A-Za-z0-9_.-]+:[0-9]{1,5}(,\s*[A-Za-z0-9_.-]+(:[0-9]{1,5})?)*"
_VARIABLE = (
    r"\$\{[A-Za-z_][^{}]*\}|\{\{.*\}\}|%\([A-Za-z_]+\)s|(?:^|[:/@,=])<[A-Za-z][A-Za-z_ -]*>(?=$|[:/@,?&])"
    r"|(?:^|:)\$[A-Z][A-Z0-9_]+(?=[:@])"
)
"""Matches a placeholder that was not replaced: `${NAME}`, `{{ name }}`, `%(name)s`, `<name>` or `$NAME`. `<name>` is
matched only as a whole part of the string. `$NAME` is matched only before a `:` or an `@`, and only at the start of the
string or after a `:`. The string is the text after `://`. So `$NAME` is usually a user name, a password, or the first
host with a port."""
_INVISIBLE = "\u00a0\u00ad\u200b\u200c\u200d\u2060\ufeff"
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
_SPACE = " \t\r\n"


def common_mistakes(text: object) -> list[str]:
    """A sentence for each common mistake that is found in a string that was refused. If the string is not a config
    string at all (for example JSON), the search ends there. If the value is not text or is too long, there are no
    sentences."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return []
    problems = []
    stripped = text.strip(_SPACE + "\ufeff")
    if text != stripped:
        problems.append(
            "the config string begins or ends with a line break, a space or another character that cannot be printed, "
            "which often comes from a file or a shell: remove it"
        )
    text = stripped
    if re.match(rf"[{_QUOTES}]?Endpoint=sb://", text, re.IGNORECASE):
        return [
            *problems,
            "this is a connection string of Azure Event Hubs: write kafka://NAMESPACE.servicebus.windows.net:9093?"
            "security_protocol=SASL_SSL&sasl_mechanism=PLAIN&sasl_plain_username=$ConnectionString, and give this "
            "string as the password, with sasl_plain_password_env= or sasl_plain_password_file=",
        ]
    named = re.match(r"(?:export |set |ENV |- )?[A-Za-z_][A-Za-z0-9_.-]*\s*(?:=|:\s)\s*(?=\S)", text)
    if named and ("://" in text[named.end() :] or re.fullmatch(_HOSTS, text[named.end() :])):
        problems.append("the config string begins with the name of a variable and '=' or ':': leave them out")
        text = text[named.end() :]
    if len(text) > 1 and (text[0] in _QUOTES or text[-1] in _QUOTES):
        problems.append("the config string is in quotes, which an .env file or a YAML file may keep: remove them")
        text = text.strip(_QUOTES)
    elif text.startswith("<") and text.endswith(">"):
        problems.append("the config string is in angle brackets: remove them")
        text = text[1:-1]
    if re.search(r"LoginModule\s+required", text):
        return [*problems, f"the config string has a JAAS line of a Java client (sasl.jaas.config): {_JAAS}"]
    if re.match(r"\$\{?[A-Za-z_]|\{\{", text):
        return [*problems, "the config string is a variable that nothing has replaced by its value"]
    if re.match(r"\{\s*\"|\[\s*[\"']", text):
        return [*problems, "the config string is JSON: give only the string in it, and several hosts with commas"]
    return [*problems, *_mistakes_within(text)]


def _mistakes_within(text: str) -> list[str]:
    problems = []
    scheme, separator, rest = text.partition("://")
    authority = re.split(r"[/?]", rest, maxsplit=1)[0].rpartition("@")[2]
    sasl = re.fullmatch(r"(?:kafka[+_-])?(SASL_PLAINTEXT|SASL_SSL)", scheme, re.IGNORECASE)
    if re.match(r"[^/?]*[,\s]\s*[A-Za-z][A-Za-z0-9+._-]*://", rest):
        problems.append("the scheme stands in front of every host: write it once, in front of the first")
        if scheme.lower() in FOREIGN_SCHEMES:
            problems.append(f"{scheme.lower()}:// is not a scheme here: {FOREIGN_SCHEMES[scheme.lower()]}")
    elif re.match(r"[A-Za-z][A-Za-z0-9+._-]*://", rest):
        problems.append("there are two schemes: leave one of them out")
    elif wrong := next((sign for sign in ";|" if sign in authority), None):
        problems.append(f"hosts are separated by '{wrong}': write commas")
    elif separator and re.search(r"\s", authority):
        problems.append("there is a space or a line break between the hosts: write only a comma")
    elif '"' in authority or "'" in authority:
        problems.append("the hosts are in quotes or in a list, as in JSON: write them with commas only")
    if separator and sasl:
        problems.append(f"{scheme.upper()} is not a scheme: write kafka://, and ?security_protocol={sasl[1].upper()}")
    if re.search(r"\s#", rest):
        problems.append("a comment follows the config string: leave it out")
    if any(character in _INVISIBLE for character in text):
        problems.append("the config string contains a character that cannot be seen (a no-break space?): remove it")
    if re.search(r":(None|null|undefined|nil|NaN)\b", authority):
        problems.append("a port is None or null: a variable was empty when the config string was made")
    problems += silent_mistakes(text)
    if not separator and re.fullmatch(_HOSTS, text):
        problems.append(
            "there is no scheme in front of the hosts: the config string must start with a scheme and '://', for "
            "example kafka:// or amqp://"
        )
    elif not separator and re.match(r"(amqps?|kafka)(:/?|//?)[^:/]", text, re.IGNORECASE):
        problems.append(
            "the config string must start with a scheme and '://', for example kafka://localhost:9092: a ':' or a '/' "
            "is missing"
        )
    return problems


def silent_mistakes(text: str) -> list[str]:
    """A sentence for each common mistake that may leave a string valid but changes the meaning of the string."""
    problems = []
    _, separator, rest = text.partition("://")
    before, _, query = rest.partition("?")
    if re.search(_VARIABLE, rest):
        problems.append(
            "the config string contains a variable that nothing has replaced by its value, such as ${NAME}, {{ name }} "
            "or <name> (if it is meant literally, percent-encode it: $ is %24, { is %7B, < is %3C)"
        )
    if separator and re.search(r"&[a-z_]+=", before):
        problems.append("the options begin with '&': the first one begins with '?'")
    if "&amp;" in query:
        problems.append("there is '&amp;', as in HTML: write '&' between options")
    if re.search(r"\\[?&=]", rest):
        problems.append("there is a backslash before '?', '&' or '=', which a shell may need: remove it")
    return problems
