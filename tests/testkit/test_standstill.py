"""What is taken for code that stops the event loop, and what for a busy machine."""

import os
import subprocess
import sys
import threading
import time

import pytest

from cqrs_brokers_testkit.conformance._standstill import WatchedSelector

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say how long a thread waited")


def waits_for(thread: threading.Thread) -> list[str]:
    """What is said of a turn of the loop that waits for this thread."""
    selector = WatchedSelector()
    try:
        selector.select(0)
        thread.start()
        thread.join()
        selector.select(0)
        return selector.found
    finally:
        selector.close()


def test_waiting_for_a_thread_that_sleeps() -> None:
    """It stops the loop."""
    found = waits_for(threading.Thread(target=time.sleep, args=(0.6,)))
    assert len(found) == 1
    assert found[0].startswith("it stopped the event loop, at test_standstill.py:")


def test_waiting_for_a_thread_that_gets_no_processor() -> None:
    """The machine is busy, so nothing stopped the loop."""
    processor = min(os.sched_getaffinity(0))
    until = time.monotonic() + 60
    busy = f"import os, time\nos.sched_setaffinity(0, {{{processor}}})\nwhile time.monotonic() < {until}: pass"
    hog = subprocess.Popen([sys.executable, "-c", busy])
    worked: list[float] = []

    def work() -> None:
        began = time.monotonic()
        os.sched_setaffinity(threading.get_native_id(), {processor})
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        while time.thread_time() < 0.02:
            pass
        worked.append(time.monotonic() - began)

    try:
        found = waits_for(threading.Thread(target=work))
    finally:
        hog.kill()
        hog.wait()
    assert worked[0] > 0.3, "the thread was to get no processor for a while"
    assert found == []
