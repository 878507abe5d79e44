"""What core, devnull, memory and the bridge need of the platform."""

import os
import subprocess
import sys
import textwrap
import time
from uuid import RFC_4122

import pytest

from cqrs_brokers._message.ids import new_message_id


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("url", ["memory://", "devnull://"])
def test_a_platform_without_fork_hooks_sends(url: str) -> None:
    """Windows has no `os.register_at_fork`: core, the two brokers in the process and the bridge work without it."""
    told = run(
        f"""
        import os
        del os.register_at_fork, os.fork
        import asyncio
        import cqrs_brokers_python_cqrs
        from cqrs_brokers import Message, open_broker

        async def main():
            async with open_broker({url!r}) as broker:
                adapter = cqrs_brokers_python_cqrs.message_broker(broker)
                await adapter.send_message(Message("n", "t", b"x"))
                print(type(await broker.send_message(Message("n", "t", b"x"))).__name__)

        asyncio.run(main())
        """
    )
    assert told.strip() == "Receipt"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies a process")
def test_processes_of_one_memory_snapshot_do_not_share_ids() -> None:
    """A snapshot of an idle process is started three times: no copy is told, and no id is made twice."""
    told = run(
        """
        import ctypes, os, time
        from cqrs_brokers import Message

        def make():
            return [str(Message("n", "t", b"").message_id) for _ in range(5)]

        make()
        time.sleep(0.05)  # it is idle
        fork = ctypes.PyDLL(None).fork  # as Python's own, but nobody is told
        for _ in range(3):
            pid = fork()
            if not pid:
                os.write(1, "\\n".join([*make(), ""]).encode())
                os._exit(0)
            os.waitpid(pid, 0)
        """
    )
    ids = told.split()
    assert len(ids) == len(set(ids)) == 15


def test_ids_are_random_uuids_at_any_pace() -> None:
    """One by one and in bursts: version 4, the right variant, no two alike, every free bit varies."""
    ids = []
    for pause in (0.0, 0.006):
        for _ in range(200):
            ids.append(new_message_id())
            if pause:
                time.sleep(pause)
    assert {(some.version, some.variant) for some in ids} == {(4, RFC_4122)}
    assert len(set(ids)) == 400
    for some in (ids[:200], ids[200:]):
        ones, zeros = 0, 0
        for one in some:
            ones |= one.int
            zeros |= ~one.int & (1 << 128) - 1
        assert (ones & zeros).bit_count() == 122
