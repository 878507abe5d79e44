"""Runs the suite, or some of its cases, against a mutant, in a process of its own.

`python -m tests.conformance.mutant_runs NAME [CASE …]` prints the status of each case as JSON. The name "sound" is the
driver that keeps every rule.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cqrs_brokers import Message
from cqrs_brokers_testkit.certificates import Certificates, make_certificates
from cqrs_brokers_testkit.conformance import Forgery, Harness, Record, Refusal, SizeLimit, Target
from cqrs_brokers_testkit.frames import forgeries, line_length
from cqrs_brokers_testkit.proxy import FaultProxy
from tests.conformance.unordered import MOST_UNANSWERED, SMALL, UnorderedServer

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SOUND = ("sound", "wire-sound", "unordered-sound")
"""The drivers that keep every rule."""

_METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\nRequires-Dist: cqrs-brokers-core{core}\n"


def install(folder: Path) -> None:
    """Lays out the plugins as pip would: the modules, and the metadata of the distributions."""
    hooks = "MUTANTS, broker_options, open_message_broker, server"
    (folder / "cqrs_broker_mutant.py").write_text(f"from tests.conformance.mutant_plugin import {hooks}\n")
    (folder / "cqrs_broker_wiremutant.py").write_text((HERE / "wire_mutants.py").read_text())
    hooks = "UNORDERED_MUTANTS, broker_options, open_message_broker"
    (folder / "cqrs_broker_unordered.py").write_text(f"from tests.conformance.unordered_plugin import {hooks}\n")
    for name, module, core, schemes in (
        ("cqrs-broker-mutant", "cqrs_broker_mutant", ">=0.1,<0.2", ("mutant", "othername")),
        ("cqrs-broker-wiremutant", "cqrs_broker_wiremutant", ">=0.1,<0.2", ("wiremutant",)),
        ("cqrs-broker-unordered", "cqrs_broker_unordered", ">=0.1,<0.2", ("unordered",)),
        ("cqrs-broker-stale", "cqrs_broker_mutant", ">=9", ("stale",)),
    ):
        info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(_METADATA.format(name=name, core=core))
        lines = "".join(f"{scheme} = {module}\n" for scheme in schemes)
        (info / "entry_points.txt").write_text(f"[cqrs_brokers]\n{lines}")


def run_here(name: str, only: Sequence[str]) -> dict[str, str]:
    """Runs cases against a mutant in this process; returns the status of each."""
    import cqrs_broker_unordered  # type: ignore[import-not-found]
    import cqrs_broker_wiremutant  # type: ignore[import-not-found]

    from cqrs_brokers_testkit.conformance import run

    if name == "unordered-sound" or name in cqrs_broker_unordered.UNORDERED_MUTANTS:
        harness = unordered_harness()
    elif name == "wire-sound" or name in cqrs_broker_wiremutant.WIRE_MUTANTS:
        harness = _wire_harness()
    else:
        harness = _harness(name)
    report = run(harness, only=only)
    for result in report.cases:
        if result.status == "failed":
            sys.stderr.write(f"{result.id}: {result.reason}\n{result.detail}\n")
    return {result.id: result.status for result in report.cases}


def _harness(name: str) -> Harness:
    import cqrs_broker_mutant as plugin  # type: ignore[import-not-found]

    server = plugin.server("server")

    class MutantHarness(Harness):
        """Everything that the server in this process can do."""

        url = plugin.MUTANTS[name].url if name != "sound" else "mutant://server"
        wire = False
        scale = 0.04
        options: Mapping[str, Any] = {"delivery_timeout": 4.0, "connect_timeout": 2.0, "close_timeout": 4.0}
        illegal_topics = ("a%b",)

        def read_back(self, topic: str, count: int) -> Sequence[Record]:
            fields = ("topic", "key", "name", "message_id", "headers", "body", "content_type", "timestamp")
            kept = [record for record in list(server.kept) if record.topic == topic]
            return [Record(**{field: getattr(record, field) for field in fields}) for record in kept]

        def _topic(self, prefix: str) -> Target:
            return Target(self.url, f"{prefix}-{self.new_topic_name()}")

        def make_unroutable(self) -> Target:
            return self._topic("unroutable")

        def missing_destination(self) -> Target:
            return self._topic("missing")

        def forbidden_destination(self) -> Target:
            return self._topic("forbidden")

        def nacking_destination(self) -> Target:
            return self._topic("nack")

        def refuse_next(self) -> Refusal:
            topic = self.new_topic_name()
            return Refusal(self.url, topic, Message("Refused", topic, {}))

        def wrong_password_url(self) -> str:
            return "mutant://user:wrong@server"

        def wrong_permission_url(self) -> str:
            return "mutant://user:right@server/locked"

        def tls_failures(self) -> Mapping[str, str]:
            return {"an unknown authority": "mutant://bad-tls"}

        def unreachable_url(self) -> str:
            return "mutant://nowhere"

        @contextlib.contextmanager
        def blocked(self) -> Iterator[None]:
            for session in list(server.sessions):
                session.blocked(True)
            server.silent = True
            try:
                yield
            finally:
                for session in list(server.sessions):
                    session.blocked(False)
                server.resume()

        def kill(self) -> None:
            server.kill()

        def restart(self) -> None:
            server.up = True

        def stall(self) -> None:
            server.stalled = True

        def resume(self) -> None:
            server.resume()

        def reset(self) -> None:
            server.reset()

        def lose_answers(self) -> None:
            server.silent = True

        def connections_made(self) -> int:
            return int(server.connections)

    return MutantHarness()


def _wire_harness() -> Harness:
    import cqrs_broker_wiremutant as plugin

    server, loop = plugin.WireServer(), asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    class WireHarness(Harness):
        """The TCP server in a thread of its own, behind the fault proxy."""

        url = "wiremutant://localhost"
        scale = 0.04
        options: Mapping[str, Any] = {"delivery_timeout": 4.0, "connect_timeout": 2.0, "close_timeout": 4.0}

        def start(self) -> None:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result(5.0)
            self.proxy = FaultProxy(("127.0.0.1", server.port)).__enter__()
            self.url = f"wiremutant://{self.proxy.address}"

        def stop(self) -> None:
            if self.proxy is not None:
                self.proxy.__exit__()

        def read_back(self, topic: str, count: int) -> Sequence[Record]:
            give_up = time.monotonic() + 2
            while True:
                kept = [record for record in list(server.kept) if record["topic"] == topic]
                if len(kept) >= count or time.monotonic() > give_up:
                    return [_record(**record) for record in kept]
                time.sleep(0.02)

    return WireHarness()


def unordered_harness() -> Harness:
    """The broker that answers in any order, with TLS, behind the fault proxy."""
    server, stack = UnorderedServer(), contextlib.ExitStack()

    class UnorderedHarness(Harness):
        """All that the server can do."""

        url = "unordered://localhost"
        scale = 0.04
        notices_within = 8.0
        options: Mapping[str, Any] = {"delivery_timeout": 4.0, "connect_timeout": 2.0, "close_timeout": 4.0}
        variants = ({"label": "orders"},)
        most_unanswered = MOST_UNANSWERED
        not_applicable: Mapping[str, str] = {
            "delivery.nack-is-not-success": "it never nacks",
            "delivery.refused-is-not-delivered": "it refuses topics, no messages",
            "delivery.refused-spares-its-neighbours": "it refuses topics, no messages",
            "delivery.missing-destination": "every topic exists",
            "delivery.blocked-is-waited-out": "it never blocks",
            "delivery.wrong-permission": "every user may connect",
        }

        def start(self) -> None:
            server.start()
            self.proxy = stack.enter_context(FaultProxy(("127.0.0.1", server.port)))
            self.url = f"unordered://{self.proxy.address}"

        def stop(self) -> None:
            stack.close()

        @cached_property
        def certificates(self) -> Certificates:
            """Made, and served, when a case first asks for them: it takes a second."""
            made = make_certificates(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(made.server, made.server_key)
            server.start_tls(context)
            return made

        def read_back(self, topic: str, count: int) -> Sequence[Record]:
            give_up = time.monotonic() + 2
            while True:
                kept = [record for record in list(server.kept) if record["topic"] == topic]
                if len(kept) >= count or time.monotonic() > give_up:
                    return [_record(**{k: v for k, v in record.items() if k != "dedup"}) for record in kept]
                time.sleep(0.02)

        def forbidden_destination(self) -> Target:
            return Target(self.url, f"forbidden-{self.new_topic_name()}")

        def foreign_answers(self) -> Target:
            return Target(self.url, f"seen-{self.new_topic_name()}")

        def limited_size(self) -> SizeLimit:
            return SizeLimit(f"unordered://127.0.0.1:{server.limited_port}", self.new_topic_name(), SMALL)

        def stuck_destination(self) -> Target:
            return Target(self.url, f"stuck-{self.new_topic_name()}")

        def forged_answers(self) -> Mapping[str, Forgery]:
            def saying(form: bytes) -> Callable[[bytes], bytes]:
                return lambda line: form.replace(b"<token>", line.split()[1])

            return forgeries(
                line_length(),
                lambda line: line.startswith((b"OK ", b"DUP ")),
                refused={"busy": saying(b"BUSY <token>\n"), "full": saying(b"FULL <token>\n")},
                unknown={"an unknown word": saying(b"HUM <token> 0\n"), "an unknown token": b"OK 987654321 0\n"},
                any_order=True,
            )

        def dismiss_clients(self) -> None:
            server.dismiss()

        def wrong_password_url(self) -> str:
            return self.url_with_credentials("app", "wrong")

        def tls_destination(self) -> Target:
            ca = self.certificates.ca
            tls = f"unordered://app:right@localhost:{server.tls_port}?tls=true"
            return Target(f"{tls}&ssl_cafile={ca}", self.new_topic_name())

        def tls_failures(self) -> Mapping[str, str]:
            made = self.certificates
            tls = f"unordered://app:right@localhost:{server.tls_port}?tls=true"
            return {
                "an unknown authority": f"{tls}&ssl_cafile={made.other_ca}",
                "the system's authorities": tls,
                "another host": f"{tls}&ssl_cafile={made.ca}".replace("@localhost:", "@127.0.0.2:"),
            }

        def kill(self) -> None:
            server.kill()

        def restart(self) -> None:
            server.restart()

    return UnorderedHarness()


def _record(body: str, timestamp: str, **fields: Any) -> Record:
    known = {"key": None, "headers": {}, **fields}
    return Record(body=base64.b64decode(body), timestamp=datetime.fromisoformat(timestamp), **known)


class Ran(NamedTuple):
    """What a run came to.

    Attributes:
        statuses: The status of each case that was run.
        told: What it wrote to stderr: why cases failed.
    """

    statuses: dict[str, str]
    told: str


def run_apart(name: str, only: Sequence[str], timeout: float = 400.0) -> Ran:
    """`run_here`, in a process of its own.

    Raises:
        RuntimeError: It did not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder))
        path = os.pathsep.join([folder, str(ROOT), *(entry for entry in sys.path if entry)])
        environment = {**os.environ, "PYTHONPATH": path, "CQRS_MUTANT": "" if name in SOUND else name}
        done = subprocess.run(
            [sys.executable, "-m", "tests.conformance.mutant_runs", name, *only],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    try:
        return Ran(json.loads(done.stdout.strip().splitlines()[-1]), done.stderr)
    except (ValueError, IndexError):
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}") from None


def run_many(
    jobs: Mapping[str, Sequence[str]], at_once: int = 6, timeout: float = 400.0
) -> Iterator[tuple[str, Ran | Exception]]:
    """Runs several mutants, a few at a time; a failure to run stands in the place of what it came to.

    Returns:
        The mutants with what they came to, as they end.
    """

    def one(job: tuple[str, Sequence[str]]) -> tuple[str, Ran | Exception]:
        try:
            return job[0], run_apart(*job, timeout=timeout)
        except Exception as error:
            return job[0], error

    pool = ThreadPoolExecutor(at_once)
    try:
        for done in as_completed([pool.submit(one, job) for job in jobs.items()]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    found = run_here(sys.argv[1], sys.argv[2:])
    print(json.dumps(found), flush=True)
    os._exit(0)  # a mutant may have left threads that would keep the process
