"""Helpers for drivers: tasks with an owner, and connections of a closed event loop."""

import asyncio
import gc
import logging
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cqrs_brokers.tasks import Tasks, drop_task, drop_transport, retrieve_exception
from cqrs_brokers_testkit.certificates import make_certificates


async def test_end_waits_until_every_task_has_ended() -> None:
    """What a task does when it is cancelled is done before `end()` returns, and its error is in no log."""
    tasks = Tasks()
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)
            raise RuntimeError("on the way out")

    for _ in range(3):
        tasks.spawn(work(), name="work")
    await asyncio.sleep(0)
    assert len(tasks) == 3
    assert {task.get_name() for task in tasks} == {"work"}
    assert await tasks.end(5.0)
    assert len(ended) == 3
    assert not tasks


async def test_end_is_bounded_and_keeps_what_has_not_ended() -> None:
    """A task that does not let itself be cancelled is reported and stays, for `abort()`."""
    tasks = Tasks()
    over = asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue

    task = tasks.spawn(stubborn())
    await asyncio.sleep(0)
    assert not await tasks.end(0.01)
    assert list(tasks) == [task]
    over.set()
    await task


async def test_end_called_by_one_of_the_tasks_does_not_wait_for_itself() -> None:
    """The others end, and the caller goes on."""
    tasks = Tasks()

    async def ending() -> bool:
        return await tasks.end(5.0)

    other = tasks.spawn(asyncio.sleep(60))
    assert await tasks.spawn(ending())
    assert other.cancelled()


async def test_an_error_nobody_asked_for_is_logged_until_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """An owner hides no error of a task that runs; `retrieve_exception` does, where one says so."""
    tasks = Tasks()

    async def broken() -> None:
        raise LookupError("a fault")

    def run(told: bool) -> None:
        task = tasks.spawn(broken())
        if told:
            task.add_done_callback(retrieve_exception)

    for told in (True, False):
        run(told)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
        assert ("never retrieved" in caplog.text) is not told
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_abort_cancels_without_awaiting() -> None:
    """With a running loop the tasks are cancelled and end by themselves."""
    tasks = Tasks()
    task = tasks.spawn(asyncio.sleep(60))
    tasks.abort()
    assert not tasks
    await asyncio.wait((task,))
    assert task.cancelled()
    drop_task(task)
    drop_task(None)


def run_program(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_abort_after_the_loop_was_closed_is_silent() -> None:
    """Tasks that wait, that await in `finally` and that raise: no word of asyncio's, all are closed."""
    told = run_program(
        """
        import asyncio, gc
        from cqrs_brokers.tasks import Tasks

        tasks, closed = Tasks(), []

        async def waits():
            try:
                await asyncio.sleep(60)
            finally:
                closed.append("waits")

        async def awaits_in_finally():
            try:
                await asyncio.sleep(60)
            finally:
                try:
                    await asyncio.sleep(60)
                finally:
                    closed.append("awaits")

        async def raises():
            try:
                await asyncio.sleep(60)
            finally:
                closed.append("raises")
                raise LookupError

        async def main():
            for work in (waits, awaits_in_finally, raises):
                tasks.spawn(work())
            await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        tasks.abort()
        gc.collect()
        print(sorted(closed), len(tasks))
        """
    )
    assert told == "['awaits', 'raises', 'waits'] 0\n"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("closing", [False, True], ids=["open", "closing"])
@pytest.mark.parametrize("closed", [False, True], ids=["running loop", "closed loop"])
def test_a_transport_is_dropped_and_the_peer_sees_it(tmp_path: Path, tls: bool, closing: bool, closed: bool) -> None:
    """The socket is closed at once, also when the loop is closed and when the transport was closing already."""
    arguments = [str(closing), str(closed)]
    if tls:
        made = make_certificates(tmp_path)
        arguments += [str(made.ca), str(made.server), str(made.server_key)]
    told = run_program(
        """
        import asyncio, gc, socket, ssl, sys, threading
        from cqrs_brokers.tasks import drop_transport

        closing, closed = (word == "True" for word in sys.argv[1:3])
        listening = socket.create_server(("127.0.0.1", 0))
        ended = threading.Event()

        def serve():
            peer, _ = listening.accept()
            if sys.argv[3:]:
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain(*sys.argv[4:])
                peer = context.wrap_socket(peer, server_side=True)
            peer.settimeout(20)
            try:
                while peer.recv(1000):
                    pass
            except ssl.SSLError:
                pass  # no goodbye of TLS
            except ConnectionResetError:
                pass
            peer.close()
            ended.set()

        thread = threading.Thread(target=serve)
        thread.start()

        async def connect():
            context = ssl.create_default_context(cafile=sys.argv[3]) if sys.argv[3:] else None
            reader, writer = await asyncio.open_connection(
                "localhost" if context else "127.0.0.1", listening.getsockname()[1], ssl=context, family=socket.AF_INET
            )
            writer.write(b"hello")
            if closing:
                writer.write(b"x" * 20)
                writer.transport.close()
            if not closed:
                drop_transport(writer.transport)
                await asyncio.sleep(0.01)
            return writer

        loop = asyncio.new_event_loop()
        writer = loop.run_until_complete(connect())
        if closed:
            loop.close()
            drop_transport(writer.transport)
        assert ended.wait(10)
        thread.join()
        drop_transport(writer.transport)
        drop_transport(None)
        del writer
        gc.collect()
        loop.close()
        listening.close()
        print("ended")
        """,
        *arguments,
    )
    assert told == "ended\n"


async def test_drops_a_transport_that_wrote_its_last_bytes_after_close() -> None:
    """asyncio forgets the loop of a transport that it has closed, and its `abort()` then fails."""
    ended = asyncio.Event()

    class Watched(asyncio.Protocol):
        def connection_lost(self, _: Exception | None) -> None:
            ended.set()

    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    transport, _ = await asyncio.get_running_loop().create_connection(Watched, sock=ours)
    transport.write(bytes(4_000_000))
    transport.close()
    assert transport.get_write_buffer_size()
    received = 0
    while received < 4_000_000:
        received += len(await asyncio.to_thread(theirs.recv, 1_000_000))
    await ended.wait()
    drop_transport(transport)
    drop_transport(transport)
    theirs.close()
