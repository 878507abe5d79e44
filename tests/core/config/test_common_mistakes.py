"""Config strings as platforms and shells give them: each common mistake is named, with what to write instead."""

import pytest

from cqrs_brokers import ConfigError, PluginNotFoundError, open_broker
from cqrs_brokers.url import BrokerURL

SECRET = "c4nary-S3CRET"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kafka://h1:9092,kafka://h2:9092", "the scheme stands in front of every host: write it once"),
        ("amqp://u:p@h1:5672,amqp://u:p@h2:5672", "the scheme stands in front of every host: write it once"),
        ("kafka+ssl://h1:9096,kafka+ssl://h2:9096", "write kafka://, and ?security_protocol=SSL"),
        ("SASL_SSL://h1:9092", "write kafka://, and ?security_protocol=SASL_SSL"),
        ("sasl_plaintext://h1:9092", "write kafka://, and ?security_protocol=SASL_PLAINTEXT"),
        ("h1:9092,h2:9092", "there is no scheme in front of the hosts"),
        ("localhost:5672", "there is no scheme in front of the hosts"),
        ("kafka://h1:9092;h2:9092", "hosts are separated by ';': write commas"),
        (f"amqp://app:{SECRET}@h1/\n", "begins or ends with a line break"),
        (f" amqp://app:{SECRET}@h1/", "begins or ends with a line break"),
        (f"\ufeffamqp://app:{SECRET}@h1/", "begins or ends with a line break"),
        (f'"amqp://app:{SECRET}@h1/"', "is in quotes"),
        (f"'amqp://app:{SECRET}@h1/'", "is in quotes"),
        (f"CQRS_BROKER_URL=amqp://app:{SECRET}@h1/", "begins with the name of a variable"),
        (f"export BROKER=amqp://app:{SECRET}@h1/", "begins with the name of a variable"),
        ("${CQRS_BROKER_URL}", "a variable that nothing has replaced"),
        ("$BROKER", "a variable that nothing has replaced"),
        ("{{ broker_url }}", "a variable that nothing has replaced"),
        ("kafka+sasl_ssl://h1:9096", "write kafka://, and ?security_protocol=SASL_SSL"),
        ("bootstrap.servers=h1:9092,h2:9092", "begins with the name of a variable"),
        ("bootstrap.servers=SASL_SSL://h1:9092", "write kafka://, and ?security_protocol=SASL_SSL"),
        (f"BROKER_URL: amqp://app:{SECRET}@h1/", "begins with the name of a variable"),
        (f'BROKER_URL = "amqp://app:{SECRET}@h1/"', "is in quotes"),
        (f"set BROKER=amqp://app:{SECRET}@h1/", "begins with the name of a variable"),
        (f'"amqp://app:{SECRET}@h1/', "is in quotes"),
        (f"“amqp://app:{SECRET}@h1/”", "is in quotes"),
        (f"<amqp://app:{SECRET}@h1/>", "is in angle brackets"),
        (f'kafka://h?sasl.jaas.config=x.PlainLoginModule required password="{SECRET}";', "a JAAS line"),
        (f'{{"url": "amqp://app:{SECRET}@h1/"}}', "is JSON"),
        ('["h1:9092", "h2:9092"]', "is JSON"),
        ('kafka://["h1:9092","h2:9092"]', "as in JSON"),
        ("kafka://h1:9092, h2:9092", "a space or a line break between the hosts"),
        ("kafka://h1:9092,\n  h2:9092", "a space or a line break between the hosts"),
        (f"amqps://a:{SECRET}@h1 amqps://a:{SECRET}@h2", "the scheme stands in front of every host"),
        ("kafka://h1:9092|h2:9092", "hosts are separated by '|': write commas"),
        ("kafka://http://h1:9092", "there are two schemes"),
        (f"amqp://app:{SECRET}@h1/ # production", "a comment follows"),
        (f"amqp://app:{SECRET}@h1\u00a0/", "a character that cannot be seen"),
        (f"amqp://app:{SECRET}@h1/\u200b", "a character that cannot be seen"),
        (f"amqp://app:{SECRET}@h1:None/", "a variable was empty"),
        (f"amqp:app:{SECRET}@h1", "must start with a scheme and '://'"),
        ("kafka:/h1:9092", "a ':' or a '/' is missing"),
    ],
)
def test_a_common_mistake_is_named(text: str, says: str) -> None:
    """The text says what to write, and quotes nothing of the string."""
    with pytest.raises(ConfigError) as caught:
        BrokerURL.parse(text)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("amqp://app:${PASSWORD}@h1/", "a variable that nothing has replaced"),
        ("amqp://${USER:-app}:pw@h1/", "a variable that nothing has replaced"),
        ("amqp://$USER:$PASSWORD@h1/", "a variable that nothing has replaced"),
        ("amqp://{{user}}:{{password}}@h1/", "a variable that nothing has replaced"),
        ("amqp://app:%(password)s@h1/", "a variable that nothing has replaced"),
        ("amqp://<user>:<password>@h1/", "a variable that nothing has replaced"),
        ("amqp://app:pw@h1/<vhost>", "a variable that nothing has replaced"),
        ("kafka://h1?client_id=${HOSTNAME}", "a variable that nothing has replaced"),
        ("amqp://app:pw@h1/orders&declare=queue", "the first one begins with '?'"),
        ("amqp://app:pw@h1/?exchange=a&amp;declare=queue", "as in HTML"),
        ("amqp://app:pw@h1/\\?exchange=a", "a backslash"),
        ("amqp://app:pw@h1/?exchange=a;declare=queue", "write '&' between options"),
        ("amqp://app:pw@h1/?exchange=a?declare=queue", "write '&' between options"),
    ],
)
def test_a_mistake_that_would_change_the_meaning_is_refused(text: str, says: str) -> None:
    """Without a word the variable's name would be the password, and the option a part of the virtual host."""
    with pytest.raises(ConfigError) as caught:
        BrokerURL.parse(text)
    assert says in str(caught.value)


