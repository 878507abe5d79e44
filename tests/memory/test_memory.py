"""`memory://` keeps what it confirms, plays its script, and is read back by name."""

import asyncio
import threading
from datetime import UTC, datetime

import pytest

from cqrs_broker_memory import Faults, Published, published
from cqrs_brokers import (
    Broker,
    ConfigError,
    DeliveryTimeoutError,
    DeliveryUnknownError,
    Message,
    NackedError,
    Receipt,
    RejectedError,
    UnreachableError,
    UnroutableError,
    open_broker,
)

CANARY = "C4N4RY"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A broker name of the test's own, empty when it starts."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name).strip("-")
    published(name).clear()
    return name


def placed(number: int = 1, *, key: str | None = "k") -> Message:
    return Message("OrderPlaced", "orders", {"id": number}, key=key)


# -- What is kept ------------------------------------------------------------------------------------------------------


async def test_what_was_confirmed_is_read_back_whole(name):
    """Every field as it was sent, the body as a real broker would have got it."""
    made = datetime(2024, 2, 29, 12, 0, tzinfo=UTC)
    message = Message("OrderPlaced", "orders", {"id": 1, "who": "Zoë"}, key="k", headers={"h": "v"}, timestamp=made)
    async with open_broker(f"memory://{name}") as broker:
        receipt = await broker.send_message(message)
    assert receipt == Receipt(message.message_id, "orders", "memory", confirmed=True)
    [record] = published(name)
    assert (record.topic, record.name, record.key, dict(record.headers)) == ("orders", "OrderPlaced", "k", {"h": "v"})
    assert record.body == '{"id":1,"who":"Zoë"}'.encode()
    assert record.json() == {"id": 1, "who": "Zoë"}
    assert (record.message_id, record.content_type) == (str(message.message_id), "application/json")
    assert record.timestamp == made


async def test_bytes_are_kept_verbatim(name):
    """A bytes payload is no JSON, and says so."""
    async with open_broker(f"memory://{name}") as broker:
        await broker.send_message(Message("Raw", "orders", b"\x00\xff"))
    assert (published(name)[0].body, published(name)[0].content_type) == (b"\x00\xff", "application/octet-stream")


async def test_a_record_is_a_snapshot(name):
    """What the caller does to the message afterwards changes nothing."""
    headers = {"h": "before"}
    message = Message("Raw", "orders", {"a": 1}, headers=headers)
    async with open_broker(f"memory://{name}") as broker:
        await broker.send_message(message)
    headers["h"] = "after"
    message.topic = "elsewhere"
    assert (published(name)[0].topic, dict(published(name)[0].headers)) == ("orders", {"h": "before"})


async def test_brokers_of_one_name_share_what_was_published_and_others_do_not(name):
    """The name is what counts, not the object."""
    for _ in range(2):
        async with open_broker(f"memory://{name}") as broker:
            await broker.send_message(placed())
    async with open_broker(f"memory://{name}-other") as broker:
        await broker.send_message(placed())
    assert (len(published(name)), len(published(f"{name}-other"))) == (2, 1)
    published(f"{name}-other").clear()
    assert published(name) is published(name)


async def test_without_a_name_it_is_the_default_one():
    """`memory://` and `published()` mean the same."""
    published().clear()
    async with open_broker("memory://") as broker:
        await broker.send_message(placed())
    assert len(published()) == len(published("default")) == 1


def test_one_broker_serves_a_loop_after_the_other(name):
    """Sent in two event loops, read with none running."""
    broker = open_broker(f"memory://{name}")
    with pytest.warns(ResourceWarning, match="was not closed"):  # Broker's word on a loop that ends before it
        asyncio.run(_send(broker))
    asyncio.run(_send_and_close(broker))
    assert len(published(name)) == 2


async def _send(broker: Broker) -> None:
    await broker.send_message(placed())


async def _send_and_close(broker: Broker) -> None:
    await broker.send_message(placed())
    await broker.close()


