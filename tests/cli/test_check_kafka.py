"""`check` with a real Kafka: each thing that can be wrong is made wrong, and seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cqrs_brokers_testkit.certificates import Certificates
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster, free_port
from cqrs_brokers_testkit.servers import kafka as start_kafka

from .conftest import Said, check

pytestmark = pytest.mark.live

Name = Callable[[str], str]
PASSWORD = "canary-b62x-secret"


@pytest.fixture(scope="module")
def cluster(certificates: Certificates, kafka: object) -> Iterator[KafkaCluster]:
    """With permissions, SASL and TLS (`kafka` is asked for only to skip where there is none)."""
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with start_kafka(sasl_users={"alice": PASSWORD}, certificates=certificates, properties=rules) as started:
        yield started


def as_alice(cluster: KafkaCluster, password: str = PASSWORD, **options: str) -> str:
    given = {"security_protocol": "SASL_PLAINTEXT", "sasl_plain_username": "alice", **options}
    query = "&".join(f"{name}={value}" for name, value in given.items())
    return f"kafka://{cluster.bootstrap('SASL_PLAINTEXT')}?{query}&sasl_plain_password={password}"


def permit(cluster: KafkaCluster, topic: str, *operations: str) -> None:
    """Lets alice do that with the topic."""
    import confluent_kafka.admin

    kit: Any = confluent_kafka.admin  # its names are re-exported in a way that mypy does not accept
    admin = kit.AdminClient({"bootstrap.servers": cluster.reader_bootstrap_servers, "log_level": 0})
    for operation in operations:
        binding = kit.AclBinding(
            kit.ResourceType.TOPIC,
            topic,
            kit.ResourcePatternType.LITERAL,
            "User:alice",
            "*",
            kit.AclOperation[operation],
            kit.AclPermissionType.ALLOW,
        )
        for change in admin.create_acls([binding]).values():
            change.result(10)


def texts(said: Said, level: str) -> str:
    return " | ".join(f"{finding['text']} -> {finding['remedy']}" for finding in said.findings("topic", level))


# -- what works -------------------------------------------------------------------------------------------------------


def test_a_string_that_works(cluster: KafkaCluster, unique_name: Name) -> None:
    """Cluster, nodes, version, and of the topic partitions, replicas, permission and limits; nothing is written."""
    topic = unique_name("topic")
    cluster.create_topic(topic, partitions=3)
    said = check(cluster.url, "-t", topic)
    assert said.code == 0
    assert "MkU3OEVBNTcwNTJENDM2Qg has 1 node" in said.only("access", "ok")
    reached, version = said.findings("server", "ok")
    assert reached["subject"] == f"node 1 at {cluster.bootstrap_servers}"
    is_new = tuple(map(int, cluster.version.split(".")[:2])) >= (4, 1)
    known = "4.1 or newer" if is_new else "3.8, and not those of 4.0"
    assert f"it knows the requests of {known}" in version["text"]
    seen = texts(said, "ok")
    assert "it has 3 partitions with 1 replica each" in seen
    assert "the user may write to it" in seen
    assert "max.message.bytes=1048588" in seen
    limited = "limits of timestamps: after.max.ms=3600000, before.max.ms=unlimited"
    assert (limited in seen) is is_new  # Kafka before 4.0 has no limit of its own
    assert "messages are on one node only" in texts(said, "warn")
    assert said.only("server", "unseen").startswith("quotas: ")
    assert drain_topic(cluster.reader_bootstrap_servers, topic, 0) == []


def test_one_message_is_sent_when_that_is_asked_for(cluster: KafkaCluster, unique_name: Name) -> None:
    """To a compacted topic too, which needs a key; the receipt says where it is."""
    topic = unique_name("topic")
    cluster.create_topic(topic, config={"cleanup.policy": "compact"})
    said = check(cluster.url, "-t", topic, "--send")
    assert said.code == 0
    assert "a message without a key is refused" in texts(said, "warn")
    assert "partition 0, offset 0" in said.only("send", "ok")
    assert len(drain_topic(cluster.reader_bootstrap_servers, topic, 1)) == 1


def test_a_log_in_over_tls(cluster: KafkaCluster, certificates: Certificates) -> None:
    """Both are shown."""
    host = cluster.bootstrap("SASL_SSL").replace("127.0.0.1", "localhost")
    query = f"security_protocol=SASL_SSL&sasl_mechanism=SCRAM-SHA-512&ssl_cafile={certificates.ca}"
    said = check(f"kafka://{host}?{query}&sasl_plain_username=alice&sasl_plain_password={PASSWORD}")
    assert "logged in as alice (SCRAM-SHA-512)" in said.only("login", "ok")
    assert "chain and host name are verified" in said.only("tls", "warn")
    assert PASSWORD not in said.out


# -- what is wrong with the way there ---------------------------------------------------------------------------------


def test_a_wrong_password(cluster: KafkaCluster) -> None:
    """The log-in fails, and nothing after it is looked at."""
    said = check(as_alice(cluster, "wrong-password"), "-t", "orders")
    assert said.code == 7
    assert "refuses the user or the password" in said.only("login", "fail")
    assert said.findings("login", "fail")[0]["remedy"].startswith("check both")
    assert "wrong-password" not in said.out


def test_a_listener_that_wants_a_log_in(cluster: KafkaCluster) -> None:
    """The string has none."""
    said = check(f"kafka://{cluster.bootstrap('SASL_PLAINTEXT')}")
    assert said.code == 8
    assert "security_protocol" in said.only("server", "fail")


def test_tls_to_a_plain_listener(cluster: KafkaCluster, certificates: Certificates) -> None:
    """It closes the connection in the handshake."""
    said = check(f"{cluster.url}?security_protocol=SSL&ssl_cafile={certificates.ca}", "--timeout", "3")
    assert said.code == 6
    assert "TLS port" in said.only("tls", "fail")


def test_plain_text_to_a_tls_listener(cluster: KafkaCluster) -> None:
    """Waiting does not help, and the exit code says so."""
    said = check(f"kafka://{cluster.bootstrap('SSL')}")
    assert said.code == 6
    assert "is a TLS port" in said.only("tls", "fail")


def test_an_authority_that_is_not_trusted(cluster: KafkaCluster, certificates: Certificates) -> None:
    """The certificate is described."""
    string = f"kafka://{cluster.bootstrap('SSL')}?security_protocol=SSL&ssl_cafile={certificates.other_ca}"
    said = check(string)
    assert said.code == 6
    assert "signed by cqrs-brokers ca" in said.only("tls", "fail")


def test_an_advertised_address_that_cannot_be_reached(kafka: object) -> None:
    """The bootstrap server answers, and sends every client into the void."""
    port = free_port()
    with start_kafka(advertised=("127.0.0.1", port)) as lost:
        node = lost.nodes[0]
        said = check(f"kafka://127.0.0.1:{node.ports['PLAINTEXT']}", "-t", "orders")
    assert said.code == 5
    (finding,) = said.findings("tcp", "fail")
    assert finding["subject"] == f"node 1 at 127.0.0.1:{port}"
    assert "advertised.listeners" in finding["remedy"]
    assert "not looked at" in said.only("topic", "unseen")


# -- what is wrong with a topic ---------------------------------------------------------------------------------------


def test_a_topic_that_is_missing(cluster: KafkaCluster, unique_name: Name) -> None:
    """This cluster creates none by itself, and looking creates none; nothing is sent."""
    topic = unique_name("topic")
    said = check(cluster.url, "-t", topic, "--send")
    assert said.code == 9
    assert said.only("topic", "fail") == "there is no such topic -> create it"
    assert said.json["messages"] == []
    assert check(cluster.url, "-t", topic).code == 9


def test_a_topic_that_the_cluster_would_create(kafka: object, unique_name: Name) -> None:
    """A warning with what it would become; looking does not create it."""
    topic = unique_name("topic")
    with start_kafka(properties={"auto.create.topics.enable": "true", "num.partitions": "4"}) as eager:
        for _ in range(2):
            said = check(eager.url, "-t", topic)
            assert said.code == 0
            assert "the first message creates it (4 partitions, 1 replica)" in texts(said, "warn")


def test_a_topic_that_cannot_exist(cluster: KafkaCluster) -> None:
    """The driver's own rule."""
    said = check(cluster.url, "-t", "a/b")
    assert said.code == 9
    assert "letters, digits" in said.only("topic", "fail")


