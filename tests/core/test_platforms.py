"""What core, devnull, memory and the bridge need of the platform."""

import subprocess
import sys
import textwrap

import pytest


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
