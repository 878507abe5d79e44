"""A type checker accepts the bridge in python-cqrs' own places."""

import subprocess
import sys
from pathlib import Path

ACCEPTED = """
import cqrs
import di
from cqrs.bootstrap import requests, saga
from cqrs_brokers_python_cqrs import BrokerAdapter, ECSTEvent, NotificationEvent, lifespan, message_broker
from fastapi import FastAPI


class Placed(ECSTEvent[dict[str, int]]):
    topic: str = "orders"

    def ordering_key(self) -> str | None:
        return str(self.payload["id"])


class Seen(NotificationEvent[str]):
    topic: str = "orders"


def key(message: cqrs.message_brokers.Message) -> str | None:
    return message.topic


adapter: BrokerAdapter = message_broker("devnull://", ordering_key=key, delivery_timeout=3.0)
requests.bootstrap(di_container=di.Container(), message_broker=adapter)
requests.bootstrap_streaming(di_container=di.Container(), message_broker=adapter)
saga.bootstrap(di_container=di.Container(), message_broker=adapter)
app = FastAPI(lifespan=lifespan(adapter))


def outbox(repository: cqrs.OutboxedEventRepository) -> cqrs.EventProducer:
    repository.add(Placed(payload={"id": 1}))
    return cqrs.EventProducer(adapter, repository)


class Command(cqrs.Request[None]):
    pass


class Handler(cqrs.RequestHandler[Command, None]):
    @property
    def events(self) -> list[cqrs.IEvent]:
        return [Placed(payload={"id": 1}), Seen(payload="x", key="k")]

    async def handle(self, request: Command) -> None:
        seen: str = Seen.from_dict(topic="t", payload="x").payload
        print(seen)
"""

REFUSED = """
import di
from cqrs.bootstrap import requests
from cqrs_brokers import open_broker
from cqrs_brokers_python_cqrs import ECSTEvent, message_broker


class Placed(ECSTEvent[int]):
    topic: str = "orders"


message_broker(7)
message_broker("devnull://", ordering_key=lambda message: 7)
text: str = Placed(payload=1).payload
requests.bootstrap(di_container=di.Container(), message_broker=open_broker("devnull://"))
"""


def mypy(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    (folder / "checked.py").write_text(source)
    return subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary",
            f"--cache-dir={folder / 'cache'}", "checked.py",
        ],
        cwd=folder, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def test_mypy_strict_accepts_the_adapter_and_the_events(tmp_path: Path) -> None:
    """In `requests.bootstrap`, `requests.bootstrap_streaming`, `saga.bootstrap`, `EventProducer` and FastAPI.

    And it is not accepted because nothing is checked: in the second file each wrong line is an error. A `Broker` itself
    is not of python-cqrs' class; the documentation's route passes it at run time, a type checker wants the adapter.
    """
    accepted = mypy(tmp_path, ACCEPTED)
    assert (accepted.stdout, accepted.stderr, accepted.returncode) == ("", "", 0)
    refused = mypy(tmp_path, REFUSED)
    lines = {int(line.split(":")[1]) for line in refused.stdout.splitlines() if ": error:" in line}
    first = REFUSED.splitlines().index("message_broker(7)") + 1
    assert lines == {first, first + 1, first + 2, first + 3}, refused.stdout + refused.stderr
