"""The grammar of config strings."""

import copy
import pickle
import traceback

import pytest

from cqrs_brokers import open_broker
from cqrs_brokers.exceptions import ConfigError
from cqrs_brokers.secret import MASK, Secret
from cqrs_brokers.url import BrokerURL, Host

CANARY = "C4N4RY"


def parse(text):
    return BrokerURL.parse(text)


def problems_of(text):
    with pytest.raises(ConfigError) as caught:
        BrokerURL.parse(text)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert CANARY not in "".join(traceback.format_exception(error)).replace(text, "")
    return error.problems


def test_every_part_is_read():
    """Scheme, user, password, hosts, path and options of one string."""
    url = parse("amqp://bob:p%40ss@h1:1,[::1]:2,h3/a%2Fb?exchange=events&heartbeat=10")
    assert url.scheme == "amqp"
    assert url.username == "bob"
    assert url.password == Secret("p@ss")
    assert url.hosts == (Host("h1", 1), Host("::1", 2), Host("h3", None))
    assert url.path == "a/b"
    assert dict(url.query) == {"exchange": "events", "heartbeat": "10"}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("devnull://", []),
        ("kafka://h", ["h"]),
        ("kafka://h1:9092,h2:9093", ["h1:9092", "h2:9093"]),
        ("kafka://h1,h2:1", ["h1", "h2:1"]),
        ("kafka://[::1]", ["[::1]"]),
        ("kafka://[::1]:9092,[2001:db8::2]:9093,10.0.0.1", ["[::1]:9092", "[2001:db8::2]:9093", "10.0.0.1"]),
        ("kafka://[fe80::1%25eth0]:1", ["[fe80::1%25eth0]:1"]),
        ("kafka://my_host-1.example.org.:65535", ["my_host-1.example.org.:65535"]),
        ("memory://Demo", ["Demo"]),
    ],
)
def test_host_lists(text, hosts):
    """Several hosts, IPv6 and its zones, and ports that the string leaves to the plugin."""
    assert [str(host) for host in parse(text).hosts] == hosts


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("amqp://h", None),
        ("amqp://h/", ""),
        ("amqp://h/%2F", "/"),
        ("amqp://h/a%2Fb", "a/b"),
        ("amqp://h/a/b", "a/b"),
        ("amqp://h/a%25b", "a%b"),
        ("amqp://h/%C3%A9", "é"),
        ("amqp://h?x=1", None),
        ("amqp://h//", "/"),
    ],
)
def test_paths_as_virtual_hosts_need_them(text, path):
    """No path, an empty one and `/` are three different things."""
    assert parse(text).path == path


@pytest.mark.parametrize(
    ("encoded", "password"),
    [
        ("%2F", "/"),
        ("%25", "%"),
        ("+", "+"),
        ("%2B", "+"),
        ("%C3%A9", "é"),
        ("a:b", "a:b"),
        ("a%20b", "a b"),
        ("$,;", "$,;"),
    ],
)
def test_passwords_are_percent_decoded(encoded, password):
    """A plus is a plus; everything else may be encoded."""
    assert parse(f"amqp://u:{encoded}@h").password == Secret(password)


def test_values_keep_plus_and_equals():
    """Base64 needs no encoding."""
    assert parse("k://h?sasl_password=a+b/c==").query["sasl_password"] == Secret("a+b/c==")