def test_threads_may_publish_at_the_same_time(name):
    """Each thread with its loop and its broker; nothing is lost, and `capacity` is kept to."""

    async def send_many() -> None:
        async with open_broker(f"memory://{name}?capacity=350") as broker:
            await broker.send_messages([placed(number, key=None) for number in range(100)])

    threads = [threading.Thread(target=asyncio.run, args=(send_many(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(published(name)) == 350


async def test_messages_of_one_key_keep_their_order(name):
    """Also when each takes a while."""
    async with open_broker(f"memory://{name}?latency=1ms") as broker:
        await asyncio.gather(*(broker.send_message(placed(number, key=f"k{number % 3}")) for number in range(60)))
    for key in ("k0", "k1", "k2"):
        numbers = [record.json()["id"] for record in published(name).find(key=key)]
        assert numbers == sorted(numbers)
        assert len(numbers) == 20


async def test_it_declares_what_it_can_do(name):
    """It confirms, keeps the order of a key and carries headers; nothing survives the process."""
    async with open_broker(f"memory://{name}") as broker:
        capabilities = broker.capabilities
        assert (capabilities.confirms, capabilities.ordering_key, capabilities.headers) == (True, True, True)
        assert (capabilities.durable, capabilities.unroutable_detection) == (False, False)
        assert (await broker.health()).ok


# -- Scripted faults ---------------------------------------------------------------------------------------------------


async def test_the_script_fails_the_first_then_leaves_the_next_unknown(name):
    """What failed is not kept; what is unknown is, as when a confirm is lost."""
    messages = [placed(number) for number in range(5)]
    async with open_broker(f"memory://{name}?fail=2&unknown=1") as broker:
        outcomes = await broker.send_messages(messages)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [RejectedError, RejectedError, DeliveryUnknownError, Receipt, Receipt]
    assert [record.message_id for record in published(name)] == [str(message.message_id) for message in messages[2:]]
    assert outcomes[0].retryable
    assert "message 1 of fail=2" in str(outcomes[0])
    assert "message 1 of unknown=1" in str(outcomes[2])


async def test_a_retry_of_what_failed_succeeds_and_one_of_what_is_unknown_is_a_duplicate(name):
    """What an application's own tests are for."""
    rejected, unknown = placed(1), placed(2)
    async with open_broker(f"memory://{name}?fail=1&unknown=1") as broker:
        with pytest.raises(RejectedError):
            await broker.send_message(rejected)
        with pytest.raises(DeliveryUnknownError):
            await broker.send_message(unknown)
        await broker.send_message(rejected)
        await broker.send_message(unknown)
    ids = [record.message_id for record in published(name)]
    assert ids == [str(m.message_id) for m in (unknown, rejected, unknown)]


async def test_each_opened_broker_plays_the_script_anew(name):
    """The script belongs to the config string, not to the name."""
    for _ in range(2):
        async with open_broker(f"memory://{name}?fail=1") as broker:
            outcomes = await broker.send_messages([placed(), placed()])
        assert [type(outcome) for outcome in outcomes] == [RejectedError, Receipt]


async def test_latency_delays_each_outcome_by_itself(name):
    """Messages of different keys wait at the same time; the next one of a key waits for the one before."""
    loop = asyncio.get_running_loop()
    async with open_broker(f"memory://{name}?latency=200ms") as broker:
        started = loop.time()
        await broker.send_messages([placed(number, key=None) for number in range(50)])
        together = loop.time() - started
        await broker.send_messages([placed(), placed()])
        in_turn = loop.time() - started - together
    assert 0.2 <= together < 2
    assert in_turn >= 0.4


async def test_a_latency_above_the_deadline_is_an_unknown_outcome(name):
    """The message was handed over, and may come to be there after the deadline."""
    async with open_broker(f"memory://{name}?latency=300ms&delivery_timeout=50ms") as broker:
        with pytest.raises(DeliveryTimeoutError):
            await broker.send_message(placed())
        assert len(published(name)) == 0
        await asyncio.sleep(0.4)
    assert len(published(name)) == 1


async def test_a_full_broker_rejects_and_keeps_what_it_has(name):
    """Bounded: nothing that was confirmed is dropped for something newer."""
    messages = [placed(number) for number in range(4)]
    async with open_broker(f"memory://{name}?capacity=3") as broker:
        outcomes = await broker.send_messages(messages)
        assert [type(outcome) for outcome in outcomes] == [Receipt] * 3 + [RejectedError]
        assert "it keeps 3 messages: clear() what was published, or raise capacity=" in str(outcomes[3])
        published(name).clear()
        await broker.send_message(messages[3])
    assert [record.json() for record in published(name)] == [{"id": 3}]


# -- Reading back ------------------------------------------------------------------------------------------------------


async def publish(name: str, *messages: Message) -> Published:
    async with open_broker(f"memory://{name}") as broker:
        for message in messages:
            await broker.send_message(message)
    return published(name)


async def test_find_wants_everything_that_is_given(name):
    """Topic, name and key exactly, key None for a message without one; headers may be more."""
    messages = await publish(
        name,
        Message("A", "orders", {"n": 0}, key="1", headers={"x": "1", "y": "2"}),
        Message("A", "orders", {"n": 1}),
        Message("B", "stock", {"n": 2}, key="1"),
    )

    def numbers(**wanted) -> list[int]:
        return [record.json()["n"] for record in messages.find(**wanted)]

    assert numbers() == [0, 1, 2]
    assert numbers(topic="orders") == [0, 1]
    assert numbers(topic="order") == []
    assert numbers(name="B") == [2]
    assert numbers(key="1") == [0, 2]
    assert numbers(key=None) == [1]
    assert numbers(headers={"x": "1"}) == [0]
    assert numbers(headers={"x": "1", "y": "3"}) == []
    assert numbers(headers={"z": "1"}) == []
    assert numbers(topic="orders", name="A", key="1", headers={"y": "2"}) == [0]


async def test_assert_once_returns_the_one_record(name):
    """So that the test can go on with its body."""
    messages = await publish(name, placed(7), Message("Other", "orders", {}))
    assert messages.assert_once(topic="orders", name="OrderPlaced", key="k").json() == {"id": 7}


@pytest.mark.parametrize(
    "wanted", [{"topic": "stock"}, {"name": "B"}, {"key": "2"}, {"key": None}, {"headers": {"h": "x"}}]
)
async def test_assert_once_fails_when_there_is_none(name, wanted):
    """Whatever it is that differs."""
    messages = await publish(name, Message("A", "orders", {}, key="1", headers={"h": "v"}))
    with pytest.raises(AssertionError, match="0 messages match in memory://"):
        messages.assert_once(**wanted)


async def test_assert_once_fails_when_there_are_two(name):
    """A duplicate is what it is there to find."""
    message = placed()
    messages = await publish(name, message, message)
    with pytest.raises(AssertionError, match="2 messages match"):
        messages.assert_once(topic="orders")


async def test_a_failed_assertion_shows_both_values(name):
    """What was wanted and what is there: topic, name, key and each header; of the body only the size."""
    message = Message("A", "orders", {"secret": CANARY}, key="1", headers={"trace": "x"})
    messages = await publish(name, message)
    with pytest.raises(AssertionError) as failure:
        messages.assert_once(topic="orders", key="2", headers={"trace": "y", "span": "z"})
    line = f"- <Record 'A' {message.message_id} topic='orders' 19 bytes>: key is '1', not '2', "
    line += "header 'trace' is 'x', not 'y', header 'span' is missing, not 'z'"
    assert line in str(failure.value)
    assert CANARY not in f"{failure.value!r}{failure.value}{messages!r}{messages[0]!r}{messages[0]}"


async def test_a_failed_assertion_lists_no_more_than_can_be_read(name):
    """A flood of messages is counted."""
    messages = await publish(name, *(placed() for _ in range(30)))
    with pytest.raises(AssertionError, match="and 10 more"):
        messages.assert_once(name="Other")


# -- Scripts -----------------------------------------------------------------------------------------------------------


async def test_chosen_messages_fail_with_a_chosen_error(name):
    """By their number, counted from 1."""
    async with open_broker(f"memory://{name}?fail_at=2,4&error=UnroutableError") as broker:
        outcomes = await broker.send_messages([placed() for _ in range(5)])
    assert [type(outcome) for outcome in outcomes] == [Receipt, UnroutableError, Receipt, UnroutableError, Receipt]
    assert len(published(name)) == 3


async def test_a_chosen_error_that_is_unknown_keeps_the_message(name):
    """As when a real broker's confirm is lost."""
    async with open_broker(f"memory://{name}?fail=1&error=NackedError") as broker:
        with pytest.raises(NackedError):
            await broker.send_message(placed())
    assert len(published(name)) == 1


async def test_connecting_fails_as_often_as_the_script_says(name):
    """Then it works: the broker tries again by itself."""
    broker = open_broker(f"memory://{name}?fail_connect=2")
    with pytest.raises(UnreachableError, match="attempt 1 of fail_connect=2"):
        await broker.connect()
    assert (await broker.send_message(placed())).confirmed
    await broker.close()


async def test_health_fails_as_often_as_the_script_says(name):
    """A readiness probe can be tested."""
    async with open_broker(f"memory://{name}?fail_health=1") as broker:
        assert [(await broker.health()).ok for _ in range(2)] == [False, True]


async def test_the_script_can_be_changed_in_the_middle_of_a_test(name):
    """For brokers that are open already; `clear()` and None go back to the config string's."""
    async with open_broker(f"memory://{name}") as broker:
        await broker.send_message(placed())
        published(name).play(Faults(fail=1))
        with pytest.raises(RejectedError):
            await broker.send_message(placed())
        await broker.send_message(placed())
        published(name).play(None)
        await broker.send_message(placed())
    assert len(published(name)) == 3


# -- Config strings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "string",
    [
        "memory://a,b",
        "memory://a:1",
        "memory://u:p@a",
        "memory://a/path",
        "memory://a?fail=-1",
        "memory://a?fail=x",
        "memory://a?latency=50",
        "memory://a?capacity=0",
        "memory://a?fails=2",
        "memory://a?error=ValueError",
        "memory://a?fail_at=x",
    ],
)
def test_what_it_cannot_mean_is_refused(string):
    """A script that is not played would be a test that proves nothing."""
    with pytest.raises(ConfigError):
        open_broker(string)
