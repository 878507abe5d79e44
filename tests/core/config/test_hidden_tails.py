"""No part of a password shows anywhere, however the password was put into the config string without being encoded."""

import re
import traceback
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.options import BrokerOptions, option, resolve_options
from cqrs_brokers.secret import Secret
from cqrs_brokers.url import BrokerURL

LETTERS = "QXZJ"
SIGNS = "&?#@/%+=:;,![]"
PASSWORDS = st.text(alphabet=LETTERS + SIGNS, min_size=4, max_size=24) | st.lists(
    st.text(alphabet=LETTERS, min_size=4, max_size=8) | st.sampled_from("&=?&="), min_size=1, max_size=7
).map("".join)
STRINGS = [
    "amqp://u:{}@h",
    "amqp://u:{}@h/v?client_id=me",
    "amqp://u:{}@h1:1,h2:2/v?sasl_password=x",
    "kafka://h?sasl_password={}",
    "kafka://h:9092?acks=all&sasl_password={}&client_id=me",
    "kafka://h?ssl_key_password={}&ssl_cafile=x",
    "kafka://h?auth_token={}&sasl_password={}",
    "kafka://u@h?password_file={}&acks=all",
    "kafka://h?pwd={}",
    "kafka://h?api_key={}&acks=all",
    "kafka://h?sasl.jaas.config={}",
]


class Options(BrokerOptions):
    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts", "path"})
    acks: str = option("all", description="")
    client_id: str = option("me", description="")
    ssl_cafile: str | None = option(None, description="")
    sasl_password: Secret | None = option(None, description="")
    ssl_key_password: Secret | None = option(None, description="")
    auth_token: Secret | None = option(None, description="")


def shown_of(text: str) -> str:
    """Everything that people may see of a config string: of the URL, of what is made of it, and of errors."""
    shown: list[object] = []
    try:
        url = BrokerURL.parse(text, source="CQRS_BROKER_URL")
        shown += [url, url.query, f"{url}", vars_of(url)]
        resolved = resolve_options(Options, url=url)
        shown += [resolved, resolved.url, resolved.options, resolved.effective, resolved.options.model_dump()]
    except ConfigError as error:
        shown += [error, error.problems, error.args, "".join(traceback.format_exception(error))]
    return " ".join(f"{one} {one!r}" for one in shown)


def vars_of(url: BrokerURL) -> list[object]:
    return [url.scheme, url.username, url.password, url.hosts, url.path]


@pytest.mark.parametrize("pattern", STRINGS)
@given(password=PASSWORDS)
@settings(max_examples=150, deadline=None)
def test_no_four_characters_of_a_password_show(pattern: str, password: str) -> None:
    """Not in `str` or `repr` of the URL, before or after its options are known, nor in an error or a traceback."""
    shown = shown_of(pattern.format(password, password))
    for start in range(len(password) - 3):
        part = password[start : start + 4]
        if len(re.findall(f"[{LETTERS}]", part)) > 1:
            assert part not in shown, (part, shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("kafka://h?acks=all&sasl_password=abc", "kafka://h?acks=all&sasl_password=**********"),
        ("kafka://h?sasl_password=ab&cdef=ghij", "kafka://h?sasl_password=**********&**********"),
        ("kafka://h?sasl_password=ab&token=cdef", "kafka://h?sasl_password=**********&**********"),
        ("kafka://h?sasl_password=ab&acks=1&x=2", "kafka://h?sasl_password=**********&**********"),
        ("kafka://h?pwd=ab", "kafka://h?pwd=**********"),
    ],
)
def test_what_a_url_shows(text: str, shown: str) -> None:
    """Options up to the first that is a secret; that there are more, but not which."""
    url = BrokerURL.parse(text)
    assert str(url) == shown
    assert repr(url) == f"BrokerURL({shown!r})"
    assert BrokerURL.parse(url.render(reveal=True)) == url
