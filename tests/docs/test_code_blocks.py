"""Every ```python block of the README and the documentation runs as it stands.

A comment in the line above a block says what it needs:

    <!-- live: kafka; topics: orders -->   a server (`kafka`, `rabbitmq`); its address replaces the one in the block;
                                           the topics exist (Kafka) or have a queue at exchange "events" (RabbitMQ)
    <!-- continues -->                     the blocks above it in the file, back to one without this comment
    <!-- not run -->                       it is not run; `NOT_RUN` below says why

Without a comment a block runs by itself. `await` may stand at its top level, as in a notebook.
"""

import ast
import asyncio
import inspect
import logging
import os
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cqrs_brokers_testkit.readers import bind_queue
from cqrs_brokers_testkit.servers import ServerUnavailable

ROOT = Path(__file__).parents[2]

NOT_RUN: dict[str, str] = {
    "docs/how-to/consume.md: # faststream on Kafka": "it runs until it is stopped: test_consumers.py",
    "docs/how-to/consume.md: # faststream on RabbitMQ": "it runs until it is stopped: test_consumers.py",
}
"""Why a block is not run, by "file: first line of the block"."""

FENCE = re.compile(r"^(?P<indent> *)```(?:python|py)\b.*\n(?P<source>(?:.*\n)*?)(?P=indent)```$", re.MULTILINE)
MARKER = re.compile(r"<!-- (?P<marker>(?:live:|continues|not run).*?) *-->\s*\Z")


@dataclass(frozen=True)
class Block:
    file: str
    line: int
    source: str
    marker: str

    @property
    def first_line(self) -> str:
        return f"{self.file}: {self.source.splitlines()[0]}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def files() -> list[Path]:
    return [
        path
        for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
        if path.exists()
    ]


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a file; one that continues has the source of those before it, with the lines where they stand."""
    text = path.read_text()
    found: list[Block] = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("source")) + 1
        above = MARKER.search(text[: match.start()])
        marker = above["marker"] if above else ""
        source = textwrap.dedent(match["source"])
        if marker == "continues":
            before = found[-1]
            gap = line - before.line - before.source.count("\n")
            line, source, marker = before.line, before.source + "\n" * gap + source, before.marker
        found.append(Block(str(path.relative_to(ROOT)), line, source, marker))
    return found


BLOCKS = [block for path in files() for block in blocks_of(path)]


def run(block: Block, source: str) -> None:
    """As a module of its own; errors name the documentation's file and line."""
    module = types.ModuleType("block")
    code = compile(
        "\n" * (block.line - 1) + source, ROOT / block.file, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    sys.modules["block"] = module
    try:
        if code.co_flags & inspect.CO_COROUTINE:

            async def main() -> None:
                await eval(code, module.__dict__)

            asyncio.run(main())
        else:
            exec(code, module.__dict__)
    finally:
        del sys.modules["block"]


def live(block: Block, request: pytest.FixtureRequest) -> str:
    """The source with the addresses of servers that run, and its topics made."""
    servers, _, topics = block.marker.removeprefix("live:").partition("; topics:")
    source = block.source
    for name in servers.split():
        server = request.getfixturevalue(name)
        if name == "rabbitmq":
            address = urlsplit(server.url).netloc
            source = re.sub(r"amqp://[^/\s\"'?]+", f"amqp://{address}", source)
            for topic in topics.split():
                bind_queue(f"amqp://{address}/", "events", topic)
        else:
            source = re.sub(r"kafka://[^/\s\"'?]+", server.url, source)
            source = source.replace("localhost:9092", server.bootstrap_servers)
            made = request.getfixturevalue("topics_made")
            for topic in set(topics.split()) - made:
                server.create_topic(topic)
                made.add(topic)
    assert source != block.source, "the block names no address that could be replaced"
    return source


@pytest.fixture(scope="session")
def topics_made() -> set[str]:
    return set()


@pytest.fixture(autouse=True)
def _as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No block sees what another set, and Enter is pressed at once."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "")
    monkeypatch.delenv("CQRS_BROKER_URL", raising=False)
    loggers = [logging.getLogger(name) for name in ("aiokafka", "aio_pika", "aiormq", "cqrs")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.marker], ids=str)
def test_a_block_runs(block: Block) -> None:
    """By itself, without an error or a warning. A block may start a server; where there is none it is skipped."""
    try:
        run(block, block.source)
    except ServerUnavailable as unavailable:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            raise
        pytest.skip(str(unavailable))


@pytest.mark.live
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.marker.startswith("live:")], ids=str)
def test_a_block_that_needs_a_server_runs_with_one(block: Block, request: pytest.FixtureRequest) -> None:
    """With nothing replaced but the address."""
    run(block, live(block, request))


def test_every_block_that_is_not_run_has_its_reason() -> None:
    """No more and no fewer: a reason without a block is out of date."""
    assert {block.first_line for block in BLOCKS if block.marker == "not run"} == set(NOT_RUN)


def test_no_block_is_wider_than_its_column() -> None:
    """Of any language: the site's style sheet makes room for 120 characters in a window of 1 300 pixels."""
    wide = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
        for block in re.findall(r"^ *```.*\n((?:.*\n)*?) *```$", path.read_text(), re.MULTILINE)
        for line in textwrap.dedent(block).splitlines()
        if len(line) > 120
    ]
    assert not wide


def test_no_block_is_overlooked() -> None:
    """Each opening fence of a python block is found, and each comment that looks like a marker stands above one."""
    for path in files():
        text = path.read_text()
        fences = re.findall(r"^ *```(?:python|py)\b", text, re.MULTILINE)
        markers = re.findall(r"<!-- (?:live|continues|not run)", text)
        blocks = blocks_of(path)
        assert len(blocks) == len(fences), path
        assert sum(MARKER.search(text[: match.start()]) is not None for match in FENCE.finditer(text)) == len(markers)
