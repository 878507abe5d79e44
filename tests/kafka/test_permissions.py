"""What a user may not do, by the access control of a real Kafka."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cqrs_brokers import (
    AuthorizationError,
    DestinationNotFoundError,
    Message,
    NotConnectedError,
    PublishForbiddenError,
    Receipt,
    open_broker,
)
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.servers import KafkaCluster
from cqrs_brokers_testkit.servers import kafka as start_kafka

pytestmark = pytest.mark.live

Name = Callable[[str], str]


@pytest.fixture(scope="module")
def guarded(kafka: object) -> Iterator[KafkaCluster]:
    """A Kafka that checks permissions (`kafka` is asked for only to skip where there is none)."""
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # the nodes themselves, and the administrator below
    }
    users = {"alice": "alice-secret", "bob": "bob-secret"}
    with start_kafka(sasl_users=users, properties=rules) as cluster:
        yield cluster


def url(guarded: KafkaCluster, user: str) -> str:
    security = f"security_protocol=SASL_PLAINTEXT&sasl_plain_username={user}&sasl_plain_password={user}-secret"
    return f"kafka://{guarded.bootstrap('SASL_PLAINTEXT')}?{security}"


def permit(guarded: KafkaCluster, user: str, topic: str, *operations: str, take_away: bool = False) -> None:
    import confluent_kafka.admin

    kit: Any = confluent_kafka.admin  # its names are re-exported in a way that mypy does not accept
    admin = kit.AdminClient({"bootstrap.servers": guarded.reader_bootstrap_servers, "log_level": 0})
    for operation in operations:
        arguments = (
            kit.ResourceType.TOPIC,
            topic,
            kit.ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            kit.AclOperation[operation],
            kit.AclPermissionType.ALLOW,
        )
        if take_away:
            changes = admin.delete_acls([kit.AclBindingFilter(*arguments)])
        else:
            changes = admin.create_acls([kit.AclBinding(*arguments)])
        for change in changes.values():
            change.result(10)


async def test_a_topic_that_the_user_may_not_write_to(guarded: KafkaCluster, unique_name: Name) -> None:
    """PublishForbiddenError for what may be seen but not written, and for what may not be seen; neighbours arrive."""
    mine, readable, hidden = (unique_name(name) for name in ("mine", "readable", "hidden"))
    for topic in (mine, readable, hidden):
        guarded.create_topic(topic)
    permit(guarded, "alice", mine, "WRITE")
    permit(guarded, "alice", readable, "DESCRIBE")
    loop = asyncio.get_running_loop()
    async with no_leaks():
        async with open_broker(url(guarded, "alice")) as broker:
            await broker.send_message(Message("E", mine, {}, key="k"))
            started = loop.time()
            topics = [mine, readable, hidden] * 30
            outcomes = await broker.send_messages(Message("E", topic, {}, key="k") for topic in topics)
            assert loop.time() - started < 5
            by_topic = {topic: {type(o) for o in outcomes[number::3]} for number, topic in enumerate(topics[:3])}
            assert by_topic == {mine: {Receipt}, readable: {PublishForbiddenError}, hidden: {PublishForbiddenError}}
            assert not any(getattr(outcome, "retryable", False) for outcome in outcomes)
            receipt = await broker.send_message(Message("E", mine, {}, key="k"))
            assert receipt.offset == 31


async def test_a_permission_comes_and_goes(guarded: KafkaCluster, unique_name: Name) -> None:
    """Permission taken away: PublishForbiddenError; given back: the same broker goes on, with nothing lost or twice."""
    topic = unique_name("changing")
    guarded.create_topic(topic)
    permit(guarded, "alice", topic, "WRITE")
    async with open_broker(url(guarded, "alice")) as broker:
        assert (await broker.send_message(Message("E", topic, {}, key="k"))).offset == 0
        permit(guarded, "alice", topic, "WRITE", take_away=True)
        await asyncio.sleep(0.5)
        with pytest.raises(PublishForbiddenError):
            await broker.send_message(Message("E", topic, {}, key="k"))
        permit(guarded, "alice", topic, "WRITE")
        async with asyncio.timeout(10):  # a topic that may not be seen is remembered for 3 s
            while True:
                try:
                    receipt = await broker.send_message(Message("E", topic, {}, key="k"))
                    break
                except (PublishForbiddenError, NotConnectedError):
                    await asyncio.sleep(0.2)
        assert receipt.offset == 1


async def test_a_topic_that_may_not_be_seen_and_does_not_exist(guarded: KafkaCluster, unique_name: Name) -> None:
    """Kafka does not tell a stranger whether a topic exists: PublishForbiddenError, not DestinationNotFoundError."""
    seen, missing = unique_name("seen"), unique_name("missing")
    permit(guarded, "alice", seen, "WRITE")
    async with open_broker(url(guarded, "alice")) as broker:
        with pytest.raises(PublishForbiddenError):
            await broker.send_message(Message("E", missing, {}))
        with pytest.raises(DestinationNotFoundError):
            await broker.send_message(Message("E", seen, {}))


async def test_a_user_who_may_write_nothing(guarded: KafkaCluster) -> None:
    """No WRITE anywhere means no producer id: AuthorizationError from connect(), which says what to grant."""
    async with no_leaks():
        broker = open_broker(url(guarded, "bob"))
        with pytest.raises(AuthorizationError, match="IDEMPOTENT_WRITE"):
            await broker.connect()
        with pytest.raises(NotConnectedError) as caught:
            await broker.send_message(Message("E", "t", {}))
        assert isinstance(caught.value.__cause__, AuthorizationError)
        await broker.close()
