"""Destinations that take nothing leave most of the free places of the window to the others, which go on.

While all destinations take messages, two fifths of the window are in use.
"""

import asyncio
import random
from collections.abc import Sequence

import pytest

from cqrs_brokers import BackpressureError, Broker, DeliveryTimeoutError, Message, Receipt
from cqrs_brokers.driver import Capabilities, Delivery, Link, PipelinedDriver

from .drivers import message, settle


class Dead(PipelinedDriver):
    """Confirms every message but those for topics that are dead."""

    capabilities = Capabilities(confirms=True, ordering_key=True)

    def __init__(self, *dead: str) -> None:
        self.dead = set(dead)
        self.hand_over = True
        self.held: list[Delivery] = []
        self.most = self.most_bytes = self.most_dead = self.most_dead_bytes = 0
        """What it held at any time: in all, and for topics that are dead."""

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            if not self.hand_over or delivery.handed_over():
                self.held.append(delivery)
        dead = [delivery for delivery in self.held if delivery.topic in self.dead]
        self.most, self.most_dead = max(self.most, len(self.held)), max(self.most_dead, len(dead))
        self.most_bytes = max(self.most_bytes, _bytes(self.held))
        self.most_dead_bytes = max(self.most_dead_bytes, _bytes(dead))
        asyncio.get_running_loop().call_soon(self.confirm)

    def confirm(self) -> None:
        if not self.hand_over:
            return
        going = [delivery for delivery in self.held if delivery.topic not in self.dead]
        self.held = [delivery for delivery in self.held if delivery.topic in self.dead]
        for delivery in going:
            delivery.confirm()


def _bytes(deliveries: Sequence[Delivery]) -> int:
    return sum(len(delivery.message.body or b"") for delivery in deliveries)


async def outcomes(sends: Sequence[asyncio.Future[Receipt]]) -> list[object]:
    return list(await asyncio.gather(*sends, return_exceptions=True))


async def test_a_living_destination_goes_on_while_dead_ones_fill_the_window() -> None:
    """Three dead topics have filled the window; messages for a living one, of before and of now, are confirmed."""
    driver = Dead("a", "b", "c")
    async with Broker(driver, max_in_flight=20, delivery_timeout=30, close_timeout=0) as broker:
        stuck = [asyncio.ensure_future(broker.send_message(message("abc"[n % 3]))) for n in range(60)]
        await settle()
        living = [asyncio.ensure_future(broker.send_message(message("living"))) for _ in range(50)]
        assert {type(outcome) for outcome in await outcomes(living)} == {Receipt}
        for _ in range(200):
            assert (await broker.send_message(message("living"))).confirmed
        assert not any(send.done() for send in stuck)
        assert driver.most <= 20
        assert driver.most_dead <= 10
    await outcomes(stuck)


async def test_what_waits_outside_names_its_destination_at_the_deadline() -> None:
    """BackpressureError with the topic; what the driver had, with one for a trial: DeliveryTimeoutError."""
    driver = Dead("dead")
    async with Broker(driver, max_in_flight=10, delivery_timeout=2.5, close_timeout=0) as broker:
        stuck = [asyncio.ensure_future(broker.send_message(message("dead"))) for _ in range(30)]
        ended = await outcomes(stuck)
    assert [type(outcome) for outcome in ended] == [DeliveryTimeoutError] * 5 + [BackpressureError] * 25
    assert all("'dead' took nothing" in str(outcome) for outcome in ended[5:])


async def test_a_destination_that_was_caught_behind_dead_ones_goes_on() -> None:
    """It seems stuck, because nothing of what it held is answered; a message of its own shows that it is not."""
    driver = Dead("dead", "caught")
    async with Broker(driver, max_in_flight=20, delivery_timeout=30, close_timeout=0) as broker:
        stuck = [asyncio.ensure_future(broker.send_message(message(("dead", "caught")[n % 2]))) for n in range(60)]
        await settle()
        driver.dead.remove("caught")
        caught = {delivery for delivery in driver.held if delivery.topic == "caught"}
        driver.held = [delivery for delivery in driver.held if delivery not in caught]  # they are never answered
        await asyncio.sleep(2.5)
        assert [send.done() for send in stuck[8:]] == [False, True] * 26
        assert not any(send.done() for send in stuck[:8])
        for _ in range(50):
            assert (await broker.send_message(message("caught"))).confirmed
        assert driver.most <= 20
    await outcomes(stuck)


