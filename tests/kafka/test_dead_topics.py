"""Topics whose only leader is dead fill the window: others go on, and order per key holds when the leader is back."""

import asyncio
import re
from collections.abc import Callable

import pytest

from cqrs_brokers import BackpressureError, Message, Receipt, open_broker
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

Name = Callable[[str], str]


def topics_by_leader(kafka: KafkaCluster, unique_name: Name) -> tuple[int, list[str], str]:
    """A node other than the first, three topics that only it has, and one that it has not."""
    led: dict[int, list[str]] = {}
    for _ in range(40):
        topic = unique_name("topic")
        kafka.create_topic(topic)
        led.setdefault(kafka.leader(topic), []).append(topic)
        for node, topics in led.items():
            if node != 1 and len(topics) >= 3 and len(led) > 1:
                return node, topics[:3], next(others[0] for other, others in led.items() if other != node)
    raise AssertionError(led)


async def test_three_dead_topics(kafka_nodes: KafkaCluster, unique_name: Name) -> None:
    """1200 messages for three dead topics and a window of 300: a living topic waits for a few seconds at most."""
    number, dead, living = await asyncio.to_thread(topics_by_leader, kafka_nodes, unique_name)
    node = next(node for node in kafka_nodes.nodes if node.node_id == number)
    told: dict[str, list[tuple[str, int]]] = {topic: [] for topic in (*dead, living)}

    url = f"{kafka_nodes.url}?delivery_timeout=60s&max_in_flight=300"
    async with open_broker(url) as broker:
        for topic in (*dead, living):
            assert (await broker.send_message(Message("n", topic, {"n": -1}, key="first"))).confirmed
        await asyncio.to_thread(node.kill)

        async def send(topic: str, n: int) -> None:
            key = f"key-{n % 2}"
            await broker.send_message(Message("n", topic, {"n": n}, key=key))
            told[topic].append((key, n))

        sends = [asyncio.create_task(send(dead[n % 3], n)) for n in range(1200)]
        await asyncio.sleep(3)
        loop = asyncio.get_running_loop()
        waits = []
        for n in range(100):
            began = loop.time()
            await send(living, n)
            waits.append(loop.time() - began)
        assert max(waits) < 1, max(waits)
        assert not any(told[topic] for topic in dead)
        await asyncio.to_thread(node.start)
        await asyncio.gather(*sends)
    for topic in dead:
        records = await asyncio.to_thread(drain_topic, kafka_nodes.bootstrap_servers, topic, 401)
        there = [(record.key, record.json()["n"]) for record in records[1:]]
        for key in ("key-0", "key-1"):
            mine = [n for one, n in there if one == key]
            assert mine == sorted(mine) == [n for one, n in sorted(told[topic], key=lambda pair: pair[1]) if one == key]


async def test_what_has_no_room_names_its_topic(kafka_nodes: KafkaCluster, unique_name: Name) -> None:
    """At the deadline each message for a dead topic says what its partition lacks; a living one has receipts."""
    number, dead, living = await asyncio.to_thread(topics_by_leader, kafka_nodes, unique_name)
    node = next(node for node in kafka_nodes.nodes if node.node_id == number)
    async with open_broker(f"{kafka_nodes.url}?delivery_timeout=6s&max_in_flight=300") as broker:
        for topic in (*dead, living):
            await broker.send_message(Message("n", topic, {}))
        await asyncio.to_thread(node.kill)
        try:
            messages = [Message("n", dead[n % 3], {"n": n}) for n in range(1200)]
            sends = [asyncio.create_task(broker.send_message(message)) for message in messages]
            await asyncio.sleep(3)
            assert isinstance(await broker.send_message(Message("n", living, {})), Receipt)
            ended = await asyncio.gather(*sends, return_exceptions=True)
        finally:
            await asyncio.to_thread(node.start)
    for message, error in zip(messages, ended, strict=True):
        assert isinstance(error, BackpressureError)
        assert error.topic == message.topic
        assert re.match(r"partition 0 has no leader|node \d .*cannot be reached", error.text), error.text
