"""A test process that dies without a word leaves no server behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.live, pytest.mark.fault, pytest.mark.timeout(240)]

SCRIPT = """
import sys, time
from cqrs_brokers_testkit.servers import kafka, rabbitmq
if sys.argv[1] == "rabbitmq":
    with rabbitmq() as server:
        print(server.pid, server._epmd.pid, server.folder, flush=True)
        time.sleep(600)
else:
    with kafka() as server:
        node = server.nodes[0]
        node.pause()
        print(node.pid, node.pid, node._process.folder, flush=True)
        time.sleep(600)
"""


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("server", ["rabbitmq", "kafka"])
def test_servers_die_with_the_process_that_started_them(server: str, number: signal.Signals) -> None:
    """Within five seconds after SIGKILL or SIGTERM its server (Kafka's is frozen), helpers and data folder are gone."""
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, server], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        first, second, folder = child.stdout.readline().split()
        groups = [int(first), int(second)]
        assert all(group_lives(group) for group in groups)
        child.send_signal(number)
        child.wait(10)
    give_up = time.monotonic() + 5
    while (any(group_lives(group) for group in groups) or os.path.exists(folder)) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert [group for group in groups if group_lives(group)] == []
    assert not os.path.exists(folder)
