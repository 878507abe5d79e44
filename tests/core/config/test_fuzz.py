"""Hostile input: nothing but a `BrokerError`, no secret in it, no hang, and parse → render → parse is a fixed point.

`CQRS_FUZZ_CASES` sets the number of mutated inputs (default 20 000; the full run has 200 000), `CQRS_FUZZ_SEED` the
start of the random numbers.
"""

import os
import random
import re
import time
import traceback
from collections.abc import Iterator
from typing import ClassVar, Literal

import importlib_metadata
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqrs_brokers import available_brokers
from cqrs_brokers._discovery.discovery import find_owner
from cqrs_brokers._discovery.installed import installed
from cqrs_brokers.exceptions import BrokerError
from cqrs_brokers.options import BrokerOptions, Duration, option, resolve_options
from cqrs_brokers.secret import MASK, Secret
from cqrs_brokers.url import BrokerURL, names_a_secret

CASES = int(os.environ.get("CQRS_FUZZ_CASES", "20000"))
SEED = int(os.environ.get("CQRS_FUZZ_SEED", "1"))
CANARY = "QK4N4RYx9"  # not starting with a hexadecimal digit: `%2` before it would swallow that
SLOW = 1.0  # seconds; a case takes well below a millisecond


class Options(BrokerOptions):
    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts", "path"})
    acks: Literal["all", "1"] = option("all", description="")
    client_id: str = option("me", description="")
    window: Duration | None = option(None, gt=0, description="")
    ssl_password: Secret | None = option(None, description="")
    auth_token: Secret | None = option(None, description="")


STRINGS = [
    f"kafka://h1:9092,h2:9092?client_id=my-app&acks=all&ssl_password={CANARY}&max_in_flight_bytes=1MiB",
    f"amqp://user:{CANARY}@localhost/vhost?client_id=e&window=500ms",
    f"amqps://user:{CANARY}%2F%40@[::1]:5671,[fe80::1%25eth0]/%2F?auth_token={CANARY}&delivery_timeout=30s",
    f"x://h?ssl_password_file={CANARY}&auth_token_env={CANARY}&acks=1",
    f"x://u@h?password_file=/nowhere/{CANARY}&retry_count=3",
    f"x://u:{CANARY}@h/a/b?ssl_password={CANARY}%26{CANARY}&window=1h&auth_token=a",
]
TOKENS = [
    *"/?#@%&=,:[]+ \\\x00\n\ud800é\u202e'\"",
    "://",
    "%00",
    "%ff",
    "%2F",
    "%",
    "&&",
    "1" * 400,
    "::",
    "[::1]",
    "password=",
    "&auth_token=",
    "acks",
    "true",
    "0",
    "-1",
    "1e9",
    "NaN",
    "30s",
    MASK,
    "x" * 9000,
]


def mutated(seeds: list, tokens: list, number: int, seed: int) -> Iterator:
    """Each seed with a few parts deleted, doubled, swapped, inserted or cut off."""
    generator = random.Random(seed)
    for _ in range(number):
        text = generator.choice(seeds)
        for _ in range(generator.choice((1, 1, 1, 2, 3, 5))):
            at, other = sorted(generator.randrange(len(text) + 1) for _ in range(2))
            kind = generator.randrange(6)
            if kind == 0:
                text = text[:at] + text[at + 1 :]
            elif kind == 1:
                text = text[:at] + text[other:]
            elif kind == 2:
                text = text[:other] + text[at:other] + text[other:]
            elif kind == 3:
                text = (
                    text[:at] + text[other : other + 1] + text[at + 1 : other] + text[at : at + 1] + text[other + 1 :]
                )
            else:
                text = text[:at] + generator.choice(tokens) + text[at:]
        yield text


def names_the_canary(text: str) -> bool:
    """Whether the mutation made the canary (or its end) the name of an option that no secret option precedes.

    Then it is in no secret place any more: the string says that it is a name.
    """
    query = text.partition("?")[2]
    for item in query.split("&"):
        name = item.partition("=")[0]
        if CANARY.lower() in name.lower():
            return True
        if names_a_secret(name):
            return False
    return False


def shown(error: BaseException) -> str:
    """All that a person or a log could see of it, but for the source lines of a traceback."""
    seen = [str(error), repr(error), repr(error.args), repr(error.__cause__), repr(error.__context__)]
    return "\n".join(seen + traceback.format_exception_only(error))


def check_good(text: str) -> None:
    """What was read renders back to itself and shows no secret. Raises what reading it raises."""
    url = BrokerURL.parse(text)
    revealed = url.render(reveal=True)
    assert BrokerURL.parse(revealed) == url, text
    assert BrokerURL.parse(revealed).render(reveal=True) == revealed, text
    no_secrets = [url.username, url.path, str(url.hosts), *url.query]
    no_secrets += [value for value in url.query.values() if isinstance(value, str)]
    hidden = not any(CANARY in str(part) for part in no_secrets)
    if hidden:
        assert CANARY not in str(url) + repr(url) + str(dict(url.query)), text
    resolved = resolve_options(Options, url=url)
    if hidden:
        assert CANARY not in repr(resolved), text


def test_mutated_config_strings():
    """Parsed and resolved: a value or a `BrokerError`; in neither a secret; the fixed point holds."""
    refused = 0
    for text in mutated(STRINGS, TOKENS, CASES, SEED):
        start = time.perf_counter()
        caught = None
        try:
            check_good(text)
        except BrokerError as error:
            caught = error
        assert time.perf_counter() - start < SLOW, text
        if caught is not None:
            refused += 1
            assert names_the_canary(text) or CANARY.lower() not in shown(caught).lower(), (text, str(caught))
            assert caught.__cause__ is None, text
            assert caught.__context__ is None, text
    # A fuzzer whose every case is refused at the first character, or accepted, tests nothing.
    assert CASES / 50 < refused < CASES * 49 / 50, refused