async def test_a_destination_whose_trial_was_caught_is_tried_again() -> None:
    """A message without a key waits for no earlier one: the next look tries another one."""
    driver = Dead("dead", "caught")
    async with Broker(driver, max_in_flight=40, delivery_timeout=30, close_timeout=0) as broker:
        stuck = [asyncio.ensure_future(broker.send_message(message(("dead", "caught")[n % 2]))) for n in range(60)]
        await asyncio.sleep(1.5)  # both were tried
        driver.dead.remove("caught")
        tried = {delivery for delivery in driver.held if delivery.topic == "caught"}
        driver.held = [delivery for delivery in driver.held if delivery not in tried]  # the trial, too, has no answer
        await asyncio.sleep(2.5)
        assert sum(send.done() for send in stuck[1::2]) == 30 - len(tried)
        assert (await broker.send_message(message("caught"))).confirmed
        assert driver.most_dead <= 20
    await outcomes(stuck)


async def test_a_destination_that_lives_again_gets_its_messages_in_their_order() -> None:
    """What waited outside goes in the order of calls, before what is sent later."""
    driver = Dead("sick")
    order: list[str] = []

    async def send(name: str) -> None:
        await broker.send_message(message("sick", key="k", name=name))
        order.append(name)

    async with Broker(driver, max_in_flight=10, delivery_timeout=30) as broker:
        sends = [asyncio.ensure_future(send(f"{n:03}")) for n in range(40)]
        await asyncio.sleep(2.2)
        assert (await broker.send_message(message("living"))).confirmed
        driver.dead.clear()
        driver.confirm()
        sends += [asyncio.ensure_future(send(f"{n:03}")) for n in range(40, 60)]
        await asyncio.gather(*sends)
    assert order == sorted(order)
    assert len(order) == 60


async def test_a_slow_destination_is_not_stuck() -> None:
    """One that confirms something every second may hold what all may hold."""
    driver = Dead("slow")
    async with Broker(driver, max_in_flight=25, delivery_timeout=30, close_timeout=0) as broker:
        sends = [asyncio.ensure_future(broker.send_message(message("slow"))) for _ in range(40)]
        for _ in range(8):
            await asyncio.sleep(0.4)
            assert len(driver.held) == 10
            driver.held.pop(0).confirm()
    kinds = [type(outcome) for outcome in await outcomes(sends)]
    assert kinds.count(Receipt) == 8


@pytest.mark.parametrize("size", [10, 700, 1000])
@pytest.mark.parametrize("living", [10, 4000])
async def test_bytes_are_halved_too(size: int, living: int) -> None:
    """A few large messages for a dead topic leave room for the living ones, also for larger ones."""
    driver = Dead("dead")
    async with Broker(driver, max_in_flight=100, max_in_flight_bytes=10_000, close_timeout=0) as broker:
        stuck = [asyncio.ensure_future(broker.send_message(Message("n", "dead", b"x" * size))) for _ in range(200)]
        await settle()
        for _ in range(30):
            assert (await broker.send_message(Message("n", "living", b"x" * living))).confirmed
        assert driver.most_bytes <= 10_000
        assert driver.most_dead_bytes <= 5000
        assert driver.most_dead <= 50
    await outcomes(stuck)


async def test_half_of_the_window_is_exact_when_topics_die_at_full_load() -> None:
    """Topics that took messages until now stop together, with as much in flight as there may be."""
    driver = Dead()
    async with Broker(driver, max_in_flight=100, delivery_timeout=30, close_timeout=0) as broker:

        async def send_on(topic: str) -> None:
            while True:
                await broker.send_message(message(topic))

        load = [asyncio.create_task(send_on("abc"[n % 3])) for n in range(300)]
        await asyncio.sleep(0.3)
        driver.dead = {"a", "b", "c"}
        await asyncio.sleep(0.2)
        assert len(driver.held) == 40
        for _ in range(200):
            assert (await broker.send_message(message("living"))).confirmed
        await asyncio.sleep(3)
        assert driver.most_dead <= 50
        assert driver.most <= 100
        for task in load:
            task.cancel()
    await asyncio.gather(*load, return_exceptions=True)


async def test_topics_that_die_one_after_the_other_leave_room() -> None:
    """Each takes what it can get and stops; a living one still goes on, and the driver never holds too many."""
    driver = Dead()
    async with Broker(driver, max_in_flight=100, delivery_timeout=60, close_timeout=0) as broker:
        load: list[asyncio.Task[Receipt]] = []
        for topic in "abcd":
            driver.dead.add(topic)
            load += [asyncio.create_task(broker.send_message(message(topic))) for _ in range(200)]
            await asyncio.sleep(2.5)
            began = asyncio.get_running_loop().time()
            for _ in range(100):
                assert (await broker.send_message(message("living"))).confirmed
            assert asyncio.get_running_loop().time() - began < 1
            assert driver.most <= 100
        assert not any(send.done() for send in load)
    await outcomes(load)