NASTY = [
    (5, "must be str, not int"),
    (None, "must be str, not NoneType"),
    (b"kafka://h", "must be str, not bytes"),
    ("", "must start with a scheme"),
    (CANARY, "must start with a scheme"),
    ("://h", "must start with a scheme"),
    ("kafka:/h", "must start with a scheme"),
    ("kafka:h", "must start with a scheme"),
    (f"u:{CANARY}@host", "must start with a scheme"),
    (f"u:{CANARY}://host", "must start with a scheme"),
    ("1kafka://h", "must start with a scheme"),
    ("ka_fka://h", "must start with a scheme"),
    ("kafka://h\n", "cannot be printed"),
    (" kafka://h", "a space"),
    ("kafka://h\x00", "cannot be printed"),
    ("kafka://h?a=\ud800", "cannot be printed"),
    ("kafka://\u202eh", "cannot be printed"),
    (f"amqp://u:{CANARY} x@h", "a space"),
    (f"amqp://u:{CANARY}/pw@host", "does not separate"),
    (f"amqp://u:{CANARY}?pw@host", "does not separate"),
    (f"amqp://u:{CANARY}#pw@host", "contains '#'"),
    (f"amqp://u:{CANARY}@pw@host", "does not separate"),
    (f"amqp://u:{CANARY}@h1,u:{CANARY}@h2", "does not separate"),
    (f"amqp://h?x={CANARY}@", "does not separate"),
    (f"amqp://u:{CANARY}", "the port of host 1"),
    (f"amqp://u:{CANARY}%@h", "the password contains a '%'"),
    (f"amqp://u:{CANARY}%zz@h", "the password contains a '%'"),
    (f"amqp://u:{CANARY}%ff@h", "the password contains an escape that is not UTF-8"),
    (f"amqp://u:{CANARY}%00@h", "the password contains a control character"),
    (f"amqp://u:{CANARY}%0a@h", "the password contains a control character"),
    (f"amqp://u:{CANARY}%c2%85@h", "the password contains a control character"),
    ("amqp://u:@h", "the password is empty"),
    (f"amqp://u:{MASK}@h", "the mask of a redacted"),
    (f"amqp://:{CANARY}@h", "the user name is empty"),
    ("amqp://@h", "the user name is empty"),
    (f"amqp://u:{CANARY}@", "there is a user but no host"),
    ("kafka://,h", "host 1 is empty"),
    ("kafka://h1,,h2", "host 2 is empty"),
    ("kafka://h1,", "host 2 is empty"),
    ("kafka://:9092", "host 1 is not a host name"),
    ("kafka://h1:,h2", "the port of host 1"),
    ("kafka://h:0", "the port of host 1"),
    ("kafka://h:65536", "the port of host 1"),
    ("kafka://h:-1", "the port of host 1"),
    ("kafka://h:\uff11", "the port of host 1"),
    ("kafka://h:1,h:1", "host 2 is listed twice"),
    ("kafka://h1,H1", "host 2 is listed twice"),
    ("kafka://h,h.", "host 2 is listed twice"),
    ("kafka://[::1],[0:0::1]", "host 2 is listed twice"),
    ("kafka://::1", "an IPv6 address needs brackets"),
    ("kafka://[::1", "not an IPv6 address in brackets"),
    ("kafka://[::1]x", "not an IPv6 address in brackets"),
    ("kafka://[1.2.3.4]", "not an IPv6 address in brackets"),
    ("kafka://[::g]:1", "not an IPv6 address in brackets"),
    ("kafka://[fe80::1%eth0]", "not an IPv6 address in brackets"),
    ("kafka://h%41", "host 1 is not a host name"),
    ("kafka://-h", "host 1 is not a host name"),
    ("kafka://h..x", "host 1 is not a host name"),
    ("kafka://é", "host 1 is not a host name"),
    ("kafka://" + "a" * 254, "host 1 is not a host name"),
    ("kafka://h\\x", "host 1 is not a host name"),
    ("kafka://" + ",".join(f"h{n}" for n in range(65)), "more than 64 hosts"),
    ("kafka://h?" + "&".join(f"a{n}=1" for n in range(65)), "more than 64 options"),
    ("kafka://h?" + "a" * 8192, "longer than 8192"),
    ("kafka://h?a", "option 1 is not of the form"),
    ("kafka://h?=1", "option 1 is not of the form"),
    ("kafka://h?a=1&&b=2", "option 2 is not of the form"),
    ("kafka://h?a=1&", "option 2 is not of the form"),
    ("kafka://h?é=1", "option 1 is not of the form"),
    ("kafka://h?a=1&a=2", "option 'a' is given twice"),
    ("kafka://h?a=%", "option 'a' contains a '%'"),
    ("kafka://h?a=%00", "option 'a' contains a control character"),
    ("kafka://h?password=", "option 'password' is empty"),
    (f"kafka://h?password=x&{CANARY}", "option 2 is not of the form"),
    (f"kafka://h?password=x&{CANARY}=1&{CANARY}=2", "option 3 is given twice"),
    (f"kafka://h?password=x&{CANARY}=%", "option 2 contains a '%'"),
]


