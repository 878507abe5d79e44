"""Synthetic distributions on a path of their own."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import importlib_metadata  # noqa: F401 - before `install` hides where it is
import pytest

from cqrs_brokers._discovery.installed import installed

GOOD = """
from cqrs_brokers import Message, MessageBroker
from cqrs_brokers.hooks import hookimpl

class Null(MessageBroker):
    async def send_message(self, message: Message) -> None: ...

@hookimpl
def open_message_broker(url, options):
    return Null()
"""

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes a dist-info with modules in a folder of `sys.path`; core 0.1.0 is there from the start."""
    monkeypatch.delenv("CQRS_BROKERS_PIN", raising=False)
    # Our own distributions and modules are not seen: only what the test puts there.
    hidden = ("site-packages", "/packages/")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not any(part in entry for part in hidden)])
    for module in [name for name in sys.modules if name.startswith("cqrs_broker_")]:
        monkeypatch.delitem(sys.modules, module)
    before = set(sys.modules)

    def _install(
        name: str,
        version: str | None = "1.0",
        entry_points: str | bytes | None = None,
        requires: tuple[str, ...] = (),
        modules: dict[str, str] | None = None,
        folder: str = "site",
        metadata: str | bytes | None = None,
    ) -> Path:
        site = tmp_path / folder
        info = site / f"{name.replace('-', '_')}-{version or '0'}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        if metadata is None:
            lines = ["Metadata-Version: 2.1", f"Name: {name}"]
            lines += [f"Version: {version}"] if version else []
            lines += [f"Requires-Dist: {line}" for line in requires]
            metadata = "\n".join([*lines, "", "Version: this is the description"])
        (info / "METADATA").write_bytes(metadata if isinstance(metadata, bytes) else metadata.encode())
        if entry_points is not None:
            raw = entry_points if isinstance(entry_points, bytes) else entry_points.encode()
            (info / "entry_points.txt").write_bytes(raw)
        for module, source in (modules or {}).items():
            (site / f"{module}.py").write_text(source)
        if str(site) not in sys.path:
            sys.path.append(str(site))
        importlib.invalidate_caches()
        installed.cache_clear()
        return info

    _install("cqrs-brokers-core", "0.1.0")
    yield _install
    installed.cache_clear()
    for module in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]
