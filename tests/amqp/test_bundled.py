"""An application that was bundled without the metadata of its packages."""

import subprocess
import sys

import pytest

SCRIPT = """
import importlib.metadata as metadata

class Stripped(metadata.Distribution):  # as a slim build leaves it: the modules are there, no .dist-info is
    @classmethod
    def from_name(cls, name):
        raise metadata.PackageNotFoundError(name)

metadata.Distribution.from_name = Stripped.from_name
import cqrs_broker_amqp
from cqrs_brokers import PluginLoadError, open_broker
from cqrs_brokers.hooks import register_plugin

register_plugin(["amqp", "amqps"], cqrs_broker_amqp)
try:
    open_broker("amqp://localhost/")
except PluginLoadError as error:
    print(error)
"""


@pytest.mark.timeout(60)
def test_rabbitmqs_client_needs_its_own_metadata() -> None:
    """The error names what to bundle; that is no mistake of the plugin."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert "the metadata of aiormq (its folder .dist-info) is not here: bundle it too" in done.stdout
