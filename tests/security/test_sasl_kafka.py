"""SASL to a real Kafka: every mechanism that a string can name, and every way in which it can be wrong.

One node with plain, SASL and SASL over TLS listeners; the last one does not offer SCRAM-SHA-512.
"""

from collections.abc import Callable, Iterator

import pytest

from cqrs_broker_kafka import KafkaMessageBroker, KafkaProducerAdapter
from cqrs_brokers import AuthenticationError, ConnectError, Message, ProtocolError, TLSError, open_broker
from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster
from cqrs_brokers_testkit.servers import kafka as start_kafka

from .refusals import refused, wiretap

pytestmark = pytest.mark.fault

Name = Callable[[str], str]

MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
PASSWORD = "alice-Pa55.word"


@pytest.fixture(scope="module")
def cluster(certificates: Certificates, kafka: object) -> Iterator[KafkaCluster]:
    """The node (`kafka` is asked for only to skip where there is none)."""
    properties = {"listener.name.sasl_ssl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256"}
    with start_kafka(sasl_users={"alice": PASSWORD}, certificates=certificates, properties=properties) as made:
        yield made


def url(cluster: KafkaCluster, listener: str, options: str, *, user: str = "alice", password: str = PASSWORD) -> str:
    """A config string; `{user}` in the options becomes user and password."""
    credentials = f"sasl_plain_username={user}&sasl_plain_password={password}"
    return f"kafka://{cluster.bootstrap(listener)}?{options.format(user=credentials)}"  # type: ignore[arg-type]


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_each_mechanism_works(cluster: KafkaCluster, unique_name: Name, mechanism: str) -> None:
    """A message is in the topic, and closing leaves nothing."""
    topic = unique_name("topic")
    cluster.create_topic(topic)
    text = url(cluster, "SASL_PLAINTEXT", f"security_protocol=SASL_PLAINTEXT&sasl_mechanism={mechanism}&{{user}}")
    async with no_leaks():
        async with open_broker(text) as broker:
            assert (await broker.send_message(Message("Happened", topic, b"as alice"))).confirmed
    assert [record.body for record in drain_topic(cluster.reader_bootstrap_servers, topic, 1)] == [b"as alice"]


@pytest.mark.parametrize("mechanism", MECHANISMS[:2])
async def test_over_tls(cluster: KafkaCluster, certificates: Certificates, unique_name: Name, mechanism: str) -> None:
    """SASL_SSL, by string and by adapter."""
    topic = unique_name("topic")
    cluster.create_topic(topic)
    options = f"security_protocol=SASL_SSL&sasl_mechanism={mechanism}&ssl_cafile={certificates.ca}&{{user}}"
    producer = KafkaProducerAdapter(
        cluster.bootstrap("SASL_SSL"),
        security_protocol="SASL_SSL",
        sasl_mechanism=mechanism,
        sasl_plain_username="alice",
        sasl_plain_password=PASSWORD,
        ssl_cafile=str(certificates.ca),
    )
    async with no_leaks():
        for broker in (open_broker(url(cluster, "SASL_SSL", options)), KafkaMessageBroker(producer=producer)):
            async with broker:
                assert (await broker.send_message(Message("Happened", topic, {}))).confirmed
    assert len(drain_topic(cluster.reader_bootstrap_servers, topic, 2)) == 2


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    ("user", "password"), [("alice", "wr0ng-Password"), ("nobody", "wr0ng-Password")], ids=["password", "user"]
)
async def test_wrong_user_or_password(cluster: KafkaCluster, mechanism: str, user: str, password: str) -> None:
    """AuthenticationError, permanent; which of the two is wrong is not said, and neither is the password."""
    options = f"security_protocol=SASL_PLAINTEXT&sasl_mechanism={mechanism}&{{user}}"
    error = await refused(open_broker(url(cluster, "SASL_PLAINTEXT", options, user=user, password=password)))
    assert type(error) is AuthenticationError
    assert error.permanent
    assert "refuses the user or the password" in error.text
    assert mechanism in error.text
    assert password not in f"{error!r} {error} {error.__cause__!r}"


@pytest.mark.parametrize(
    ("listener", "options", "expected", "says"),
    [
        pytest.param(
            "SASL_SSL",
            "security_protocol=SASL_SSL&sasl_mechanism=SCRAM-SHA-512&ssl_cafile={ca}&{user}",
            AuthenticationError,
            "does not offer the SASL mechanism SCRAM-SHA-512",
            id="mechanism not enabled",
        ),
        pytest.param(
            "PLAINTEXT",
            "security_protocol=SASL_PLAINTEXT&{user}",
            ProtocolError,
            "does not use SASL",
            id="SASL to a plain listener",
        ),
        pytest.param(
            "SSL",
            "security_protocol=SASL_SSL&ssl_cafile={ca}&{user}",
            ProtocolError,
            "does not use SASL",
            id="SASL to a TLS listener without it",
        ),
        pytest.param(
            "SASL_PLAINTEXT", "security_protocol=PLAINTEXT", ProtocolError, "wants SASL", id="no SASL to a SASL one"
        ),
        pytest.param(
            "SASL_SSL",
            "security_protocol=SSL&ssl_cafile={ca}",
            ProtocolError,
            "wants SASL",
            id="no SASL to a SASL listener over TLS",
        ),
        pytest.param(
            "SASL_PLAINTEXT",
            "security_protocol=SASL_SSL&ssl_cafile={ca}&{user}",
            TLSError,
            "is this its TLS port",
            id="TLS to a SASL listener without it",
        ),
        pytest.param(
            "SASL_SSL",
            "security_protocol=SASL_PLAINTEXT&{user}",
            ProtocolError,
            "TLS listener",
            id="no TLS to a SASL listener over TLS",
        ),
    ],
)
async def test_listener_and_client_do_not_fit(
    cluster: KafkaCluster,
    certificates: Certificates,
    listener: str,
    options: str,
    expected: type[ConnectError],
    says: str,
) -> None:
    """Each has its class and its words, is permanent, and comes within two seconds."""
    text = url(cluster, listener, options.replace("{ca}", str(certificates.ca)))
    error = await refused(open_broker(text))
    assert type(error) is expected
    assert error.permanent
    assert says in error.text


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_scram_does_not_fall_back_to_plain(cluster: KafkaCluster, mechanism: str) -> None:
    """The password is not on the wire, accepted or not; with PLAIN it is, so the tap works."""
    host, port = cluster.bootstrap("SASL_PLAINTEXT").split(":")
    seen = {}
    for name in (mechanism, "PLAIN"):
        for password in (PASSWORD, "wr0ng-Password"):
            with wiretap(host, int(port)) as (proxy, said):
                options = f"security_protocol=SASL_PLAINTEXT&sasl_mechanism={name}&{{user}}"
                text = url(cluster, "SASL_PLAINTEXT", options, password=password)
                broker = open_broker(text.replace(f"{host}:{port}", f"{proxy.host}:{proxy.port}"))
                if password == PASSWORD:
                    async with broker:
                        pass
                else:
                    assert type(await refused(broker)) is AuthenticationError
                seen[name, password] = password.encode() in b"".join(said)
    assert seen == {
        (mechanism, PASSWORD): False,
        (mechanism, "wr0ng-Password"): False,
        ("PLAIN", PASSWORD): True,
        ("PLAIN", "wr0ng-Password"): True,
    }