def test_several_mistakes_are_named_together() -> None:
    """A quoted line of an .env file."""
    with pytest.raises(ConfigError) as caught:
        BrokerURL.parse('"kafka://h1:9092,kafka://h2:9092"\n')
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "text",
    [
        "kafka://h1,h2",
        "amqp://u:p;w@h/v",
        "amqp://u:p@h/v,amqp://x",
        "amqp://u:p@h/v?exchange=a,amqp://x",
        "a+b-c.d://h",
        "amqp://u:a$b{c}d<e>f@h/v",
        "amqp://u:%24%7BPASSWORD%7D@h/v%26declare=queue",
        "amqp://u:$ecret@h/v",
        "kafka://h?sasl_plain_username=$ConnectionString&sasl_plain_password=Endpoint=sb://h/;a_key=b?c_key=d",
    ],
)
def test_what_can_be_read_is_no_mistake(text: str) -> None:
    """Nothing that was accepted is refused."""
    assert BrokerURL.parse(text).render(reveal=True)


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        ("kafka+ssl", "kafka+ssl:// is not a scheme here: write kafka://, and ?security_protocol=SSL"),
        ("rabbitmq", "write amqp://, or amqps:// for TLS"),
        ("amqp+ssl", "write amqps://"),
        ("SSL", "write kafka:// and ?security_protocol=SSL, or amqps://"),
        ("PLAINTEXT", "write kafka://"),
        ("http", "that is an HTTP interface: write amqp://"),
        ("tcp", "write amqp://, or kafka://"),
        ("rabbit", "write amqp://, or amqps:// for TLS"),
        ("kafka+sasl", "write kafka://, and ?security_protocol=SASL_SSL"),
    ],
)
def test_a_scheme_of_others_is_told_from_an_unknown_one(scheme: str, says: str) -> None:
    """When no plugin claims it."""
    with pytest.raises(PluginNotFoundError) as caught:
        open_broker(f"{scheme}://h1:9096")
    assert says in str(caught.value)


def test_credentials_of_kafka_are_options() -> None:
    """The error of a user in a Kafka string names them."""
    with pytest.raises(ConfigError) as caught:
        open_broker(f"kafka://user:{SECRET}@h1:9092/topic")
    assert caught.value.problems == (
        "kafka:// takes no user: give sasl_plain_username= and sasl_plain_password=, with security_protocol=SASL_SSL",
        "kafka:// takes no path: each message names its topic",
    )


@pytest.mark.parametrize("acks", ["-1", -1, "all"])
def test_minus_one_is_kafkas_other_word_for_all(acks: object) -> None:
    """In the string and as a keyword; `describe()` shows "all"."""
    broker = open_broker(f"kafka://h1?acks={acks}") if isinstance(acks, str) else open_broker("kafka://h1", acks=acks)
    assert broker.describe()["options"]["acks"].value == "all"