async def test_a_living_destination_goes_on_while_nothing_else_waits() -> None:
    """Dead topics hold all that they may, and nothing waits: a living topic is not held up once a second."""
    driver = Dead("dead")
    async with Broker(driver, max_in_flight=20, delivery_timeout=30, close_timeout=0) as broker:
        loop = asyncio.get_running_loop()
        stuck = [asyncio.ensure_future(broker.send_message(message("dead"))) for _ in range(8)]
        await settle()
        assert len(driver.held) == 8
        waits = []
        for _ in range(40):
            began = loop.time()
            assert (await broker.send_message(message("living"))).confirmed
            waits.append(loop.time() - began)
            await asyncio.sleep(0.1)
        assert max(waits[1:]) < 0.5, waits
    await outcomes(stuck)


async def test_what_the_driver_kept_says_that_nothing_was_taken() -> None:
    """At its deadline a message that the driver did not hand over had room: it is not said that there was none."""
    driver = Dead("dead")
    driver.hand_over = False
    async with Broker(driver, max_in_flight=20, delivery_timeout=3, close_timeout=0) as broker:
        stuck = [asyncio.ensure_future(broker.send_message(message("dead"))) for _ in range(8)]
        living = asyncio.ensure_future(broker.send_message(message("living")))
        ended = await outcomes([*stuck, living])
    assert {type(outcome) for outcome in ended} == {BackpressureError}
    assert all("takes nothing for this topic" in str(outcome) for outcome in ended[:8]), ended[0]


async def test_the_window_is_as_before_when_all_live_again() -> None:
    """What was known of stuck destinations is forgotten when they take messages."""
    driver = Dead("dead")
    async with Broker(driver, max_in_flight=25, delivery_timeout=30, close_timeout=0) as broker:
        stuck = [asyncio.ensure_future(broker.send_message(message("dead"))) for _ in range(60)]
        await asyncio.sleep(1.5)
        driver.dead.clear()
        driver.confirm()
        assert {type(outcome) for outcome in await outcomes(stuck)} == {Receipt}
        await asyncio.sleep(1.2)
        driver.dead = {"a", "b"}
        stuck = [asyncio.ensure_future(broker.send_message(message("ab"[n % 2]))) for n in range(60)]
        await settle()
        assert len(driver.held) == 10
    await outcomes(stuck)


