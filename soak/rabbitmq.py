"""RabbitMQ's side: one private node behind a fault proxy; faults; queues read back with pika."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pika

from cqrs_brokers_testkit.proxy import FaultProxy
from cqrs_brokers_testkit.readers import bind_queue
from cqrs_brokers_testkit.servers import RabbitMQNode, rabbitmq

from .report import Outage
from .run import PIKA_ERRORS, Progress
from .schedule import Fault, Kind
from .verdict import Found

__all__ = ["KINDS", "SHORT_KINDS", "RabbitMQSide", "running"]

EXCHANGE = "soak"
EVERYTHING = "everything"
"""A queue that gets the messages of all topics but the two below, beside each topic's own: a confirm means both."""
STUCK, REMADE = "stuck", "remade"
PATIENCE = 60.0
"""How long a connection of the soak's own may take, in seconds."""
_QUEUE = f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{STUCK}">>)), '

_KINDS = [
    Kind(name="kill", shortest=0.0, longest=4.0),
    Kind(name="restart", shortest=0.0, longest=4.0),
    Kind(name="stop_app", shortest=0.0, longest=3.0),
    Kind(name="pause", shortest=1.0, longest=8.0),
    Kind(name="reset", shortest=0.0, longest=3.0),
    Kind(name="fin", shortest=0.0, longest=3.0),
    Kind(name="close_all"),
    Kind(name="stall up", shortest=1.0, longest=10.0),
    Kind(name="stall down", shortest=1.0, longest=10.0),
    Kind(name="stall both", shortest=1.0, longest=10.0),
    Kind(name="alarm", shortest=1.0, longest=8.0),
    Kind(name="stuck queue", shortest=6.0, longest=15.0),
    Kind(name="queue remade", shortest=0.0, longest=5.0),
]
KINDS: Sequence[Kind] = _KINDS
_SHORT = ("kill", "pause", "reset", "close_all", "stall down", "alarm", "stuck queue", "queue remade")
SHORT_KINDS: Sequence[Kind] = [kind for kind in _KINDS if kind.name in _SHORT]