@pytest.mark.parametrize(
    ("query", "not_suggested"),
    [
        ("acks=01", "'1'"),
        ("acks=-2", "'1'"),
        ("acks=00", "'0'"),
        ("security_protocol=PLAIN", "did you mean"),
        ("security_protocol=SASL_PLAIN", "did you mean"),
        ("security_protocol=SSSL", "did you mean"),
        ("sasl_mechanism=PLAN", "did you mean"),
    ],
)
def test_a_weaker_value_is_never_suggested(query: str, not_suggested: str) -> None:
    """The choices are listed; only the safest is ever suggested."""
    with pytest.raises(ConfigError) as caught:
        open_broker(f"kafka://h1?{query}")
    assert "must be one of" in str(caught.value)
    assert not_suggested not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("kafka://h?sasl.password=x", "sasl_plain_password"),
        ("kafka://h?sasl.username=x", "sasl_plain_username"),
        ("kafka://h?sasl.mechanisms=PLAIN", "sasl_mechanism"),
        ("kafka://h?ssl=true", "security_protocol"),
        ("kafka://h?use_ssl=true", "security_protocol"),
        ("kafka://h?ssl.ca.location=/x", "ssl_cafile"),
        ("kafka://h?compression=gzip", "compression_type"),
        ("amqps://u:p@h?cacertfile=/x", "ssl_cafile"),
        ("amqps://u:p@h?certfile=/x", "ssl_certfile"),
        ("amqps://u:p@h?keyfile=/x", "ssl_keyfile"),
        ("amqps://u:p@h?connection_timeout=5", "connect_timeout"),
    ],
)
def test_an_option_as_other_clients_call_it(url: str, option: str) -> None:
    """The suggestion is the option with the same meaning, not the one with the most similar name."""
    with pytest.raises(ConfigError) as caught:
        open_broker(url)
    assert f"did you mean {option!r}?" in str(caught.value)


def test_a_connection_string_of_event_hubs() -> None:
    """It says what to write, and shows nothing of the string."""
    text = "Endpoint=sb://name.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey=abcQXZJ=;EntityPath=e"
    with pytest.raises(ConfigError) as caught:
        open_broker(text)
    assert "Azure Event Hubs: write kafka://NAMESPACE.servicebus.windows.net:9093?" in str(caught.value)
    assert "QXZJ" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://h?bootstrap.servers=x:9092", "the hosts come after '://'"),
        ("kafka://h?sasl.jaas.config=x", "give its username and password as sasl_plain_username="),
        ("amqps://u:p@h?ssl=1", "write amqps://"),
        ("amqps://u:p@h?ssl_options=x", "write amqps://, and give ssl_cafile="),
        ("amqp://u:p@h?blocked_connection_timeout=300", "delivery_timeout bounds a send"),
        ("amqp://u:p@h?virtual_host=v", "the virtual host is the path"),
        ("kafka://h?vhost=v", "with RabbitMQ, the virtual host is the path"),
        ("kafka://h?ssl_options=x", "with RabbitMQ, TLS comes with the scheme"),
        ("amqp://u:p@h?use_ssl=true", "write amqps://"),
        ("amqp://u:p@h?frame_max=131072", "leave it out"),
    ],
)
def test_an_option_of_another_client_that_is_none_here_says_what_to_do(url: str, says: str) -> None:
    """Instead of the option with the most similar name."""
    with pytest.raises(ConfigError) as caught:
        open_broker(url)
    assert says in str(caught.value)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("query", ["security_protocol=sasl_ssl", "acks=ALL", "acks=al"])
def test_the_safest_value_is_suggested(query: str) -> None:
    """In another spelling."""
    with pytest.raises(ConfigError, match=r"did you mean '(SASL_SSL|all)'"):
        open_broker(f"kafka://h1?{query}")


@pytest.mark.parametrize(
    ("text", "keywords", "problems"),
    [
        ("kafka", {}, ["CQRS_BROKER_URL: the config string must start with a scheme"]),
        ("kafka://h?akcs=1", {}, ["CQRS_BROKER_URL: unknown option 'akcs'"]),
        ("kafka://h?acks=2", {}, ["CQRS_BROKER_URL: acks: must be"]),
        ("kafka://h?max_in_flight=0", {}, ["CQRS_BROKER_URL: max_in_flight: must be"]),
        ("kafka://u:p@h", {}, ["CQRS_BROKER_URL: kafka:// takes no user"]),
        ("amqp://u@h", {}, ["CQRS_BROKER_URL: a user without a password"]),
        ("kafka://h?akcs=1", {"max_in_flight": 0, "nonsense": 1}, ["CQRS_BROKER_URL: unknown", "unknown", "max_in_"]),
    ],
)
def test_an_error_names_where_the_string_came_from(
    monkeypatch: pytest.MonkeyPatch, text: str, keywords: dict[str, object], problems: list[str]
) -> None:
    """From the environment: its variable. What is wrong with a keyword is not said of the variable."""
    monkeypatch.setenv("CQRS_BROKER_URL", text)
    with pytest.raises(ConfigError) as caught:
        open_broker(**keywords)
    assert len(caught.value.problems) == len(problems)
    assert all(told.startswith(begin) for told, begin in zip(caught.value.problems, problems, strict=True))


def test_an_unknown_scheme_names_where_the_string_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, in front of what an argument gets."""
    monkeypatch.setenv("CQRS_BROKER_URL", "kafak://h")
    with pytest.raises(PluginNotFoundError, match=r"^CQRS_BROKER_URL: unknown scheme 'kafak'; did you mean 'kafka'"):
        open_broker()
    with pytest.raises(PluginNotFoundError, match=r"^unknown scheme 'kafak'"):
        open_broker("kafak://h")
