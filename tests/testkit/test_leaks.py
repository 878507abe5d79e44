"""The leak checker finds what is left behind, and nothing else."""

import asyncio
import os
import socket
import threading

import pytest

from cqrs_brokers_testkit.leaks import Leak, no_leaks, no_leaks_sync


async def test_a_clean_block_passes() -> None:
    """What is opened and closed, a finished task and the loop's own executor are no leaks."""
    async with no_leaks():
        await asyncio.to_thread(os.getpid)
        socket.socket().close()
        await asyncio.create_task(asyncio.sleep(0))


async def test_things_may_take_a_moment_to_go() -> None:
    """A task that ends within the settling time is no leak."""
    async with no_leaks(settle=1):
        task = asyncio.create_task(asyncio.sleep(0.1))
    assert task.done()


async def test_a_task_left_behind_is_named() -> None:
    """The text names the task."""
    with pytest.raises(Leak, match="task lingerer"):
        async with no_leaks(settle=0.05):
            task = asyncio.create_task(asyncio.sleep(60), name="lingerer")
    task.cancel()


async def test_a_socket_left_behind_is_named_with_its_ports() -> None:
    """The text names local and remote port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Leak, match=f"remote port {port}"):
            async with no_leaks(settle=0.05):
                client = socket.create_connection(("127.0.0.1", port))
        client.close()


def test_a_descriptor_and_a_thread_left_behind_are_named(tmp_path: os.PathLike[str]) -> None:
    """The text names the file and the thread; findings can be ignored."""
    stop = threading.Event()
    with pytest.raises(Leak, match=r"thread worker.*left\.txt") as caught:  # noqa: PT012
        with no_leaks_sync(settle=0.05):
            file = open(os.path.join(tmp_path, "left.txt"), "w")  # noqa: SIM115 - left open on purpose
            thread = threading.Thread(target=stop.wait, name="worker")
            thread.start()
    assert len(caught.value.found) == 2
    stop.set()
    thread.join()
    file.close()
    with no_leaks_sync(settle=0.05, ignore=lambda line: "left" in line):
        file = open(os.path.join(tmp_path, "left.txt"), "w")  # noqa: SIM115 - left open on purpose
    file.close()


async def test_an_exception_of_the_block_is_not_hidden() -> None:
    """The block's own exception comes out although something leaked."""
    with pytest.raises(KeyError):  # noqa: PT012
        async with no_leaks(settle=0.05):
            task = asyncio.create_task(asyncio.sleep(60))
            raise KeyError
    task.cancel()