class RabbitMQSide:
    """See `run.Side`.

    Args:
        node: The node, which runs.
        proxy: What stands before it.
    """

    topics: Sequence[str] = ("orders", "payments", "shipments")
    stuck, remade = STUCK, REMADE
    percentile = 0.95

    def __init__(self, node: RabbitMQNode, proxy: FaultProxy) -> None:
        self._node, self._proxy = node, proxy
        self.version = f"RabbitMQ {node.version}"
        self.logs_of_topic: Mapping[str, Sequence[str]] = {
            **{topic: (topic, EVERYTHING) for topic in self.topics},
            STUCK: (STUCK,),
        }
        self.remade_at: list[tuple[float, float]] = []
        self._before: dict[str, list[Found]] = {}
        for topic in self.topics:
            bind_queue(node.url, EXCHANGE, topic, topic)
            bind_queue(node.url, EXCHANGE, topic, EVERYTHING)
        for topic in (STUCK, REMADE):
            bind_queue(node.url, EXCHANGE, topic, topic)
        self._probe_queue = bind_queue(node.url, EXCHANGE, "probe.only", "probe", exchange_type=None)

    def url(self) -> str:
        """See `run.Side`."""
        return self._node.url_for(port=self._proxy.port, exchange=EXCHANGE)

    async def inflict(self, fault: Fault) -> Outage:
        """See `run.Side`. The broker counts as away until a plain pika publish on a new connection is confirmed."""
        began = time.monotonic()
        break_it, repair = self._actions(fault)
        await asyncio.to_thread(break_it)
        if repair is not None:
            await asyncio.sleep(fault.seconds)
        probe = asyncio.create_task(asyncio.to_thread(self._wait_for_confirm))
        if repair is not None:
            await asyncio.to_thread(repair)
        repaired = time.monotonic()
        back = await probe
        if repair is not None and fault.kind.name.startswith(("stall ", "alarm")):
            # The probe does not go through the proxy, and a new connection's first publish passes in spite of an alarm.
            back = max(back, repaired)
        # While one queue is stuck, or away, the broker is there: the other topics must not notice.
        away: dict[int | None, list[tuple[float, float]]]
        away = {} if "queue" in fault.kind.name else {None: [(began, back)]}
        return Outage(fault=fault, began=began, ended=time.monotonic(), away=away)

    def _actions(self, fault: Fault) -> tuple[Callable[[], object], Callable[[], object] | None]:
        """How to break it and how to repair it."""
        node, proxy = self._node, self._proxy
        name = fault.kind.name
        if name.startswith("stall "):
            way = name.removeprefix("stall ")
            return (lambda: proxy.stall(way)), proxy.heal  # type: ignore[arg-type]
        if name in ("reset", "fin"):
            end = proxy.reset if name == "reset" else proxy.close_connections
            return (lambda: _again_and_again(end, fault.seconds)), None
        return {
            "kill": (node.kill, node.start),
            "restart": (node.terminate, node.start),
            "stop_app": (node.stop_app, node.start_app),
            "pause": (node.pause, node.resume),
            "close_all": (node.close_all_connections, None),
            # The queue's process answers nobody while it is suspended; the node and its other queues do not notice.
            "stuck queue": (
                lambda: node.ctl("eval", f"{_QUEUE}sys:suspend(amqqueue:get_pid(Q))."),
                lambda: node.ctl("eval", f"{_QUEUE}sys:resume(amqqueue:get_pid(Q))."),
            ),
            "queue remade": (self._delete, self._make_anew),
            "alarm": (lambda: node.set_memory_alarm(True), lambda: node.set_memory_alarm(False)),
        }[name]

    def _delete(self) -> None:
        """Takes out what is in the queue, and deletes it."""
        began = time.monotonic()
        self._before[f"{REMADE}, {len(self.remade_at) + 1}"] = self._drain(REMADE, more=False)
        self.remade_at.append((began, float("inf")))
        with contextlib.closing(self._connection()) as connection:
            connection.channel().queue_delete(REMADE)

    def _make_anew(self) -> None:
        with contextlib.closing(self._connection()) as connection:
            channel = connection.channel()
            channel.queue_declare(REMADE, durable=True)
            channel.queue_bind(REMADE, EXCHANGE, REMADE)
        self.remade_at[-1] = (self.remade_at[-1][0], time.monotonic())

    def _connection(self) -> pika.BlockingConnection:
        """For what must be done once: it waits for a node that is slow, because the machine is busy."""
        parameters = pika.URLParameters(self._node.url)
        parameters.socket_timeout = parameters.stack_timeout = PATIENCE
        return pika.BlockingConnection(parameters)

    def _wait_for_confirm(self) -> float:
        """Publishes with pika, on a new connection, until a publish is confirmed; when that was.

        Raises:
            TimeoutError: None was for a minute.
        """
        give_up = time.monotonic() + 60
        parameters = pika.URLParameters(self._node.url)
        parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = 1.0
        while time.monotonic() < give_up:
            with contextlib.suppress(*PIKA_ERRORS):
                connection = pika.BlockingConnection(parameters)
                try:
                    channel = connection.channel()
                    channel.confirm_delivery()
                    channel.basic_publish("", self._probe_queue, b"", pika.BasicProperties(delivery_mode=2))
                    return time.monotonic()
                finally:
                    with contextlib.suppress(*PIKA_ERRORS):
                        connection.close()
            time.sleep(0.05)
        raise TimeoutError("RabbitMQ confirmed nothing for a minute after a fault was repaired")

    def read(self) -> dict[str, list[Found]]:
        """See `run.Side`."""
        return {**self._before, **{q: self._drain(q) for q in (*self.topics, EVERYTHING, STUCK, REMADE)}}

    def _drain(self, queue: str, *, more: bool = True) -> list[Found]:
        """Takes everything out of a queue. One consumer without acknowledgements gets it in the queue's order.

        Args:
            queue: Its name.
            more: Wait for a second without messages. False: what is there now is enough, because more keeps coming.
        """
        found: list[Found] = []
        connection = self._connection()
        try:
            channel = connection.channel()
            count = channel.queue_declare(queue, passive=True).method.message_count
            for method, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=1):
                if not more and len(found) >= count:
                    return found
                if method is None:  # silence after the last: otherwise a surplus would not be seen
                    if len(found) >= count:
                        return found
                    continue
                headers = properties.headers or {}
                found.append(
                    Found(
                        message_id=properties.message_id,
                        topic=method.routing_key,
                        key=headers.get("ordering-key"),
                        body_key=json.loads(body)["key"],
                    )
                )
        finally:
            connection.close()
        return found


def _again_and_again(end: Callable[[], object], seconds: float) -> None:
    """Ends all connections, and those that come after, for some seconds."""
    until = time.monotonic() + seconds
    while True:
        end()
        if time.monotonic() > until:
            return
        time.sleep(0.3)


@contextlib.contextmanager
def running(progress: Progress) -> Iterator[RabbitMQSide]:
    """A private node behind a proxy."""
    with rabbitmq(progress=progress) as node, FaultProxy((node.host, node.port)) as proxy:
        yield RabbitMQSide(node, proxy)