def test_more_in_sync_replicas_are_needed_than_there_can_be(cluster: KafkaCluster, unique_name: Name) -> None:
    """The setting weakens nothing and protects nothing: the message is confirmed, on one node."""
    topic = unique_name("topic")
    cluster.create_topic(topic, config={"min.insync.replicas": "2"})
    said = check(cluster.url, "-t", topic, "--send")
    assert said.code == 0
    warning = said.only("topic", "warn")
    assert "1 of 1 replica in sync, min.insync.replicas=2" in warning
    assert "a message that is on one node only is confirmed" in warning
    assert "partition 0, offset 0" in said.only("send", "ok")


def test_what_a_topic_would_refuse_or_change(cluster: KafkaCluster, unique_name: Name) -> None:
    """Size, timestamps, and the time of the broker in the place of the message's."""
    small, stamped, old = unique_name("small"), unique_name("stamped"), unique_name("old")
    cluster.create_topic(small, config={"max.message.bytes": "1000"})
    cluster.create_topic(stamped, config={"message.timestamp.type": "LogAppendTime"})
    cluster.create_topic(old, config={"message.timestamp.before.max.ms": "60000"})
    said = check(cluster.url, "-t", small, "-t", stamped, "-t", old)
    assert said.code == 0
    warned = texts(said, "warn")
    assert "max.message.bytes=1000, and max_message_bytes=1000000 here" in warned
    assert "LogAppendTime" in warned
    assert "before.max.ms=60000" in warned


