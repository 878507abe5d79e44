"""Event loops (I13), forks, and programs that end without close(): run as programs, with warnings as errors."""

import asyncio
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest

from cqrs_brokers import Broker, BrokerClosedError, WrongLoopError

from .drivers import Scripted, message

PRELUDE = """
import asyncio, os, sys, warnings
from collections.abc import Sequence
from cqrs_brokers import *
from cqrs_brokers.driver import PipelinedDriver, Capabilities

class Instant(PipelinedDriver):
    capabilities = Capabilities(confirms=True)
    stalled = False
    aborted = 0
    connects = 0
    async def connect(self): self.connects += 1
    def submit(self, deliveries):
        for delivery in deliveries:
            if delivery.handed_over() and not self.stalled:
                asyncio.get_running_loop().call_soon(delivery.confirm)
    def abort(self): self.aborted += 1

driver = Instant()
broker = Broker(driver)
def message(): return Message("n", "t", b"x")
"""


def run(program: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", PRELUDE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_leaving_asyncio_run_without_close_is_one_warning_and_no_traceback() -> None:
    """python-cqrs never closes its broker: one ResourceWarning of ours, nothing else."""
    done = run(
        """
        async def main():
            await broker.send_message(message())
            driver.stalled = True
            asyncio.create_task(broker.send_message(message()))
            await asyncio.sleep(0.01)
        asyncio.run(main())
        print(driver.aborted)
        """,
        "-X",
        "dev",
    )
    assert done.returncode == 0
    assert done.stdout == "1\n"
    assert done.stderr.count("ResourceWarning: <Broker") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "was not closed" in done.stderr


@pytest.mark.parametrize("turns", [1, 2, 3, 20])
def test_leaving_asyncio_run_in_a_close_drops_the_connection(turns: int) -> None:
    """Whatever turn the close has come to, the driver is aborted, and asyncio has nothing to say."""
    done = run(
        f"""
        async def close(grace): await asyncio.sleep(60)
        driver.close = close
        async def main():
            await broker.connect()
            closing = asyncio.create_task(broker.close(60))
            for _ in range({turns}): await asyncio.sleep(0)
        asyncio.run(main())
        print(driver.aborted, broker.state)
        """,
        "-X",
        "dev",
    )
    assert done.stdout == "1 closed\n"
    assert "Traceback" not in done.stderr, done.stderr


def test_leaving_without_close_stays_quiet_with_warnings_as_errors() -> None:
    """-W error turns the warning into a log line, never into a traceback."""
    done = run(
        """
        async def main():
            await broker.send_message(message())
        asyncio.run(main())
        """,
        "-X",
        "dev",
        "-W",
        "error",
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count("was not closed") == 1, done.stderr


def test_a_job_per_asyncio_run_works_with_one_broker() -> None:
    """Each run connects anew on its own loop; the last one closes cleanly."""
    done = run(
        """
        warnings.simplefilter("ignore", ResourceWarning)
        async def job(): return (await broker.send_message(message())).confirmed
        async def last():
            await job()
            await broker.close()
        print([asyncio.run(job()) for _ in range(3)], driver.connects, driver.aborted)
        asyncio.run(last())
        print(driver.connects)
        """
    )
    assert done.stdout == "[True, True, True] 3 3\n4\n", done.stderr


def test_a_loop_that_is_closed_without_cancelling_leaves_no_noise() -> None:
    """loop.close() alone: the next loop drops the old connection without I/O and without 'Task was destroyed'."""
    done = run(
        """
        async def job(): return (await broker.send_message(message())).confirmed
        for _ in range(2):
            loop = asyncio.new_event_loop()
            print(loop.run_until_complete(job()))
            loop.close()
        print(driver.aborted)
        del broker
        """,
        "-X",
        "dev",
    )
    assert done.stdout == "True\nTrue\n1\n", done.stderr
    assert "destroyed" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_forked_child_is_told() -> None:
    """A child of fork gets WrongLoopError, in the parent's loop and in its own, and does not hurt the parent."""
    done = run(
        """
        async def child():
            try:
                await broker.send_message(message())
            except WrongLoopError as error:
                return "forked from the one that used the broker" in str(error)
        async def main():
            await broker.send_message(message())
            pid = os.fork()
            if pid == 0:
                ok = await child()
                print("child", ok, flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
            pid = os.fork()
            if pid == 0:
                asyncio._set_running_loop(None)
                print("child", asyncio.new_event_loop().run_until_complete(child()), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
            print("parent", (await broker.send_message(message())).confirmed)
            await broker.close()
        asyncio.run(main())
        """
    )
    assert done.stdout == "child True\nchild True\nparent True\n", done.stderr


def test_a_forked_child_does_not_repeat_its_parents_message_ids() -> None:
    """The pool of random ids is emptied in the child."""
    done = run(
        """
        Message("n", "t", b"")
        pid = os.fork()
        ids = " ".join(str(Message("n", "t", b"").message_id) for _ in range(5))
        os.write(1, (ids + "\\n").encode())
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        """
    )
    ids = done.stdout.split()
    assert len(ids) == 10
    assert len(set(ids)) == 10


async def test_another_threads_loop_is_refused() -> None:
    """The bound loop is still open: WrongLoopError with the message's id, and the broker goes on."""
    driver = Scripted(automatic=True)
    errors = []
    async with Broker(driver) as broker:
        sent = message()

        def other() -> None:
            try:
                asyncio.run(broker.send_message(sent))
            except WrongLoopError as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert (await broker.send_message(message())).confirmed
    assert errors[0].message_id == sent.message_id
    assert "belongs to another event loop that is still open" in str(errors[0])


def test_close_in_the_next_loop_drops_the_old_connection() -> None:
    """The bound loop was closed: close() in another one aborts without I/O and stays closed."""
    driver = Scripted(automatic=True)
    broker = Broker(driver)

    async def use() -> None:
        await broker.send_message(message())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(use())
        asyncio.run(broker.close())
    assert driver.aborted >= 1
    with pytest.raises(BrokerClosedError):
        asyncio.run(use())


def test_made_without_an_event_loop() -> None:
    """Building a broker needs no loop and does no I/O."""
    driver = Scripted()
    broker = Broker(driver)
    assert driver.connects == 0
    assert broker.url is None


def test_a_late_collected_supervisor_does_not_hurt_its_successor() -> None:
    """The old loop's supervisor is garbage when the next loop connects; collecting it changes nothing."""
    done = run(
        """
        import gc
        warnings.simplefilter("ignore", ResourceWarning)
        gc.disable()
        async def job(): return (await broker.send_message(message())).confirmed
        async def collecting():
            first = await job()
            gc.collect()
            broker._connection.lost(UnreachableError("reset"))  # as the driver would say it
            return first, await job(), driver.connects
        loop = asyncio.new_event_loop()
        loop.run_until_complete(job())
        loop.close()
        del loop
        print(asyncio.run(collecting()))
        """,
    )
    assert done.stdout == "(True, True, 3)\n", done.stderr
    assert "Traceback" not in done.stderr


def test_a_loop_closed_in_mid_send_is_no_error_of_ours() -> None:
    """What a simple driver had begun is dropped without a word of asyncio's, and the next loop's sends work."""
    done = run(
        """
        from cqrs_brokers.driver import Driver

        class Slow(Driver):
            slow = True
            async def send_message(self, message):
                if self.slow:
                    await asyncio.sleep(60)

        driver = Slow()
        broker = Broker(driver)
        tasks = []

        async def leave():
            await broker.connect()
            for _ in range(3):
                tasks.append(asyncio.get_running_loop().create_task(broker.send_message(message())))
            await asyncio.sleep(0)

        async def go_on():
            driver.slow = False
            print(type(await broker.send_message(message())).__name__)
            await broker.close()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        loop.close()
        for task in tasks:
            task._log_destroy_pending = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # nobody closed it, and it says so
            asyncio.run(go_on())
        """
    )
    assert done.stdout.split() == ["Receipt"]
    assert done.stderr == ""
