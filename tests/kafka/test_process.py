"""What a process does to its broker: cancels, forks, gets signals, has no file descriptors left."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cqrs_brokers import DeliveryError, Message, Receipt, open_broker
from cqrs_brokers_testkit.leaks import no_leaks
from cqrs_brokers_testkit.readers import drain_topic
from cqrs_brokers_testkit.servers import KafkaCluster, KafkaServer

pytestmark = pytest.mark.live

Name = Callable[[str], str]


async def read_ids(kafka: KafkaServer, topic: str) -> list[str | None]:
    records = await asyncio.to_thread(drain_topic, kafka.reader_bootstrap_servers, topic)
    return [record.message_id for record in records]


def check(ids: list[str | None], confirmed: set[str]) -> None:
    assert len(ids) == len(set(ids)), "duplicated"
    assert confirmed <= set(ids), "lost"


@pytest.mark.parametrize("warm", [True, False])
async def test_cancelled_at_every_step(kafka: KafkaServer, unique_name: Name, warm: bool) -> None:
    """A send that is cancelled at the k-th turn of the loop, while connecting too: only its caller notices."""
    topic = unique_name("step")
    kafka.create_topic(topic)
    confirmed: set[str] = set()
    cancelled = 0
    async with no_leaks():
        # A connected broker has its confirm after about ten turns, on a busy machine after fewer: these come again.
        for step in (*range(40), *3 * [*range(10)]) if warm else (*range(12), *range(12, 400, 25)):
            broker = open_broker(kafka.url)
            if warm:
                confirmed.add(str((await broker.send_message(Message("E", topic, {}, key="k"))).message_id))
            victim = asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))
            neighbour = asyncio.create_task(broker.send_message(Message("E", topic, {}, key="k")))
            for _ in range(step):
                await asyncio.sleep(0)
            victim.cancel()
            try:
                confirmed.add(str((await victim).message_id))
            except asyncio.CancelledError:
                cancelled += 1
            confirmed.add(str((await neighbour).message_id))
            confirmed.add(str((await broker.send_message(Message("E", topic, {}, key="k"))).message_id))
            await broker.close()
    assert cancelled > 10
    check(await read_ids(kafka, topic), confirmed)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 20, 60])
async def test_close_cancelled_at_every_step(kafka: KafkaServer, unique_name: Name, step: int) -> None:
    """A close() that is cancelled at the k-th turn of the loop ends by force; every send has an outcome."""
    topic = unique_name("closing")
    kafka.create_topic(topic)
    async with no_leaks():
        broker = open_broker(kafka.url)
        await broker.send_message(Message("E", topic, {}))
        sends = [asyncio.create_task(broker.send_message(Message("E", topic, {}))) for _ in range(200)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(broker.close())
        for _ in range(step):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait((closing,), timeout=3)
        assert closing.done()
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
    assert all(isinstance(outcome, Receipt | DeliveryError) for outcome in outcomes)
    check(await read_ids(kafka, topic), {str(o.message_id) for o in outcomes if isinstance(o, Receipt)})


async def test_a_sibling_in_a_task_group_fails(kafka: KafkaServer, unique_name: Name) -> None:
    """The group cancels its sends; the broker and the sends outside the group do not notice."""
    topic = unique_name("group")
    kafka.create_topic(topic, 2)
    confirmed: set[str] = set()

    async def send() -> None:
        receipt = await broker.send_message(Message("E", topic, {}, key="k"))
        confirmed.add(str(receipt.message_id))

    async def fail(after: int) -> None:
        for _ in range(after):
            await asyncio.sleep(0)
        raise LookupError

    async def group_of(sends: int, after: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(sends):
                group.create_task(send())
            group.create_task(fail(after))

    async with open_broker(kafka.url) as broker:
        for after in range(12):
            outside = [asyncio.create_task(send()) for _ in range(10)]
            with pytest.raises(BaseExceptionGroup) as caught:
                await group_of(20, after)
            assert caught.group_contains(LookupError)
            assert len(caught.value.exceptions) == 1
            await asyncio.gather(*outside)
        await broker.flush(10)
    assert len(confirmed) >= 120
    check(await read_ids(kafka, topic), confirmed)


SIGNALLED = """
import asyncio, logging, signal, sys, time
from cqrs_brokers import DeliveryUnknownError, DeliveryError, Message, open_broker

logging.basicConfig(stream=sys.stderr, level=logging.WARNING)

async def main(url, topic, grace):
    broker = open_broker(url)
    enough = asyncio.Semaphore(0)
    async def publish(number):
        while True:
            message = Message("E", topic, {}, key=f"k{number}")
            try:
                await broker.send_message(message)
                enough.release()
                print("confirmed", message.message_id, flush=True)
            except DeliveryUnknownError:
                print("unknown", message.message_id, flush=True)
            except DeliveryError:
                print("refused", message.message_id, flush=True)
                return
    publishers = [asyncio.create_task(publish(number)) for number in range(8)]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    for _ in range(60):
        await enough.acquire()
    print("ready", flush=True)
    await stop.wait()
    started = time.monotonic()
    await broker.close(grace)
    print("closed", time.monotonic() - started, flush=True)
    await asyncio.gather(*publishers)

asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
"""


@pytest.mark.fault
@pytest.mark.parametrize("frozen", [False, True])
async def test_sigterm_while_publishing(
    kafka_node: KafkaCluster, unique_name: Name, tmp_path: Path, frozen: bool
) -> None:
    """SIGTERM, close(grace): exit code 0 in time; what was confirmed is in the log, what is unknown is logged by id."""
    topic = unique_name("term")
    kafka_node.create_topic(topic, 3)
    script = tmp_path / "publish.py"
    script.write_text(SIGNALLED)
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, kafka_node.url, topic, "2", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    lines: list[list[str]] = []
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while not lines or lines[-1] != ["ready"]:
                lines.append((await process.stdout.readline()).decode().split())
        if frozen:
            kafka_node.pause()
            await asyncio.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        rest, errors = await asyncio.wait_for(process.communicate(), 10)
    finally:
        kafka_node.resume()
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines += [line.split() for line in rest.decode().splitlines()]
    assert process.returncode == 0, errors.decode()
    told = {kind: {line[1] for line in lines if line[0] == kind} for kind in ("confirmed", "unknown", "refused")}
    (took,) = (float(line[1]) for line in lines if line[0] == "closed")
    assert took < 3
    assert len(told["confirmed"]) > 50
    assert bool(told["unknown"]) is frozen
    assert all(message_id in errors.decode() for message_id in told["unknown"])
    assert "Traceback" not in errors.decode()
    await asyncio.sleep(0.5)
    ids = await read_ids(kafka_node, topic)
    check(ids, told["confirmed"])
    assert not told["refused"] & set(ids)
    assert set(ids) <= told["confirmed"] | told["unknown"]


FORKED = """
import asyncio, os, sys
from cqrs_brokers import Message, WrongLoopError, open_broker

async def send(broker, topic):
    return await broker.send_message(Message("E", topic, {}, key="k"))

async def main(url, topic):
    broker = open_broker(url)
    assert (await send(broker, topic)).offset == 0
    child = os.fork()
    if not child:
        code = 1
        try:
            await send(broker, topic)
        except WrongLoopError as error:
            code = 0 if "fork" in str(error) else 2
        os._exit(code)
    status = os.waitpid(child, 0)  # not in a thread: Python warns of a fork beside one
    assert os.waitstatus_to_exitcode(status[1]) == 0, status
    assert (await send(broker, topic)).offset == 1
    child = os.fork()
    if not child:
        asyncio.events._set_running_loop(None)
        async def fresh():
            async with open_broker(url) as mine:
                await send(mine, topic)
            try:
                await send(broker, topic)
            except WrongLoopError:
                return 0
            return 3
        os._exit(asyncio.run(fresh()))
    status = os.waitpid(child, 0)  # not in a thread: Python warns of a fork beside one
    assert os.waitstatus_to_exitcode(status[1]) == 0, status
    assert (await send(broker, topic)).offset == 3
    await broker.close()

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def run(script: str, tmp_path: Path, *arguments: str) -> None:
    """Runs a program in a process of its own; it must end well and say nothing."""
    path = tmp_path / "program.py"
    path.write_text(script)
    process = await asyncio.create_subprocess_exec(
        sys.executable, path, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, output.decode()) == (0, "")


async def test_fork(kafka: KafkaServer, unique_name: Name, tmp_path: Path) -> None:
    """After a fork the child's use of the broker is WrongLoopError, a new one works there, the parent goes on."""
    topic = unique_name("fork")
    kafka.create_topic(topic)
    await run(FORKED, tmp_path, kafka.url, topic)
    assert len(await read_ids(kafka, topic)) == 4


NO_DESCRIPTORS = """
import asyncio, logging, os, resource, sys
from cqrs_brokers import Message, UnreachableError, open_broker

logging.disable(logging.CRITICAL)  # asyncio and aiokafka report each attempt

def take_all(taken):
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass

async def main(url, topic):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fresh, warm = open_broker(url), open_broker(url + "?delivery_timeout=15s")
    await warm.send_message(Message("E", topic, {}, key="k"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
    taken = []
    take_all(taken)
    try:
        await fresh.connect()
    except UnreachableError as error:
        assert "Too many open files" in str(error), error
    else:
        raise AssertionError("connected without a descriptor")
    # The connection that there is goes on; then it breaks, and cannot be made anew for a while.
    await warm.send_message(Message("E", topic, {}, key="k"))
    for node in warm.driver._cluster.nodes.values():
        node.connection._writer.transport.abort()
    await asyncio.sleep(0)
    take_all(taken)
    send = asyncio.create_task(warm.send_message(Message("E", topic, {}, key="k")))
    await asyncio.sleep(2)
    assert not send.done()
    for descriptor in taken:
        os.close(descriptor)
    assert (await send).offset == 2
    await fresh.connect()
    assert (await fresh.send_message(Message("E", topic, {}, key="k"))).offset == 3
    await fresh.close()
    await warm.close()

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def test_no_file_descriptors(kafka: KafkaServer, unique_name: Name, tmp_path: Path) -> None:
    """No descriptor left: UnreachableError that says so; sends wait; with descriptors again everything goes on."""
    topic = unique_name("descriptors")
    kafka.create_topic(topic)
    await run(NO_DESCRIPTORS, tmp_path, kafka.url, topic)