class Fake(importlib_metadata.Distribution):
    """A distribution whose files are these bytes, decoded as those on disk are."""

    def __init__(self, **files: bytes) -> None:
        self.files_ = files

    def read_text(self, filename: str) -> str | None:
        data = self.files_.get(filename.split(".")[0])
        return None if data is None else data.decode("utf-8")

    def locate_file(self, path):
        raise NotImplementedError


def folder_name(distribution: Fake) -> str | None:
    try:
        return distribution.name.replace("_", "-").lower()
    except Exception:
        return None


ENTRY_POINTS = [
    b"[console_scripts]\nx = y:z\n\n[cqrs_brokers]\nacme = acme_mod\nacme+tls = acme_mod:tls.x [extra]\n",
    b"[cqrs_brokers]\r\n# comment\r\nkafka = evil\r\n; other\r\nacme=acme_mod\r\n",
    b"[cqrs_brokers]\n",
    b"",
]
METADATA = [
    b"Metadata-Version: 2.1\nName: acme\nVersion: 1.0\nRequires-Dist: cqrs-brokers-core>=0.1,<0.2\n\nText\n",
    b"Name: cqrs-broker-acme\nVersion: 1\nRequires-Dist: cqrs_brokers_core (<1,!=0.5); python_version > '3'\n",
    b"Name: cqrs-brokers-core\nVersion: 0.1.0rc1\n",
]
BYTES = [
    b"[",
    b"]",
    b"=",
    b":",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b"\xc3",
    b" ",
    b"#",
    b"[cqrs_brokers]\n",
    b"acme",
    b";",
    b".",
    b"<",
    b"==",
    b"\xe2\x80\xae",
    b"1" * 300,
    b"Version: ",
    b"Name: ",
    b"Requires-Dist: cqrs-brokers-core @ http://x\n",
]


def test_mutated_distributions(monkeypatch):
    """Corrupt entry_points.txt and METADATA: listed or refused, and never in the way of the good plugin beside them."""
    good = Fake(METADATA=b"Name: cqrs-broker-good\nVersion: 1\n", entry_points=b"[cqrs_brokers]\ngood = good_mod\n")
    table: list[importlib_metadata.Distribution] = []

    def distributions(name=None):
        return iter(table if name is None else [one for one in table if folder_name(one) == name])

    monkeypatch.setattr(importlib_metadata, "distributions", distributions)
    monkeypatch.delenv("CQRS_BROKERS_PIN", raising=False)
    files = zip(
        mutated(ENTRY_POINTS, BYTES, CASES // 2, SEED), mutated(METADATA, BYTES, CASES // 2, SEED + 1), strict=True
    )
    found = 0
    for entry_points, header in files:
        table[:] = [Fake(METADATA=header, entry_points=entry_points), good]
        installed.cache_clear()
        start = time.perf_counter()
        infos = available_brokers()
        found += len(infos) > 1
        for info in infos:
            assert (info.name + info.distribution + info.version + info.entry_point).isprintable(), table[0].files_
        assert find_owner("good").value == "good_mod" or any(info.status == "ambiguous" for info in infos)
        for scheme in ("acme", "kafka"):
            caught = None
            try:
                find_owner(scheme)
            except BrokerError as error:
                caught = error
            assert str(caught).isprintable()
        assert time.perf_counter() - start < SLOW
    installed.cache_clear()
    assert found > CASES / 20


hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{1,5})?(:[1-9][0-9]{0,3})?", fullmatch=True),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]:9092"),
)
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40).filter(
    lambda text: text != MASK
)


@settings(max_examples=300, deadline=None)
@given(
    st.from_regex(r"[a-z][a-z0-9+.-]{0,10}", fullmatch=True),
    st.lists(hosts, min_size=1, max_size=4, unique=True),
    st.none() | st.tuples(texts, texts),
    st.none() | texts,
)
def test_any_parts_survive_building_rendering_and_parsing(scheme, listed, credentials, path):
    """Whatever printable text a password or a virtual host is."""
    username, password = credentials or (None, None)
    url = BrokerURL.build(scheme, hosts=listed, username=username, password=password, path=path)
    assert (url.scheme, url.username, url.path) == (scheme, username, path)
    assert url.password == (None if password is None else Secret(password))
    assert [str(host) for host in url.hosts] == listed
    assert BrokerURL.parse(url.render(reveal=True)) == url
    assert BrokerURL.parse(url.render(reveal=True)).render() == url.render()


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"[a-z]{1,3}://[^/]{0,20}(/.{0,5})?(\?.{0,20})?"))
def test_any_text_is_a_url_or_a_broker_error(text):
    """hypothesis' own idea of hostile text."""
    try:
        url = BrokerURL.parse(text)
    except BrokerError:
        return
    assert BrokerURL.parse(url.render(reveal=True)) == url


@pytest.mark.parametrize("length", [10, 1000, 8000])
def test_long_input_takes_no_longer_than_its_length(length):
    """No pattern backtracks: the longest inputs stay far below the limit."""
    parts = {"a-": "", "a.": "", "[": "", ",": "", "%": "h?a=", "a=1&": "h?", "1": "h?window=", "k": "h:"}
    for text in [f"k://{before}{part * length}" for part, before in parts.items()]:
        start = time.perf_counter()
        caught = None
        try:
            resolve_options(Options, url=BrokerURL.parse(text))
        except BrokerError as error:
            caught = error
        assert time.perf_counter() - start < SLOW
        assert not re.search(r"(.)\1{99}", str(caught))
