"""What importing core, building brokers and looking up a scheme change in the process."""

import subprocess
import sys

import pytest

BY_CLASS = """
import asyncio, sys, importlib.metadata
finders, modules = list(sys.meta_path), set(sys.modules)
find_distributions = [getattr(finder, "find_distributions", None) for finder in finders]
import cqrs_brokers, cqrs_brokers.driver, cqrs_brokers.hooks, cqrs_brokers.options
from cqrs_broker_amqp import AMQPMessageBroker, AMQPPublisherAdapter
from cqrs_broker_kafka import KafkaMessageBroker, KafkaProducerAdapter
from cqrs_broker_devnull import DevnullMessageBroker
DevnullMessageBroker()
AMQPMessageBroker(AMQPPublisherAdapter("amqp://localhost/"))
KafkaMessageBroker(KafkaProducerAdapter("localhost:9092"))
assert sys.meta_path == finders, sys.meta_path
assert [getattr(finder, "find_distributions", None) for finder in finders] == find_distributions
assert "importlib_metadata" not in sys.modules
"""

LOOK_UP = """
import sys
import cqrs_brokers
before = list(sys.meta_path)
cqrs_brokers.{look_up}
print([type(finder).__module__ for finder in sys.meta_path if finder not in before])
"""


def run(code: str, *options: str, **environment: str) -> str:
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, env=environment or None, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_core_and_building_brokers_by_class_leaves_the_import_system_alone():
    """No finder is added or changed, and importlib-metadata is not imported."""
    run(BY_CLASS)


@pytest.mark.parametrize("look_up", ['open_broker("memory://x")', "available_brokers()"])
def test_the_first_look_up_of_a_scheme_imports_importlib_metadata(look_up):
    """Its finder is then on `sys.meta_path`, as the reference page says."""
    assert run(LOOK_UP.format(look_up=look_up)) == "['importlib_metadata']"


def test_importing_core_does_not_load_the_standard_librarys_metadata():
    """It loads the modules for mail and archives with it. Some versions of pluggy load it: that is not ours."""
    code = "import sys, {}; print('importlib.metadata' in sys.modules)"
    assert run(code.format("cqrs_brokers")) == run(code.format("pluggy, pydantic"))


def test_opening_a_broker_imports_no_module_that_it_does_not_need():
    """What an application uses later, or never, is imported then; `help()` shows all of it."""
    later = ["_connection.health", "_lifespan", "_synchronous", "adapters", "dialing", "events", "inspection", "tls"]
    code = (
        "import sys, cqrs_brokers; cqrs_brokers.open_broker('devnull://');"
        f"print([name for name in {later} if 'cqrs_brokers.' + name in sys.modules]);"
        "print(set(cqrs_brokers.__all__) - set(dir(cqrs_brokers)))"
    )
    assert run(code) == "[]\nset()"


def test_no_warning_of_the_standard_library_leaves_the_listing(tmp_path):
    """Beside a distribution without metadata the standard library warns on Python 3.12 and later."""
    leftover = tmp_path / "cqrs_broker_left-1.0.dist-info"
    leftover.mkdir()
    (leftover / "entry_points.txt").write_text("[cqrs_brokers]\nleft = left_mod\n")
    (tmp_path / "other-1.0.dist-info").mkdir()
    code = "import cqrs_brokers\nprint([b.status for b in cqrs_brokers.available_brokers() if b.name == 'left'])"
    assert run(code, "-W", "error", PYTHONPATH=str(tmp_path)) == "['broken metadata']"