@pytest.mark.parametrize("seed", range(4))
async def test_order_per_key_holds_while_destinations_come_and_go(seed: int) -> None:
    """Topics die and live again, callers give up: the driver gets the messages of each key in the order of calls."""
    dice = random.Random(seed)
    driver = Dead()
    order: dict[tuple[str, str | None], list[int]] = {}
    submit = driver.submit

    def noted(deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            order.setdefault((delivery.topic, delivery.message.key), []).append(int(delivery.message.message_name))
        submit(deliveries)

    driver.submit = noted  # type: ignore[method-assign]
    async with Broker(driver, max_in_flight=40, delivery_timeout=60, close_timeout=0) as broker:
        sends = []
        for step in range(30):
            if not step % 10:
                driver.dead = set(dice.sample("abcd", dice.choice([1, 2, 3])))
                driver.confirm()
            for n in range(40):
                one = message(dice.choice("abcd"), key=dice.choice("xyz"), name=str(step * 40 + n))
                sends.append(asyncio.ensure_future(broker.send_message(one)))
            dice.choice(sends).cancel()
            await asyncio.sleep(dice.choice([0.01, 0.2, 0.4]))
        driver.dead = set()
        driver.confirm()
        ended = await outcomes(sends)
    assert {type(outcome) for outcome in ended} <= {Receipt, asyncio.CancelledError}
    assert len(ended) == 1200
    for key, numbers in order.items():
        assert numbers == sorted(numbers), key


class OneAfterTheOther(PipelinedDriver):
    """Answers in the order of the messages, so that one for a dead topic holds up all behind it. After 5 s without an
    answer it leaves them all behind, and a dead topic holds up no other any more. So does RabbitMQ's driver."""

    capabilities = Capabilities(confirms=True, ordering_key=True)

    def __init__(self, dead: str) -> None:
        self.dead = dead
        self.queue: list[Delivery] = []
        self.left: list[Delivery] = []
        self.leave_at: asyncio.TimerHandle | None = None
        self.has_left = False

    def bind(self, link: Link) -> None:
        self.link = link

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        self.queue += [delivery for delivery in deliveries if delivery.handed_over()]
        asyncio.get_running_loop().call_soon(self.answer)

    def answer(self) -> None:
        while self.queue and (self.has_left or self.queue[0].topic != self.dead):
            first = self.queue.pop(0)
            if first.topic == self.dead:
                self.left.append(first)
            else:
                first.confirm()
        if self.queue and self.leave_at is None:
            self.leave_at = asyncio.get_running_loop().call_later(5.0, self.leave)

    def leave(self) -> None:
        self.left, self.queue, self.has_left = self.queue, [], True
        self.link.may_go_on()

    def abort(self) -> None:
        if self.leave_at is not None:
            self.leave_at.cancel()


@pytest.mark.parametrize(("window", "keyed"), [(20, False), (50, True), (100, True), (400, False)])
async def test_caught_destinations_go_on_when_the_driver_has_left_its_channel(window: int, keyed: bool) -> None:
    """They look stuck for 5 s, and may have used up their trials by then: all are tried again, in any window."""
    driver = OneAfterTheOther("dead")
    async with Broker(driver, max_in_flight=window, delivery_timeout=60, close_timeout=0) as broker:
        loop = asyncio.get_running_loop()
        sends = [asyncio.ensure_future(broker.send_message(message("dead"))) for _ in range(2 * window)]
        await settle()
        began, first = loop.time(), dict[str, float]()
        while loop.time() < began + 10 and len(first) < 2:
            for topic in ("a", "b"):
                for n in range(6):
                    key = f"key-{n % 2}" if keyed and n % 3 else None
                    send = asyncio.ensure_future(broker.send_message(message(topic, key=key)))
                    send.add_done_callback(lambda _, topic=topic: first.setdefault(topic, loop.time() - began))  # type: ignore[misc]
                    sends.append(send)
            await asyncio.sleep(0.25)
        assert first.keys() == {"a", "b"}
        assert max(first.values()) < 7.5, first
    await outcomes(sends)


class Ordered(Dead):
    """Notes the messages in the order in which it got them."""

    def __init__(self, *dead: str) -> None:
        super().__init__(*dead)
        self.got: dict[tuple[str, str | None], list[int]] = {}

    def submit(self, deliveries: Sequence[Delivery], /) -> None:
        for delivery in deliveries:
            sent = delivery.message
            self.got.setdefault((sent.topic, sent.key), []).append(int((sent.body or b"").partition(b" ")[0]))
        super().submit(deliveries)


async def test_a_small_message_does_not_overtake_a_large_one_with_its_key() -> None:
    """The large one must wait, because stuck destinations have too many bytes; the small one would have room."""
    driver = Ordered("dead")
    async with Broker(driver, max_in_flight_bytes=10_000, delivery_timeout=30, close_timeout=0) as broker:
        sizes = [("k1", 1000), ("k2", 1000), ("k3", 1000), ("A", 3000), ("A", 500)]
        sends = [
            asyncio.ensure_future(broker.send_message(Message("n", "dead", b"%d " % n + bytes(size), key=key)))
            for n, (key, size) in enumerate(sizes)
        ]
        await asyncio.sleep(2.5)
        driver.dead.clear()
        driver.confirm()
        assert {type(outcome) for outcome in await outcomes(sends)} == {Receipt}
    assert driver.got["dead", "A"] == [3, 4]


@pytest.mark.parametrize("first_seed", [0, 40])
async def test_messages_with_one_topic_and_key_keep_their_order(first_seed: int) -> None:
    """Whatever their sizes are, and whichever destinations stop and go on meanwhile."""

    async def run(seed: int) -> dict[tuple[str, str | None], list[int]]:
        chance = random.Random(seed)
        driver = Ordered("a", "b")
        async with Broker(driver, max_in_flight=30, max_in_flight_bytes=20_000, delivery_timeout=30) as broker:
            sends = []
            for number in range(200):
                body = b"%d " % number + bytes(chance.choice((10, 500, 3000, 6000)))
                sent = Message("n", chance.choice("abc"), body, key=chance.choice((None, "x", "y")))
                sends.append(asyncio.ensure_future(broker.send_message(sent)))
                await asyncio.sleep(chance.choice((0, 0, 0.02)))
            for dead in ("a", "c", "b", "", ""):
                await asyncio.sleep(1.0)
                driver.dead = {dead}
                driver.confirm()
            assert {type(outcome) for outcome in await outcomes(sends)} == {Receipt}
        return driver.got

    for got in await asyncio.gather(*(run(first_seed + seed) for seed in range(40))):
        assert sum(map(len, got.values())) == 200
        assert {pair: numbers for pair, numbers in got.items() if numbers != sorted(numbers)} == {}