def test_what_a_user_may_not_see_or_do(cluster: KafkaCluster, unique_name: Name) -> None:
    """Hidden, visible but not writable, writable with settings that may not be seen, and all."""
    hidden, readable, writable, mine = (unique_name(name) for name in ("hidden", "readable", "writable", "mine"))
    for topic in (hidden, readable, writable, mine):
        cluster.create_topic(topic)
    permit(cluster, readable, "DESCRIBE")
    permit(cluster, writable, "WRITE")
    permit(cluster, mine, "WRITE", "DESCRIBE_CONFIGS")
    found = {}
    for topic in (hidden, readable, writable, mine):
        found[topic] = check(as_alice(cluster), "-t", topic)
    assert "may not see the topic" in found[hidden].only("topic", "fail")
    assert "may not write" in found[readable].only("topic", "fail")
    assert found[writable].code == 0
    assert "its settings" in found[writable].only("topic", "unseen")
    assert found[mine].code == 0
    assert not found[mine].findings("topic", "unseen")


@pytest.mark.fault
def test_replicas_that_are_away(kafka_nodes: KafkaCluster, unique_name: Name) -> None:
    """Enough, just enough, and too few in-sync replicas: all is well, a warning, a failure; so is a leader that is
    away."""
    topic, thin = unique_name("topic"), unique_name("thin")
    kafka_nodes.create_topic(topic, replication=3, config={"min.insync.replicas": "2"})
    kafka_nodes.create_topic(thin, replication=3)
    said = check(kafka_nodes.url, "-t", topic, "-t", thin)
    assert said.code == 0
    assert "3 of 3 replicas in sync, min.insync.replicas=2" in texts(said, "ok")
    assert "a confirmed message may be on one node only" in texts(said, "warn")
    alone = unique_name("alone")
    kafka_nodes.create_topic(alone, partitions=3)
    away = kafka_nodes.nodes[2]
    away.kill()
    try:
        wait_for_replicas(kafka_nodes, topic, 2)
        said = check(kafka_nodes.url, "-t", alone)
        assert said.code == 9
        (led,) = [finding for finding in said.findings("topic", "fail") if "leader" in finding["text"]]
        assert re.fullmatch("partition [012] is without a leader: messages for it wait", led["text"])
        assert led["remedy"] == "see which nodes of the cluster are down"
        said = check(kafka_nodes.url, "-t", topic)
        assert said.code == 0
        assert "when one more node is down, the topic refuses messages" in texts(said, "warn")
        assert any(finding["subject"] == away.address for finding in said.findings("tcp", "warn"))
    finally:
        away.start(wait=False)
        kafka_nodes.wait_ready()
    high = unique_name("high")
    kafka_nodes.create_topic(high, replication=3, config={"min.insync.replicas": "3"})
    away.kill()
    try:
        wait_for_replicas(kafka_nodes, high, 2)
        said = check(kafka_nodes.url, "-t", high)
        assert said.code == 9
        assert "the topic refuses messages until more replicas are in sync" in said.only("topic", "fail")
    finally:
        away.start(wait=False)
        kafka_nodes.wait_ready()


def wait_for_replicas(cluster: KafkaCluster, topic: str, count: int) -> None:
    """Until so many are in sync; 30 s at most."""
    import time

    for _ in range(150):
        if len(cluster.in_sync_replicas(topic)) == count:
            return
        time.sleep(0.2)
    raise AssertionError(f"{cluster.in_sync_replicas(topic)} are in sync")