@pytest.mark.parametrize(("text", "why"), NASTY, ids=[str(number) for number in range(len(NASTY))])
def test_what_is_not_clearly_meant_is_refused(text, why):
    """Each is one `ConfigError` that says what is wrong, where, and shows nothing that may be a secret."""
    if not isinstance(text, str):
        with pytest.raises(ConfigError, match=why):
            parse(text)
        return
    problems = problems_of(text)
    assert len(problems) == 1, problems
    assert why in problems[0]
    assert CANARY not in problems[0]


def test_all_problems_are_reported_at_once():
    """Three mistakes are one error with three sentences."""
    assert len(problems_of("kafka://h:0,,h3?a=%&a=1&b")) == 4


def test_text_shows_no_secret_and_reveal_is_a_fixed_point():
    """`str` masks; the revealed form reads back as an equal object."""
    url = parse(f"AMQP://bob:{CANARY}%2F@h:1/%2F?ssl_key_passphrase={CANARY}&auth_token={CANARY}&x=a%26b,c")
    assert str(url) == f"amqp://bob:{MASK}@h:1/%2F?ssl_key_passphrase={MASK}&{MASK}"
    for text in (str(url), repr(url), f"{url}", f"{url!r:>200}", str([url]), str(dict(url.query)), str(url.password)):
        assert CANARY not in text
    again = parse(url.render(reveal=True))
    assert again == url
    assert hash(again) == hash(url)
    assert again.render(reveal=True) == url.render(reveal=True)
    assert parse("amqp://bob:other@h:1/%2F") != url


def test_it_is_immutable_and_copies_are_itself():
    """A URL that is shared cannot be changed under somebody."""
    url = parse("amqp://u:p@h")
    with pytest.raises(AttributeError):
        url.scheme = "kafka"
    with pytest.raises(AttributeError):
        del url.scheme
    with pytest.raises(TypeError):
        url.query["a"] = "b"
    with pytest.raises(TypeError):
        BrokerURL()
    assert copy.deepcopy(url) is copy.copy(url) is url


def test_pickle_carries_no_secret():
    """With a secret it is refused, without one it works."""
    for text in (f"amqp://u:{CANARY}@h", f"amqp://h?my_token={CANARY}"):
        with pytest.raises(TypeError, match="holds a secret") as caught:
            pickle.dumps(parse(text))
        assert CANARY not in str(caught.value)
    url = parse("kafka://h:1/a%2Fb?x=1")
    assert pickle.loads(pickle.dumps(url)) == url


def test_build_follows_the_same_rules():
    """From parts that are not encoded, for adapters that take a list of servers."""
    url = BrokerURL.build("amqp", hosts=["h:1", "[::1]:2", Host("h3")], username="b@b", password="p/w", path="/")
    assert url == parse("amqp://b%40b:p%2Fw@h:1,[::1]:2,h3/%2F")
    assert BrokerURL.build("devnull") == parse("devnull://")
    for bad in (["h/x"], ["u@h"], ["h?a=1"], ["h1,h2"], ["h:x"], [""], ["h 1"]):
        with pytest.raises(ConfigError):
            BrokerURL.build("kafka", hosts=[*bad])
    with pytest.raises(ConfigError, match="hosts must be a list"):
        BrokerURL.build("kafka", hosts="localhost")
    with pytest.raises(ConfigError, match="without a user name"):
        BrokerURL.build("kafka", hosts=["h"], password=CANARY)


def test_replace_changes_only_the_named_parts():
    """How a password from a file gets in."""
    url = parse("amqp://u@h/v?x=1").replace(password=Secret("p"))
    assert url == parse("amqp://u:p@h/v?x=1")
    for bad, why in (("", "is empty"), ("a\nb", "a control character"), ("\ud800", "not UTF-8"), (MASK, "is the mask")):
        with pytest.raises(ConfigError, match=f"the password .*{why}"):
            url.replace(password=bad)


@pytest.mark.parametrize("url", ["kafka://h1,h1:9092", "amqp://u:p@h1:5672,H1", "amqps://u:p@h1,h2,h1:5671"])
def test_a_host_is_listed_twice_with_the_default_port(url):
    """The plugin knows the port that a host leaves out."""
    with pytest.raises(ConfigError, match="is listed twice"):
        open_broker(url)
